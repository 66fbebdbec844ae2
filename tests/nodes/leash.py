"""Become another program, one that dies when the process that started it dies.

usage: python leash.py PARENT_PID PROGRAM [ARGUMENT...]

A teardown doesn't run when the test run itself is killed, and a `preexec_fn`,
which could do the same, is unsafe (and warned about) where there are threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent_pid: int, command: list[str]) -> None:
    if sys.platform == "linux":
        # Survives the exec. It is sent when the parent's *thread* ends, so
        # programs are to be started on the main thread.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("The process that wanted this program is gone.")
    os.execvp(command[0], command)  # noqa: S606  # becoming it is the point


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
