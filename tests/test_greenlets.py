"""Real programs: patching a process can't be undone."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest
from recorder import subscribe

from celery_broadcast.events import JobEvent
from celery_broadcast.greenlets import check_runs_here

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

PROGRAM = """
{patch}
from celery import Celery
import celery_broadcast
from celery_broadcast import ConfigurationError, Consumer, on_job_event

app = Celery("tests", broker="memory://", set_as_current=False)
app.conf.task_always_eager = True

@app.task(name="shop.charge")
def charge(): ...

def install(enabled=True):
    app.conf.broadcast_enabled = enabled
    celery_broadcast.install(app)
    app.conf.broadcast_enabled  # this is what makes Celery read the configuration

def declare():
    @on_job_event
    async def webhook(event): ...

def declare_class():
    @on_job_event
    class Webhook(Consumer):
        async def handle(self, event): ...

{body}
"""


def run_patched(by: str, body: str) -> list[str]:
    """Return the lines that a program says."""
    program = PROGRAM.format(patch=PATCHES[by], body=dedent(body))
    done = subprocess.run(
        # eventlet warns of its own end
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("by", PATCHES)
def test_coroutines_are_refused_where_they_are_declared_and_plain_functions_are_fine(
    by: str,
) -> None:
    of_function, of_class, seen = run_patched(
        by,
        """
        install()
        for wrong in (declare, declare_class):
            try:
                wrong()
            except ConfigurationError as error:
                print(error)
        seen = []

        @on_job_event(concurrency=2)
        def trail(event):
            seen.append(type(event).__name__)

        charge.delay()
        celery_broadcast.drain()
        print(*celery_broadcast.stats(), *sorted(seen))
        """,
    )

    assert of_function.startswith("The consumer 'webhook' (<string>:")
    assert of_function.endswith(
        f"is a coroutine function, but {by} has patched this process, where asyncio can't run. "
        "Write it as a plain function: there, one that waits lets the others go on. With "
        "concurrency= several run at once."
    )
    assert of_class.startswith("The consumer 'Webhook' (<string>:")
    assert seen == "trail JobFinished JobStarted"


@pytest.mark.parametrize("by", PATCHES)
def test_coroutines_declared_before_hurt_nobody_until_the_broadcast_is_turned_on(by: str) -> None:
    off, log, refusal, connected = run_patched(
        by,
        """
        import logging
        import sys
        from celery import signals

        declare()
        install(enabled=False)
        print(charge.delay().state)

        logging.getLogger("celery_broadcast").addHandler(logging.StreamHandler(sys.stdout))
        before = len(signals.task_prerun.receivers)
        app = Celery("others", broker="memory://", set_as_current=False)
        install()
        try:
            app.loader.import_default_modules()  # as a worker does when it starts
        except ConfigurationError as error:
            print(error)
        print(len(signals.task_prerun.receivers) - before)
        """,
    )

    assert off == "SUCCESS"
    assert log == f"broadcast stays off: {refusal}"
    assert refusal.startswith("The consumer 'webhook' (<string>:")
    assert connected == "0"


def test_coroutines_are_fine_where_nobody_has_patched_anything() -> None:
    async def webhook(event: JobEvent) -> None: ...

    check_runs_here(subscribe(webhook, "webhook"))
