"""A worker's bootstep, which adds a section `broadcast` to `celery inspect stats`."""

from __future__ import annotations

from typing import Any

from celery import bootsteps


class BroadcastStep(bootsteps.StartStopStep):
    """Starts nothing: it only tells of the broadcast, when the worker is asked.

    Celery asks only those steps that could be started.
    """

    def info(self, obj: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ARG002  # as Celery calls it
        """Return the section, in the main process."""
        from celery_broadcast.remote_control import answer  # noqa: PLC0415  # when asked

        return {"broadcast": answer()}
