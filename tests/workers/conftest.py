"""The brokers of these tests, one of each kind for all of them.

A test that uses a server is marked with `xdist_group` and the broker's name, so
that one process starts it and has all its tests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisProcess]:
    with RedisProcess() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitProcess]:
    with RabbitProcess() as server:
        yield server


@pytest.fixture(scope="session")
def broker_config(request: pytest.FixtureRequest) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Gives Celery's settings for "redis", "rabbitmq" or "filesystem".

    A server is started when it is first asked for.
    """
    with tempfile.TemporaryDirectory(prefix="celery-broadcast-") as folder:

        def config(broker: str) -> dict[str, Any]:
            if broker == "filesystem":
                folders = ("data_folder_in", "data_folder_out", "control_folder")
                options = dict.fromkeys(folders, folder)
                return {"broker_url": "filesystem://", "broker_transport_options": options}
            if broker == "redis":
                url = request.getfixturevalue("redis_server").url
                return {"broker_url": url, "result_backend": url}
            return {"broker_url": request.getfixturevalue("rabbitmq_server").url}

        yield config
