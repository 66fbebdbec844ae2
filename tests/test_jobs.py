"""The jobs' own numbers, whatever the processes that count them die of."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from test_fork import in_child
from test_slots import FIRST_ACTED_PID, as_in_a_child, killed_child, note_down, running

from celery_broadcast import installation, jobs
from celery_broadcast.events import JobFailed, JobFinished, JobLost, JobRevoked
from celery_broadcast.jobs import ENDS, MOST_NAMED, OTHER, JobNumbers, Jobs, Key
from celery_broadcast.ledger import Ledger
from celery_broadcast.slots import JOB_MEMORY, Running, Slot, Slots

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

KEY = ("shop.charge", "mail")
FACTS = {"task_name": "shop.charge", "queue": "mail"}


def numbers(jobs: Jobs, key: Key = KEY) -> JobNumbers:
    return jobs.numbers([])[key]


def ends(numbers: JobNumbers) -> dict[str, int]:
    return {name: count for name, count in numbers.ended.items() if count}


def in_pool_process(slots: Slots, pid: int = FIRST_ACTED_PID) -> tuple[Jobs, Slot]:
    """Return what counts in a new pool process, and its slot."""
    child = as_in_a_child(slots, pid)
    assert child.mine is not None
    counting = Jobs()
    counting.share(child)
    return counting, child.mine


# In one process.


def test_a_job_that_started_runs_until_it_ends() -> None:
    jobs = Jobs()

    jobs.start(FACTS, 5.0, None)
    jobs.start(FACTS, 6.0, None)
    jobs.end(FACTS, 5.0, JobFinished, 0.25)

    assert (numbers(jobs).started, numbers(jobs).running) == (2, 1)
    assert ends(numbers(jobs)) == {"JobFinished": 1}


def test_every_way_to_end_is_told_before_the_first_ends_so() -> None:
    jobs = Jobs()
    jobs.start(FACTS, 5.0, None)

    assert numbers(jobs).ended == dict.fromkeys(ENDS, 0)


@pytest.mark.parametrize(
    ("runtime", "bucket"), [(-1.0, 0), (0.0, 0), (0.01, 0), (0.02, 1), (3600.0, 12), (1e6, 13)]
)
def test_a_runtime_is_in_one_bucket(runtime: float, bucket: int) -> None:
    jobs = Jobs()
    jobs.start(FACTS, 5.0, None)
    jobs.end(FACTS, 5.0, JobFailed, runtime)

    assert [n for n, count in enumerate(numbers(jobs).buckets) if count] == [bucket]
    assert numbers(jobs).seconds == max(0.0, runtime)


@pytest.mark.parametrize("note", [None, 3])
def test_how_long_a_job_waited_is_counted_with_its_start(note: int | None) -> None:
    jobs = Jobs()
    jobs.start(FACTS, 5.0, note, 0.02)
    jobs.start(FACTS, 6.0, note, 7200.0)
    jobs.start(FACTS, 7.0, note, None)

    its = numbers(jobs)
    assert [n for n, count in enumerate(its.waits) if count] == [1, 13]
    assert (its.started, its.waited_seconds, sum(its.buckets)) == (3, 7200.02, 0)


def test_jobs_that_waited_for_longer_than_64_bits_can_tell_are_counted() -> None:
    jobs = Jobs()

    for started in range(3):
        jobs.start(FACTS, float(started), None, 1e10)

    assert (numbers(jobs).started, sum(numbers(jobs).waits)) == (3, 3)
    assert numbers(jobs).waited_seconds == pytest.approx(2**64 / 1e9)


def test_a_job_that_never_started_ends_and_took_no_time() -> None:
    jobs = Jobs()

    jobs.end(FACTS, None, JobRevoked, 0.0)

    assert ends(numbers(jobs)) == {"JobRevoked": 1}
    assert (numbers(jobs).started, numbers(jobs).running, sum(numbers(jobs).buckets)) == (0, 0, 0)


def test_tasks_and_queues_are_told_apart() -> None:
    jobs = Jobs()
    jobs.start(FACTS, 5.0, None)
    jobs.start({**FACTS, "queue": "pages"}, 5.0, None)
    jobs.start({**FACTS, "queue": None}, 5.0, None)

    known = {key: its.started for key, its in jobs.numbers([]).items() if its.started}
    assert known == {KEY: 1, ("shop.charge", "pages"): 1, ("shop.charge", ""): 1}


def test_what_is_one_too_many_is_counted_as_other() -> None:
    jobs = Jobs()
    for number in range(MOST_NAMED + 5):
        jobs.start({"task_name": f"shop.task-{number}", "queue": "mail"}, 5.0, None)

    known = jobs.numbers([])
    assert len(known) == MOST_NAMED + 1
    assert known[OTHER].started == 5


@pytest.mark.parametrize("name", ["x" * 1_000, "a\0b", "trailing\0", "\ud800"])
def test_a_name_that_does_not_fit_is_counted_as_other(name: str) -> None:
    jobs = Jobs()
    jobs.start({"task_name": name, "queue": "mail"}, 5.0, None)

    assert numbers(jobs, OTHER).started == 1


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Have the interpreter change between threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_several_threads_count_all() -> None:
    jobs = Jobs()

    together = threading.Barrier(4)

    def count() -> None:
        together.wait()
        for number in range(100):
            facts = {"task_name": f"shop.task-{number}", "queue": "mail"}
            jobs.start(facts, 5.0, None)
            jobs.end(facts, 5.0, JobFinished, 0.1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    known = jobs.numbers([])
    assert len(known) == 1 + 100
    assert known.pop(OTHER).started == 0
    assert {(its.started, its.ended["JobFinished"]) for its in known.values()} == {(4, 4)}


# In the processes of a pool.


def test_the_main_process_reads_what_its_pool_has_counted() -> None:
    slots = Slots(count=3)
    main = Jobs()
    main.share(slots)
    main.start(FACTS, 1.0, None)
    for pid in (FIRST_ACTED_PID, FIRST_ACTED_PID + 1):
        child, slot = in_pool_process(slots, pid)
        note = note_down(slot, running())
        child.start(FACTS, 5.0, note)
        child.end(FACTS, 5.0, JobFinished, 0.2, note)

    its = main.numbers(slots.living())[KEY]

    assert (its.started, its.running, ends(its)) == (3, 1, {"JobFinished": 2})
    assert its.seconds == pytest.approx(0.4)


def test_numbers_of_processes_that_are_gone_are_kept() -> None:
    slots = Slots(count=1)
    ledger = Ledger()
    ledger.jobs = Jobs()
    ledger.share(slots)

    def act() -> None:
        assert ledger.jobs is not None
        ledger.jobs.start(FACTS, 5.0, None)
        ledger.jobs.end(FACTS, 5.0, JobFinished, 0.2)

    for _ in range(3):  # in the same slot, which is clean each time
        killed_child(act)
        before = ledger.job_numbers()[KEY]
        (slot,) = slots.gone()
        ledger.bury(slot)
        assert ledger.job_numbers()[KEY] == before

    assert ledger.job_numbers()[KEY].started == 3


@pytest.mark.parametrize("killed", ["once it was counted", "before it was counted"])
def test_a_killed_job_whose_note_is_cut_short_ends_as_what_it_was_counted(killed: str) -> None:
    main, slots = Jobs(), Slots(count=1)
    child, slot = in_pool_process(slots)
    noted = running(600 * "x", root_id=600 * "x", queue="mail")
    note = note_down(slot, noted)
    if killed == "once it was counted":
        child.start(FACTS, noted.started_monotonic, note)

    found = slot.read(note)
    assert found is not None
    assert "queue" not in found.facts
    assert main.settle(slot, note, found) is False
    main.bury(slot)
    main.end(found.facts, found.started_monotonic, JobLost, 0.25)

    key = KEY if killed == "once it was counted" else ("shop.charge", "")
    assert {each: n.started for each, n in main.numbers([]).items() if n.started} == {key: 1}
    assert (numbers(main, key).running, ends(numbers(main, key))) == (0, {"JobLost": 1})


def test_a_forked_child_counts_from_zero_where_its_parent_reads() -> None:
    slots = Slots(count=2)
    jobs = Jobs()
    jobs.share(slots)
    jobs.start(FACTS, 5.0, None)

    def child() -> Any:
        jobs.start(FACTS, 6.0, None)
        return numbers(jobs).started

    assert in_child(child) == 1
    assert jobs.numbers(slots.living())[KEY].started == 2


def test_the_memory_that_was_used_is_told_and_suffices() -> None:
    slots = Slots(count=1)
    child, slot = in_pool_process(slots)
    for number in range(2 * MOST_NAMED):
        child.start({"task_name": f"shop.task-{number}", "queue": ""}, 5.0, number % 16)

    assert slot.job_memory_used <= JOB_MEMORY
    assert not any(slot.job_memory[slot.job_memory_used :])


def test_of_many_processes_with_names_of_their_own_so_many_are_told_and_no_more() -> None:
    slots = Slots(count=3)
    main = Jobs()
    for process in range(3):
        child, slot = in_pool_process(slots)
        for number in range(MOST_NAMED):
            child.start({"task_name": f"shop.task-{process}-{number}", "queue": ""}, 5.0, None)
        main.bury(slot)

    known = main.numbers([])
    assert len(known) == MOST_NAMED + 1
    assert known[OTHER].started == 2 * MOST_NAMED


# Whatever strikes, wherever.


class Struck(BaseException):
    """Strikes as a kill does, or a soft time limit: between any two lines."""


def struck_after(lines: int, act: Callable[[], None]) -> bool:
    """Do something until so many lines of `jobs` are run; tell whether it was struck."""
    left = itertools.count(lines, -1)

    def trace(frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename != jobs.__file__:
            return None
        if event == "line" and next(left) <= 0:
            raise Struck
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Struck:
        return True
    finally:
        sys.settrace(before)
    return False


def one_job(child: Jobs, slot: Slot, noted: Running) -> Callable[[], None]:
    note = note_down(slot, noted)

    def act() -> None:
        child.start(FACTS, noted.started_monotonic, note, 0.5)
        child.end(FACTS, noted.started_monotonic, JobFinished, 0.25, note)
        slot.close(note)

    return act


def test_a_process_killed_at_any_line_has_each_attempt_counted_once() -> None:
    killed = 0
    while True:
        slots = Slots(count=1)
        main = Jobs()
        child, slot = in_pool_process(slots)
        noted = running(started_monotonic=7.0, queue="mail")
        one_job(child, slot, running(started_monotonic=6.0, queue="mail"))()  # on the same note
        slot._free_notes.rotate()  # that note is the next

        is_killed = struck_after(killed, one_job(child, slot, noted))
        is_counted = [
            main.settle(slot, note, found) for note, found in slot.open_notes() if found is not None
        ]
        main.bury(slot)
        if is_counted == [False]:
            main.end(noted.facts, noted.started_monotonic, JobLost, 0.25)

        its = numbers(main)
        assert (its.started, its.running) == (2, 0), killed
        assert ends(its) in ({"JobFinished": 2}, {"JobFinished": 1, "JobLost": 1})
        assert (sum(its.buckets), its.seconds) == (2, 0.5)
        # Who was killed before it had begun to count the start has taken the wait with it.
        assert (sum(its.waits), its.waited_seconds) in ((1, 0.5), (2, 1.0))
        if not is_killed:
            break
        killed += 1
    assert killed > 20


def test_what_a_soft_time_limit_struck_is_done_again_and_counted_once() -> None:
    struck = 0
    while True:
        child, slot = in_pool_process(Slots(count=1))
        act = one_job(child, slot, running(started_monotonic=7.0, queue="mail"))

        is_struck = struck_after(struck, act)
        if is_struck:
            act()

        its = numbers(child)
        assert (its.started, its.running, ends(its)) == (1, 0, {"JobFinished": 1}), struck
        assert (sum(its.buckets), its.seconds) == (1, 0.25)
        assert (sum(its.waits), its.waited_seconds) == (1, 0.5)
        if not is_struck:
            break
        struck += 1
    assert struck > 20


# Around real jobs.


@pytest.fixture
def counting_app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.conf.update(broadcast_enabled=True, broadcast_metrics_port=9808, task_always_eager=True)
    installation.install(app)
    yield app
    installation.uninstall(app)


def test_jobs_are_counted_though_nobody_listens(counting_app: Celery) -> None:
    @counting_app.task(name="shop.charge")
    def charge(amount: int) -> float:
        return 1 / amount

    for amount in (1, 2, 0):
        charge.delay(amount)

    (its,) = [its for its in installation.job_numbers().values() if its.started]
    assert (its.started, its.running) == (3, 0)
    assert ends(its) == {"JobFinished": 2, "JobFailed": 1}
    assert sum(its.buckets) == 3


def test_jobs_of_an_app_that_serves_no_metrics_are_not_counted(broadcasting_app: Celery) -> None:
    @broadcasting_app.task(name="shop.charge")
    def charge() -> None: ...

    charge.apply()

    assert installation.job_numbers() == {}


def test_who_serves_no_metrics_does_not_even_load_it() -> None:
    program = (
        "import sys, celery, celery_broadcast;"
        "app = celery.Celery('shop', set_as_current=False);"
        "app.conf.broadcast_enabled = True;"
        "celery_broadcast.install(app);"
        "app.conf.broadcast_enabled;"
        "print('celery_broadcast.bridge' in sys.modules, 'celery_broadcast.jobs' in sys.modules)"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "True False"
