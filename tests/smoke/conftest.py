"""pytest-celery's `celery_setup`, with local processes in place of containers.

These tests kill their brokers, so they have brokers of their own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import reports
from celery import Celery
from listener import Listener
from nodes.local_process import LocalProcess
from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess
from nodes.worker_process import WorkerProcess
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
)

BROKERS: dict[str, Callable[[], LocalProcess]] = {"redis": RedisProcess, "rabbitmq": RabbitProcess}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in BROKERS],
)
def celery_broker_cluster(request: pytest.FixtureRequest) -> Iterator[CeleryBrokerCluster]:
    with BROKERS[request.param]() as server:
        yield CeleryBrokerCluster(CeleryTestBroker(server))


@pytest.fixture
def celery_backend_cluster() -> Iterator[CeleryBackendCluster]:
    with RedisProcess() as server:
        yield CeleryBackendCluster(CeleryTestBackend(server))


@pytest.fixture
def celery_setup_app(celery_setup_app: Celery) -> Iterator[Celery]:
    yield celery_setup_app
    gc.collect()  # a result that is collected tells the backend, while there is one
    celery_setup_app.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Receives what the consumers of the setup's worker report."""
    with Listener() as listener:
        yield listener


@pytest.fixture
def celery_worker_cluster(
    celery_broker_cluster_config: dict[str, Any],
    celery_backend_cluster_config: dict[str, Any],
    listener: Listener,
) -> Iterator[CeleryWorkerCluster]:
    config = {
        "broker_url": celery_broker_cluster_config["urls"][0],
        "result_backend": celery_backend_cluster_config["urls"][0],
        "broadcast_enabled": True,
        "task_default_queue": "jobs",
    }
    environment = {reports.LISTENER: listener.path}
    with WorkerProcess("smoke", config, environment=environment) as worker:
        listener.worker_log = worker.logs
        yield CeleryWorkerCluster(CeleryTestWorker(worker, app=None))
