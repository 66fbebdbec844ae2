"""Where OpenTelemetry's instruments are switched on, if a setting says so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_broadcast.settings import Settings

logger: logging.Logger = logging.getLogger(__name__)


def observe_if_set(settings: Settings) -> None:
    """Have this process export the numbers of the consumers, as the settings say.

    Nothing it does raises: a worker without metrics is better than no worker.
    """
    if not settings.opentelemetry:
        return
    try:
        from celery_broadcast.otel import observe  # noqa: PLC0415  # an extra
    except ImportError:
        logger.error(  # noqa: TRY400  # it says all
            "broadcast has no instruments: broadcast_opentelemetry is set, and opentelemetry-api "
            "isn't installed. Install the extra, celery-broadcast[otel]"
        )
        return
    observe()
