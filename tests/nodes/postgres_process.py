"""A PostgreSQL server as a process of this machine; its data is there again after a restart."""

from __future__ import annotations

import os
import pwd
import subprocess

from nodes.local_process import LOCALHOST, LocalProcess, find_program, free_port

# PostgreSQL refuses to run as root, so root runs it as the user that Debian's package makes.
DEBIAN_USER = "postgres"


class PostgresProcess(LocalProcess):
    """A server with one database, `postgres`; its user of that name needs no password."""

    ready_line = "database system is ready to accept connections"

    def __init__(self) -> None:
        self.port = free_port()
        super().__init__(f"postgres-{self.port}")
        self._data = self.folder / "data"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{LOCALHOST}:{self.port}/postgres"

    @property
    def command(self) -> list[str]:
        return [
            *self._as_user(),
            *(find_program("postgres"), "-D", str(self._data)),
            *("-c", f"listen_addresses={LOCALHOST}", "-c", f"port={self.port}"),
            *("-c", "unix_socket_directories="),
            # A crash of the machine is not what the tests are about.
            *("-c", "fsync=off"),
            # Shared memory in its folder is gone with it, even if the server is killed.
            *("-c", "dynamic_shared_memory_type=mmap"),
        ]

    def start(self) -> None:
        if not self._data.exists():
            self._make_data()
        super().start()

    def stop(self, timeout_seconds: float = 60) -> None:
        """Have the server cut its connections and end ("fast", in its words)."""
        # At SIGTERM it would wait until its clients have left.
        self.kill("SIGINT")
        self.wait(timeout_seconds)

    def restart(self, timeout: float = 60) -> None:
        if self.status == "running":
            self.stop(timeout)
        super().restart(timeout)

    def teardown(self) -> None:
        if self.status == "running":
            self.stop()  # killed, it would leave its mark in the machine's shared memory
        super().teardown()

    def _make_data(self) -> None:
        if os.geteuid() == 0:
            user = pwd.getpwnam(DEBIAN_USER)
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        subprocess.run(
            [
                *self._as_user(),
                *(find_program("initdb"), "-D", str(self._data), "--no-sync"),
                *("--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C"),  # its ready line is English
            ],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def _as_user(self) -> list[str]:
        """Return what to write before a program so that it doesn't run as root."""
        if os.geteuid() != 0:
            return []
        return [
            find_program("setpriv"),
            *("--reuid", DEBIAN_USER, "--regid", DEBIAN_USER, "--clear-groups"),
            *("--pdeathsig", "KILL"),  # another user's process is off the leash
        ]
