"""OpenTelemetry: the trace context of jobs, and the numbers of consumers and jobs as instruments.

Needs the extra `[otel]`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

import celery_broadcast
from celery_broadcast import durations, installation, jobs
from celery_broadcast.counts import DROP_REASONS, ConsumerStats
from celery_broadcast.jobs import JobNumbers
from celery_broadcast.otel_tracing import context_of

__all__ = ["context_of", "observe"]

_STATES = ("running", "paused", "stuck", "gave-up")

#: A number, and what it is of besides the consumer, or the task and the queue.
_Number = tuple[float, Mapping[str, str]]

T = TypeVar("T")


class _Numbers:
    """Gives numbers to instruments, in the process that made them.

    A forked child inherits the instruments, and OpenTelemetry starts its export
    anew there; but the parent tells of the child's numbers.
    """

    def __init__(self) -> None:
        self.pid: int = os.getpid()

    def callback(
        self,
        all_of_them: Callable[[], Iterable[tuple[Mapping[str, str], T]]],
        numbers_of: Callable[[T], Iterable[_Number]],
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return what an instrument asks, on the thread that exports.

        Args:
            all_of_them: gives what there are numbers of, each with its attributes.
            numbers_of: gives those of one, each with further attributes.
        """

        def observations(_: CallbackOptions) -> list[Observation]:
            if os.getpid() != self.pid:
                return []
            return [
                Observation(number, {**whose, **attributes})
                for whose, all_numbers in all_of_them()
                for number, attributes in numbers_of(all_numbers)
            ]

        return observations


# By the provider that was given; None stands for the global one.
_observed: dict[MeterProvider | None, _Numbers] = {}


def observe(meter_provider: MeterProvider | None = None) -> None:
    """Have the numbers of the consumers and the jobs exported by this process, from now on.

    With `broadcast_opentelemetry` the main process of a worker does it, with the
    global provider, and so does `celery broadcast consume`: there is no need to.
    Twice is harmless. In a pool process they are the numbers of that process alone.
    Jobs are counted with `broadcast_opentelemetry` or `broadcast_metrics_port` only.

    Args:
        meter_provider: of OpenTelemetry; None is the global one, which may be set later.
    """
    numbers = _observed.get(meter_provider)
    if numbers is not None:
        numbers.pid = os.getpid()
        return
    numbers = _observed[meter_provider] = _Numbers()
    _make_instruments(numbers, meter_provider)


def _make_instruments(numbers: _Numbers, meter_provider: MeterProvider | None) -> None:
    meter = metrics.get_meter("celery_broadcast", celery_broadcast.__version__, meter_provider)
    counter, up_down = meter.create_observable_counter, meter.create_observable_up_down_counter

    def add(
        create: Callable[..., object],
        name: str,
        unit: str,
        description: str,
        numbers_of: Callable[[ConsumerStats], Iterable[_Number]],
    ) -> None:
        callbacks = [numbers.callback(_consumers, numbers_of)]
        create(f"celery_broadcast.consumer.{name}", callbacks, unit, description)

    def add_of_jobs(
        create: Callable[..., object],
        name: str,
        unit: str,
        description: str,
        numbers_of: Callable[[JobNumbers], Iterable[_Number]],
    ) -> None:
        callbacks = [numbers.callback(_jobs, numbers_of)]
        create(f"celery_broadcast.job.{name}", callbacks, unit, description)

    def alone(number: float) -> list[_Number]:
        return [(number, {})]

    add(
        *(counter, "events.offered", "{event}", "Events of the kinds that the consumer wants."),
        lambda stats: alone(stats.offered),
    )
    add(
        *(counter, "events.handled", "{event}", "Events that it is done with, declined too."),
        lambda stats: alone(stats.handled),
    )
    add(
        *(counter, "events.declined", "{event}", "Handled events its selector turned away."),
        lambda stats: alone(stats.declined),
    )
    add(
        *(counter, "events.failed", "{event}", "Events on which it or its selector raised."),
        lambda stats: alone(stats.failed),
    )
    add(*(counter, "events.dropped", "{event}", "Events that it never got."), _dropped)
    add(
        *(up_down, "events.pending", "{event}", "Events in its mailbox or in its hands."),
        lambda stats: alone(stats.pending),
    )
    add(
        *(meter.create_observable_gauge, "lag", "s"),
        "For how long its oldest waiting event has waited, at least.",
        lambda stats: alone(stats.lag),
    )
    add(
        *(counter, "restarts", "{restart}", "Starts after a crash."),
        lambda stats: alone(stats.restarts),
    )
    add(
        *(up_down, "process.count", "{process}", "Processes that have it in this state."),
        _processes,
    )
    add(
        *(counter, "calls", "{call}", "Calls that took as long as the bound, at most."),
        _calls,
    )
    add(
        *(counter, "call.time", "s", "What its calls took, all together."),
        lambda stats: alone(stats.durations.seconds),
    )
    add_of_jobs(
        *(counter, "started", "{attempt}", "Attempts of jobs that started."),
        lambda job: alone(job.started),
    )
    add_of_jobs(
        *(counter, "ended", "{attempt}", "Attempts that ended, and jobs that never started."),
        _ended,
    )
    add_of_jobs(
        *(up_down, "running", "{attempt}", "Attempts that started and haven't ended."),
        lambda job: alone(job.running),
    )
    add_of_jobs(
        *(counter, "runs", "{attempt}", "Attempts that took as long as the bound, at most."),
        lambda job: _bucketed("job.bound", jobs.BOUNDS, job.buckets),
    )
    add_of_jobs(
        *(counter, "runtime", "s", "What attempts took, all together."),
        lambda job: alone(job.seconds),
    )
    add_of_jobs(
        *(counter, "waits", "{attempt}", "Attempts that waited as long as the bound, at most."),
        lambda job: _bucketed("job.bound", jobs.BOUNDS, job.waits),
    )
    add_of_jobs(
        *(counter, "waiting.time", "s", "What attempts waited, all together."),
        lambda job: alone(job.waited_seconds),
    )


def _ended(job: JobNumbers) -> list[_Number]:
    return [(count, {"celery_broadcast.job.end": end}) for end, count in job.ended.items()]


def _consumers() -> list[tuple[Mapping[str, str], ConsumerStats]]:
    return [
        ({"celery_broadcast.consumer.name": name}, stats)
        for name, stats in installation.stats().items()
    ]


def _jobs() -> list[tuple[Mapping[str, str], JobNumbers]]:
    return [
        ({"celery.task_name": task, "messaging.destination.name": queue}, numbers)
        for (task, queue), numbers in installation.job_numbers().items()
    ]


def _dropped(stats: ConsumerStats) -> list[_Number]:
    # All of them, so that an alert sees the first drop as an increase.
    return [
        (stats.dropped.get(reason, 0), {"celery_broadcast.drop.reason": reason})
        for reason in DROP_REASONS
    ]


def _processes(stats: ConsumerStats) -> list[_Number]:
    return [
        (stats.processes.get(state, 0), {"celery_broadcast.consumer.state": state})
        for state in _STATES
    ]


def _calls(stats: ConsumerStats) -> list[_Number]:
    return _bucketed("call.bound", durations.BOUNDS, stats.durations.buckets)


def _bucketed(name: str, bounds: Iterable[float], buckets: Iterable[int]) -> list[_Number]:
    """Return what is in each bucket alone: their sum is the number of all."""
    return [
        (count, {f"celery_broadcast.{name}": bound})
        for bound, count in zip((*map(str, bounds), "+Inf"), buckets, strict=True)
    ]
