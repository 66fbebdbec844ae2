"""A worker's bootsteps: a section in `celery inspect stats`, metrics, and a look a second."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps

if TYPE_CHECKING:
    from celery_broadcast.metrics_endpoint import MetricsEndpoint

logger: logging.Logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAMPLES = 1.0


class BroadcastStep(bootsteps.StartStopStep):
    """Tells of the broadcast when the worker is asked, and serves its metrics, if that is set.

    After the pool: what is forked later leaves the port alone.
    """

    requires: tuple[str, ...] = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._endpoint: MetricsEndpoint | None = None

    def info(self, obj: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ARG002  # as Celery calls it
        """Return the section, in the main process."""
        from celery_broadcast.remote_control import answer  # noqa: PLC0415  # when asked

        return {"broadcast": answer()}

    def start(self, parent: Any) -> None:  # noqa: ARG002  # as above
        """Begin to serve metrics, and to export them."""
        from celery_broadcast import installation  # noqa: PLC0415  # it imports this module

        bridge = installation.bridge_in_force()
        if bridge is None:
            return
        if bridge.settings.opentelemetry:
            from celery_broadcast.otel_switch import observe_if_set  # noqa: PLC0415  # few ask

            observe_if_set(bridge.settings)
        if bridge.settings.metrics_port is None:
            return
        from celery_broadcast.metrics_endpoint import MetricsEndpoint  # noqa: PLC0415  # few ask

        settings = bridge.settings
        self._endpoint = MetricsEndpoint(settings.metrics_host, bridge.settings.metrics_port)
        self._endpoint.open()

    def stop(self, parent: Any) -> None:  # noqa: ARG002  # as above
        """Serve no more."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()


class SamplingStep(bootsteps.StartStopStep):
    """Looks once a second, on Celery's own timer, how many events wait.

    A step of Celery's consumer, not of the worker: when the broker is lost Celery
    clears the timer, and then starts these steps again. The timer runs in the main
    process, on the thread of the event loop where there is one, else on its own.
    """

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None
        self._entry: Any = None

    def start(self, parent: Any) -> None:
        """Begin to look."""
        self._cancel()
        self._timer = parent.timer
        self._entry = self._timer.call_repeatedly(_SECONDS_BETWEEN_SAMPLES, self._sample)

    def stop(self, parent: Any) -> None:  # noqa: ARG002  # as Celery calls it
        """Look no more."""
        self._cancel()

    def _sample(self) -> None:
        from celery_broadcast import installation  # noqa: PLC0415  # it imports this module

        try:
            installation.sample()
        except Exception:
            logger.exception("broadcast can't tell any more for how long events wait")
            self._cancel()

    def _cancel(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None:
            self._timer.cancel(entry)  # not its own: eventlet's raises
