"""Real forks, while other threads write to a log."""

from __future__ import annotations

import io
import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_broadcast import quiet_logs

quiet_logs.keep_logs_quiet_in_forks()

logger = logging.getLogger("tests.quiet_logs")


class AskedFor:
    """A handler's lock that tells when it is asked for with a timeout, as before a fork."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._lock: Any = threading.RLock()

    def acquire(self, *arguments: Any, **options: Any) -> bool:
        if options:
            self.asked.set()
        return bool(self._lock.acquire(*arguments, **options))

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


class SlowFile(io.RawIOBase):
    """A file that takes a line of another thread no sooner than the event is set."""

    def __init__(self, until: threading.Event) -> None:
        self._until = until
        self._forking = threading.get_ident()
        self.writing = threading.Event()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if threading.get_ident() != self._forking:
            self.writing.set()
            self._until.wait(10)
        return len(data)


@pytest.fixture
def add_handler() -> Iterator[Callable[[logging.Handler], None]]:
    """Have a function that adds a handler to this test's logger."""
    logger.propagate = False
    yield logger.addHandler
    logger.propagate = True
    for handler in logger.handlers.copy():
        logger.removeHandler(handler)


def fork(in_child: Callable[[], object] = bool) -> int:
    """Fork a child that calls the function, and return its status; one that hangs is killed."""
    with warnings.catch_warnings():
        # From Python 3.12 on: the very thing that is tested here, as every worker does it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(10)
            in_child()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def can_another_thread_log_to(handler: logging.Handler) -> bool:
    answers: list[bool] = []

    def try_lock() -> None:
        lock: Any = handler.lock
        answers.append(lock.acquire(timeout=5))
        if answers[0]:
            lock.release()

    thread = threading.Thread(target=try_lock)
    thread.start()
    thread.join()
    return answers[0]


def test_a_child_can_log_though_a_thread_was_writing_to_the_file_when_it_was_forked(
    add_handler: Callable[[logging.Handler], None],
) -> None:
    lock = AskedFor()
    file = SlowFile(until=lock.asked)
    handler = logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(file)))
    handler.lock = lock  # type: ignore[assignment]
    add_handler(handler)
    writer = threading.Thread(target=logger.error, args=["from the parent's thread"])
    writer.start()
    file.writing.wait(10)

    status = fork(lambda: logger.error("from the child"))

    lock.asked.set()  # or the thread would wait on, if nobody asked
    writer.join()
    assert status == 0


def test_the_parents_threads_can_log_after_a_fork(
    add_handler: Callable[[logging.Handler], None],
) -> None:
    handler = logging.StreamHandler(io.StringIO())
    add_handler(handler)

    assert fork() == 0

    assert can_another_thread_log_to(handler)


def test_the_childs_threads_can_log(add_handler: Callable[[logging.Handler], None]) -> None:
    handler = logging.StreamHandler(io.StringIO())
    # A lock that `logging` knows nothing of, and so doesn't make anew.
    handler.lock = threading.RLock()
    add_handler(handler)

    def in_child() -> None:
        assert can_another_thread_log_to(handler)

    assert fork(in_child) == 0


def test_a_log_that_cannot_be_written_does_not_hold_up_a_fork_for_ever(
    add_handler: Callable[[logging.Handler], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet_logs, "TIMEOUT_SECONDS", 0.01)
    freed = threading.Event()
    file = SlowFile(until=freed)
    stuck, well = (
        logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(file))),
        logging.StreamHandler(io.StringIO()),
    )
    add_handler(stuck)
    add_handler(well)
    writer = threading.Thread(target=logger.error, args=["never written"])
    writer.start()
    file.writing.wait(10)

    assert fork() == 0

    assert can_another_thread_log_to(well)
    freed.set()
    writer.join()


def test_whoever_configures_the_logs_meanwhile_gets_every_handler(
    add_handler: Callable[[logging.Handler], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiet_logs, "TIMEOUT_SECONDS", 0.01)
    handler = logging.StreamHandler(io.StringIO())
    add_handler(handler)
    configuring, configured = threading.Event(), threading.Event()

    def configure() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            configuring.set()
            configured.wait(10)

    thread = threading.Thread(target=configure)
    thread.start()
    configuring.wait(10)
    quiet_logs.take()

    try:
        assert can_another_thread_log_to(handler)
    finally:
        quiet_logs.give_back()
        configured.set()
        thread.join()


def test_two_threads_that_fork_at_once_give_back_each_its_own(
    add_handler: Callable[[logging.Handler], None],
) -> None:
    lock = AskedFor()
    handler = logging.StreamHandler(io.StringIO())
    handler.lock = lock  # type: ignore[assignment]
    add_handler(handler)

    def take_and_give_back() -> None:
        quiet_logs.take()
        quiet_logs.give_back()

    quiet_logs.take()
    other = threading.Thread(target=take_and_give_back)
    other.start()
    quiet_logs.give_back()
    other.join()

    assert can_another_thread_log_to(handler)


def test_the_handlers_of_no_logger_count_too() -> None:
    handler = logging.StreamHandler(io.StringIO())  # as that of a queue's listener

    handlers = quiet_logs._handlers()

    assert handler in handlers
    assert logging.lastResort in handlers


@pytest.mark.parametrize("strange", ["without a lock", "without a hash"])
def test_a_strange_handler_keeps_no_other_from_being_quiet(
    add_handler: Callable[[logging.Handler], None], strange: str
) -> None:
    class StrangeHandler:
        level = logging.NOTSET
        if strange == "without a hash":
            __hash__ = None  # type: ignore[assignment]
            lock = None

        def handle(self, record: logging.LogRecord) -> None:
            """Do nothing."""

    usual = logging.StreamHandler(io.StringIO())
    add_handler(StrangeHandler())  # type: ignore[arg-type]
    add_handler(usual)

    quiet_logs.take()

    assert usual.lock in quiet_logs._held.locks
    quiet_logs.give_back()
    assert can_another_thread_log_to(usual)


def test_what_strikes_as_a_lock_is_taken_leaves_it_free(
    add_handler: Callable[[logging.Handler], None],
) -> None:
    class Strike(Exception):  # noqa: N818  # as a signal handler may raise
        pass

    class StruckLock(AskedFor):
        def acquire(self, *arguments: Any, **options: Any) -> bool:
            answer = super().acquire(*arguments, **options)
            if self._is_struck and options:
                self._is_struck = False
                raise Strike
            return answer

        _is_struck = True

    handler = logging.StreamHandler(io.StringIO())
    handler.lock = StruckLock()  # type: ignore[assignment]
    add_handler(handler)

    assert fork() == 0

    assert can_another_thread_log_to(handler)
