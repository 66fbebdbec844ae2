"""A check that can't fail proves nothing: what each of them finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from celery_broadcast.counts import ConsumerStats
from chaos_relay.journal import AnyLine, Drained, Handled, Published
from chaos_relay.run import GROUPS, MURDER, POISON, Letter, Order, Result, plan, task_ids
from chaos_relay.verdicts import complaints, most_duplicates

ORDER = Order("redis", seed=1, jobs=100, kills=2, restarts=1)
WORKER, REPLICA = 1, 2

IDS = ("a", f"{POISON}b", f"{MURDER}c")


def facts(task_id: str, event: str = "JobFinished") -> dict[str, object]:
    return {"task_id": task_id, "event": event, "pid": WORKER, "started_at": 1.5}


def published(task_id: str, event: str = "JobFinished") -> Published:
    return Published(writer=WORKER, **facts(task_id, event))  # type: ignore[arg-type]


def handled(group: str, task_id: str, event: str = "JobFinished", event_id: str = "") -> Handled:
    return Handled(
        writer=REPLICA,
        group=group,
        event_id=event_id or f"{event} {task_id}",
        **facts(task_id, event),  # type: ignore[arg-type]
    )


def numbers(count: int, dropped: int = 0) -> ConsumerStats:
    return ConsumerStats(
        offered=count,
        handled=count - dropped,
        declined=0,
        failed=0,
        dropped={"mailbox-full": dropped} if dropped else {},
        pending=0,
    )


def drained(count: int, relay_dropped: int = 0) -> Drained:
    return Drained(
        writer=WORKER,
        numbers={"relay": numbers(count, relay_dropped), "witness": numbers(count)},
    )


def what_came_out() -> Result:
    """Return a run in which all is right."""
    lines: list[AnyLine] = []
    for task_id in IDS:
        lines += [published(task_id, "JobStarted"), published(task_id)]
        lines += [handled("ledger", task_id, "JobStarted"), handled("ledger", task_id)]
    lines += [handled("pager", IDS[0]), handled("pager", IDS[2])]
    lines += [handled("audit", IDS[0]), handled("audit", IDS[1])]
    lines.append(drained(6))
    return Result(
        ORDER,
        lines=lines,
        letters={
            "pager": [Letter((IDS[1],), "raised")],
            "audit": [Letter((IDS[2],), "killed")],
            "ledger": [],
        },
        done=Counter({"kill": 2, "restart by SIGTERM": 1}),
        deaths=Counter(audit=4),
        exit_codes={f"{number}": 0 for number in range(8)},
        logs={"pager-1": "consumer 'pager': JobFinished of noop was put aside (raised)"},
    )


def without(line: AnyLine) -> Callable[[Result], None]:
    return lambda result: result.lines.remove(line)


def replaced(old: AnyLine, new: AnyLine) -> Callable[[Result], None]:
    def replace(result: Result) -> None:
        result.lines[result.lines.index(old)] = new

    return replace


def with_more(*lines: AnyLine) -> Callable[[Result], None]:
    return lambda result: result.lines.extend(lines)


def with_letters(group: str, *letters: Letter) -> Callable[[Result], None]:
    return lambda result: result.letters.update({group: list(letters)})


def with_log(text: str) -> Callable[[Result], None]:
    return lambda result: result.logs.update({"worker-1": text})


def test_a_run_in_which_all_is_right_has_no_complaints() -> None:
    assert complaints(what_came_out()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without(handled("pager", "a")), "'pager' never got 1 events"),
        (without(handled("ledger", "a", "JobStarted")), "'ledger' never got 1 events"),
        (with_letters("pager"), "'pager' never got 1 events"),
        (with_more(handled("audit", "z")), "'audit' got 1 events from nowhere"),
        (with_more(handled("audit", "a", "JobStarted")), "'audit' got 1 events from nowhere"),
        (with_more(*[handled("pager", "a")] * 2_000), "'pager' got 2000 events again"),
        (replaced(handled("pager", "a"), handled("pager", "a", event_id="?")), "several ids"),
        (with_more(handled("ledger", "a", event_id=f"JobFinished {IDS[1]}")), "of 2 events"),
        (without(drained(6)), "without a drain"),
        (replaced(drained(6), drained(6, relay_dropped=1)), "'relay' lost events"),
        (replaced(drained(6), drained(7)), "wrote down 6 events and counted 7"),
        (lambda result: result.lines.clear(), "No worker has published anything"),
        (with_letters("pager", Letter((IDS[1],), "killed")), "dead letters of 'pager'"),
        (with_letters("pager", Letter(("a", IDS[1]), "raised")), "dead letters of 'pager'"),
        (with_letters("ledger", Letter(("a",), "raised")), "dead letters of 'ledger'"),
        (with_more(handled("pager", IDS[1])), "'pager' handled what it can't"),
        (lambda result: result.done.update({"restart by SIGKILL": 1}), "restarted 2 times"),
        (lambda result: result.done.pop("kill"), "Only 0 of 2 replicas were killed"),
        (lambda result: result.exit_codes.update({"1": 3}), "exit code of 1 is 3"),
        (lambda result: result.exit_codes.pop("1"), "Only these have ended"),
        (with_log("consumer 'pager': nobody reads for it any more"), "worker-1 wrote"),
        (with_log("consumer 'pager' has not got 3 events"), "worker-1 wrote"),
        (lambda result: result.troubles.append("It burns."), "It burns."),
    ],
)
def test_what_is_wrong_is_found(change: Callable[[Result], object], complaint: str) -> None:
    result = what_came_out()

    change(result)

    assert any(complaint in found for found in complaints(result)), complaints(result)


def test_a_job_that_runs_twice_has_two_letters() -> None:
    result = what_came_out()
    again = {"writer": WORKER, **facts(IDS[1]), "started_at": 9.5}
    result.lines[-1] = drained(7)
    result.lines += [
        Published(**again),  # type: ignore[arg-type]
        *(
            Handled(group=group, event_id="again", **{**again, "writer": REPLICA})  # type: ignore[arg-type]
            for group in ("audit", "ledger")
        ),
    ]

    assert any("dead letters of 'pager'" in found for found in complaints(result))
    result.letters["pager"] *= 2
    assert complaints(result) == []


def test_an_event_may_be_put_aside_again_for_each_restart_of_the_broker() -> None:
    result = what_came_out()

    result.letters["pager"] *= 2
    assert complaints(result) == []
    result.letters["pager"].append(result.letters["pager"][0])
    assert any("dead letters of 'pager'" in found for found in complaints(result))


def test_a_worker_may_fail_that_celery_has_ended() -> None:
    result = what_came_out()
    result.exit_codes["worker-1"] = result.exit_codes.pop("1") + 1
    assert complaints(result) == ["The exit code of worker-1 is 1."]

    result.logs["worker-1"] = "[...] CRITICAL/MainProcess] Unrecoverable error: AttributeError()"
    assert complaints(result) == []
    result.exit_codes["worker-1"] = 3
    assert complaints(result) == ["The exit code of worker-1 is 3."]


def test_what_nobody_struck_comes_once() -> None:
    result = Result(ORDER)

    assert most_duplicates(result, "pager") == 0
    result.done["kill"] += 1
    assert most_duplicates(result, "pager") == 100


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_all_that_was_ordered_in_its_order(seed: int) -> None:
    strikes = plan(Random(seed), ORDER)

    assert strikes == sorted(strikes)
    assert Counter(name == "broker" for _, name in strikes) == {True: 1, False: 2}
    assert {name for _, name in strikes} <= {"broker", *GROUPS}
    assert all(0 <= moment < ORDER.jobs for moment, _ in strikes)


def test_a_seed_gives_the_same_jobs_of_which_two_are_marked() -> None:
    ids = task_ids(Random(7), ORDER)

    assert ids == task_ids(Random(7), ORDER)
    assert len(set(ids)) == ORDER.jobs
    assert [sum(each.startswith(mark) for each in ids) for mark in (POISON, MURDER)] == [1, 1]
