"""The numbers of the consumers and of the jobs, as Prometheus wants them; needs `[prometheus]`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from celery_broadcast import durations, jobs
from celery_broadcast.counts import DROP_REASONS, ConsumerStats
from celery_broadcast.jobs import JobNumbers, Key

_LABELS = ("consumer",)
_JOB_LABELS = ("task", "queue")
_STATES = ("running", "paused", "stuck", "gave-up")


class ConsumersCollector(Collector):
    """Reads the consumers' numbers anew at each scrape; keeps none itself.

    Args:
        stats: returns the numbers by the consumer's name, such as
            `celery_broadcast.stats`. Called on the thread that serves the scrape.
    """

    def __init__(self, stats: Callable[[], Mapping[str, ConsumerStats]]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, so that registering reads no numbers."""
        return _metrics({})

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this moment."""
        return _metrics(self._stats())


class JobsCollector(Collector):
    """Reads the jobs' own numbers anew at each scrape; keeps none itself.

    Args:
        numbers: returns them, by the names of the task and the queue, such as
            `installation.job_numbers`. Called on the thread that serves the scrape.
    """

    def __init__(self, numbers: Callable[[], Mapping[Key, JobNumbers]]) -> None:
        self._numbers = numbers

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, so that registering reads no numbers."""
        return _job_metrics({})

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this moment."""
        return _job_metrics(self._numbers())


def _metrics(stats: Mapping[str, ConsumerStats]) -> list[Metric]:
    prefix = "celery_broadcast_"
    offered = CounterMetricFamily(
        prefix + "events_offered", "Events of the kinds that the consumer wants.", labels=_LABELS
    )
    handled = CounterMetricFamily(
        prefix + "events_handled", "Events that it is done with, declined too.", labels=_LABELS
    )
    declined = CounterMetricFamily(
        prefix + "events_declined", "Handled events its selector turned away.", labels=_LABELS
    )
    failed = CounterMetricFamily(
        prefix + "events_failed", "Events on which it or its selector raised.", labels=_LABELS
    )
    dropped = CounterMetricFamily(
        prefix + "events_dropped", "Events that it never got.", labels=(*_LABELS, "reason")
    )
    restarts = CounterMetricFamily(
        prefix + "consumer_restarts", "Starts after a crash.", labels=_LABELS
    )
    pending = GaugeMetricFamily(
        prefix + "events_pending", "Events in its mailbox or in its hands.", labels=_LABELS
    )
    lag = GaugeMetricFamily(
        prefix + "consumer_lag_seconds",
        "Seconds that its oldest waiting event has waited, at least.",
        labels=_LABELS,
    )
    processes = GaugeMetricFamily(
        prefix + "consumer_processes",
        "Processes that have it in this state.",
        labels=(*_LABELS, "state"),
    )
    handle = HistogramMetricFamily(
        prefix + "consumer_handle_seconds", "Seconds that its calls took.", labels=_LABELS
    )
    for name, numbers in stats.items():
        labels = [name]
        offered.add_metric(labels, numbers.offered)
        handled.add_metric(labels, numbers.handled)
        declined.add_metric(labels, numbers.declined)
        failed.add_metric(labels, numbers.failed)
        # All of them, so that an alert sees the first drop as an increase.
        for reason in DROP_REASONS:
            dropped.add_metric([name, reason], numbers.dropped.get(reason, 0))
        restarts.add_metric(labels, numbers.restarts)
        pending.add_metric(labels, numbers.pending)
        lag.add_metric(labels, numbers.lag)
        for state in _STATES:
            processes.add_metric([name, state], numbers.processes.get(state, 0))
        calls = numbers.durations
        handle.add_metric(labels, _cumulative(durations.BOUNDS, calls.buckets), calls.seconds)
    return [
        *(offered, handled, declined, failed, dropped, restarts),
        *(pending, lag, processes, handle),
    ]


def _job_metrics(numbers: Mapping[Key, JobNumbers]) -> list[Metric]:
    prefix = "celery_"
    started = CounterMetricFamily(
        prefix + "jobs_started", "Attempts of jobs that started.", labels=_JOB_LABELS
    )
    ended = CounterMetricFamily(
        prefix + "jobs_ended",
        "Attempts that ended, and jobs that never started; by the name of the event.",
        labels=(*_JOB_LABELS, "type"),
    )
    running = GaugeMetricFamily(
        prefix + "jobs_running", "Attempts that started and haven't ended.", labels=_JOB_LABELS
    )
    runtime = HistogramMetricFamily(
        prefix + "job_runtime_seconds",
        "Seconds that attempts took, however they ended.",
        labels=_JOB_LABELS,
    )
    wait = HistogramMetricFamily(
        prefix + "job_wait_seconds",
        "Seconds from when a job was sent, or due, to its start, where its sender told that.",
        labels=_JOB_LABELS,
    )
    for (task, queue), its in numbers.items():
        started.add_metric([task, queue], its.started)
        # All of them, so that an alert sees the first as an increase.
        for name, count in its.ended.items():
            ended.add_metric([task, queue, name], count)
        running.add_metric([task, queue], its.running)
        runtime.add_metric([task, queue], _cumulative(jobs.BOUNDS, its.buckets), its.seconds)
        wait.add_metric([task, queue], _cumulative(jobs.BOUNDS, its.waits), its.waited_seconds)
    return [started, ended, running, runtime, wait]


def _cumulative(bounds: Sequence[float], buckets: Iterable[int]) -> list[tuple[str, float]]:
    names = (*map(str, bounds), "+Inf")
    return list(zip(names, itertools.accumulate(buckets), strict=True))
