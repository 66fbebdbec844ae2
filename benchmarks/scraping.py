"""Jobs per second of a worker that serves metrics, scraped each second, and not scraped.

As in `jobs_per_second`, but for longer at a time, so that a turn has scrapes in it. It
is the same worker in both. What it takes to count the jobs, which a worker without
metrics doesn't, is shown beside it. Prometheus scrapes a fifteenth as often, if nobody
says otherwise.
"""

from __future__ import annotations

import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nodes.local_process import LOCALHOST, free_port
from nodes.redis_process import RedisProcess

from benchmarks.jobs_per_second import Kind, Worker
from benchmarks.measure import Comparison, measure_in_turn
from benchmarks.worker.app import app

TURNS = 3
JOBS = 2_500
PLAIN_JOBS = 500

SCRAPED = "metrics, scraped each second"
UNSCRAPED = "metrics, not scraped"
WITHOUT = "no metrics"

_CONSUMERS = "benchmarks.worker.trivial_consumers"


def measure(rounds: int) -> list[Comparison]:
    """Measure the figure.

    Raises:
        RuntimeError: the worker wasn't scraped, or didn't count its jobs.
    """
    port = free_port()
    without = Kind(
        imports=("celery_broadcast.plugin", _CONSUMERS), jobs=PLAIN_JOBS, consumers=4, receivers=1
    )
    scraped = Kind(
        imports=("benchmarks.worker.measured", *without.imports),
        environment={"BENCHMARK_METRICS_PORT": str(port)},
        jobs=JOBS,
        consumers=4,
        receivers=1,
    )
    with ExitStack() as stack:
        redis = stack.enter_context(RedisProcess())
        app.conf.update(broker_url=redis.url)
        plain = stack.enter_context(Worker("plain", redis.url, without))
        worker = stack.enter_context(Worker("scraped", redis.url, scraped))
        scraper = Scraper(f"http://{LOCALHOST}:{port}/metrics")
        stack.callback(scraper.stop)

        def scraped_jobs_per_second() -> float:
            with scraper.scraping():
                return worker.jobs_per_second()

        measured = measure_in_turn(
            {
                SCRAPED: scraped_jobs_per_second,
                UNSCRAPED: worker.jobs_per_second,
                WITHOUT: plain.jobs_per_second,
            },
            unit="jobs/s",
            rounds=rounds,
            turns=TURNS,
        )
        scraper.check(turns=rounds * TURNS, jobs=rounds * TURNS * JOBS)
    return [
        measured.compare(SCRAPED, UNSCRAPED, at_least=0.99),
        measured.compare(UNSCRAPED, WITHOUT),
    ]


class Scraper:
    """Scrapes each second of the time that it is told to, on a thread of its own.

    Args:
        url: of the metrics.
        seconds_between: from one to the next.
    """

    def __init__(self, url: str, seconds_between: float = 1.0) -> None:
        self.scrapes = 0
        self._url = url
        self._seconds_between = seconds_between
        self._text = ""
        self._is_wanted = False
        self._is_over = threading.Event()
        threading.Thread(target=self._run, name="scraper", daemon=True).start()

    @contextmanager
    def scraping(self) -> Iterator[None]:
        """Scrape during the block. One that comes too late for its end is answered in the next."""
        self._is_wanted = True
        try:
            yield
        finally:
            self._is_wanted = False

    def stop(self) -> None:
        """Scrape no more."""
        self._is_over.set()

    def check(self, turns: int, jobs: int) -> None:
        """Check that it scraped, and what.

        Raises:
            RuntimeError: there was less than one scrape in two turns, or less than
                half of the jobs were in the last one.
        """
        counted = sum(
            float(number)
            for number in re.findall(
                r"^celery_jobs_ended_total\S* (\S+)$", self._text, re.MULTILINE
            )
        )
        if self.scrapes < turns / 2 or counted < jobs / 2:
            message = (
                f"The worker was scraped {self.scrapes} times in {turns} turns, and had counted "
                f"{counted:.0f} of {jobs} jobs."
            )
            raise RuntimeError(message)

    def _run(self) -> None:
        while not self._is_over.wait(self._seconds_between):
            if self._is_wanted:
                with urllib.request.urlopen(self._url, timeout=60) as answer:  # noqa: S310
                    self._text = answer.read().decode()
                self.scrapes += 1
