"""A real `celery worker` of the shop, for as long as the demo needs one."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

STOP_SECONDS = 4.0


class DemoWorker:
    """Runs from here to `close`, after which none of its processes is left.

    Args:
        queue_name: where its jobs come from.
        *options: further ones for its command line.
        broadcast: whether the broadcast is on.
    """

    def __init__(self, queue_name: str, *options: str, broadcast: bool) -> None:
        self._written: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._process = subprocess.Popen(  # noqa: S603  # the shop's own worker
            [
                *(sys.executable, "-m", "celery", "--quiet", "--app=example_project", "worker"),
                *("--concurrency=2", f"--queues={queue_name}", "--loglevel=INFO"),
                # Meeting the other workers takes a second, and there are none.
                *("--without-mingle", "--without-gossip", *options),
            ],
            env={
                **os.environ,
                "CELERY_BROADCAST_ENABLED": str(broadcast),
                "TMPDIR": os.environ["SHOP_FOLDER"],  # what a killed one leaves goes with that
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends the worker
        )
        self._reader.start()

    def next_line(self, wait_seconds: float) -> str | None:
        """Return what it writes next; "" if that isn't in time, None if it has ended."""
        try:
            line = self._lines.get(timeout=wait_seconds)
        except queue.Empty:
            return ""
        if line is not None:
            self._written.append(line)
        return line

    def last_words(self) -> str:
        """Tell what it wrote at last, for when something went wrong."""
        return "\n".join(["The worker wrote:", *self._written[-40:]])

    def stop(self) -> None:
        """Ask it to finish what it is at, and then to end."""
        self._process.terminate()

    def close(self) -> None:
        """Stop it, kill it if that takes too long, and wait until it has ended."""
        try:
            self.stop()
            self._reader.join(STOP_SECONDS)
        finally:
            if self._reader.is_alive():
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reader.join()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip())
        self._lines.put(None)  # no process holds the other end any more
