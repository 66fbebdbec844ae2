"""Watch the broadcast at work: `make demo`, or `python -m example_project.demo`.

A real worker of the shop gets the same jobs twice: first with the consumers on
threads of their own, then with the same handlers as plain receivers of Celery's
signals. Each line it shows is one event that reached one of them.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple, TypeAlias

from celery.canvas import Signature
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.table import Table

from example_project.celery import app
from example_project.demo_worker import DemoWorker
from example_project.tasks import charge, refund, sales_report, ship

CHARGES = 20
DEADLINE_SECONDS = 25.0  # of each of the two runs
LOOK_AGAIN_SECONDS = 0.02

COLORS = {"trail": "cyan", "page_oncall": "red", "slow-jobs": "yellow", "Ledger": "green"}
# A line as `consumers.report` prints it: consumer, thread, event type, task.
LINE = re.compile(rf"({'|'.join(COLORS)}) +\S.* +(Job\w+) +(shop\.\S+)")

Calls: TypeAlias = "Counter[tuple[str, str, str]]"  # of (consumer, event type, task)

console = Console(highlight=False)


class DemoError(Exception):
    """Something did not come that should have come."""


class Measured(NamedTuple):
    """How long a run took, in seconds since the worker was ready."""

    jobs_done: float
    handlers_done: float


def main() -> int:
    """Run the demo; return its exit code."""
    # However it is ended, it tidies up on the way out.
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    # What is set for another Celery on this machine isn't meant for the shop.
    for name in [name for name in os.environ if name.startswith("CELERY_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="celery-broadcast-demo-") as folder:
        os.environ["SHOP_FOLDER"] = folder  # before Celery reads the configuration
        try:
            with own_queue() as queue:
                console.rule("The handlers as consumers of the broadcast")
                consumers = run(queue, broadcast=True)
                console.rule("The same handlers as receivers of Celery's signals")
                receivers = run(queue, "--include=example_project.receivers", broadcast=False)
        except DemoError as error:
            console.print(f"\n{error}", style="red", markup=False)
            return 1
        except OperationalError as error:
            console.print(f"\nThe broker is out of reach: {error}", style="red", markup=False)
            return 1
        except KeyboardInterrupt:
            console.print("\nStopped.")
            return 130
    compare(consumers, receivers)
    return 0


@contextmanager
def own_queue() -> Iterator[str]:
    """Give a queue that nobody else uses, and remove it afterwards."""
    name = f"shop-demo-{os.getpid()}"
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        queue = app.amqp.queues[name](connection.default_channel)
        queue.declare()
        try:
            yield name
        finally:
            queue.delete()
            queue.exchange.delete()


def load() -> list[Signature]:
    """Return the jobs of a run."""
    orders = range(3, 3 + CHARGES)
    return [sales_report.s(), refund.s(1), ship.s(2), *(charge.s(order) for order in orders)]


def expected_calls() -> Calls:
    """Return which events of these jobs have to reach whom."""
    calls: Calls = Counter()
    for task, count, ends in (
        (charge.name, CHARGES, ["JobFinished"]),
        (refund.name, 1, ["JobFailed"]),
        (ship.name, 1, ["JobRetried", "JobFinished"]),
        (sales_report.name, 1, ["JobFinished"]),
    ):
        for end in ends:
            calls["trail", "JobStarted", task] += count
            calls["trail", end, task] += count
        calls["Ledger", ends[-1], task] += count
    calls["page_oncall", "JobFailed", refund.name] += 1
    calls["slow-jobs", "JobFinished", sales_report.name] += 1
    return calls


def run(queue: str, *options: str, broadcast: bool) -> Measured:
    """Have a worker do the jobs, and show what the handlers print.

    Raises:
        DemoError: an event did not come, or all of it took too long.
    """
    # Sent before there is a worker, so that how fast they are sent doesn't count.
    unfinished = [job.apply_async(queue=queue) for job in load()]
    deadline = time.monotonic() + DEADLINE_SECONDS
    ready = jobs_done = handlers_done = 0.0
    calls: Calls = Counter()
    with closing(DemoWorker(queue, *options, broadcast=broadcast)) as worker:
        while (line := worker.next_line(LOOK_AGAIN_SECONDS)) is not None:
            now = time.monotonic()
            if now > deadline:
                msg = f"Not done within {DEADLINE_SECONDS:.0f} s. {worker.last_words()}"
                raise DemoError(msg)
            if not ready and line.endswith(" ready."):
                ready = now
            if call := LINE.match(line):
                handlers_done = now
                consumer, event, task = call.groups()
                calls[consumer, event, task] += 1
                show(now - ready, line, COLORS[consumer])
            if not jobs_done:
                unfinished = [result for result in unfinished if not result.ready()]
                if not unfinished:
                    jobs_done = now
                    show(now - ready, "All jobs are done; the worker is asked to stop.", "bold")
                    worker.stop()  # its consumers first handle what waits for them
    if unfinished:
        msg = f"The worker ended, and {len(unfinished)} jobs are not done. {worker.last_words()}"
        raise DemoError(msg)
    if missing := expected_calls() - calls:
        listed = ", ".join(" ".join(call) for call in missing)
        msg = f"These did not come: {listed}. {worker.last_words()}"
        raise DemoError(msg)
    return Measured(jobs_done - ready, handlers_done - ready)


def show(seconds: float, line: str, style: str) -> None:
    """Show a line, and when it came."""
    console.print(f"{seconds:5.2f} {line}", style=style, markup=False, soft_wrap=True)


def compare(consumers: Measured, receivers: Measured) -> None:
    """Show what was measured, side by side."""
    table = Table("the handlers are", "the jobs were done", "the handlers were done")
    for name, measured in (("consumers", consumers), ("receivers", receivers)):
        table.add_row(name, *(f"after {seconds:.2f} s" for seconds in measured))
    console.print()
    console.print(table)
    ratio = receivers.jobs_done / consumers.jobs_done
    console.print(
        f"With receivers the jobs took {ratio:.1f} times as long. The clock runs from the moment "
        f"the worker was ready, with {len(load())} jobs waiting for its 2 processes, until the "
        f"result of the last job was there (looked for every {LOOK_AGAIN_SECONDS} s), and until "
        "the last handler had printed its line. One run each, on this machine."
    )


if __name__ == "__main__":
    sys.exit(main())
