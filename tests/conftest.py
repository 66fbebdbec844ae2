"""What every test gets: a clean process before, and proof of one after."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import settings
from nodes.deadline import wait_until

import celery_broadcast
from celery_broadcast.producer import Producer
from celery_broadcast.settings import Settings
from celery_broadcast.subscription import Registry, Subscription, registry

# How long an example takes is the machine's affair.
settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")

# Where the benchmarks are; last, so that what is tested is the installed package.
sys.path.append(str(Path(__file__).parents[1]))

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would do whatever
# they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Have one process more than there are processors for tests that mostly wait for others."""
    return (os.cpu_count() or 1) + 1 if config.option.markexpr == "worker" else None


@pytest.fixture(autouse=True)
def clean_registry() -> Iterator[None]:
    """Give each test a registry of its own: consumers of other modules don't take part."""
    before = registry.subscriptions
    registry.clear()
    yield
    registry.subscriptions = before


@pytest.fixture(autouse=True)
def no_swallowed_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if Celery, or our own border to it, has swallowed an error of ours."""
    yield
    swallowed = [
        record.getMessage()
        for when in ("setup", "call")
        for record in caplog.get_records(when)
        if record.name in {"celery.utils.dispatch.signal", "celery_broadcast.bridge"}
        and record.levelname == "ERROR"
    ]
    assert not swallowed, f"an error of the bridge was swallowed: {swallowed[0]}"


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail if a test leaves a thread of the broadcast behind."""
    yield
    wait_until(lambda: not broadcast_threads(), failure=lambda: f"{broadcast_threads()}")


def broadcast_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("broadcast")]


@pytest.fixture
def make_producer() -> Iterator[Callable[..., Producer]]:
    """Make producers with these subscriptions, stopped at the end of the test."""
    made: list[Producer] = []

    def make(*subscriptions: Subscription, inbox_size: int = 100_000, **settings: Any) -> Producer:
        own_registry = Registry()
        own_registry.subscriptions = subscriptions
        settings.setdefault("drain_timeout", 10.0)
        producer = Producer(Settings(**settings), own_registry, inbox_size=inbox_size)
        made.append(producer)
        return producer

    yield make
    for producer in made:
        producer.drain()


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app whose jobs run in the test's own thread; not installed yet."""
    app = Celery("tests", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = True
    app.conf.broadcast_drain_timeout = 10.0
    yield app
    celery_broadcast.uninstall(app)


@pytest.fixture
def broadcasting_app(app: Celery) -> Celery:
    """An app whose jobs are broadcast."""
    app.conf.broadcast_enabled = True
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled  # this is what makes Celery read the configuration
    return app


@pytest.fixture
def broadcast_is_on() -> Iterator[None]:
    """Have a broadcast without an app, which takes what the test publishes; drained after it."""
    with celery_broadcast.broadcasting():
        yield
