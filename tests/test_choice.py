from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from recorder import make_event
from test_installation import python

import celery_broadcast
from celery_broadcast import testing
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import JobEvent, JobFailed
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.rabbitmq import RabbitMQ
from celery_broadcast.relay.redis_streams import RedisStreams
from celery_broadcast.relay.signing import Verifier
from celery_broadcast.settings import load
from celery_broadcast.subscription import registry

KEY = "k" * 32


@pytest.fixture
def choose() -> Iterator[Callable[..., Choice]]:
    apps: list[Celery] = []

    def choice(broker: Any = "memory://", **conf: Any) -> Choice:
        app = Celery("shop", broker=broker, set_as_current=False)
        app.conf.update(conf)
        apps.append(app)
        return Choice(weakref.ref(app), load(app.conf, {}))

    yield choice
    for app in apps:
        app.close()


REDIS = ("redis://h/1", "rediss://h/1", "redis+socket:///tmp/r.sock", "redis://a;redis://b")
RABBITMQ = ("amqp://u:p@h//", "amqps://h//", "pyamqp://h/v", "amqp://a;amqp://b")


@pytest.mark.parametrize("url", [*REDIS, *RABBITMQ])
def test_the_url_of_the_broker_says_which_it_is(url: str, choose: Callable[..., Choice]) -> None:
    kind = RedisStreams if url in REDIS else RabbitMQ

    assert isinstance(choose(url).new_transport(), kind)
    assert isinstance(choose(broadcast_relay_url=url).new_transport(), kind)
    assert isinstance(choose(url.split(";")).new_transport(), kind)


@pytest.mark.parametrize("url", ["amqp://h:56x//", "amqp://h:99999//", "amqp://u:se/cret@h//"])
def test_a_url_that_cant_be_read_is_an_error_before_any_event(
    url: str, choose: Callable[..., Choice]
) -> None:
    with pytest.raises(ConfigurationError, match=r"relay_url has an amqp:.*as %2F") as caught:
        choose(broadcast_relay_url=f"amqp://h;{url}").check()

    assert "'se'" not in str(caught.value)


def test_a_sentinel_is_a_redis(choose: Callable[..., Choice]) -> None:
    choice = choose("sentinel://h:26379", broker_transport_options={"master_name": "mymaster"})

    assert isinstance(choice.new_transport(), RedisStreams)


NO_CERTIFICATE = {"ssl_cert_reqs": "none"}


@pytest.mark.parametrize(("broker", "tls"), [("amqps://h", None), ("rediss://h", NO_CERTIFICATE)])
def test_what_the_app_says_of_the_tls_of_another_kind_of_broker_is_not_meant_here(
    broker: str, tls: dict[str, str] | None, choose: Callable[..., Choice]
) -> None:
    choice = choose(broker, broker_use_ssl=NO_CERTIFICATE, broadcast_relay_url="redis://h")

    transport = choice.new_transport()

    assert isinstance(transport, RedisStreams)
    assert transport._servers._addresses[0].tls == tls


def test_without_any_broker_it_is_celerys_own_default(choose: Callable[..., Choice]) -> None:
    assert isinstance(choose(None).new_transport(), RabbitMQ)


@pytest.mark.parametrize(
    ("conf", "named"),
    [
        ({"broker": "sqs://k:hush@h"}, "sqs:// (the app's broker_url)"),
        ({"broadcast_relay_url": "kafka://u:hush@h"}, "kafka:// (broadcast_relay_url)"),
        ({"broker": "redis://a;amqp://:hush@b"}, "amqp:// and redis:// (the app's broker_url)"),
        ({}, "memory:// (the app's broker_url)"),
    ],
)
def test_any_other_broker_is_an_error_that_names_the_two(
    conf: dict[str, str], named: str, choose: Callable[..., Choice]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose(**conf).check()

    assert str(caught.value) == (
        f"The relay can't go through {named}: events go to remote consumers through Redis "
        "(redis://, rediss://, sentinel://, redis+socket://) or RabbitMQ (amqp://, amqps://). "
        "Set broadcast_relay_url to one of those."
    )


def test_without_redis_py_it_is_an_error_that_names_what_to_install(
    choose: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("celery_broadcast.relay.redis_")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ConfigurationError, match=r'pip install "celery-broadcast\[redis\]"'):
        choose("redis://h").check()


def test_the_settings_bound_the_relay(choose: Callable[..., Choice]) -> None:
    limits = choose(
        broadcast_relay_max_bytes=2**20, broadcast_relay_ttl=60, broadcast_relay_lease=5
    ).limits()

    assert (limits.max_bytes, limits.ttl, limits.lease) == (2**20, 60.0, 5.0)


def test_parcels_are_signed_if_there_is_a_key(choose: Callable[..., Choice]) -> None:
    signed = choose(broadcast_relay_key=KEY).new_writer().parcels([make_event(JobFailed)], "text")
    unsigned = choose().new_writer().parcels([make_event(JobFailed)], "text")

    assert Verifier(KEY, 60.0).refusal(signed[0]) == ""
    assert [parcel.signature for parcel in unsigned] == [""]


def test_each_writer_has_an_id_of_its_own(choose: Callable[..., Choice]) -> None:
    choice = choose()
    first, second = (
        choice.new_writer().parcels([make_event(JobFailed)], "text")[0].body for _ in range(2)
    )

    assert first != second


def hide(event: JobEvent) -> JobEvent | None:
    return None if event.task_name == "shop.secret" else event


NOT_A_FUNCTION = 5


def test_the_users_function_sees_each_event_before_it_leaves(
    choose: Callable[..., Choice],
) -> None:
    choice = choose("redis://h", broadcast_redact=f"{__name__}.hide")
    choice.check()
    events = [make_event(JobFailed, "shop.secret"), make_event(JobFailed, "shop.charge")]

    parcels = choice.new_writer().parcels(events, "text")

    assert [parcel.task_name for parcel in parcels] == ["shop.charge"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such.module.redact", "broadcast_redact='no_such.module.redact': no_such.module can't"),
        ("no_such_module.redact", "there is no module no_such_module."),
        (f"{__name__}.no_such_function", "can't be loaded (AttributeError"),
        (f"{__name__}.NOT_A_FUNCTION", "is a int, which can't be called."),
    ],
)
def test_a_function_that_isnt_there_is_an_error_before_any_event(
    path: str, message: str, choose: Callable[..., Choice]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose("redis://h", broadcast_redact=path).check()

    assert message in str(caught.value)


def test_a_function_whose_module_is_being_imported_is_not_missed(
    choose: Callable[..., Choice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "privacy_of_shop.py").write_text(
        "import builtins\nbuiltins.check_in_import()\ndef redact(event): return event\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    choice = choose("redis://h", broadcast_redact="privacy_of_shop.redact")
    monkeypatch.setattr("builtins.check_in_import", choice.check, raising=False)

    choice.new_writer()

    assert sys.modules.pop("privacy_of_shop")


# In an app.


@pytest.fixture
def relaying_app(app: Celery) -> Celery:
    """An app whose broadcast is on, and whose relay has a broker that isn't there."""
    app.conf.update(broadcast_enabled=True, broadcast_relay_url="redis://127.0.0.1:1")
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled
    return app


def test_a_remote_consumer_of_an_app_whose_broker_cant_is_an_error_where_it_is_declared(
    broadcasting_app: Celery,
) -> None:
    with pytest.raises(ConfigurationError, match="The relay can't go through memory://"):

        @celery_broadcast.on_job_event(remote=True)
        def pager(event: JobEvent) -> None: ...

    assert registry.subscriptions == ()


def test_an_app_whose_broker_cant_is_an_error_where_it_is_installed(app: Celery) -> None:
    @celery_broadcast.on_job_event(remote=True)
    def pager(event: JobEvent) -> None: ...

    assert app.conf.task_always_eager  # which has it read its configuration
    app.conf.broadcast_enabled = True

    with pytest.raises(ConfigurationError, match="The relay can't go through memory://"):
        celery_broadcast.install(app)


def test_a_process_without_remote_consumers_loads_nothing_of_the_relay() -> None:
    loaded = python(
        """
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        app.conf.update(task_always_eager=True, broadcast_enabled=True)
        import celery_broadcast.plugin
        from celery_broadcast import drain, on_job_event

        @on_job_event
        def trail(event): ...

        @app.task
        def job(): ...

        job.delay()
        drain()
        print([name for name in sys.modules if name.startswith("celery_broadcast.re")])
        """
    )

    assert "relay" not in loaded
    assert "receipt" not in loaded


def test_with_the_flag_off_a_remote_consumer_loads_nothing_of_the_relay() -> None:
    loaded = python(
        """
        import sys
        from celery import Celery
        app = Celery(broker="memory://")
        import celery_broadcast.plugin
        from celery_broadcast import on_job_event

        @on_job_event(remote=True)
        def trail(event): ...

        assert not app.conf.task_always_eager  # which has it read its configuration
        print([name for name in sys.modules if name.startswith("celery_broadcast.re")])
        """
    )

    assert "relay" not in loaded


def test_in_a_block_for_tests_a_remote_consumer_runs_without_a_broker(
    relaying_app: Celery,
) -> None:
    seen: list[JobEvent] = []

    with testing.broadcast() as broadcast:

        @celery_broadcast.on_job_event(JobFailed, remote=True)
        def pager(event: JobFailed) -> None:
            seen.append(event)

        celery_broadcast.notify(make_event(JobFailed))
        broadcast.drain()

        assert "relay" not in broadcast.stats()
    assert len(seen) == 1


def test_an_app_sends_with_its_own_settings(
    relaying_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @celery_broadcast.on_job_event(JobFailed, remote=True)
    def pager(event: JobFailed) -> None: ...

    celery_broadcast.notify(make_event(JobFailed))
    drained = celery_broadcast.drain(0.3)

    assert drained.left == 1
    assert "relay can't send to remote consumers (Redis at redis://127.0.0.1:1" in caplog.text
