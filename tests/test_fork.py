"""Real forks: what the child says comes back over a pipe."""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from conftest import broadcast_threads
from recorder import Recorder, StuckConsumer, make_event, numbered, subscribe

from celery_broadcast import fork
from celery_broadcast.attempts import Attempt, Attempts
from celery_broadcast.events import JobFinished
from celery_broadcast.producer import Producer

MakeProducer = Callable[..., Producer]


def in_child(said: Callable[[], Any]) -> Any:
    """Return what `said()` returns in a forked child; the child leaves as a pool process does."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on: the very thing that is tested here, as every worker does it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            os.write(writer, json.dumps(said()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    assert text, "the child said nothing"
    return json.loads(text)


def test_a_child_has_none_of_the_parents_waiting_events_threads_and_counts(
    make_producer: MakeProducer,
) -> None:
    stuck, recorder = StuckConsumer(), Recorder()
    producer = make_producer(subscribe(stuck, "stuck"), subscribe(recorder, "store"))
    for event in numbered(5):
        producer.notify(event)
    stuck.stuck.wait(10)
    recorder.wait_for(5)

    def child() -> Any:
        stats = producer.stats()["stuck"]
        return [stats.offered, stats.pending, broadcast_threads()]

    assert in_child(child) == [0, 0, []]
    stuck.freed.set()


def test_a_child_broadcasts_on_threads_of_its_own(make_producer: MakeProducer) -> None:
    recorder = Recorder()
    producer = make_producer(subscribe(recorder, "store"))
    producer.notify(make_event(JobFinished, task_id="parent"))
    recorder.wait_for(1)

    def child() -> Any:
        recorder.events.clear()
        producer.notify(make_event(JobFinished, task_id="child"))
        producer.drain()
        return recorder.task_ids

    assert in_child(child) == ["child"]
    assert recorder.task_ids == ["parent"]


def test_a_child_is_never_born_with_a_held_lock(make_producer: MakeProducer) -> None:
    producer = make_producer(subscribe(Recorder(), "store"))
    producer.notify(make_event(JobFinished))
    held, let_go = threading.Event(), threading.Event()

    def hold_all() -> None:
        with producer._starting, producer._draining, producer._refusing:
            held.set()
            let_go.wait(60.0)

    holder = threading.Thread(target=hold_all)
    holder.start()
    held.wait(10)

    def child() -> Any:
        producer.notify(make_event(JobFinished))
        producer.drain()
        return producer.stats()["store"].handled

    try:
        assert in_child(child) == 1
    finally:
        let_go.set()
        holder.join()


def test_children_forked_under_fire_all_broadcast(make_producer: MakeProducer) -> None:
    producer = make_producer(subscribe(lambda _: None, "store"), subscribe(lambda _: None, "page"))
    stop = threading.Event()

    def fire() -> None:
        while not stop.is_set():
            producer.notify(make_event(JobFinished))

    shooters = [threading.Thread(target=fire) for _ in range(2)]
    for shooter in shooters:
        shooter.start()

    def child() -> Any:
        for event in numbered(10):
            producer.notify(event)
        drained = producer.drain()
        return [drained.left, producer.stats()["store"].handled, producer.stats()["page"].handled]

    try:
        assert [in_child(child) for _ in range(20)] == [[0, 10, 10]] * 20
    finally:
        stop.set()
        for shooter in shooters:
            shooter.join()


def test_a_child_has_no_part_in_its_parents_attempts() -> None:
    attempts, request = Attempts(), object()
    attempts.start(request, Attempt(facts={}, started_monotonic=0.0))

    assert in_child(lambda: attempts.find(request) is None)
    assert attempts.find(request) is not None


def test_what_is_gone_in_the_parent_is_not_kept_for_a_child() -> None:
    before = len(fork._forgetful)

    Attempts()

    assert len(fork._forgetful) == before


def test_a_fork_does_not_mind_that_another_thread_has_something_new() -> None:
    class Clean:
        def forget(self) -> None:
            """Nothing to forget."""

    kept = [Clean() for _ in range(300)]
    for each in kept:
        fork.starts_clean(each)
    is_over = threading.Event()

    def make() -> None:
        while not is_over.is_set():
            fork.starts_clean(Clean())

    maker = threading.Thread(target=make)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    maker.start()
    try:
        for _ in range(300):
            assert len(fork._all()) >= len(kept)
    finally:
        is_over.set()
        maker.join()
        sys.setswitchinterval(interval)


def test_an_error_around_a_fork_keeps_nobody_else_from_starting_clean(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def before_fork(self) -> None:
            raise RuntimeError("before")

        def forget(self) -> None:
            raise RuntimeError("after")

    class Clean:
        prepared = forgotten = False

        def before_fork(self) -> None:
            self.prepared = True

        def forget(self) -> None:
            self.forgotten = True

    instances: list[fork.Forgetful] = [Clean(), Broken(), Clean(), Broken(), Clean()]
    for instance in instances:
        fork.starts_clean(instance)
    clean = [instance for instance in instances if isinstance(instance, Clean)]

    assert in_child(lambda: [each.prepared and each.forgotten for each in clean]) == [True] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "broadcast failed around a fork"
    ] * 2
