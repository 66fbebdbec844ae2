"""What a running worker answers to `celery broadcast stats`, `on` and `off`.

Loaded in the main process of a worker alone, also where the broadcast is off:
then it says so. Each answer can be written as JSON.
"""

from __future__ import annotations

import time
from typing import Any

from celery.worker.control import control_command, inspect_command

from celery_broadcast import installation

#: What a worker can be: told of by its configuration, or by the switch.
ON = "on"
SWITCHED_OFF = "switched-off"
OFF_BY_CONFIGURATION = "off-by-configuration"


@inspect_command()
def broadcast_stats(state: Any) -> dict[str, Any]:  # noqa: ARG001  # Celery's, as of all of these
    """Show what the broadcast's consumers are doing, over all processes of the worker."""
    return answer()


@control_command(args=[("on", bool)], signature="<on>")
def broadcast_switch(state: Any, on: bool) -> dict[str, Any]:  # noqa: ARG001, FBT001  # as above
    """Switch the broadcast of all processes of the worker on or off."""
    bridge = installation.bridge_in_force()
    if bridge is not None and on != (bridge.off_since == 0):
        bridge.off_since = 0 if on else time.time_ns() // 1_000_000
    return answer()


def answer() -> dict[str, Any]:
    """Return the state of the broadcast here, and the numbers of each consumer by its name."""
    bridge = installation.bridge_in_force()
    if bridge is None:
        return {"state": OFF_BY_CONFIGURATION, "off_since": None, "consumers": {}}
    import msgspec  # noqa: PLC0415  # absent while off

    off_since = bridge.off_since
    return {
        "state": SWITCHED_OFF if off_since else ON,
        "off_since": off_since / 1e3 if off_since else None,
        "consumers": {
            name: msgspec.to_builtins(stats) for name, stats in installation.stats().items()
        },
    }
