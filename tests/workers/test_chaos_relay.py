"""A short run of chaos on each broker; `make chaos-relay` does long ones."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from chaos_relay.run import Order, run
from chaos_relay.verdicts import complaints

pytestmark = pytest.mark.worker


@pytest.mark.parametrize(
    "broker",
    [
        pytest.param(broker, marks=pytest.mark.xdist_group(broker))
        for broker in ("redis", "rabbitmq")
    ],
)
def test_every_group_gets_every_event_whatever_is_killed(broker: str, tmp_path: Path) -> None:
    order = Order(broker, seed=secrets.randbelow(1_000_000), jobs=500, kills=3, restarts=1)

    wrong = complaints(run(order, tmp_path))

    assert not wrong, "\n\n".join([*wrong, f"Again: {order.command}"])
