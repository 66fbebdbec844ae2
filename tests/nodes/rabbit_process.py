"""A RabbitMQ server as a process of this machine; its data is there again after a restart."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nodes.deadline import wait_until
from nodes.local_process import LOCALHOST, LocalProcess, find_program, free_port


class EpmdProcess(LocalProcess):
    """Erlang's register of the nodes on a machine.

    A server that finds none starts one, which outlives it. So each of ours has
    its own, started before it.
    """

    ready_line = "entering the main select() loop"

    def __init__(self) -> None:
        self.port = free_port()
        super().__init__(f"epmd-{self.port}")

    @property
    def command(self) -> list[str]:
        return [
            find_program("epmd"),
            *("-address", LOCALHOST, "-port", str(self.port)),
            *("-d", "-d"),  # or it says nothing, not even when it is ready
        ]


class RabbitProcess(LocalProcess):
    ready_line = "Server startup complete"

    def __init__(self) -> None:
        self._port = free_port()
        self._epmd = EpmdProcess()
        super().__init__(f"rabbitmq-{self._port}")

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{LOCALHOST}:{self._port}//"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.url, "host_url": self.url}

    @property
    def command(self) -> list[str]:
        return [find_program("rabbitmq-server"), "-noinput"]

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            **super().environment,
            "HOME": str(self.folder),  # of the cookie by which Erlang's nodes know each other
            "ERL_EPMD_ADDRESS": LOCALHOST,
            "ERL_EPMD_PORT": str(self._epmd.port),
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOCALHOST,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            # Without it a shell stays between, and takes the signals.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_MNESIA_BASE": str(self.folder),
            # None of these files is there: the machine's own configuration doesn't count.
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
        }

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl against this server, and return what it says.

        Raises:
            RuntimeError: it failed; the message has what it said.
        """
        answer = subprocess.run(
            [
                find_program("rabbitmqctl"),
                "--quiet",
                "--node",
                f"{self.name}@localhost",
                *arguments,
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if answer.returncode:
            raise RuntimeError(answer.stdout + answer.stderr)
        return answer.stdout

    def start(self) -> None:
        if self._epmd.status == "exited":
            self._epmd.start()
            self._epmd.ready()
        super().start()

    def teardown(self) -> None:
        super().teardown()
        self._epmd.teardown()


def all_threads_stand(pid: int) -> bool:
    """Tell whether a signal has stopped all of a process, as far as the system tells that."""
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


@contextmanager
def hanging(server: RabbitProcess) -> Iterator[None]:
    """Have the server hang in the block, as if its machine did."""
    server.kill("SIGSTOP")
    try:
        wait_until(lambda: all_threads_stand(server.pid))
        yield
    finally:
        server.kill("SIGCONT")
