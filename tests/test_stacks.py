from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

from celery_broadcast import stacks


def test_a_thread_is_shown_where_it_is_just_now() -> None:
    told: list[Callable[[], str]] = []
    at_work, free = threading.Event(), threading.Event()

    def wait_for_the_far_end() -> None:
        told.append(stacks.of_this_thread())
        at_work.set()
        free.wait(10)

    thread = threading.Thread(target=wait_for_the_far_end)
    thread.start()
    at_work.wait(10)
    stack = told[0]()
    free.set()
    thread.join(10)

    assert "in wait_for_the_far_end" in stack
    assert "free.wait(10)" in stack
    assert told[0]() == ""  # it is gone


def test_a_thread_is_shown_too_where_something_has_loaded_greenlets() -> None:
    program = """
import greenlet, threading
from celery_broadcast import stacks

told, at_work, free = [], threading.Event(), threading.Event()

def wait_for_the_far_end():
    told.append(stacks.of_this_thread())
    at_work.set()
    free.wait(10)

thread = threading.Thread(target=wait_for_the_far_end)
thread.start()
at_work.wait(10)
print("in wait_for_the_far_end" in told[0]())
free.set()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout == "True\n", done.stderr


async def outer(inner: Callable[[], object]) -> None:
    await middle(inner)


async def middle(inner: Callable[[], object]) -> None:
    inner()
    await asyncio.sleep(60.0)


def test_a_task_that_waits_is_shown_down_to_what_it_awaits() -> None:
    async def look() -> str:
        task = asyncio.create_task(outer(lambda: None))
        tell = stacks.of_task(task)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stack = tell()
        task.cancel()
        await asyncio.wait({task})
        assert tell() == ""  # it is over
        return stack

    stack = asyncio.run(look())

    places = [stack.index(frame) for frame in ("in outer", "in middle", "in sleep")]
    assert places == sorted(places)


def test_a_task_that_runs_is_shown_with_all_that_it_calls() -> None:
    seen: list[str] = []

    def block() -> None:
        seen.append(tells[0]())

    tells: list[Callable[[], str]] = []

    async def look() -> None:
        task = asyncio.create_task(outer(block))
        tells.append(stacks.of_task(task))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(look())

    (stack,) = seen
    assert all(f"in {frame}" in stack for frame in ("outer", "middle", "block"))
