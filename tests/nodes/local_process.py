"""A program on this machine that answers to a test as a container would."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from signal import SIGKILL, Signals
from types import TracebackType
from typing import TYPE_CHECKING

from nodes.deadline import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

LEASH = Path(__file__).with_name("leash.py")
LOCALHOST = "127.0.0.1"

# Where servers are that are not on everybody's PATH. Debian's rabbitmq-server
# on the PATH is a wrapper for root only; the first folder has the real one. Of
# PostgreSQL it can have several versions, each in a folder of its own.
SERVER_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]),
    *os.get_exec_path(),
    "/usr/local/sbin",
    "/usr/sbin",
)


def find_program(name: str) -> str:
    """Return the path of an installed program.

    Raises:
        FileNotFoundError: telling how to install it. No test is skipped for it.
    """
    path = shutil.which(name, path=os.pathsep.join(SERVER_FOLDERS))
    if path is None:
        message = f"{name} is not installed. `make test` installs it, or tells how to."
        raise FileNotFoundError(message)
    return path


# Below the ports that the kernel gives to outgoing connections (32768 and up): a
# client that reconnects while its server is away could otherwise be given the
# server's own port, and talk to itself. Each test run starts at another, and each of its
# processes: a server that is being started again mustn't find its port taken by another's.
_process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
_ports = itertools.count(20_000 + 3_000 * _process + secrets.randbelow(2_000))  # random is seeded


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has, and that this function gives only once."""
    return next(filter(_is_free, _ports))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOCALHOST, port))
        except OSError:
            return False
    return True


class LocalProcess(ABC):
    """What pytest-celery asks of a container, given by a program on this machine.

    The program runs in a folder of its own, which has its temporary files, and
    its output, and is removed by `teardown`. It leads a process group of its
    own, and dies with the test run, however that ends. `with` starts it, waits
    until it can be used, and tears it down.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory(prefix="celery-broadcast-")
        self.folder = Path(self._folder.name)
        self._log = self.folder / "log"
        self._log.touch()
        self._started_at = 0  # where in the log this run of the program begins
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.ready()
        except BaseException:
            self.teardown()
            raise
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.teardown()

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @property
    @abstractmethod
    def ready_line(self) -> str:
        """What the program writes when it can be used."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The program's environment variables."""
        return {**os.environ, "TMPDIR": str(self.folder)}

    @property
    def celeryconfig(self) -> dict[str, str]:
        """The URL for Celery, as pytest-celery asks for it; of a broker only."""
        return {}

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def id(self) -> str:
        """The container's id, which pytest-celery takes for the name of its host."""
        return "localhost"

    @property
    def status(self) -> str:
        """Docker's word: "running" or "exited"."""
        running = self._process is not None and self._process.poll() is None
        return "running" if running else "exited"

    def start(self) -> None:
        """Start the program; `ready` waits until it can be used."""
        with self._log.open("ab") as log:
            self._started_at = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(LEASH), str(os.getpid()), *self.command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self, timeout_seconds: float = 60) -> bool:
        """Wait until the program can be used.

        Raises:
            RuntimeError: it ended instead; the message has its output.
            TimeoutError: the same.
        """

        def is_ready_or_gone() -> bool:
            return self.ready_line in self.logs(self._started_at) or self.status == "exited"

        wait_until(is_ready_or_gone, timeout_seconds, lambda: self._complaint("is not ready"))
        if self.status == "exited":
            raise RuntimeError(self._complaint("ended instead of getting ready"))
        return True

    def logs(self, offset: int = 0) -> str:
        """Return what the program wrote, in all its runs, from this byte on."""
        return self._log.read_bytes()[offset:].decode(errors="replace")

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send the program a signal; by SIGKILL all its processes die, as in a container."""
        number = Signals[signal] if isinstance(signal, str) else Signals(signal)
        if number is SIGKILL and self.status == "running":
            os.killpg(self.pid, SIGKILL)
            self._running.wait()
        else:
            self._running.send_signal(number)

    def wait(self, timeout_seconds: float = 60) -> int:
        """Wait until the program has ended, and return its exit code.

        Raises:
            TimeoutError: it still runs; the message has its output.
        """
        try:
            return self._running.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(self._complaint("did not end")) from error

    def restart(self, timeout: float = 60) -> None:
        """End the program if it runs, start it again, and wait until it can be used."""
        if self.status == "running":
            self.kill("SIGTERM")
            self.wait(timeout)
        self.start()
        self.ready(timeout)

    def reload(self) -> None:  # noqa: B027  # not abstract, just nothing
        """Do nothing: there is no daemon whose news would have to be fetched."""

    def teardown(self) -> None:
        """Kill the program and remove its folder."""
        if self.status == "running":
            self.kill()
        self._folder.cleanup()

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            message = f"{self.name} was never started."
            raise RuntimeError(message)
        return self._process

    def _complaint(self, what: str) -> str:
        code = "" if self._process is None else f" (exit code {self._process.poll()})"
        return f"{self.name} {what}{code}. It wrote:\n{self.logs()[-5000:]}"
