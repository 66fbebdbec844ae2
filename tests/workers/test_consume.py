"""Remote consumers in real processes, on real brokers: poison, murder, and the end."""

from __future__ import annotations

import json
import pickle
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nodes.deadline import wait_until
from remote_shop import PAGER, Shop, clean, ids_in

from celery_broadcast.relay.signing import Signer
from celery_broadcast.relay.transport import Parcel

pytestmark = pytest.mark.worker

BROKERS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker)) for broker in ("redis", "rabbitmq")
]


@pytest.fixture(params=BROKERS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """An app whose broker has nothing of another test."""
    server = request.getfixturevalue(f"{request.param}_server")
    # Redis has 16 databases, of which the other tests use the first.
    url = f"{server.url.rpartition('/')[0]}/9" if request.param == "redis" else server.url
    clean(url)
    shop = Shop(url, tmp_path)
    yield shop
    shop.transport.close()
    clean(url)


def test_an_event_that_is_raised_on_too_often_lands_in_the_dead_letters_alone(shop: Shop) -> None:
    shop.publish("ok-1", "raise-2", "ok-3")

    with shop.consumer():
        wait_until(shop.letters)

    (letter,) = shop.letters()
    assert ids_in(letter) == ["raise-2"]
    assert (letter.reason, letter.deliveries) == ("raised", 3)
    assert "ValueError: raise-2" in letter.error
    assert Counter(shop.lines("began")) == {"ok-1": 1, "raise-2": 3, "ok-3": 1}
    assert len(set(shop.event_ids("raise-2"))) == 1
    assert sorted(shop.lines("handled")) == ["ok-1", "ok-3"]


def test_an_event_that_kills_its_process_lands_there_alone_and_its_neighbours_are_handled(
    shop: Shop,
) -> None:
    shop.publish("ok-1", "die-2", "ok-3")
    deaths = 0

    def is_all_done() -> bool:
        return bool(shop.letters()) and {"ok-1", "ok-3"} <= set(shop.lines("handled"))

    while not is_all_done():
        assert deaths < 8
        consumer = shop.consumer()
        try:
            consumer.start()  # it may die before it is ready
            wait_until(lambda: consumer.status == "exited" or is_all_done())  # noqa: B023
            deaths += consumer.status == "exited"
        finally:
            consumer.teardown()

    (letter,) = shop.letters()
    assert ids_in(letter) == ["die-2"]
    assert (letter.reason, letter.deliveries) == ("killed", 3)
    assert {"ok-1", "ok-3"} == set(shop.lines("handled"))


def test_what_a_consumer_prints_is_seen_at_once_though_nobody_is_at_a_terminal(shop: Shop) -> None:
    shop.publish("print-1")

    with shop.consumer() as consumer:
        wait_until(lambda: "printed print-1\n" in consumer.logs(), failure=consumer.logs)


def test_check_asks_the_broker_and_writes_no_control_codes_into_a_pipe(shop: Shop) -> None:
    checked = shop.command("check")

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "relay's broker: reachable" in checked.stdout
    assert "\x1b" not in checked.stdout
    assert all(len(line) <= 80 for line in checked.stdout.splitlines())


def test_check_says_that_no_broker_answers(shop: Shop) -> None:
    scheme = shop.config["broker_url"].partition("://")[0]
    shop.config["broadcast_relay_url"] = f"{scheme}://user:hunter2@127.0.0.1:1//"

    checked = shop.command("check")

    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "relay's broker: not reachable" in checked.stdout
    assert "hunter2" not in checked.stdout + checked.stderr


def with_body(parcel: Parcel, body: bytes) -> Parcel:
    return msgspec.structs.replace(parcel, body=body)


def test_whatever_a_stranger_writes_is_put_aside_and_the_consumer_goes_on(shop: Shop) -> None:
    good = shop.parcel("never-1")
    later = good.body.replace(b'"schemaversion":"1.', b'"schemaversion":"2.')
    parcels = {
        "rubbish": with_body(good, b"\xff rubbish"),
        "cut off": with_body(good, good.body[:-20]),
        "nothing": with_body(good, b""),
        "no event": with_body(good, b"[]"),
        "deep": with_body(good, b"[" * 200_000),
        "deep inside": with_body(
            good, good.body.replace(b'"data":{', b'"data":{"x":' + b"[" * 200_000 + b",")
        ),
        "huge": with_body(good, b"[" + b" " * 3 * 1024 * 1024 + b"]"),
        "too many": with_body(good, b"[" + b"0," * 100_000 + b"0]"),
        "of a later version": with_body(good, later),
        "pickled": with_body(good, pickle.dumps(print)),
        "compressed": with_body(good, zlib.compress(good.body)),
        "of another task": msgspec.structs.replace(good, task_name="shop.other"),
    }
    foreign: dict[str, tuple[bytes, dict[str, str]]] = {
        "foreign": (b"hello", {}),
        "compressed, it says": (good.body, {"compression": "application/x-gzip"}),
        "a task of Celery's": (b"[[], {}, {}]", {"task": "shop.charge", "id": "1"}),
    }
    with shop.consumer() as consumer:
        for parcel in parcels.values():
            shop.transport.publish([parcel])
        for body, labels in foreign.values():
            shop.write(body, **labels)
        shop.publish("ok-1")

        wait_until(lambda: len(shop.letters()) >= len(parcels) + len(foreign))
        wait_until(lambda: shop.lines("handled") == ["ok-1"])
        assert consumer.status == "running"

    assert Counter(letter.reason for letter in shop.letters()) == {
        "refused": len(parcels) + len(foreign)
    }
    assert shop.lines("began") == ["ok-1"]
    listed = shop.command("dead-letters", "list", "pager", "--json")
    assert len(json.loads(listed.stdout)) == len(parcels) + len(foreign)
    purged = shop.command("dead-letters", "purge", "pager", "--force")
    assert purged.returncode == 0, purged.stderr
    assert shop.letters() == []


def test_what_is_not_signed_or_signed_by_another_or_sent_again_is_not_handled(shop: Shop) -> None:
    key, another = "k" * 32, "a" * 32
    shop.config["broadcast_relay_key"] = key
    real = Signer(key).sign(shop.parcel("ok-1"))
    long_ago = Signer(key, clock=lambda: time.time() - 8 * 86_400.0)
    with shop.consumer():
        shop.transport.publish(
            [shop.parcel("never-1"), Signer(another).sign(shop.parcel("never-2"))]
        )
        shop.transport.publish([with_body(real, shop.parcel("never-3").body)])
        shop.transport.publish([long_ago.sign(shop.parcel("never-4"))])
        shop.transport.publish([real])
        wait_until(lambda: shop.lines("handled") == ["ok-1"])
        shop.transport.publish([real])  # a replay
        shop.transport.publish([Signer(key).sign(shop.parcel("ok-2"))])
        wait_until(lambda: "ok-2" in shop.lines("handled"))
        wait_until(lambda: len(shop.letters()) == 4)

    assert shop.lines("began") == ["ok-1", "ok-2"]
    assert {letter.reason for letter in shop.letters()} == {"refused"}
    put_aside = sorted(task_id for letter in shop.letters() for task_id in ids_in(letter))
    assert put_aside == ["never-1", "never-2", "never-3", "never-4"]


def test_a_replica_that_is_killed_loses_nothing(shop: Shop) -> None:
    with shop.consumer() as victim, shop.consumer() as other:
        ids = [f"sleep-{number}" for number in range(4)]
        for task_id in ids:
            shop.publish(task_id)
        wait_until(lambda: len(shop.lines("began")) >= 2)
        victim.kill("SIGKILL")

        wait_until(lambda: set(shop.lines("handled")) == set(ids))
        assert other.status == "running"

    assert shop.letters() == []
    assert all(len(set(shop.event_ids(task_id))) == 1 for task_id in ids)  # each is known again


def test_an_event_has_the_same_id_on_every_delivery_and_when_it_is_replayed(shop: Shop) -> None:
    shop.publish("mend-1", "ok-2")
    with shop.consumer():
        wait_until(shop.letters)
    (letter,) = shop.letters()
    shop.handled_file.with_name("handled.mended").touch()
    shop.command("dead-letters", "replay", "pager")
    with shop.consumer():
        wait_until(lambda: "mend-1" in shop.lines("handled"))

    (event,) = json.loads(letter.parcel.body)
    assert shop.event_ids("mend-1") == [event["id"]] * 4


def test_a_handler_may_take_longer_than_the_lease(shop: Shop) -> None:
    shop.config["broadcast_relay_lease"] = 3.0  # the handler takes four seconds
    with shop.consumer(), shop.consumer():
        shop.publish("slow-1")
        wait_until(lambda: shop.lines("handled"))

    assert shop.lines("began") == ["slow-1"]


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_the_first_ctrl_c_has_what_is_in_hand_handled(shop: Shop, signal: str) -> None:
    with shop.consumer() as consumer:
        assert consumer.ready_file.read_text().strip().isdigit()
        shop.publish("sleep-1", "ok-2")
        wait_until(lambda: shop.lines("began"))
        consumer.kill(signal)

        assert consumer.wait() == 0
        assert not consumer.ready_file.exists()

    assert shop.lines("handled") == ["sleep-1", "ok-2"]


def test_what_is_not_handled_in_time_goes_to_another_at_once(shop: Shop) -> None:
    shop.config["broadcast_drain_timeout"] = 0.2
    shop.config["broadcast_relay_lease"] = 600.0
    with shop.consumer() as consumer:
        shop.publish("sleep-1", "ok-2")
        wait_until(lambda: shop.lines("began"))
        consumer.kill("SIGTERM")
        assert consumer.wait() == 0

    shop.config["broadcast_drain_timeout"] = 10.0
    with shop.consumer():
        wait_until(lambda: set(shop.lines("handled")) == {"sleep-1", "ok-2"})


def test_the_second_ctrl_c_does_not_wait(shop: Shop) -> None:
    shop.config["broadcast_drain_timeout"] = 50.0
    with shop.consumer() as consumer:
        shop.publish("hang-1")
        wait_until(lambda: shop.lines("began"))
        consumer.kill("SIGINT")
        wait_until(lambda: "handles what is in hand" in consumer.logs())
        consumer.kill("SIGINT")

        assert consumer.wait() == 130


def test_the_process_ends_with_a_code_when_a_consumer_gives_up(shop: Shop) -> None:
    with shop.consumer("quitter") as consumer:
        for number in range(5):
            shop.publish(f"ok-{number}")

        assert consumer.wait() == 1
        assert "quitter gave up" in consumer.logs()


def test_the_commands_show_replay_and_purge_dead_letters(shop: Shop) -> None:
    shop.publish("raise-1", "raise-2")
    with shop.consumer() as consumer:
        wait_until(lambda: len(shop.letters()) == 2)
        consumer.kill("SIGTERM")  # killed, it may not have acknowledged the last one
        assert consumer.wait() == 0

    listed = json.loads(shop.command("dead-letters", "list", "pager", "--json").stdout)
    assert {letter["events"][0]["taskid"] for letter in listed} == {"raise-1", "raise-2"}
    shown = shop.command("dead-letters", "show", "pager", listed[0]["id"])
    assert "ValueError: raise-" in shown.stdout
    assert shop.command("dead-letters", "show", "pager", "no-such").returncode == 1
    assert shop.command("dead-letters", "list", "nobody").returncode == 2

    replayed = shop.command("dead-letters", "replay", "pager", listed[0]["id"])
    assert "1 dead letter was sent to pager again" in replayed.stdout
    before = len(shop.lines("began"))
    with shop.consumer():
        wait_until(lambda: len(shop.letters()) == 2)
    assert len(shop.lines("began")) == before + 3

    purged = shop.command("dead-letters", "purge", "pager", "--force")
    assert "2 dead letters were thrown away" in purged.stdout
    assert shop.letters() == []


def test_batches_coroutines_and_retries_are_what_they_are_in_a_worker(shop: Shop) -> None:
    with shop.consumer("batcher", "coroutine"):
        shop.publish(*(f"ok-{number}" for number in range(4)))

        wait_until(lambda: len(shop.lines("together")) == 4)
        wait_until(lambda: len(shop.lines("batched-4")) == 4)


def test_a_group_is_declared_ahead_and_then_misses_nothing(shop: Shop) -> None:
    answer = shop.command("declare")
    assert answer.returncode == 0, answer.stderr
    assert "quitter: JobFinished of every task" in answer.stdout
    shop.publish("ok-1")

    with shop.consumer():
        wait_until(lambda: shop.lines("handled") == ["ok-1"])


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        ({}, ["nobody"], "There is no consumer named 'nobody'. Remote ones are: pager, quitter, "),
        ({}, ["local"], "isn't remote"),
        ({"broadcast_enabled": False}, ["pager"], "The broadcast is off"),
        ({"broker_url": "memory://"}, ["pager"], "can't go through"),
    ],
)
def test_what_cannot_be_consumed_is_said_at_once(
    shop: Shop, change: dict[str, Any], names: list[str], message: str
) -> None:
    shop.config |= change

    answer = shop.command("consume", *names)

    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr


def test_the_broker_knows_how_many_replicas_there_are(shop: Shop) -> None:
    shop.config["broadcast_relay_lease"] = 30.0  # or a slow one is taken for gone
    with shop.consumer():
        shop.publish("ok-1")
        wait_until(lambda: shop.lines("handled"))
        assert shop.transport.replicas(PAGER) == 1
        with shop.consumer():
            shop.publish("sleep-2")
            shop.publish("sleep-3")
            wait_until(lambda: len(shop.lines("handled")) == 3)
            assert shop.transport.replicas(PAGER) == 2


def test_what_is_replayed_to_another_replica_is_no_begin_from_which_others_are_missed(
    shop: Shop,
) -> None:
    shop.publish("mend-1")
    with shop.consumer():
        wait_until(shop.letters)
        shop.publish("ok-2")
        wait_until(lambda: shop.lines("handled") == ["ok-2"])
    shop.handled_file.with_name("handled.mended").touch()
    shop.command("dead-letters", "replay", "pager")
    with shop.consumer() as consumer:
        wait_until(lambda: "mend-1" in shop.lines("handled"))
        shop.publish("ok-3")
        wait_until(lambda: "ok-3" in shop.lines("handled"))
        assert "has not got" not in consumer.logs()


def test_an_event_that_never_arrives_is_missed(shop: Shop) -> None:
    with shop.consumer() as consumer:
        shop.publish("ok-1")
        wait_until(lambda: len(shop.lines("handled")) == 1)
        shop.lose("ok-2")
        shop.publish("ok-3")

        wait_until(lambda: "has not got 1 events" in consumer.logs())
