"""The five commands of docs/relay.md, as a newcomer types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from nodes.deadline import wait_until
from nodes.local_process import LocalProcess
from nodes.rabbit_process import RabbitProcess
from nodes.redis_process import RedisProcess
from remote_shop import clean

pytestmark = pytest.mark.worker

PAGE = (Path(__file__).parents[2] / "docs" / "relay.md").read_text()
SHOP = re.findall(r"^```python\n(# shop.py\n.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)[0]
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, flags=re.MULTILINE)[:5]


class Terminal(LocalProcess):
    """One in which a command runs, in the folder of the shop."""

    def __init__(self, typed: str, folder: Path, ready_line: str) -> None:
        super().__init__(typed)
        self._typed = typed
        self._shop = folder
        self._ready_line = ready_line

    @property
    def command(self) -> list[str]:
        return command_of(self._typed)

    @property
    def ready_line(self) -> str:
        return self._ready_line

    @property
    def environment(self) -> Mapping[str, str]:
        return {**super().environment, **environment_of(self._shop)}


def command_of(typed: str) -> list[str]:
    program, *arguments = shlex.split(typed)
    assert program == "celery"
    return [sys.executable, "-m", "celery", *arguments]


def environment_of(folder: Path) -> dict[str, str]:
    python_path = (str(folder), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, python_path)), "PYTHONUNBUFFERED": "1"}


def run(typed: str, folder: Path) -> None:
    subprocess.run(
        command_of(typed), env={**os.environ, **environment_of(folder)}, check=True, timeout=60
    )


@pytest.mark.parametrize(
    "broker",
    [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("redis", "rabbitmq")],
)
def test_a_page_is_sent_in_five_commands(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server: RedisProcess | RabbitProcess = request.getfixturevalue(f"{broker}_server")
    url = f"{server.url.rpartition('/')[0]}/8" if broker == "redis" else server.url
    (tmp_path / "shop.py").write_text(SHOP.replace("redis://localhost", url))
    install, declare, consume, worker, call = COMMANDS
    assert install == 'pip install ".[redis]"'  # as what runs the tests has done it

    try:
        run(declare, tmp_path)
        with ExitStack() as stack:
            pages = stack.enter_context(Terminal(consume, tmp_path, "broadcast is ready"))
            stack.enter_context(Terminal(worker, tmp_path, "[queues]"))
            run(call, tmp_path)

            wait_until(lambda: "shop.charge failed: no money" in pages.logs())
    finally:
        clean(url)
