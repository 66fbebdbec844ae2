"""A Redis server as a process of this machine; it forgets everything when it ends."""

from __future__ import annotations

from nodes.local_process import LOCALHOST, LocalProcess, find_program, free_port


class RedisProcess(LocalProcess):
    ready_line = "Ready to accept connections"

    def __init__(self, *options: str) -> None:
        """Take further options of redis-server, such as "--requirepass", "secret"."""
        self.port = free_port()
        self._options = options
        super().__init__(f"redis-{self.port}")

    @property
    def url(self) -> str:
        return f"redis://{LOCALHOST}:{self.port}/0"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return {"url": self.url, "host_url": self.url}

    @property
    def command(self) -> list[str]:
        return [
            find_program("redis-server"),
            *("--bind", LOCALHOST, "--port", str(self.port)),
            *("--save", "", "--appendonly", "no"),
            *self._options,
        ]
