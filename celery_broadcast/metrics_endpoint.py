"""Where a process serves its numbers to Prometheus."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from celery_broadcast import fork, installation

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

logger: logging.Logger = logging.getLogger(__name__)


class MetricsEndpoint:
    """Belongs to the process that opened it; a thread of its own serves.

    Nothing it does raises: a worker without metrics is better than no worker.

    Args:
        host: the address.
        port: the port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        fork.starts_clean(self)

    def open(self) -> None:
        """Begin to serve. What is wrong is one line in the log."""
        try:
            from prometheus_client import (  # noqa: PLC0415  # an extra
                CollectorRegistry,
                start_http_server,
            )

            from celery_broadcast.metrics import (  # noqa: PLC0415  # as above
                ConsumersCollector,
                JobsCollector,
            )
        except ImportError:
            logger.error(  # noqa: TRY400  # it says all
                "broadcast can't serve metrics: prometheus-client isn't installed. Install the "
                "extra, celery-broadcast[prometheus]"
            )
            return
        registry = CollectorRegistry()
        registry.register(ConsumersCollector(installation.stats))
        registry.register(JobsCollector(installation.job_numbers))
        try:
            self._server, self._thread = start_http_server(self._port, self._host, registry)
        except OSError as error:
            logger.error(  # noqa: TRY400  # as above
                "broadcast can't serve metrics at %s:%d (%s). Set broadcast_metrics_port and "
                "broadcast_metrics_host to what is free on this machine; celery broadcast "
                "consume has --metrics-port, to be given beside a worker",
                self._host,
                self._port,
                error,
            )
            return
        logger.info("broadcast serves metrics at http://%s:%d/metrics", self._host, self._port)

    def close(self) -> None:
        """Serve no more; the port is free then."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            server.server_close()
            self._thread.join()

    def forget(self) -> None:
        """Leave the port to the parent: a child that kept it would hold it after the parent."""
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
