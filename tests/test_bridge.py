"""Jobs that Celery really runs, eagerly and in the test's thread, and signals as it sends them."""

from __future__ import annotations

import gc
import logging
import sys
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.task import Context
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
)
from kombu import Exchange, Queue
from nodes.deadline import wait_until
from recorder import Recorder
from test_slots import as_in_a_child

import celery_broadcast
from celery_broadcast import installation
from celery_broadcast.bridge import produced_events
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobIgnored,
    JobRejected,
    JobRetried,
    JobRevoked,
    JobStarted,
)
from celery_broadcast.slots import Slots


@pytest.fixture
def recorder() -> Recorder:
    """Return a consumer of every event, declared as a user would."""
    recorder = Recorder()
    celery_broadcast.on_job_event(name="recorder")(recorder.handle)
    return recorder


def told(recorder: Recorder) -> list[JobEvent]:
    """Return every event so far, after the consumer has had them all."""
    celery_broadcast.drain()
    return recorder.events


def kinds(events: list[JobEvent]) -> list[type[JobEvent]]:
    return [type(event) for event in events]


def only_end(events: list[JobEvent]) -> Any:
    (end,) = [event for event in events if isinstance(event, JobEnded)]
    return end


class CardDeclinedError(Exception):
    pass


def works() -> None: ...


def divides() -> float:
    return 1 / 0


# Every outcome in the process that ran it.


def test_a_job_that_returns_starts_and_finishes(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(name="shop.charge")
    def charge(amount: int, *, currency: str) -> str:
        return f"{amount} {currency}"

    before = time.time()
    answer = charge.delay(3, currency="EUR")

    started, finished = told(recorder)
    assert isinstance(started, JobStarted)
    assert isinstance(finished, JobFinished)
    assert finished.task_id == started.task_id == answer.id
    assert finished.task_name == "shop.charge"
    assert (list(finished.args or ()), finished.kwargs) == ([3], {"currency": "EUR"})
    assert finished.result == "3 EUR"
    assert finished.state == "SUCCESS"
    assert finished.retries == 0
    assert started.started_at is not None
    assert before <= started.started_at <= finished.ended_at <= time.time()
    assert finished.started_at == started.started_at
    assert 0 < finished.runtime < 60


def test_a_job_that_raises_fails_with_its_exception_as_text(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task
    def charge() -> None:
        raise CardDeclinedError("no money")

    charge.delay()

    failed = told(recorder)[-1]
    assert isinstance(failed, JobFailed)
    assert failed.exception_class is CardDeclinedError
    assert failed.exception_type == "test_bridge.CardDeclinedError"
    assert failed.exception_message == "no money"
    assert failed.traceback.rstrip().endswith("CardDeclinedError: no money")
    assert failed.state == "FAILURE"


def test_a_builtin_exception_goes_by_its_bare_name(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    broadcasting_app.task(name="divide")(divides).delay()

    assert only_end(told(recorder)).exception_type == "ZeroDivisionError"


def test_every_attempt_of_a_retried_job_has_its_own_start_and_end(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(bind=True)
    def ship(self: Any) -> str:
        if self.request.retries < 2:
            raise self.retry(exc=ConnectionError("busy"), countdown=30)
        return "shipped"

    before = time.time()
    ship.delay()

    events = told(recorder)
    assert kinds(events) == [
        JobStarted,
        JobRetried,
        JobStarted,
        JobRetried,
        JobStarted,
        JobFinished,
    ]
    assert [event.retries for event in events] == [0, 0, 1, 1, 2, 2]
    retried: Any = events[1]
    assert retried.exception_class is ConnectionError
    assert retried.exception_message == "busy"
    assert "ConnectionError('busy')" in retried.traceback
    assert before + 30 <= retried.eta <= time.time() + 30
    assert retried.state == "RETRY"


def test_a_retry_without_a_reason_says_that_it_is_a_retry(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    eta = datetime.now(timezone.utc) + timedelta(seconds=60)

    @broadcasting_app.task(bind=True)
    def ship(self: Any) -> None:
        if not self.request.retries:
            raise self.retry(eta=eta)

    ship.delay()

    retried: Any = told(recorder)[1]
    assert retried.exception_class is Retry
    assert retried.eta == pytest.approx(eta.timestamp())


def test_a_job_that_runs_out_of_retries_has_failed(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(bind=True, max_retries=1)
    def ship(self: Any) -> None:
        raise self.retry(exc=OSError("busy"))

    ship.delay()

    events = told(recorder)
    assert kinds(events) == [JobStarted, JobRetried, JobStarted, JobFailed]
    assert only_end(events[2:]).exception_class is OSError


@pytest.mark.parametrize("requeue", [True, False])
def test_a_rejected_job_says_whether_it_comes_back(
    broadcasting_app: Celery, recorder: Recorder, *, requeue: bool
) -> None:
    @broadcasting_app.task
    def refuse() -> None:
        raise Reject("no", requeue=requeue)

    refuse.delay()

    rejected = only_end(told(recorder))
    assert isinstance(rejected, JobRejected)
    assert rejected.requeue is requeue


def test_an_ignored_job_is_ignored(broadcasting_app: Celery, recorder: Recorder) -> None:
    @broadcasting_app.task
    def skip() -> None:
        raise Ignore

    skip.delay()

    assert isinstance(only_end(told(recorder)), JobIgnored)


def test_an_eager_job_whose_error_is_thrown_has_failed(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task
    def charge() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        charge.apply(throw=True)

    failed = only_end(told(recorder))
    assert isinstance(failed, JobFailed)
    assert failed.exception_message == "no"


def test_an_eager_job_that_throws_what_a_greenlet_might_has_failed(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    class Timeout(BaseException):  # as gevent's
        pass

    @broadcasting_app.task
    def hurries() -> None:
        raise Timeout

    with pytest.raises(Timeout):
        hurries.apply()

    assert only_end(told(recorder)).exception_class is Timeout


def test_a_job_that_exits_has_failed(broadcasting_app: Celery, recorder: Recorder) -> None:
    @broadcasting_app.task
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        leave.apply()

    failed = only_end(told(recorder))
    assert failed.exception_class is SystemExit


def test_a_job_inside_a_job_has_events_of_its_own(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(name="inner")
    def inner() -> None: ...

    @broadcasting_app.task(name="outer")
    def outer() -> None:
        inner.apply()

    outer.delay()

    assert [(type(event), event.task_name) for event in told(recorder)] == [
        (JobStarted, "outer"),
        (JobStarted, "inner"),
        (JobFinished, "inner"),
        (JobFinished, "outer"),
    ]


def test_a_job_run_inside_a_consumer_feeds_the_others_but_not_that_consumer(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(name="report")
    def report() -> None: ...

    fed: list[str] = []

    @celery_broadcast.on_job_event(JobFinished)
    def reports(event: JobFinished) -> None:
        fed.append(event.task_name)
        report.apply()

    broadcasting_app.task(name="charge")(works).delay()
    recorder.wait_for(4)

    assert [event.task_name for event in told(recorder)] == ["charge", "charge", "report", "report"]
    assert fed == ["charge"]


# News of an attempt that another process ran, as the main process of a worker gets it.


@pytest.fixture
def dead_task(broadcasting_app: Celery) -> Any:
    """Return a task whose jobs ran in a process that is gone."""

    @broadcasting_app.task(name="shop.crash")
    def crash() -> None: ...

    return crash


def test_a_job_whose_process_died_has_failed(dead_task: Any, recorder: Recorder) -> None:
    signals.task_failure.send(
        sender=dead_task,
        task_id="dead-1",
        exception=WorkerLostError("signal 9"),
        args=[1],
        kwargs={},
        traceback="text",
        einfo=SimpleNamespace(traceback="the traceback, as text"),
    )

    failed = only_end(told(recorder))
    assert (failed.task_id, failed.task_name) == ("dead-1", "shop.crash")
    assert failed.exception_class is WorkerLostError
    assert failed.exception_message == "signal 9"
    assert failed.traceback == "the traceback, as text"


def test_a_job_past_its_time_limit_ends_once_though_celery_tells_twice(
    dead_task: Any, recorder: Recorder
) -> None:
    for _ in range(2):
        signals.task_failure.send(
            sender=dead_task, task_id="late-1", exception=TimeLimitExceeded(3), args=[], kwargs={}
        )

    assert kinds(told(recorder)) == [JobFailed]


def test_a_job_that_was_rejected_in_its_own_process_does_not_fail_in_the_parent(
    dead_task: Any, recorder: Recorder
) -> None:
    signals.task_failure.send(
        sender=dead_task, task_id="rejected-1", exception=Reject("no"), args=[], kwargs={}
    )

    assert told(recorder) == []


def test_a_job_that_expired_is_revoked_without_a_start(dead_task: Any, recorder: Recorder) -> None:
    request = Context(id="old-1", args=[1], kwargs={"a": 2}, hostname="celery@web-1")

    signals.task_revoked.send(
        sender=dead_task, request=request, terminated=False, signum=None, expired=True
    )

    revoked = only_end(told(recorder))
    assert isinstance(revoked, JobRevoked)
    assert (revoked.task_id, revoked.worker, revoked.args) == ("old-1", "celery@web-1", [1])
    assert (revoked.expired, revoked.terminated) == (True, False)
    assert (revoked.started_at, revoked.runtime) == (None, 0.0)


def test_a_job_that_a_cold_shutdown_cancelled_is_retried(
    dead_task: Any, recorder: Recorder
) -> None:
    request = Context(id="cut-1", args=[], kwargs={})

    signals.task_retry.send(sender=dead_task, request=request, einfo=None)

    retried = only_end(told(recorder))
    assert isinstance(retried, JobRetried)
    assert retried.exception_class is Retry
    assert "cancelled by Celery" in retried.exception_message


# A greenlet that is killed in the same process: first task_postrun, then the news.


def abort_in_a_greenlet(task: Any, task_id: str) -> Context:
    request = Context(id=task_id, args=[], kwargs={})
    task.request_stack.push(request)
    signals.task_prerun.send(sender=task, task_id=task_id, task=task, args=[], kwargs={})
    signals.task_postrun.send(sender=task, task_id=task_id, task=task, retval=None, state=None)
    task.request_stack.pop()
    return request


def test_a_greenlet_killed_by_the_time_limit_has_one_end(
    dead_task: Any, recorder: Recorder
) -> None:
    abort_in_a_greenlet(dead_task, "green-1")
    signals.task_failure.send(
        sender=dead_task, task_id="green-1", exception=TimeLimitExceeded(3), args=[], kwargs={}
    )

    events = told(recorder)
    assert kinds(events) == [JobStarted, JobFailed]
    assert events[1].started_at == events[0].started_at


def test_a_greenlet_killed_by_a_revoke_has_one_end(dead_task: Any, recorder: Recorder) -> None:
    request = abort_in_a_greenlet(dead_task, "green-2")
    signals.task_revoked.send(sender=dead_task, request=request, terminated=True, expired=False)

    assert kinds(told(recorder)) == [JobStarted, JobRevoked]


def test_a_greenlet_of_whose_revoke_the_news_come_first_has_one_end(
    dead_task: Any, recorder: Recorder
) -> None:
    request = Context(id="green-3", args=[], kwargs={}, retries=0)
    dead_task.request_stack.push(request)
    told_of = {"sender": dead_task, "task_id": "green-3", "task": dead_task}
    signals.task_prerun.send(**told_of, args=[], kwargs={})
    signals.task_revoked.send(sender=dead_task, request=request, terminated=True, expired=False)
    signals.task_postrun.send(**told_of, retval=None, state=None)
    dead_task.request_stack.pop()

    assert kinds(told(recorder)) == [JobStarted, JobRevoked]


def test_a_job_that_goes_on_after_the_news_of_its_revoke_ends_as_it_does(
    dead_task: Any, recorder: Recorder
) -> None:
    request = Context(id="green-4", args=[], kwargs={}, retries=0)
    dead_task.request_stack.push(request)
    told_of = {"sender": dead_task, "task_id": "green-4", "task": dead_task}
    signals.task_prerun.send(**told_of, args=[], kwargs={})
    signals.task_revoked.send(sender=dead_task, request=request, terminated=True, expired=False)
    signals.task_postrun.send(**told_of, retval=7, state="SUCCESS")
    dead_task.request_stack.pop()

    assert kinds(told(recorder)) == [JobStarted, JobFinished]


def test_news_of_an_attempt_that_went_wrong_in_celerys_own_hands_are_nothing_new(
    dead_task: Any, recorder: Recorder
) -> None:
    request = Context(id="id-1", args=[], kwargs={}, retries=0)
    dead_task.request_stack.push(request)
    told_of = {"sender": dead_task, "task_id": "id-1", "task": dead_task}
    signals.task_prerun.send(**told_of, args=[], kwargs={})
    try:
        raise OSError("on_retry")  # noqa: TRY301  # it flies while Celery sends the signal
    except OSError as error:
        signals.task_postrun.send(**told_of, retval=None, state=None)
        dead_task.request_stack.pop()
        signals.task_failure.send(
            sender=dead_task, task_id="id-1", exception=error, args=[], kwargs={}
        )

    assert kinds(told(recorder)) == [JobStarted, JobFailed]


# What the events carry.


def test_without_payload_the_events_carry_no_argument_and_no_result(
    app: Celery, recorder: Recorder
) -> None:
    app.conf.broadcast_enabled = True
    app.conf.broadcast_payload = False
    celery_broadcast.install(app)

    @app.task
    def echo(text: str) -> str:
        return text

    echo.delay("secret")

    finished = only_end(told(recorder))
    assert (finished.args, finished.kwargs, finished.result) == (None, None, None)


def test_a_traceback_keeps_its_last_characters_up_to_the_limit(
    app: Celery, recorder: Recorder
) -> None:
    app.conf.broadcast_enabled = True
    app.conf.broadcast_traceback_limit = 16
    celery_broadcast.install(app)
    app.task(name="divide")(divides).delay()

    assert only_end(told(recorder)).traceback.strip() == "ivision by zero"


def test_no_event_keeps_the_memory_of_a_failed_job_alive(
    broadcasting_app: Celery, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    # Celery logs the exception, and pytest keeps what is logged.
    caplog.set_level(logging.CRITICAL, logger="celery.app.trace")

    class Heavy:
        pass

    kept: list[weakref.ref[Heavy]] = []

    @broadcasting_app.task
    def fails() -> None:
        heavy = Heavy()
        kept.append(weakref.ref(heavy))
        raise OSError("no")

    fails.delay()
    assert len(told(recorder)) == 2
    gc.collect()

    assert kept[0]() is None


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue"),
    [
        ("", "celery", "celery"),
        ("shop", "express", "parcels"),
        ("shop", "unknown", None),
        (None, None, None),
    ],
)
def test_the_queue_is_found_by_exchange_and_routing_key(
    broadcasting_app: Celery,
    recorder: Recorder,
    exchange: str | None,
    routing_key: str | None,
    queue: str | None,
) -> None:
    broadcasting_app.conf.task_queues = [
        Queue("parcels", Exchange("shop"), routing_key="express"),
        Queue("letters", Exchange("post"), routing_key="express"),
    ]
    task: Any = broadcasting_app.task(name="ship")(works)
    request = Context(id="1", delivery_info={"exchange": exchange, "routing_key": routing_key})
    task.request_stack.push(request)
    signals.task_prerun.send(sender=task, task_id="1", task=task, args=(), kwargs={})
    task.request_stack.pop()

    (started,) = told(recorder)
    assert (started.queue, started.exchange, started.routing_key) == (queue, exchange, routing_key)


def test_an_event_has_the_request_as_it_was_when_the_job_started(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    @broadcasting_app.task(bind=True)
    def meddles(self: Any) -> None:
        self.request.update(retries=99, hostname="elsewhere")

    meddles.apply(headers={"tenant": "acme"})

    finished = only_end(told(recorder))
    assert finished.headers["tenant"] == "acme"
    assert finished.retries == 0
    assert finished.worker != "elsewhere"


# Bad input.


class BareTask:
    """What some foreign code may send as a task."""

    def __init__(self, app: Celery, request: object) -> None:
        self.app = app
        self.request = request


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I won't say")

    __repr__ = __str__


def test_an_exception_that_cannot_be_shown_still_gives_its_end(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    request = Context(id="1")
    task: Any = broadcasting_app.task(name="mute")(works)
    task.request_stack.push(request)
    signals.task_prerun.send(sender=task, task_id="1", task=task, args=(), kwargs={})
    signals.task_postrun.send(
        sender=task, task_id="1", task=task, retval=UnspeakableError(), state="FAILURE"
    )
    task.request_stack.pop()

    failed = only_end(told(recorder))
    assert failed.exception_class is UnspeakableError
    assert failed.exception_message.endswith("its str() raised>")


def test_a_result_that_cannot_be_copied_travels_by_reference(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    class Unique:
        def __copy__(self) -> None:
            raise TypeError("there is only one")

        __deepcopy__ = __reduce__ = __copy__  # type: ignore[assignment]

    unique = Unique()

    @broadcasting_app.task
    def gives() -> Unique:
        return unique

    gives.delay()

    assert only_end(told(recorder)).result is unique


def test_a_request_without_any_field_gives_an_event_with_what_there_is(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    task = BareTask(broadcasting_app, SimpleNamespace())

    signals.task_prerun.send(sender=task, task_id=None, task=task)
    signals.task_postrun.send(sender=task, task_id=None, task=task, state="SUCCESS")

    started, finished = told(recorder)
    assert (started.task_id, started.task_name) == ("", "")
    assert isinstance(finished, JobFinished)


def test_a_postrun_for_which_nothing_had_started_gives_no_event(
    broadcasting_app: Celery, recorder: Recorder
) -> None:
    task = BareTask(broadcasting_app, Context(id="1"))

    for state in ("SUCCESS", None):
        signals.task_postrun.send(sender=task, task_id="1", task=task, state=state)

    assert told(recorder) == []


def test_an_error_of_our_own_never_reaches_celery(
    broadcasting_app: Celery, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    responses = signals.task_prerun.send(sender=None, task=object(), task_id="1")

    assert responses[0][1] is None
    assert "broadcast failed in on_task_prerun" in caplog.text
    caplog.clear()  # it is what this test is about, and no leftover of it


# Which events are produced, and for whom.


def test_only_the_chosen_event_types_are_produced(app: Celery, recorder: Recorder) -> None:
    app.conf.broadcast_enabled = True
    app.conf.broadcast_events = ["JobFailed", JobRetried]
    celery_broadcast.install(app)

    app.task(name="works")(works).delay()
    app.task(name="fails")(divides).delay()

    assert kinds(told(recorder)) == [JobFailed]


class Noted:
    """Notes what the bridge in force publishes, which goes its way all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bridge = installation.bridge_in_force()
        assert bridge is not None
        self.events: list[JobEvent] = []
        put = bridge.producer.put

        def note(item: Any) -> None:
            self.events.append(item.event)
            put(item)

        monkeypatch.setattr(bridge.producer, "put", note)

    def run(self, *tasks: Any) -> list[type[JobEvent]]:
        """Run jobs, and return what was published for them."""
        self.events.clear()
        for task in tasks:
            task.delay()
        return kinds(self.events)


def test_what_no_consumer_wants_is_not_made_once_the_first_event_has_started_them(
    broadcasting_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = Recorder()
    celery_broadcast.on_job_event(JobFailed, name="failures")(failures.handle)
    noted = Noted(monkeypatch)
    work, fail = broadcasting_app.task(works), broadcasting_app.task(divides)

    assert noted.run(work) == [JobStarted, JobFinished]
    assert noted.run(work, work, fail) == [JobFailed]
    assert kinds(told(failures)) == [JobFailed]


def test_an_end_is_made_where_the_start_was_as_its_note_is_closed_by_it(
    broadcasting_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Recorder()
    celery_broadcast.on_job_event(JobStarted, name="starts")(starts.handle)
    noted = Noted(monkeypatch)
    work = broadcasting_app.task(works)

    assert noted.run(work, work) == [JobStarted, JobFinished] * 2
    assert kinds(told(starts)) == [JobStarted] * 2


def test_the_first_event_after_a_subscription_came_or_went_is_made_in_any_case(
    broadcasting_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, ends = Recorder(), Recorder()
    celery_broadcast.on_job_event(JobFailed, name="failures")(failures.handle)
    noted = Noted(monkeypatch)
    work = broadcasting_app.task(works)
    noted.run(work)

    subscription = celery_broadcast.subscribe(ends.handle, JobEnded, name="ends")

    assert noted.run(work, work) == [JobStarted, JobFinished, JobFinished]
    ends.wait_for(2)
    subscription.cancel()
    assert noted.run(work, work) == [JobStarted, JobFinished]
    assert set(kinds(told(ends))) == {JobFinished}


def test_nothing_is_made_for_nobody(
    broadcasting_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = Noted(monkeypatch)
    work = broadcasting_app.task(works)

    assert noted.run(work) == [JobStarted, JobFinished]  # the log says that there is no consumer
    assert noted.run(work, work) == []


def test_what_is_not_made_leaves_no_note_of_an_attempt_behind(
    broadcasting_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = installation.bridge_in_force()
    assert bridge is not None
    bridge._share(slots := as_in_a_child(Slots(count=1)))
    assert slots.mine is not None
    celery_broadcast.on_job_event(JobFailed, name="failures")(Recorder().handle)
    noted = Noted(monkeypatch)
    work = broadcasting_app.task(works)
    noted.run(work)
    celery_broadcast.drain()

    assert noted.run(work) == [JobStarted, JobFinished]  # a drain has stopped the consumers
    assert noted.run(*[work] * 50) == []
    celery_broadcast.drain()
    assert slots.mine.open_notes() == []


def test_a_base_type_stands_for_all_below_it() -> None:
    assert produced_events(("JobEnded",)) == set(EVENT_TYPES.values()) - {JobStarted}
    assert produced_events(None) == produced_events(("JobEvent",)) == set(EVENT_TYPES.values())


def test_an_event_type_that_does_not_exist_is_refused_at_the_start(app: Celery) -> None:
    app.conf.broadcast_enabled = True
    app.conf.broadcast_events = ["JobFialed"]
    assert app.conf.task_always_eager  # reads the configuration

    with pytest.raises(ConfigurationError, match="broadcast_events names 'JobFialed'"):
        celery_broadcast.install(app)


def test_the_bridge_connects_each_signal_once_however_often_it_is_asked(
    broadcasting_app: Celery,
) -> None:
    before = len(signals.task_prerun.receivers)

    for _ in range(3):
        celery_broadcast.install(broadcasting_app)

    assert len(signals.task_prerun.receivers) == before


# The soft time limit strikes wherever the job's thread happens to be.


class Strike:
    """Raises the soft time limit at one line of the package that this thread comes to."""

    def __init__(self, line: int) -> None:
        self.lines_left = line

    def __call__(self, frame: FrameType, event: str, _: object) -> Strike:
        if event == "line" and "/celery_broadcast/" in frame.f_code.co_filename:
            self.lines_left -= 1
            if self.lines_left == 0:
                raise SoftTimeLimitExceeded
        return self


def lines_until_done(line: int, function: Callable[[], object]) -> bool:
    """Call a function that is struck at a line; return whether it came so far."""
    strike = Strike(line)
    before = sys.gettrace()
    sys.settrace(strike)
    try:
        function()
    finally:
        sys.settrace(before)
    return strike.lines_left <= 0


def send_around(task: Any, task_id: str, struck: str = "", line: int = 0) -> bool:
    """Send what Celery sends around a job; tell whether the limit struck what hears this signal."""
    was_struck = False
    task.push_request(id=task_id, args=(), kwargs={}, called_directly=False)
    facts = {"task_id": task_id, "task": task, "args": (), "kwargs": {}}
    send_start = partial(signals.task_prerun.send, sender=task, **facts)
    send_end = partial(
        signals.task_postrun.send, sender=task, **facts, retval=None, state="SUCCESS"
    )
    for name, send in (("task_prerun", send_start), ("task_postrun", send_end)):
        if name == struck:
            was_struck = lines_until_done(line, send)
        else:
            send()
    task.pop_request()
    return was_struck


def strike_everywhere(task: Any, struck: str) -> int:
    """Have a job struck at each line, and one that isn't; return how many jobs that were."""
    line = 1
    while send_around(task, f"id-{line}", struck, line):
        line += 1
    assert line > 30  # it struck in many places
    return line


@pytest.mark.parametrize("struck", ["task_prerun", "task_postrun"])
def test_wherever_the_soft_time_limit_strikes_a_job_has_one_start_and_one_end(
    broadcasting_app: Celery, recorder: Recorder, struck: str, caplog: pytest.LogCaptureFixture
) -> None:
    bridge = installation.bridge_in_force()
    assert bridge is not None
    bridge._share(slots := as_in_a_child(Slots(count=1)))
    assert slots.mine is not None

    jobs = strike_everywhere(broadcasting_app.task(works), struck)

    kinds_of: defaultdict[str, list[type[JobEvent]]] = defaultdict(list)
    for event in told(recorder):
        kinds_of[event.task_id].append(type(event))
    # Where it has not come to the first line there is nothing to go on with: a job
    # without a start has no end, and else the main process will tell of one.
    first = kinds_of.pop("id-1", [])
    assert first == ([JobStarted] if struck == "task_postrun" else [])
    left_open = [running.facts["task_id"] for _, running in slots.mine.open_notes() if running]
    assert left_open == ["id-1"] * len(first)
    assert len(kinds_of) == jobs - 1
    assert all(kinds == [JobStarted, JobFinished] for kinds in kinds_of.values())
    caplog.clear()


@pytest.mark.parametrize("struck", ["task_prerun", "task_postrun"])
def test_wherever_the_soft_time_limit_strikes_a_job_of_which_nobody_is_told_is_counted_once(
    app: Celery, struck: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.update(broadcast_enabled=True, broadcast_metrics_port=9808)
    celery_broadcast.install(app)
    assert app.conf.broadcast_enabled
    bridge = installation.bridge_in_force()
    assert bridge is not None
    assert bridge._jobs is not None
    bridge._share(slots := as_in_a_child(Slots(count=1)))
    assert slots.mine is not None
    celery_broadcast.on_job_event(JobFailed, name="failures")(Recorder().handle)
    task = app.task(works)
    send_around(task, "the first, of which they are told all the same")
    wait_until(lambda: slots.mine is not None and not slots.mine.open_notes())

    jobs = strike_everywhere(task, struck)

    (counted,) = [each for each in bridge._jobs.numbers([]).values() if each.started]
    left_open = len(slots.mine.open_notes())
    assert left_open == (struck == "task_postrun")  # as above, of the first that was struck
    assert (counted.started, counted.ended["JobFinished"]) == (jobs + left_open, jobs)
    caplog.clear()
