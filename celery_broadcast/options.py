"""How a consumer wants its events: each option checked on the line that gives it."""

from __future__ import annotations

import contextlib
import inspect
import re
from typing import Any

from celery_broadcast import settings
from celery_broadcast.batch import Batch
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import EVENT_TYPES, Event, JobEnded, JobEvent
from celery_broadcast.rate_limit import check_rate_limit
from celery_broadcast.restarts import Restart
from celery_broadcast.selection import check_selection
from celery_broadcast.settings import is_whole, shown

#: What says which events a consumer wants, and where they wait.
STREAM_OPTIONS = (
    *("task", "queue", "exception", "state", "selector", "name"),
    *("mailbox_size", "overflow"),
)
#: What a consumer can ask for that is subscribed at run time.
RUN_TIME_OPTIONS = (
    *STREAM_OPTIONS,
    *("batch", "concurrency", "partition_by", "retry", "rate_limit", "stuck_after", "restart"),
)
#: What a consumer can ask for that is declared.
_DECLARED_ONLY = ("remote", "payload")
OPTIONS = (*RUN_TIME_OPTIONS, *_DECLARED_ONLY)

#: The event types that a remote consumer can ask for.
JOB_EVENTS = frozenset({JobEvent, JobEnded, *EVENT_TYPES.values()})

#: How the values of a job can travel to a remote consumer.
PAYLOADS = ("text", "json")

_MOST_CONCURRENT = 1_000

# It is a part of the names that the broker knows a consumer's events by, and what
# has this end there are the dead letters of another.
_GROUP_NAME = r"[a-zA-Z0-9_.-]{1,100}(?<!\.dead-letters)"


def check_options(
    caller: str,
    events: tuple[object, ...],
    options: dict[str, Any],
    known: tuple[str, ...] = OPTIONS,
) -> dict[str, Any]:
    """Return the event types and options as fields of a `Subscription`.

    Args:
        caller: what the user called, for the messages.
        events: the event types.
        options: the options by their names.
        known: the names that there are.

    Raises:
        ConfigurationError: something of it is wrong.
    """
    for option, value in options.items():
        if option not in known:
            if option in _DECLARED_ONLY:
                msg = (
                    f"{caller} has no option {option!r}: a remote consumer runs in another "
                    "process, which finds it by its declaration. Declare it with "
                    f"@on_job_event(..., {option}={shown(value)})."
                )
                raise ConfigurationError(msg)
            import difflib  # noqa: PLC0415  # misspelling is rare, and this slow to load

            close = difflib.get_close_matches(option, known, n=1)
            there_are = (
                f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."
            )
            msg = f"{caller} has no option {option!r}. {there_are}"
            raise ConfigurationError(msg)
    fields: dict[str, Any] = {
        "name": _check_name(options.get("name")),
        "selection": check_selection(caller, events, options),
        "selector": _check_callable("selector", options.get("selector")),
        "partition_by": _check_callable("partition_by", options.get("partition_by")),
        "batch": _check_kind("batch", options.get("batch"), Batch, "Batch(max_events=100)"),
        "retry": _check_retry(options.get("retry")),
        "concurrency": _check_concurrency(options.get("concurrency")),
        "rate_limit": check_rate_limit("rate_limit", options.get("rate_limit")),
        "stuck_after": _check_stuck_after(options.get("stuck_after")),
    }
    if "mailbox_size" in options:
        size = settings.check_mailbox_size("mailbox_size", options["mailbox_size"])
        fields["mailbox_size"] = size
    if options.get("overflow") is not None:
        fields["overflow"] = settings.check_overflow("overflow", options["overflow"])
    if options.get("restart") is not None:
        fields["restart"] = _check_kind(
            "restart", options["restart"], Restart, 'Restart("transient")'
        )
    _check_partitions(fields)
    _check_remote(caller, options, fields)
    return fields


def _check_name(name: object) -> str | None:
    if name is None or (isinstance(name, str) and name.strip()):
        return name
    msg = f"name={shown(name)} is not a name. Use some text, such as name='payments-audit'."
    raise ConfigurationError(msg)


def _check_callable(option: str, function: Any) -> Any:
    if function is None:
        return None
    if not callable(function):
        msg = f"{option}={shown(function)} can't be called. Write: {option}=lambda event: ..."
        raise ConfigurationError(msg)
    check_is_plain(function, option)
    check_takes_one_event(function, option, f"a {option}", "lambda event: ...")
    return function


def _check_kind(option: str, value: Any, kind: type, example: str) -> Any:
    if value is None or isinstance(value, kind):
        return value
    msg = f"{option}={shown(value)} is not a {kind.__name__}. Write: {option}={example}."
    raise ConfigurationError(msg)


def _check_retry(value: Any) -> Any:
    if value is None:
        return None
    from celery_broadcast.retry import Retry  # noqa: PLC0415  # most consumers retry nothing

    return _check_kind("retry", value, Retry, "Retry(attempts=3)")


def _check_concurrency(value: object) -> int:
    if value is None:
        return 1
    if is_whole(value, 1) and value <= _MOST_CONCURRENT:
        return value
    msg = (
        f"concurrency={shown(value)} can't be. Write how many threads, or coroutines in flight, "
        f"the consumer has in each process: 1 to {_MOST_CONCURRENT:,}."
    )
    raise ConfigurationError(msg)


def _check_stuck_after(value: object) -> float | None:
    if value is None:
        return None
    with contextlib.suppress(ConfigurationError):  # it would allow for 0, as for a pause
        seconds = settings.check_seconds("stuck_after", value)
        if seconds:
            return seconds
    msg = (
        f"stuck_after={shown(value)} can't be. Write after how many seconds a call is said to be "
        "stuck, more than 0 and at most a day, such as stuck_after=60.0."
    )
    raise ConfigurationError(msg)


def _check_partitions(fields: dict[str, Any]) -> None:
    if fields["partition_by"] is None:
        return
    if fields["batch"] is not None:
        msg = (
            "partition_by= and batch= don't go together: a batch would hold events of several "
            "keys. Leave one of them out; without concurrency= everything is in order anyway."
        )
        raise ConfigurationError(msg)
    if fields["concurrency"] == 1:
        msg = (
            "partition_by= changes nothing without concurrency=: one event after the other, all "
            "stay in order. Write how many run at once, such as concurrency=4."
        )
        raise ConfigurationError(msg)


def _check_remote(caller: str, options: dict[str, Any], fields: dict[str, Any]) -> None:
    remote, payload = options.get("remote"), options.get("payload")
    if remote is not None and not isinstance(remote, bool):
        msg = (
            f"remote={shown(remote)} is neither True nor False. Write remote=True for a consumer "
            "that runs in `celery broadcast consume`, not in the worker."
        )
        raise ConfigurationError(msg)
    if payload is not None and not (isinstance(payload, str) and payload in PAYLOADS):
        msg = (
            f"payload={shown(payload)} is no way to send args, kwargs and result. Use 'text' "
            "(each as its shortened repr) or 'json' (what is JSON, as it is)."
        )
        raise ConfigurationError(msg)
    if not remote:
        if payload is not None:
            msg = (
                f"payload={shown(payload)} changes nothing without remote=True: a consumer in the "
                "worker gets the values themselves. Leave it out, or add remote=True."
            )
            raise ConfigurationError(msg)
        return
    for event_type in fields["selection"].events:
        if event_type not in JOB_EVENTS:
            name = event_type.__name__
            remedy = (
                "Use JobEvent for every event of a job"
                if event_type is Event
                else "Leave remote=True out, or send a job of your own"
            )
            msg = (
                f"{caller}({name}, remote=True) can't be: only the events of jobs go to another "
                f"process, and {name} is none of them. {remedy}."
            )
            raise ConfigurationError(msg)
    fields["remote"] = True
    fields["payload"] = payload or PAYLOADS[0]


def check_group_name(name: str) -> None:
    """Refuse a name that no broker should see: a remote consumer's is a part of names there.

    Raises:
        ConfigurationError: it has other characters than letters, digits, `_`, `.` and `-`, is
            too long, or ends as the dead letters of another do.
    """
    if not re.fullmatch(_GROUP_NAME, name):
        msg = (
            f"name={shown(name)} can't be that of a remote consumer: it names its events on the "
            "broker. Use at most 100 letters (a-z, A-Z), digits, '_', '-' and '.', not ending in "
            "'.dead-letters', such as name='payments-audit'."
        )
        raise ConfigurationError(msg)


def check_is_plain(function: Any, name: str) -> None:
    """Refuse what only makes something to be run by somebody else.

    Raises:
        ConfigurationError: it is a coroutine function or a generator.
    """
    if is_coroutine_function(function):
        msg = (
            f"{name} is a coroutine function: calling it runs nothing. "
            "Write it as a plain function."
        )
        raise ConfigurationError(msg)
    check_is_no_generator(function, name)


def check_is_no_generator(function: Any, name: str) -> None:
    """Refuse a generator, asynchronous or not.

    Raises:
        ConfigurationError: it is one.
    """
    for is_kind, kind in (
        (inspect.isasyncgenfunction, "an asynchronous generator"),
        (inspect.isgeneratorfunction, "a generator"),
    ):
        if is_kind(function) or is_kind(type(function).__call__):
            msg = f"{name} is {kind}: calling it runs nothing. Write it as a plain function."
            raise ConfigurationError(msg)


def is_coroutine_function(function: Any) -> bool:
    """Tell whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def check_takes_one_event(
    function: Any, name: str, role: str, remedy: str, before_it: tuple[object, ...] = ()
) -> None:
    """Refuse what can't be called with one argument.

    Args:
        function: what is to be called.
        name: how the message names it.
        role: what it is.
        remedy: how it should look.
        before_it: what it is given before the event.

    Raises:
        ConfigurationError: it can't.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C, without a signature to read
    try:
        signature.bind(*before_it, object())
    except TypeError:
        takes = f"takes {signature}" if signature.parameters else "takes no arguments"
        msg = f"{name} {takes}, but {role} is called with one event. Write: {remedy}"
        raise ConfigurationError(msg) from None
