"""The flag: an app's configuration is read, and the broadcast is on, or absent."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from celery import _state, signals

from celery_broadcast import settings
from celery_broadcast.errors import ConfigurationError

if TYPE_CHECKING:
    from celery import Celery

    from celery_broadcast.bridge import Bridge
    from celery_broadcast.counts import ConsumerStats
    from celery_broadcast.events import Event
    from celery_broadcast.jobs import JobNumbers, Key
    from celery_broadcast.producer import Drained, Producer
    from celery_broadcast.subscription import Registry, Subscription

logger: logging.Logger = logging.getLogger(__name__)

# The one of this process, and the apps whose configuration turned it on.
_bridge: Bridge | None = None
_apps: weakref.WeakSet[Celery] = weakref.WeakSet()
# Installed apps whose configuration hasn't been read.
_unread: weakref.WeakSet[Celery] = weakref.WeakSet()

# What has the remote consumers, in a process that runs them.
_consuming: Producer | None = None

# What the blocks of `replaced_by` have put in its place, the innermost last; None is off.
_blocks: dict[object, Bridge | None] = {}


def install(app: Celery) -> None:
    """Broadcast the jobs of this process, if the app's configuration says so.

    For where Celery's `imports` aren't read: a client, eager jobs, tests. Reads
    the configuration now if the app has it, else as soon as it has. Twice is
    harmless. Like Celery's signals, it doesn't ask which app a job belongs to.

    Raises:
        ConfigurationError: a setting is wrong. If the app isn't configured
            yet, that is logged as an error later, and a worker doesn't start.
    """
    app.on_after_configure.connect(
        _on_after_configure, weak=False, dispatch_uid="celery_broadcast.install"
    )
    if "celery.worker.control" in sys.modules:  # it may be a worker, which answers, on or off
        from celery_broadcast import remote_control  # noqa: F401, PLC0415  # it registers itself
    if app.configured:  # type: ignore[attr-defined]  # celery-types lacks it
        _apply(app)
    else:
        _unread.add(app)


def uninstall(app: Celery) -> None:
    """Take back `install(app)`; with the last app, disconnect and drain.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
    """
    app.on_after_configure.disconnect(dispatch_uid="celery_broadcast.install")
    _unread.discard(app)
    _turn_off(app)


def is_on_for(app: Celery) -> bool:
    """Tell whether the app is installed, and its configuration has turned the broadcast on."""
    return app in _apps


def current_producer() -> Producer | None:
    """Return the producer of this process, None while the broadcast is off.

    Has an installed app read its configuration, if it hasn't yet.
    """
    for app in list(_unread):
        app.conf.get("broadcast_enabled")  # any key makes it read all
    bridge = _in_force()
    return None if bridge is None else bridge.producer


def notify(event: Event) -> None:
    """Publish an event of your own, in this process; like those of jobs, it costs microseconds.

    It goes to the consumers that subscribed to its type or to `Event`, but to
    none in whose hands it is made. While the broadcast is off or muted, it goes
    nowhere.
    May be called on any thread, in a job or by a consumer; never blocks.

    Raises:
        ConfigurationError: it is not an instance of a frozen subclass of `Event`.
    """
    from celery_broadcast.events import check_event  # noqa: PLC0415  # absent while off
    from celery_broadcast.muting import is_muted  # noqa: PLC0415  # as above

    check_event(event)
    producer = current_producer()
    bridge = _in_force()
    is_off = bridge is not None and bridge.off_since
    if producer is not None and not is_off and not is_muted():
        producer.notify(event)


def stats() -> dict[str, ConsumerStats]:
    """Return what became of the events of this process, by the consumer's name.

    Empty while the broadcast is off. May be called on any thread.
    """
    bridge = _in_force()
    stats = {} if bridge is None else bridge.producer.stats()
    return stats if _consuming is None else {**stats, **_consuming.stats()}


def job_numbers() -> dict[Key, JobNumbers]:
    """Return the jobs' own numbers, by the names of the task and the queue.

    Empty where nobody asks for metrics. May be called on any thread.
    """
    bridge = _in_force()
    return {} if bridge is None else bridge.producer.ledger.job_numbers()


def sample() -> None:
    """Look how many events wait, so that `stats` can tell of lag; to be called once a second."""
    bridge = _in_force()
    for producer in (None if bridge is None else bridge.producer, _consuming):
        if producer is not None:
            producer.sample()


@contextlib.contextmanager
def counting(producer: Producer) -> Iterator[None]:
    """Have `stats` tell, in the block, also of the remote consumers that this process runs."""
    global _consuming  # noqa: PLW0603  # a process has one
    _consuming = producer
    try:
        yield
    finally:
        _consuming = None


def drain(timeout: float | None = None) -> Drained:
    """Wait until the consumers of this process have handled what waits, and stop them.

    The next event starts them again.

    Args:
        timeout: seconds to wait at most; None is `broadcast_drain_timeout`.
            What is left then is dropped, counted and logged. So it is when
            something strikes the thread that waits: the soft time limit of a
            job, or Ctrl-C, which is then raised.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
        ConfigurationError: the timeout is no number of seconds.
    """
    if timeout is not None:
        timeout = settings.check_seconds("timeout", timeout)
    bridge = _in_force()
    if bridge is None:
        from celery_broadcast.producer import Drained  # noqa: PLC0415  # absent while off

        return Drained()
    return bridge.producer.drain(timeout)


@contextlib.contextmanager
def broadcasting(*, enabled: bool = True) -> Iterator[None]:
    """Turn the broadcast of this process on for the block, or off, whatever the apps say.

    For scripts and tests. In the block a broadcast of its own is on, with
    consumers that start anew and numbers of its own. What was published before
    the block is handled before it, and what was published in the block at its
    end. A job that had started before goes on being told as before, and one
    that is still at it when the block ends is told no more.

    An app that is configured or uninstalled in the block changes nothing in
    it: what its configuration says counts from the block's end on. Blocks can
    be nested. Remote consumers run in the block as the others do: nothing is
    sent to a broker.

    Args:
        enabled: whether the broadcast is on in the block.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
        ConfigurationError: a setting of the current app is wrong.
    """
    enabled = settings.check_flag("enabled", enabled)
    with replaced_by(_new_bridge(settings_of_block()) if enabled else None):
        yield


@contextlib.contextmanager
def replaced_by(bridge: Bridge | None) -> Iterator[None]:
    """Put a bridge in the place of the one in force, for the block; None is off.

    The other stays connected, and is quiet: it tells the ends of what had started.

    Raises:
        BroadcastError: called by a consumer, which would wait for itself.
    """
    before = _in_force()
    if before is not None or bridge is not None:
        from celery_broadcast.producer import check_outside_of_consumers  # noqa: PLC0415

        check_outside_of_consumers()
    block = object()
    _blocks[block] = bridge
    try:
        _quieten_all_but_one()
        if before is not None:
            before.producer.drain()
        if bridge is not None:
            bridge.connect()
        yield
    finally:
        del _blocks[block]
        _quieten_all_but_one()
        if bridge is not None:
            if _in_force() is None:
                _registry().check_each(None)
            bridge.disconnect()
            bridge.producer.drain()


def settings_of_block() -> settings.Settings:
    """Return the settings for a block: as in force, else the current app's, else the defaults."""
    bridge = _in_force() or _bridge
    if bridge is not None:
        return bridge.settings
    # Asked for the current app, Celery would make one.
    app: Any = _state._tls.current_app or _state.default_app  # type: ignore[attr-defined]  # noqa: SLF001
    loaded = (
        settings.Settings() if app is None else settings.load(app.conf, os.environ, app.namespace)
    )
    return msgspec.structs.replace(loaded, enabled=True)


def bridge_in_force() -> Bridge | None:
    """Return what broadcasts in this process; None while it is off by configuration."""
    return _in_force()


def _in_force() -> Bridge | None:
    """Return the bridge that broadcasts what starts now; None while that is off."""
    return next(reversed(_blocks.values())) if _blocks else _bridge


def _quieten_all_but_one() -> None:
    for bridge in (_bridge, *_blocks.values()):
        if bridge is not None:
            bridge.is_quiet = bridge is not _in_force()


def _on_after_configure(sender: Celery, **_: Any) -> None:
    """Apply the configuration that has just been read.

    Celery logs what a receiver raises and goes on, except when it is about to
    import a worker's modules (`celery/loaders/base.py`, `import_default_modules`):
    there the error is raised again, and the worker doesn't start.
    """
    _unread.discard(sender)
    signals.import_modules.disconnect(sender=sender, dispatch_uid="celery_broadcast.refuse")
    try:
        _apply(sender)
    except ConfigurationError as error:
        # Anywhere but in a worker this line is all that anybody sees of it.
        logger.error("broadcast stays off: %s", error)  # noqa: TRY400  # it says all
        refusal = error

        def refuse_to_start(**_: Any) -> None:
            raise refusal

        signals.import_modules.connect(
            refuse_to_start, sender=sender, weak=False, dispatch_uid="celery_broadcast.refuse"
        )


def _turn_off(app: Celery) -> None:
    global _bridge  # a process has one
    if _bridge is None or set(_apps) - {app}:
        _apps.discard(app)
        return
    from celery_broadcast.producer import check_outside_of_consumers  # noqa: PLC0415

    check_outside_of_consumers()
    bridge, _bridge = _bridge, None
    _apps.clear()
    _registry().check_each(None)
    bridge.disconnect()
    bridge.producer.drain()


def _apply(app: Any) -> None:
    """Connect for the app, or disconnect, as its configuration says."""
    global _bridge  # noqa: PLW0603  # a process has one
    loaded = settings.load(app.conf, os.environ, app.namespace)
    if _bridge is not None and loaded != _bridge.settings and set(_apps) <= {app}:
        _turn_off(app)  # its configuration was read anew, or the others are gone
    if not loaded.enabled:
        logger.info("broadcast is installed but off")
        return
    if _bridge is None:
        _bridge = _new_bridge(loaded, app)
        _quieten_all_but_one()
        _bridge.connect()
    elif loaded != _bridge.settings:
        msg = (
            f"{app!r} sets {loaded!r}, but another app of this process has set "
            f"{_bridge.settings!r}. A process has one broadcast: give both the same settings."
        )
        raise ConfigurationError(msg)
    _apps.add(app)
    if "celery.worker.control" in sys.modules:  # as in `install`
        from celery_broadcast.bootstep import BroadcastStep, SamplingStep  # noqa: PLC0415

        app.steps["worker"].add(BroadcastStep)
        app.steps["consumer"].add(SamplingStep)


def _new_bridge(loaded: settings.Settings, app: Celery | None = None) -> Bridge:
    """Load the core, which is absent while the broadcast is off.

    Args:
        loaded: the settings.
        app: whose broker events go through to remote consumers; without one
            those run here.

    Raises:
        ConfigurationError: a consumer can't run in this process, or be reached from it.
    """
    from celery_broadcast.bridge import Bridge  # noqa: PLC0415
    from celery_broadcast.greenlets import check_runs_here  # noqa: PLC0415
    from celery_broadcast.producer import Producer  # noqa: PLC0415

    if app is None:
        _registry().check_each(check_runs_here)
        return Bridge(loaded, Producer(loaded, _registry()))
    its = weakref.ref(app)  # the broadcast of a process keeps no app alive

    def check(subscription: Subscription) -> None:
        if subscription.remote:
            from celery_broadcast.relay.choice import Choice  # noqa: PLC0415  # as below

            Choice(its, loaded).check()
        else:
            check_runs_here(subscription)

    def make_relay(remote: tuple[Subscription, ...]) -> Subscription:
        # Absent as long as nothing is remote.
        from celery_broadcast.relay.choice import Choice  # noqa: PLC0415
        from celery_broadcast.relay.outgoing import subscription_of  # noqa: PLC0415

        return subscription_of(Choice(its, loaded), remote)

    _registry().check_each(check)
    return Bridge(loaded, Producer(loaded, _registry(), relay=make_relay))


def _registry() -> Registry:
    from celery_broadcast.subscription import registry  # noqa: PLC0415

    return registry
