"""An app with remote consumers on a real broker, and what the tests ask of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import amqp
import redis
from celery import Celery
from nodes.consume_process import ConsumeProcess
from nodes.worker_process import APPS_FOLDER, WorkerProcess
from recorder import make_event

from celery_broadcast import JobFinished
from celery_broadcast.relay.choice import Choice
from celery_broadcast.relay.transport import DeadLetter, Group, Parcel, Received
from celery_broadcast.relay.wire import Writer
from celery_broadcast.settings import Settings

LEASE_SECONDS = 1.0
PAGER = Group(name="pager", event_types=("JobFinished",))


class ShopWorker(WorkerProcess):
    """A worker of the same app."""

    app = "job_app_consume"


class Shop:
    """An app with a remote consumer, its workers, and what the tests do in their place.

    Args:
        url: of the broker, which has nothing of another test.
        folder: where the consumers write what they handled.
        config: further settings.
    """

    def __init__(self, url: str, folder: Path, **config: Any) -> None:
        self.app = Celery("tests", broker=url, set_as_current=False)
        self.config: dict[str, Any] = {
            "broker_url": url,
            "broadcast_enabled": True,
            "broadcast_relay_lease": LEASE_SECONDS,
            "broadcast_relay_max_deliveries": 3,
            "broadcast_drain_timeout": 10.0,
            **config,
        }
        self.handled_file = folder / "handled"
        self.handled_file.touch()
        settings = Settings(relay_lease=LEASE_SECONDS)
        self.transport = Choice(lambda: self.app, settings).new_transport()
        self._writer = Writer(uuid.uuid4().hex, "/celery/tests")
        self.transport.declare(PAGER)

    def publish(self, *task_ids: str) -> None:
        """Publish one parcel with these events."""
        self.transport.publish([self.parcel(*task_ids)])

    def parcel(self, *task_ids: str) -> Parcel:
        """Return one parcel with these events, as it would be published."""
        (parcel,) = self._writer.parcels(
            [make_event(JobFinished, task_id=task_id) for task_id in task_ids]
        )
        return parcel

    def write(self, body: bytes, **labels: str) -> None:
        """Do as a stranger who may write to the broker, and knows nothing of the format.

        Args:
            body: what he writes.
            labels: what stands outside of it: on Redis the fields of an entry, on
                RabbitMQ the headers of a message.
        """
        if self.config["broker_url"].startswith("redis"):
            with redis.Redis.from_url(self.config["broker_url"]) as client:
                fields: dict[Any, Any] = {"body": body, **labels}
                client.xadd("celery-broadcast:events:JobFinished", fields)
            return
        with self.app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            # To the queue itself: it is nothing that is routed.
            channel.basic_publish(
                amqp.Message(body, application_headers=labels), "", "celery-broadcast.pager"
            )

    def lose(self, task_id: str) -> None:
        """Have the next number go to an event that never arrives."""
        self._writer.parcels([make_event(JobFinished, task_id=task_id)])

    def consumer(self, *names: str) -> ConsumeProcess:
        return ConsumeProcess(self.config, self.handled_file, names or ("pager",))

    def worker(self, name: str) -> ShopWorker:
        config = {**self.config, "task_default_queue": name}
        return ShopWorker(name, config, environment={"JOB_APP_HANDLED": str(self.handled_file)})

    def lines(self, word: str) -> list[str]:
        """Return the ids of the jobs of which this was written."""
        return [line[1] for line in self._lines() if line[0] == word]

    def event_ids(self, task_id: str) -> list[str]:
        """Return the ids under which the event of a job came, each time."""
        return [line[3] for line in self._lines() if line[:2] == ["began", task_id]]

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.handled_file.read_text().splitlines()]

    def letters(self) -> list[DeadLetter]:
        return self.transport.dead_letters(PAGER, 100)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `celery broadcast` with these arguments."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "job_app_consume", "broadcast", *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(APPS_FOLDER), os.environ.get("PYTHONPATH", ""))),
                "JOB_APP_CONFIG": json.dumps(self.config),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def clean(url: str, *more: str) -> None:
    """Remove what this module leaves on a broker, and what more groups do."""
    if url.startswith("redis"):
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return
    with Celery(broker=url, set_as_current=False).connection_for_write() as connection:
        channel: Any = connection.default_channel
        for name in ("pager", "quitter", "batcher", "coroutine", *more):
            for queue in (f"celery-broadcast.{name}", f"celery-broadcast.{name}.dead-letters"):
                channel.queue_delete(queue)


def ids_in(found: DeadLetter | Received) -> list[str]:
    return [event["taskid"] for event in json.loads(found.parcel.body)]
