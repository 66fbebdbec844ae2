"""What a consumer can ask for, in every pool: one worker each, with every option at once.

All jobs are sent and the worker is stopped; what is asserted is what its consumers
reported until then, and the numbers that it had at the end.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from reports import CallReport, HandledReport, NoticeReport, NumbersReport
from running_worker import RunningWorker, running_worker, started_worker

from celery_broadcast import ConsumerStats

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]

THREADS = ("prefork", "threads", "solo")
GREENLETS = ("gevent", "eventlet")
POOLS = (*THREADS, *GREENLETS)

OPTIONS = ["celery_broadcast.plugin", "job_app_options", "job_app_last_numbers"]
COROUTINES = [*OPTIONS, "job_app_coroutines"]

# As `job_app_options` has them: what it imports is for a worker alone.
CALLS_PER_SECOND = 40
FAILURES_OF_INCIDENT = 10
STUCK_AFTER_SECONDS = 0.1
TRIES = 3

KEYED = [f"{key}:{number}" for number in range(8) for key in "abc"]
FINISHED = [*KEYED, "hang", "manage"]
FAILED = [f"no {number}" for number in range(20)]
RETRIED = 4
# Those, the two ends of what is retried, what announces and what manages; and their starts.
ENDED_WELL = len(FINISHED) + RETRIED + 2
PUBLISHED = 2 * (len(FINISHED) + len(FAILED) + 2 * RETRIED + 2)


@dataclass(frozen=True)
class Outcome:
    """What a worker reported of the same jobs, from start to stop.

    Attributes:
        pool: of the worker.
        worker: it has ended.
        exit_code: with what.
        stopped_at: when it was told to, in seconds of the monotonic clock.
    """

    pool: str
    worker: RunningWorker
    exit_code: int
    stopped_at: float

    def calls(self, consumer: str, pid: int | None = None) -> list[HandledReport]:
        """Return the calls of a consumer, in the order in which they ended."""
        reports = self.worker.listener.reports(HandledReport, consumer=consumer)
        return [report for report in reports if pid in {None, report.pid}]

    def events(self, consumer: str, pid: int | None = None) -> list[str]:
        """Return what the consumer got, those of batches too."""
        return [event for report in self.calls(consumer, pid) for event in report.events]

    def published(self, *types: str, pid: int | None = None) -> list[str]:
        """Return the events of these types, in the order in which a process published them."""
        events = self.events("everything", pid)
        return [event for event in events if not types or event.startswith(types)]

    def pids(self) -> list[int]:
        """Return the processes that had events."""
        return sorted({report.pid for report in self.calls("everything")})

    def notices(self, notice: str, consumer: str) -> list[NoticeReport]:
        return self.worker.listener.reports(NoticeReport, notice=notice, consumer=consumer)

    def said(self, consumer: str) -> list[str]:
        """Return what a consumer reported of itself."""
        return [
            report.call for report in self.worker.listener.reports(CallReport, consumer=consumer)
        ]

    def numbers(self) -> dict[str, ConsumerStats]:
        """Return the numbers of each consumer, of all processes."""
        return numbers_at_end(self.worker)


def numbers_at_end(worker: RunningWorker) -> dict[str, ConsumerStats]:
    (report,) = worker.listener.reports(NumbersReport)
    return report.numbers


def is_settled(numbers: ConsumerStats) -> bool:
    """Tell whether nothing is pending, and every event is in one of the other numbers."""
    settled = numbers.handled + numbers.failed + numbers.dropped_total
    return numbers.pending == 0 and numbers.offered == settled


@pytest.fixture(scope="module")
def outcome_of(
    request: pytest.FixtureRequest,
    broker_config: Callable[[str], dict[str, Any]],
) -> Iterator[Callable[[str], Outcome]]:
    """Start a worker for each pool that the tests ask for, all at once; each runs its jobs once."""
    here = (item for item in request.session.items if item.path == request.path)
    calls = (getattr(item, "callspec", None) for item in here)
    asked_for = {call.params.get("outcome") for call in calls if call}
    with ExitStack() as workers:
        started = {}
        for pool in POOLS:
            if pool in asked_for:
                imports = COROUTINES if pool in THREADS else OPTIONS
                config = {"imports": imports, "broadcast_drain_timeout": 20}
                worker = started_worker({**broker_config("redis"), **config}, pool=pool)
                started[pool] = workers.enter_context(worker)
        yield functools.cache(lambda pool: run_jobs(pool, started[pool]))


@pytest.fixture(params=POOLS)
def outcome(request: pytest.FixtureRequest, outcome_of: Callable[[str], Outcome]) -> Outcome:
    return outcome_of(request.param)


def run_jobs(pool: str, worker: RunningWorker) -> Outcome:
    """Send every job, and stop the worker once all is published and no batch waits but one."""
    worker.process.ready()
    for label in FINISHED:
        worker.send("ok", label)
    for label in FAILED:
        worker.send("fails", label)
    for _ in range(RETRIED):
        worker.send("retries_once")
    worker.send("announces")
    worker.send("manages")

    def handled(consumer: str) -> int:
        reports = worker.listener.reports(HandledReport, consumer=consumer)
        return sum(len(report.events) for report in reports)

    # What doesn't come is missed by the tests, which then need not all wait for it.
    worker.listener.hears(
        lambda: handled("everything") == PUBLISHED and handled("prompt_batches") == ENDED_WELL
    )
    stopped_at = time.monotonic()
    return Outcome(pool, worker, worker.stop(), stopped_at)


only_with_coroutines = pytest.mark.parametrize("outcome", THREADS, indirect=True)


def plain_and_coroutine(plain: str, coroutine: str) -> pytest.MarkDecorator:
    """Test a consumer in every pool, and its like where coroutines can run."""
    cases = [*((pool, plain) for pool in POOLS), *((pool, coroutine) for pool in THREADS)]
    return pytest.mark.parametrize(("outcome", "consumer"), cases, indirect=["outcome"])


def overlap(calls: list[HandledReport]) -> bool:
    """Tell whether some call began, in the same process, before another had ended."""
    by_pid: dict[int, list[HandledReport]] = {}
    for call in sorted(calls, key=lambda call: call.began_at):
        by_pid.setdefault(call.pid, []).append(call)
    return any(
        later.began_at < earlier.ended_at
        for several in by_pid.values()
        for earlier, later in itertools.pairwise(several)
    )


def test_the_worker_ends_well(outcome: Outcome) -> None:
    assert outcome.exit_code == 0
    assert len(outcome.published()) == PUBLISHED, outcome.worker.process.logs()[-5000:]


def test_every_event_is_accounted_for(outcome: Outcome) -> None:
    numbers = outcome.numbers()

    assert [name for name, of_one in numbers.items() if not is_settled(of_one)] == []
    assert numbers["everything"].handled == PUBLISHED


def test_only_who_left_or_crashed_lost_anything(outcome: Outcome) -> None:
    numbers = outcome.numbers()

    assert {name for name, of_one in numbers.items() if of_one.failed} == {"crashes"}
    losers = {name: {*of_one.dropped} for name, of_one in numbers.items() if of_one.dropped}
    assert losers.pop("manager", {"cancelled"}) == {"cancelled"}  # what came after its cancel
    assert losers == {"leaves": {"cancelled"}}


def test_an_exception_is_selected_by_its_class_or_a_base_of_it(outcome: Outcome) -> None:
    events = outcome.events("by_exception_class")

    assert Counter(events) == Counter(outcome.published("JobRetried"))
    assert len(events) == RETRIED


def test_an_exception_is_selected_by_its_name(outcome: Outcome) -> None:
    assert sorted(outcome.events("by_exception_name")) == sorted(f"JobFailed {x}" for x in FAILED)


def test_ends_are_selected_by_their_state(outcome: Outcome) -> None:
    for pid in outcome.pids():
        assert outcome.events("by_state", pid) == outcome.published(
            "JobFailed", "JobRetried", pid=pid
        )


@plain_and_coroutine("full_batches", "async_batches")
def test_batches_are_full_and_in_order_and_the_drain_brings_the_last(
    outcome: Outcome, consumer: str
) -> None:
    for pid in outcome.pids():
        finished = outcome.published("JobFinished", pid=pid)
        full, rest = divmod(len(finished), 5)
        calls = outcome.calls(consumer, pid)

        assert outcome.events(consumer, pid) == finished
        assert [len(call.events) for call in calls] == [5] * full + [rest] * bool(rest)
        if rest:
            assert calls[-1].began_at > outcome.stopped_at


def test_a_batch_that_waited_long_enough_comes_before_it_is_full(outcome: Outcome) -> None:
    for pid in outcome.pids():
        assert outcome.events("prompt_batches", pid) == outcome.published("JobFinished", pid=pid)
    calls = outcome.calls("prompt_batches")
    assert all(call.began_at < outcome.stopped_at for call in calls)


@plain_and_coroutine("several", "AsyncSeveral")
def test_several_calls_of_a_consumer_go_on_at_once(outcome: Outcome, consumer: str) -> None:
    assert overlap(outcome.calls(consumer))
    assert not overlap(outcome.calls("retried"))
    assert sorted(outcome.events(consumer)) == sorted(f"JobFinished {x}" for x in FINISHED)


@plain_and_coroutine("keyed", "async_keyed")
def test_the_events_of_a_key_stay_in_order_while_others_go_on(
    outcome: Outcome, consumer: str
) -> None:
    keys = {label.partition(":")[0] for label in FINISHED}

    assert overlap(outcome.calls(consumer))
    for pid, key in itertools.product(outcome.pids(), keys):
        prefix = f"JobFinished {key}"
        calls = [call for call in outcome.calls(consumer, pid) if call.events[0].startswith(prefix)]
        assert [call.events[0] for call in calls] == outcome.published(prefix, pid=pid)
        assert not overlap(calls)


@only_with_coroutines
def test_setup_and_teardown_of_coroutines_run_on_their_event_loop(outcome: Outcome) -> None:
    said = Counter(outcome.said("AsyncSeveral"))

    assert said == {"setup": len(outcome.pids()), "teardown": len(outcome.pids())}


@plain_and_coroutine("retried", "async_retried")
def test_a_call_that_raises_is_tried_again_with_the_same_event(
    outcome: Outcome, consumer: str
) -> None:
    failed = [f"JobFailed {label}" for label in FAILED]

    assert Counter(outcome.said(consumer)) == dict.fromkeys(failed, TRIES)
    assert sorted(outcome.events(consumer)) == sorted(failed)
    assert outcome.numbers()[consumer].handled == len(failed)


def test_a_consumer_is_called_no_more_often_than_its_rate_limit(outcome: Outcome) -> None:
    for pid in outcome.pids():
        began_at = [call.began_at for call in outcome.calls("limited", pid)]
        # A tenth off: the first may have got its turn later than its token.
        least = 0.9 * (len(began_at) - 1) / CALLS_PER_SECOND
        assert max(began_at, default=0) - min(began_at, default=0) >= least
    assert len(outcome.calls("limited")) == len(FAILED)


@plain_and_coroutine("stuck", "async_stuck")
def test_a_call_that_hangs_is_noticed_with_where_it_hangs(outcome: Outcome, consumer: str) -> None:
    (notice,) = outcome.notices("consumer_stuck", consumer)
    assert notice.facts["event"] == "JobFinished hang"
    assert float(notice.facts["seconds"]) >= STUCK_AFTER_SECONDS
    assert f"in {consumer}\n" in notice.facts["stack"]
    assert "in wait_until_noticed\n" in notice.facts["stack"]
    assert outcome.events(consumer) == ["JobFinished hang"]  # it went on


def test_a_consumer_that_leaves_on_purpose_is_not_started_again(outcome: Outcome) -> None:
    failures = [len(outcome.published("JobFailed", pid=pid)) for pid in outcome.pids()]

    of_one = outcome.numbers()["leaves"]
    assert of_one.handled == sum(min(count, 2) for count in failures)  # it ends at its second
    assert of_one.failed == 0
    assert of_one.dropped == {"cancelled": len(FAILED) - of_one.handled}
    assert not outcome.notices("consumer_restarted", "leaves")
    assert not outcome.notices("consumer_gave_up", "leaves")
    assert "consumer 'leaves' ended itself" in outcome.worker.process.logs()


def test_a_consumer_that_crashes_starts_again_with_what_waits(outcome: Outcome) -> None:
    crashes = sum(bool(outcome.published("JobRetried", pid=pid)) for pid in outcome.pids())

    assert len(outcome.notices("consumer_restarted", "crashes")) == crashes
    assert len(outcome.events("crashes")) == RETRIED - crashes
    of_one = outcome.numbers()["crashes"]
    assert (of_one.handled, of_one.failed) == (RETRIED - crashes, crashes)


@pytest.mark.parametrize("name", ["managed_by_job", "managed_by_consumer"])
def test_jobs_and_consumers_subscribe_pause_resume_and_cancel(outcome: Outcome, name: str) -> None:
    assert outcome.said(name) == [
        "subscribed: [1]",
        "paused: [1]",
        "resumed: [1, 2, 3]",
        # A consumer doesn't wait for another.
        f"{'cancelled' if name == 'managed_by_job' else 'cancelling'}: [1, 2, 3]",
    ]
    assert outcome.numbers()[name].handled == 3


def test_a_consumer_can_cancel_itself(outcome: Outcome) -> None:
    assert outcome.events("manager") == ["JobFinished manage"]


@plain_and_coroutine("read_from_first", "async_read")
def test_a_thread_of_a_pool_process_reads_a_stream_until_the_drain(
    outcome: Outcome, consumer: str
) -> None:
    for pid in outcome.pids():
        read = outcome.events(consumer, pid)
        finished = outcome.published("JobFinished", pid=pid)
        assert read == finished[len(finished) - len(read) :]
    assert len(outcome.events(consumer)) == outcome.numbers()[consumer].handled > 0


def test_a_thread_reads_a_stream_from_when_the_worker_is_ready(outcome: Outcome) -> None:
    in_main = [] if outcome.pool == "prefork" else outcome.published("JobFinished")

    assert outcome.events("read_from_ready") == in_main


def test_jobs_and_consumers_publish_events_of_their_own(outcome: Outcome) -> None:
    failures = [len(outcome.published("JobFailed", pid=pid)) for pid in outcome.pids()]
    incidents = sum(count // FAILURES_OF_INCIDENT for count in failures)

    assert incidents
    assert Counter(outcome.events("own")) == {"Announcement": 1, "Incident": incidents}


@pytest.mark.parametrize("pool", GREENLETS)
@pytest.mark.parametrize("imports", [COROUTINES, COROUTINES[::-1]], ids=["plugin 1st", "last"])
def test_a_worker_of_greenlets_with_a_coroutine_does_not_start_and_says_what_to_write(
    broker_config: Callable[[str], dict[str, Any]], pool: str, imports: list[str]
) -> None:
    config = {**broker_config("redis"), "imports": imports}

    with pytest.raises(RuntimeError, match="ended instead of getting ready") as refusal:  # noqa: SIM117
        with running_worker(config, pool=pool):
            pass

    complaint = (
        r"ConfigurationError: The consumer 'AsyncSeveral' \(.*job_app_coroutines\.py:\d+\) is a "
        rf"coroutine function, but {pool} has patched this process, .*"
        r"Write it as a plain function: .* With concurrency= several run at once\."
    )
    assert re.search(complaint, str(refusal.value))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_drain_ends_coroutines_in_flight_at_its_deadline(
    broker_config: Callable[[str], dict[str, Any]], pool: str
) -> None:
    imports = ["celery_broadcast.plugin", "job_app_endless", "job_app_last_numbers"]
    config = {**broker_config("redis"), "imports": imports, "broadcast_drain_timeout": 0.5}

    with running_worker(config, pool=pool, concurrency=1) as worker:
        for job in [worker.send("ok", number) for number in range(6)]:
            job.get(timeout=30)
        worker.listener.wait_for(4, CallReport, consumer="endless", call="begun")
        stopped_at = time.monotonic()
        exit_code = worker.stop()
        seconds = time.monotonic() - stopped_at

    assert exit_code == 0
    assert seconds < 5
    of_one = numbers_at_end(worker)["endless"]
    assert (of_one.offered, of_one.dropped, of_one.pending) == (6, {"drain-timeout": 6}, 0)
    assert len(worker.listener.reports(CallReport, consumer="endless", call="cancelled")) == 4


def test_what_a_killed_process_had_collected_for_a_batch_is_counted(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {**broker_config("redis"), "imports": OPTIONS}

    with running_worker(config, concurrency=1) as worker:
        for number in range(3):
            worker.send("ok", f"a:{number}")
        worker.send("sleeps", 60)
        *_, running = worker.listener.wait_for(7, HandledReport, consumer="everything")
        os.kill(running.pid, signal.SIGKILL)
        worker.listener.wait_for(8, HandledReport, consumer="everything")
        worker.stop()

    of_one = numbers_at_end(worker)["full_batches"]
    assert (of_one.offered, of_one.dropped, of_one.pending) == (3, {"process-died": 3}, 0)


def test_children_are_forked_while_coroutines_run_in_the_main_process(
    broker_config: Callable[[str], dict[str, Any]],
) -> None:
    config = {**broker_config("redis"), "imports": COROUTINES}

    with running_worker(config, concurrency=1) as worker:
        listener = worker.listener
        for killed in range(1, 4):
            worker.send("sleeps", 60)
            starts = listener.wait_for(
                killed, HandledReport, consumer="everything", events=["JobStarted 60"]
            )
            os.kill(starts[-1].pid, signal.SIGKILL)
            # Told in the main process, whose event loops run from the first one on.
            ends = listener.wait_for(
                killed, HandledReport, consumer="async_retried", events=["JobFailed 60"]
            )
        for label in KEYED:
            worker.send("ok", label)
        last = listener.wait_for(len(KEYED), HandledReport, consumer="async_keyed")
        exit_code = worker.stop()

    assert exit_code == 0
    assert len({start.pid for start in starts}) == len(starts)
    assert {end.pid for end in ends}.isdisjoint({start.pid for start in starts})
    assert len({end.pid for end in ends}) == 1
    assert {call.pid for call in last}.isdisjoint({report.pid for report in (*starts, *ends)})
    numbers = numbers_at_end(worker)
    assert numbers["async_keyed"].handled == len(KEYED)
    assert numbers["async_retried"].handled == len(ends)
    assert all(is_settled(of_one) for of_one in numbers.values())
