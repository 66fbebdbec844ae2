"""From a job to its handled event: workers, brokers that restart, and replicas that die."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery
from nodes.consume_process import ConsumeProcess
from nodes.deadline import wait_until
from nodes.local_process import LocalProcess
from nodes.redis_process import RedisProcess
from remote_shop import Shop, clean, ids_in

from celery_broadcast.errors import RelayError

if TYPE_CHECKING:
    from typing_extensions import Self

pytestmark = pytest.mark.worker

BROKERS = [
    pytest.param(broker, marks=pytest.mark.xdist_group(broker)) for broker in ("redis", "rabbitmq")
]
KEY = "a secret that only the shop has.."


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[LocalProcess]:
    """A broker that remembers when it starts again what it had confirmed."""
    if request.param == "rabbitmq":
        yield request.getfixturevalue("rabbitmq_server")
        return
    with RedisProcess("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def shop(broker: LocalProcess, redis_server: RedisProcess, tmp_path: Path) -> Iterator[Shop]:
    """An app whose events are signed, and go through another broker than its jobs."""
    url = broker.celeryconfig["url"]
    clean(url)
    config = {"broker_url": redis_server.url, "broadcast_relay_url": url}
    shop = Shop(url, tmp_path, **config, broadcast_relay_key=KEY)
    yield shop
    shop.transport.close()
    clean(url)


class Replicas:
    """Replicas of the consumer that are started again when they die."""

    def __init__(self, shop: Shop, count: int) -> None:
        self.processes: list[ConsumeProcess] = [shop.consumer() for _ in range(count)]

    def __enter__(self) -> Self:
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.teardown()

    def have_done(self, fact: Callable[[], object], timeout_seconds: float = 60.0) -> None:
        """Wait until something is true, and start again whoever dies meanwhile."""

        def look() -> bool:
            for process in self.processes:
                if process.status == "exited":
                    process.start()
            with contextlib.suppress(RelayError):  # the test's own look at the broker
                return bool(fact())
            return False

        wait_until(look, timeout_seconds, lambda: self._complaint(fact))

    def _complaint(self, fact: Callable[[], object]) -> str:
        logs = "\n\n".join(process.logs()[-5_000:] for process in self.processes)
        return f"{fact()}\n{logs}"


def test_every_event_of_every_job_is_handled_whatever_dies_and_poison_is_put_aside(
    shop: Shop, broker: LocalProcess
) -> None:
    queue = f"end-to-end-{broker.name}"
    fine = [f"ok-{number}" for number in range(40)] + [f"sleep-{number}" for number in range(2)]
    poison = {"mend-1": "raised", "die-1": "killed", "ok-forged": "refused"}
    with ExitStack() as stack:
        client = stack.enter_context(Celery(broker=shop.config["broker_url"], set_as_current=False))
        worker = stack.enter_context(shop.worker(queue))
        replicas = stack.enter_context(Replicas(shop, 2))

        def send(*task_ids: str) -> None:
            for task_id in task_ids:
                client.send_task("job_app_consume.ok", (task_id,), task_id=task_id, queue=queue)

        def forge() -> bool:
            """Do as somebody without the key."""
            shop.publish("ok-forged")
            return True

        def letters() -> dict[str, str]:
            return {ids_in(letter)[0]: letter.reason for letter in shop.letters()}

        send(*fine[20:], "mend-1")
        replicas.have_done(lambda: "sleep-1" in shop.lines("began"))
        replicas.processes[0].kill("SIGKILL")
        send("die-1", *fine[:10])
        replicas.have_done(lambda: set(fine[:10]) <= set(shop.lines("handled")))

        broker.restart()
        send(*fine[10:20])
        # Once the broker is there again.
        replicas.have_done(forge)

        replicas.have_done(lambda: set(fine) <= set(shop.lines("handled")))
        replicas.have_done(lambda: set(letters()) >= set(poison))
        assert letters() == poison
        assert all(len(ids_in(letter)) == 1 for letter in shop.letters())
        assert "ok-forged" not in shop.lines("began")

        shop.handled_file.with_name("handled.mended").touch()
        # Perhaps twice: who died may have sent it again, and not acknowledged it.
        mended = {each.letter_id for each in shop.letters() if ids_in(each) == ["mend-1"]}
        answer = shop.command("dead-letters", "replay", "pager", *mended)
        assert answer.returncode == 0, answer.stderr
        replicas.have_done(lambda: "mend-1" in shop.lines("handled"))
        assert not mended & {each.letter_id for each in shop.letters()}

        worker.kill("SIGTERM")
        assert worker.wait() == 0
        for process in replicas.processes:
            process.ready()  # one that was started again just now may not be
            process.kill("SIGTERM")
            assert process.wait() == 0
    assert set(shop.lines("handled")) == {*fine, "mend-1"}
