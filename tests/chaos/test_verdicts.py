"""A check that can't fail proves nothing: what each of them finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from celery_broadcast.counts import ConsumerStats
from chaos.attempts import attempts_of
from chaos.journal import AnyLine, Closed, Drained, Handled, Published
from chaos.main_process import MEBIBYTE, Holdings
from chaos.run import Order, Result
from chaos.verdicts import complaints

MAIN, CHILD = 1, 2


def published(event: str, writer: int = CHILD, started_at: float | None = 1.5) -> Published:
    return Published(
        writer=writer,
        event=event,
        task_name="chaos.app.noop",
        task_id="a",
        pid=CHILD,
        started_at=started_at,
    )


def closed(event: str, writer: int = CHILD) -> Closed:
    return Closed(writer=writer, event=event, task_id="a", pid=CHILD, started_at=1.5)


def handled(event: str, *, raised: bool = False) -> Handled:
    return Handled(
        writer=CHILD, consumer="trail", event=event, task_id="a", started_at=1.5, raised=raised
    )


START = published("JobStarted")
END = published("JobFinished")
END_BY_MAIN = published("JobFailed", MAIN)
DRAINED = Drained(writer=CHILD, left=0)

HOLDINGS = Holdings(
    threads=6,
    files=Counter(pipe=24),
    shared_mappings=1,
    mappings=350,
    resident_bytes=60 * MEBIBYTE,
)


def numbers(offered: int = 0, handled: int = 0, pending: int = 0) -> ConsumerStats:
    return ConsumerStats(
        offered=offered, handled=handled, declined=0, failed=0, dropped={}, pending=pending
    )


def what_came_out(*lines: AnyLine, log: str = "", after: Holdings = HOLDINGS) -> Result:
    """Return what is right, but for what the test changes."""
    written = sum(isinstance(line, Handled) for line in lines)
    return Result(
        Order(seed=1),
        MAIN,
        lines=list(lines),
        numbers={"trail": numbers(offered=written, handled=written)},
        before=HOLDINGS,
        after=after,
        log=log,
        exit_code=0,
    )


@pytest.mark.parametrize(
    ("lines", "ends"),
    [
        ([], 0),
        ([END, closed("JobFinished")], 1),
        ([END_BY_MAIN, closed("JobFailed", MAIN)], 1),
        ([END], 1),  # killed after it was published
        ([END, END_BY_MAIN], 1),  # killed before, of which the main process told
        ([END, closed("JobFinished"), END_BY_MAIN], 2),
        ([END_BY_MAIN, END_BY_MAIN], 2),
        ([END, closed("JobFinished"), END, closed("JobFinished")], 2),
    ],
)
def test_the_ends_of_an_attempt_are_counted(lines: Sequence[AnyLine], ends: int) -> None:
    (attempt,) = attempts_of([START, *lines], MAIN)

    assert attempt.ends == ends
    assert len(complaints(what_came_out(START, *lines))) == (ends != 1)


def test_an_end_whose_start_was_never_published_is_right() -> None:
    assert complaints(what_came_out(END_BY_MAIN)) == []


@pytest.mark.parametrize(("event", "is_right"), [("JobRevoked", True), ("JobFinished", False)])
def test_few_ends_need_no_start(event: str, is_right: bool) -> None:  # noqa: FBT001
    found = complaints(what_came_out(published(event, MAIN, started_at=None)))

    assert (found == []) == is_right


def test_an_attempt_that_is_wrong_is_named() -> None:
    (complaint,) = complaints(what_came_out(START))

    for detail in ("0 ends", "chaos.app.noop[a]", "pid 2", "1.5"):
        assert detail in complaint


@pytest.mark.parametrize(
    ("stats", "complaint"),
    [
        (numbers(offered=2, handled=1), "of 2 events 1 are counted"),
        (numbers(offered=2, handled=1, pending=1), "1 events that nobody handles"),
        (numbers(offered=2, handled=2), "wrote down 1 events as handled, counted are 2"),
        (numbers(offered=0, handled=0), "wrote down 1 events as handled, counted are 0"),
    ],
)
def test_numbers_that_do_not_add_up_are_found(stats: ConsumerStats, complaint: str) -> None:
    result = what_came_out(START, handled("JobStarted"), END, closed("JobFinished"), DRAINED)
    result.numbers = {"trail": stats}

    assert any(complaint in found for found in complaints(result))


def test_a_killed_process_may_have_written_down_one_event_that_is_not_counted() -> None:
    result = what_came_out(START, handled("JobStarted"), END_BY_MAIN)
    result.numbers = {"trail": numbers()}

    assert complaints(result) == []


def test_events_out_of_order_are_found() -> None:
    done = closed("JobFinished")
    late = (handled("JobFinished"), handled("JobStarted"))

    assert "out of order" in complaints(what_came_out(START, END, done, *late))[0]


@pytest.mark.parametrize(
    ("after", "complaint"),
    [
        (replace(HOLDINGS, threads=7), "more threads: 1"),
        (replace(HOLDINGS, files=Counter(pipe=30)), "more open files: {'pipe': 6}"),
        (replace(HOLDINGS, shared_mappings=2), "more shared mappings: 1"),
        (replace(HOLDINGS, mappings=500), "more mappings"),
        (replace(HOLDINGS, resident_bytes=80 * MEBIBYTE), "more MiB of memory: 20"),
    ],
)
def test_what_the_main_process_held_on_to_is_found(after: Holdings, complaint: str) -> None:
    (found,) = complaints(what_came_out(after=after))

    assert complaint in found


@pytest.mark.parametrize(
    ("record", "is_wrong"),
    [
        ("broadcast failed in on_task_prerun", True),
        ("Signal handler <function> raised", True),
        ('Traceback\n  File "/celery_broadcast/producer.py"', True),
        ("consumer 'raises' raised\nTraceback\n  File \"/celery_broadcast/consumer.py\"", False),
        ('Traceback\n  File "/celery/app/trace.py"', False),
    ],
)
def test_errors_of_ours_in_the_log_are_found(record: str, is_wrong: bool) -> None:  # noqa: FBT001
    log = "".join(f"[2026-11-22 11:16:2{second},0: ERROR/Main] {record}\n" for second in range(3))

    assert len(complaints(what_came_out(log=log))) == is_wrong
