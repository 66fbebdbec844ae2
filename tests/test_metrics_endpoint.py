"""Where a process serves its numbers to Prometheus."""

from __future__ import annotations

import logging
import socket
import sys
import urllib.request
from collections.abc import Iterator
from urllib.error import URLError

import pytest
from nodes.local_process import LOCALHOST, free_port
from test_fork import in_child

from celery_broadcast.metrics_endpoint import MetricsEndpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def endpoint(port: int) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(LOCALHOST, port)
    endpoint.open()
    yield endpoint
    endpoint.close()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://{LOCALHOST}:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.usefixtures("endpoint")
def test_metrics_are_served(port: int) -> None:
    assert "# TYPE celery_broadcast_events_dropped_total counter" in scrape(port)


def test_a_closed_endpoint_leaves_the_port(endpoint: MetricsEndpoint, port: int) -> None:
    endpoint.close()
    endpoint.close()

    with pytest.raises(URLError):
        scrape(port)
    with socket.create_server((LOCALHOST, port)):
        pass


@pytest.mark.usefixtures("endpoint")
def test_a_port_that_is_taken_is_said_and_hurts_nothing(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    second = MetricsEndpoint(LOCALHOST, port)

    second.open()
    second.close()

    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert f"can't serve metrics at {LOCALHOST}:{port}" in record.getMessage()
    assert "broadcast_metrics_port" in record.getMessage()
    assert scrape(port)


def test_what_is_not_installed_is_named(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    MetricsEndpoint(LOCALHOST, port).open()

    assert "celery-broadcast[prometheus]" in caplog.text


def test_a_forked_child_keeps_nothing_of_the_port(endpoint: MetricsEndpoint, port: int) -> None:
    server = endpoint._server
    assert server is not None

    assert in_child(lambda: server.socket.fileno() == -1 and endpoint._server is None)
    assert "celery_broadcast" in scrape(port)
