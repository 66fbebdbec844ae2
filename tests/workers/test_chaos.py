"""A short chaos run; `make chaos` does a long one."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from chaos.run import Order, run
from chaos.verdicts import complaints
from nodes.redis_process import RedisProcess

pytestmark = [pytest.mark.worker, pytest.mark.xdist_group("redis")]


def test_what_is_told_of_jobs_whose_processes_are_killed_adds_up(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    order = Order(seed=secrets.randbelow(1_000_000), jobs=300, kills=15)

    wrong = complaints(run(order, redis_server.url, tmp_path))

    assert not wrong, "\n\n".join([*wrong, f"Again: {order.command}"])
