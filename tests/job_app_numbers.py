"""A remote control command of `job_app`: the numbers of a whole worker node."""

from __future__ import annotations

from typing import Any

import msgspec
from celery.worker.control import inspect_command

import celery_broadcast


@inspect_command()
def broadcast_numbers(_: Any) -> dict[str, Any]:
    """Return the numbers of each consumer, by its name."""
    stats = celery_broadcast.stats()
    return {name: {**msgspec.to_builtins(numbers)} for name, numbers in stats.items()}
