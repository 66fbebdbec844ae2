"""Where a run leaves what it wrote, and how it is told what came out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_of_run(name: str, keep: Path | None) -> Iterator[Path]:
    """Give a folder for a run, which is gone after the block unless it is kept.

    Args:
        name: what a folder that is kept begins with.
        keep: the folder to keep it in; None keeps nothing.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="celery-broadcast-") as temporary:
            yield Path(temporary)
        return
    keep.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=keep))
    print(f"journal and log are kept in {folder}")
    yield folder


def tell(summary: str, wrong: Sequence[str], *, command: str, praise: str) -> None:
    """Say what came out.

    Args:
        summary: of the run.
        wrong: the complaints.
        command: what repeats it.
        praise: what is said if there are none.
    """
    print(summary)
    for complaint in wrong:
        print(f"\nWRONG: {complaint}")
    if wrong:
        print(f"\n{len(wrong)} things are wrong. Again: {command}\n", flush=True)
    else:
        print(f"  {praise}\n", flush=True)
