"""A real terminal of 80 columns, with a shell in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from nodes.local_process import find_program

if TYPE_CHECKING:
    from typing_extensions import Self


class Terminal:
    """A tmux of its own.

    Args:
        folder: for its socket; a short path.
        rows: how many it has.
    """

    def __init__(self, folder: Path, rows: int = 50) -> None:
        self._tmux = [find_program("tmux"), "-S", str(folder / "tmux"), "-f", os.devnull]
        self._rows = rows

    def __enter__(self) -> Self:
        size = ("-x", "80", "-y", str(self._rows))
        subprocess.run([*self._tmux, "new-session", "-d", *size, "PS1='$ ' sh"], check=True)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False)

    def type(self, line: str) -> None:
        """Type a line into the shell."""
        self._tell("send-keys", "-l", line)
        self.press("Enter")

    def press(self, key: str) -> None:
        """Press a key, by tmux's name for it."""
        self._tell("send-keys", key)

    def rows(self) -> list[str]:
        """Return what it shows."""
        return self._tell("capture-pane", "-p").splitlines()

    def has_alternate_screen(self) -> bool:
        """Tell whether a program has the screen to itself, which is as before when it ends."""
        return self._tell("display-message", "-p", "#{alternate_on}").strip() == "1"

    def _tell(self, *command: str) -> str:
        answer = subprocess.run([*self._tmux, *command], check=True, stdout=subprocess.PIPE)
        return answer.stdout.decode(errors="replace")
