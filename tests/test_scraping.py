"""The benchmark of scraping measures what it says that it does; how fast, no test asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery
from nodes.deadline import wait_until
from nodes.local_process import LOCALHOST, free_port

from benchmarks.scraping import Scraper
from celery_broadcast import installation
from celery_broadcast.metrics_endpoint import MetricsEndpoint


@pytest.fixture
def port() -> Iterator[int]:
    """Where the metrics are of one job."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(broadcast_enabled=True, broadcast_metrics_port=free_port())
    installation.install(app)
    assert app.conf.broadcast_enabled  # this is what makes Celery read the configuration

    @app.task(name="shop.charge")
    def charge() -> None: ...

    charge.apply()
    endpoint = MetricsEndpoint(LOCALHOST, app.conf.broadcast_metrics_port)
    endpoint.open()
    yield app.conf.broadcast_metrics_port
    endpoint.close()
    installation.uninstall(app)


@pytest.fixture
def scraper(port: int) -> Iterator[Scraper]:
    scraper = Scraper(f"http://{LOCALHOST}:{port}/metrics", seconds_between=0.01)
    yield scraper
    scraper.stop()


def test_a_scraper_scrapes_while_it_is_told_to(scraper: Scraper) -> None:
    assert scraper.scrapes == 0
    with scraper.scraping():
        wait_until(lambda: scraper.scrapes >= 2)

    scraper.check(turns=2, jobs=1)


def test_what_was_not_scraped_often_enough_is_no_measurement(scraper: Scraper) -> None:
    with pytest.raises(RuntimeError, match="scraped 0 times in 2 turns"):
        scraper.check(turns=2, jobs=0)


def test_a_worker_that_does_not_count_its_jobs_is_no_measurement(scraper: Scraper) -> None:
    with scraper.scraping():
        wait_until(lambda: scraper.scrapes >= 1)

    with pytest.raises(RuntimeError, match="counted 1 of 100 jobs"):
        scraper.check(turns=1, jobs=100)
