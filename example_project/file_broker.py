"""A broker that needs no server: Kombu's `filesystem://`, made safe for a quick worker.

Kombu first creates the file of a message and then fills it. A worker that looks
in between reads an empty one, and ends (https://github.com/celery/kombu/issues/1551).
Here a file gets the name that workers look for when the message is in it.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

TRANSPORT_ALIASES["files"] = f"{__name__}:Transport"  # for broker_url = "files://"


class Channel(filesystem.Channel):
    """Puts each message into the folder in one piece."""

    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:  # type: ignore[override]  # as Kombu's
        name = f"{time.monotonic_ns():020}_{uuid.uuid4()}.{queue}"
        unfinished = Path(self.data_folder_out, f"{name}.unfinished")
        unfinished.write_text(dumps(payload))
        unfinished.rename(unfinished.with_suffix(".msg"))


class Transport(filesystem.Transport):
    """What `files://` stands for."""

    Channel = Channel
