"""The brokers of a run: what they have confirmed is on the disk, so they may be killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess


def _durable_redis() -> RedisProcess:
    return RedisProcess("--appendonly", "yes", "--appendfsync", "always")


#: Makes a server, by the broker's name.
BROKERS: Mapping[str, Callable[[], RedisProcess | RabbitProcess]] = {
    "redis": _durable_redis,
    "rabbitmq": RabbitProcess,
}
