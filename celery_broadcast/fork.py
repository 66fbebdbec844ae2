"""What a forked child must not inherit: everything that says so starts clean there.

Children are forked all through a worker's life, from a process that has
threads. Those threads don't exist in the child, but their locks may be held
there for ever, and what waits in their queues would be handled twice.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from celery_broadcast import quiet_logs  # noqa: F401  # registers for forks before this one

if TYPE_CHECKING:
    from typing import Protocol

    class Forgetful(Protocol):
        """Something that a forked child starts anew."""

        def forget(self) -> None:
            """Replace every lock, queue and thread; called in the child, alone there."""


logger: logging.Logger = logging.getLogger(__name__)


# A plain set, since it is copied at once, whatever another thread adds meanwhile: a
# WeakSet isn't, and raises.
_forgetful: set[weakref.ref[Forgetful]] = set()


def starts_clean(instance: Forgetful) -> None:
    """Have `instance.forget()` called in every child that is forked from now on.

    And `instance.before_fork()`, if it has that, in the parent before, on the
    thread that is about to fork.
    """
    _forgetful.add(weakref.ref(instance, _forgetful.discard))


def _all() -> list[Forgetful]:
    references = _forgetful.copy()
    return [instance for reference in references if (instance := reference()) is not None]


def _prepare_all() -> None:
    for instance in _all():
        before_fork: Callable[[], None] | None = getattr(instance, "before_fork", None)
        if before_fork is not None:
            with _others_going_on():
                before_fork()


def _forget_all() -> None:
    for instance in _all():
        with _others_going_on():
            instance.forget()


@contextlib.contextmanager
def _others_going_on() -> Iterator[None]:
    """Keep an error of one instance from the others."""
    try:
        yield
    except Exception:
        logger.exception("broadcast failed around a fork")


os.register_at_fork(before=_prepare_all, after_in_child=_forget_all)
