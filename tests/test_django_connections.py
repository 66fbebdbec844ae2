"""A consumer's thread closes its database connections as Django does around a request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django import conf, db
from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic
from django.db.utils import ConnectionHandler
from nodes.deadline import wait_until
from recorder import Recorder, make_event, numbered, subscribe
from test_fork import in_child

from celery_broadcast import django_connections, notices
from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer
from celery_broadcast.counts import ConsumerStats
from celery_broadcast.crew import Crew
from celery_broadcast.dispatcher import Delivery, Item
from celery_broadcast.events import JobEvent, JobFinished
from celery_broadcast.mailbox import Mailbox
from celery_broadcast.retry import Retry

Connections = Any  # django.db.utils.ConnectionHandler, which has no types


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    """Configure Django, with two databases of SQLite and this thread's connections to them."""
    databases = {
        alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / alias}
        for alias in ("default", "archive")
    }
    conf.settings.configure(DATABASES=databases)
    handler = ConnectionHandler(databases)
    monkeypatch.setattr(db, "connections", handler)
    monkeypatch.setattr(apps, "ready", True)  # or a database isn't to be used yet
    yield handler
    handler.close_all()
    conf.settings._wrapped = conf.empty  # what it is before it is configured


def use(connections: Connections, alias: str = "default") -> Any:
    """Connect this thread to a database, and return the connection."""
    connection = connections[alias]
    connection.ensure_connection()
    assert is_open(connection)
    return connection


def is_open(connection: Any) -> bool:
    return connection.connection is not None


def keep_connections(connections: Connections) -> None:
    """Set `CONN_MAX_AGE` to for ever, for connections that are yet to come."""
    for alias in connections:
        connections.settings[alias]["CONN_MAX_AGE"] = None


def test_django_is_used_where_it_is_configured(connections: Connections) -> None:
    assert django_connections.is_used()


def test_django_is_not_used_where_it_is_imported_only() -> None:
    assert "django.conf" in sys.modules

    assert not django_connections.is_used()


def modules_of_django(preparation: str = "", *, enabled: bool = True) -> list[str]:
    """Return which are loaded in a process after a job, whose events a consumer had."""
    program = f"""
{preparation}
import json, sys
import celery_broadcast
from celery import Celery

app = Celery("shop", broker="memory://", set_as_current=False)
app.conf.update(task_always_eager=True, broadcast_enabled={enabled})
celery_broadcast.install(app)
had = []

def job(): pass

celery_broadcast.on_job_event(name="trail")(lambda event: had.append(event))
app.task(name="job")(job).delay()
celery_broadcast.drain()
assert len(had) == {2 if enabled else 0}
found = (name for name in sys.modules if name.split(".")[0] in ("django", "asgiref"))
print(json.dumps(sorted(found)))
"""
    environment = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    found: list[str] = json.loads(answer.stdout)
    return found


def test_nothing_of_django_is_imported_where_it_is_only_installed() -> None:
    """But for what kombu imports, to encode Django's strings (kombu/utils/json.py)."""
    found = modules_of_django()

    assert found == modules_of_django(enabled=False)
    assert "django.conf" not in found


def test_no_more_of_django_is_imported_where_it_is_not_configured() -> None:
    found = modules_of_django("import django.conf")

    assert found == modules_of_django("import django.conf", enabled=False)
    assert "django.db" not in found


def test_a_django_that_is_half_imported_is_not_used_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "django.conf", type(sys)("django.conf"))

    assert not django_connections.is_used()


def test_a_connection_without_a_maximum_age_ends_with_the_delivery(
    connections: Connections,
) -> None:
    connection = use(connections)

    django_connections.close_old()

    assert not is_open(connection)


def test_a_connection_with_a_maximum_age_stays(connections: Connections) -> None:
    keep_connections(connections)
    connection = use(connections)

    django_connections.close_old()

    assert is_open(connection)


def test_a_connection_that_stays_is_checked_again_in_the_next_delivery(
    connections: Connections,
) -> None:
    """Django checks the health of one once, until it is told that a request is over."""
    keep_connections(connections)
    connections.settings["default"]["CONN_HEALTH_CHECKS"] = True
    connection = use(connections)
    connection.health_check_done = True

    django_connections.close_old()

    assert not connection.health_check_done


def test_a_broken_connection_is_closed_whatever_its_age(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_connections(connections)
    connection = use(connections)
    connection.errors_occurred = True
    monkeypatch.setattr(connection, "is_usable", lambda: False)

    django_connections.close_old()

    assert not is_open(connection)


def test_in_the_end_every_connection_is_closed_whatever_its_age(connections: Connections) -> None:
    keep_connections(connections)
    used = [use(connections, alias) for alias in connections]

    django_connections.close_all()

    assert [is_open(connection) for connection in used] == [False, False]


def test_nothing_is_connected_only_to_be_closed(connections: Connections) -> None:
    django_connections.close_old()
    django_connections.close_all()

    assert connections.all(initialized_only=True) == []


def test_the_connections_of_other_threads_are_left_alone(connections: Connections) -> None:
    """Such as that of a test of Django's, which is inside of a transaction."""
    connection = use(connections)

    on_another_thread(django_connections.close_old)
    on_another_thread(django_connections.close_all)

    assert is_open(connection)


def on_another_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("close", "method"),
    [
        (django_connections.close_old, "close_if_unusable_or_obsolete"),
        (django_connections.close_all, "close"),
    ],
)
def test_a_database_that_cannot_be_closed_is_logged_and_the_others_are_closed(
    connections: Connections,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    close: Callable[[], None],
    method: str,
) -> None:
    def fails() -> None:
        raise OSError("the database is down")

    broken, other = use(connections), use(connections, "archive")
    with monkeypatch.context() as patch:
        patch.setattr(broken, method, fails)
        close()

    assert not is_open(other)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "could not close the connection to database 'default'; the consumer goes on"
    )
    assert record.exc_info is not None


class Clerk(Consumer):
    """Uses both databases for all that it does, and tells whether its connections were open."""

    def __init__(self, connections: Connections) -> None:
        self.open: list[tuple[str, bool]] = []
        self.used: list[Any] = []
        self._connections = connections

    def setup(self) -> None:
        self._use("setup")

    def handle(self, event: JobEvent) -> None:
        self._use("handle")

    def teardown(self) -> None:
        self._use("teardown")

    def _use(self, call: str) -> None:
        opened = self._connections.all(initialized_only=True)
        self.open.append((call, any(is_open(connection) for connection in opened)))
        self.used = [use(self._connections, alias) for alias in self._connections]


def run_to_the_end(consumer: Consumer | Callable[[Any], None], **options: Any) -> ConsumerStats:
    """Have a consumer handle two events on its own thread, and end."""
    mailbox: Mailbox[Item] = Mailbox(size=100)
    for event in numbered(2):
        mailbox.put(Delivery(event, frozenset()))
    crew = Crew(subscribe(consumer, "clerk", **options), mailbox)
    crew.start()
    crew.stop()
    crew.finish(deadline=time.monotonic() + 10.0)
    assert crew.has_ended()
    return mailbox.stats()


def test_a_consumer_has_connections_of_its_own_for_each_delivery(connections: Connections) -> None:
    clerk = Clerk(connections)

    run_to_the_end(clerk)

    assert clerk.open == [
        ("setup", False),
        ("handle", False),
        ("handle", False),
        ("teardown", False),
    ]


def test_a_consumer_keeps_connections_that_may_be_kept_until_its_teardown(
    connections: Connections,
) -> None:
    keep_connections(connections)
    clerk = Clerk(connections)

    run_to_the_end(clerk)

    assert clerk.open[1:] == [("handle", True), ("handle", True), ("teardown", True)]
    assert [is_open(connection) for connection in clerk.used] == [False, False]


def test_what_a_selector_connects_is_closed_too(connections: Connections) -> None:
    used: list[Any] = []

    def declines(_: JobEvent) -> bool:
        assert not any(is_open(connection) for connection in used)
        used.append(use(connections))
        return False

    assert run_to_the_end(Recorder(), selector=declines).declined == 2
    assert not is_open(used[-1])


def test_a_consumer_that_raises_gets_its_next_event_with_new_connections(
    connections: Connections,
) -> None:
    class Raises(Clerk):
        def handle(self, event: JobEvent) -> None:
            super().handle(event)
            raise OSError("no")

    clerk = Raises(connections)

    assert run_to_the_end(clerk).failed == 2
    assert not any(was_open for _, was_open in clerk.open)


def test_a_consumer_whose_setup_raises_leaves_no_connection(connections: Connections) -> None:
    keep_connections(connections)

    class NotReadyYet(Clerk):
        def setup(self) -> None:
            super().setup()
            if len(self.open) == 1:
                raise OSError("not yet")

    clerk = NotReadyYet(connections)

    run_to_the_end(clerk)

    assert clerk.open[:2] == [("setup", False), ("setup", False)]


def test_a_consumer_that_configures_django_in_its_setup_has_it_from_then_on(
    connections: Connections,
) -> None:
    configured, conf.settings._wrapped = conf.settings._wrapped, conf.empty

    class Configures(Clerk):
        def setup(self) -> None:
            conf.settings._wrapped = configured
            super().setup()

    clerk = Configures(connections)

    run_to_the_end(clerk)

    assert not any(was_open for _, was_open in clerk.open)


def test_a_connection_that_cannot_be_closed_fails_no_delivery(
    connections: Connections, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: Any) -> None:
        raise OSError("the database is down")

    monkeypatch.setattr(BaseDatabaseWrapper, "close_if_unusable_or_obsolete", fails)

    assert run_to_the_end(Clerk(connections)).handled == 2
    assert "could not close the connection to database 'archive'" in caplog.text


def test_a_consumer_on_anothers_thread_leaves_its_connections_alone(
    connections: Connections,
) -> None:
    """As a test of Django's has it, which is inside of a transaction."""
    connection = use(connections)
    mailbox: Mailbox[Item] = Mailbox(size=100)
    mailbox.put(Delivery(make_event(JobFinished), frozenset()))
    crew = Crew(subscribe(Recorder(), "store"), mailbox)

    with atomic():
        crew.stop()
        crew.finish(deadline=time.monotonic() + 10.0)  # here and now: it was never started

        assert mailbox.stats().handled == 1
        assert is_open(connection)
        assert not connection.needs_rollback


def test_a_try_after_a_broken_connection_has_a_new_one(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_connections(connections)
    tried: list[bool] = []

    class TriesAgain(Recorder):
        def handle(self, event: JobEvent) -> None:
            connection = connections["default"]
            tried.append(is_open(connection))
            use(connections)
            if len(tried) == 1:
                connection.errors_occurred = True
                monkeypatch.setattr(connection, "is_usable", lambda: False)
                raise OSError("the server has gone")

    assert run_to_the_end(TriesAgain(), retry=Retry(attempts=2)).handled == 2
    assert tried == [False, False, True]


def test_a_selector_leaves_no_connection_to_a_batch(connections: Connections) -> None:
    used: list[Any] = []

    def connects(event: JobEvent) -> bool:
        assert not any(is_open(connection) for connection in used)
        used.append(use(connections))
        return True

    def handle(events: list[JobEvent]) -> None:
        assert events == numbered(2)
        assert not any(is_open(connection) for connection in used)

    assert run_to_the_end(handle, selector=connects, batch=Batch(max_events=2)).handled == 2


def test_what_partition_by_connects_is_closed_even_if_it_raises(connections: Connections) -> None:
    used: list[Any] = []
    were_open: list[bool] = []

    def connects(event: JobEvent) -> str:
        were_open.append(any(is_open(connection) for connection in used))
        used.append(use(connections))
        raise OSError("no")

    assert run_to_the_end(Recorder(), partition_by=connects, concurrency=2).failed == 2
    assert were_open == [False, False]
    assert not any(is_open(connection) for connection in used)


def test_a_setup_leaves_no_connection_to_the_wait_for_the_first_event(
    connections: Connections,
) -> None:
    clerk = Clerk(connections)
    after_setup: list[bool] = []

    def look(_: str) -> None:
        after_setup.extend(is_open(connection) for connection in clerk.used)

    with notices.consumer_started.connected_to(look):
        run_to_the_end(clerk)

    assert after_setup == [False, False]


def test_a_connection_that_has_grown_too_old_is_not_there_in_the_teardown(
    connections: Connections,
) -> None:
    keep_connections(connections)
    clerk = Clerk(connections)
    mailbox: Mailbox[Item] = Mailbox(size=100)
    mailbox.put(Delivery(make_event(JobFinished), frozenset()))
    crew = Crew(subscribe(clerk, "clerk"), mailbox)
    crew.start()
    wait_until(lambda: mailbox.stats().handled)

    for connection in clerk.used:
        connection.close_at = 0.0
    crew.stop()
    crew.finish(deadline=time.monotonic() + 10.0)

    assert clerk.open == [("setup", False), ("handle", True), ("teardown", False)]


class AsyncClerk(Consumer):
    """Uses a database for all that it does, as Django's asynchronous ORM does it."""

    def __init__(self, connections: Connections) -> None:
        self.used: list[Any] = []
        self.threads: list[threading.Thread] = []
        self._connections = connections

    async def setup(self) -> None:
        await self._use()

    async def handle(self, event: JobEvent) -> None:
        await self._use()

    async def teardown(self) -> None:
        await self._use()

    async def _use(self) -> None:
        connection = await sync_to_async(use)(self._connections)
        assert is_open(connection)
        self.used.append(connection)
        self.threads.append(await sync_to_async(threading.current_thread)())


def test_each_call_of_a_coroutine_has_a_thread_of_its_own_for_the_orm_and_leaves_nothing(
    connections: Connections,
) -> None:
    keep_connections(connections)
    clerk = AsyncClerk(connections)

    assert run_to_the_end(clerk).handled == 2

    assert len(set(clerk.threads)) == len(clerk.used) == 4
    assert not any(is_open(connection) for connection in clerk.used)
    assert not any(thread.is_alive() for thread in clerk.threads)


def test_the_end_of_a_coroutines_call_leaves_the_connections_of_the_others(
    connections: Connections,
) -> None:
    is_connected, other_is_over = asyncio.Event(), asyncio.Event()

    class Two(Consumer):
        async def handle(self, event: JobEvent) -> None:
            if event.task_id == "0":
                connection = await sync_to_async(use)(connections)
                is_connected.set()
                await other_is_over.wait()
                assert is_open(connection)
            else:
                await is_connected.wait()
                await sync_to_async(use)(connections)
                asyncio.get_running_loop().call_later(0.05, other_is_over.set)

    assert run_to_the_end(Two(), concurrency=2).handled == 2


def test_a_coroutine_that_raises_leaves_no_connection(connections: Connections) -> None:
    class Raises(AsyncClerk):
        async def handle(self, event: JobEvent) -> None:
            await super().handle(event)
            raise OSError("no")

    clerk = Raises(connections)

    assert run_to_the_end(clerk).failed == 2
    assert not any(is_open(connection) for connection in clerk.used)


def test_a_coroutine_that_does_not_use_a_database_gets_no_thread_for_it(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Waits(Consumer):
        async def handle(self, event: JobEvent) -> None:
            await asyncio.sleep(0)

    monkeypatch.setattr("asgiref.sync.ThreadPoolExecutor", None)

    assert run_to_the_end(Waits()).handled == 2


def test_in_a_forked_child_a_coroutine_does_not_wait_for_the_parents_thread(
    connections: Connections,
) -> None:
    async def pid() -> int:
        return await sync_to_async(os.getpid)()

    def child() -> Any:
        signal.alarm(10)  # rather than to wait for ever
        clerk = AsyncClerk(connections)
        return run_to_the_end(clerk).handled

    asyncio.run(pid())  # on the one thread that is shared, and isn't forked

    assert in_child(child) == 2
