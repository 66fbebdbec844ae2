from __future__ import annotations

import _thread
import functools
import gc
import importlib
import linecache
import runpy
import sys
import weakref
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from nodes.deadline import wait_until
from recorder import make_event, subscribe

import celery_broadcast
from celery_broadcast.batch import Batch
from celery_broadcast.consumer import Consumer, FunctionConsumer
from celery_broadcast.declaration import on_job_event
from celery_broadcast.errors import ConfigurationError
from celery_broadcast.events import (
    EVENT_TYPES,
    JobEnded,
    JobEvent,
    JobFailed,
    JobFinished,
    JobStarted,
)
from celery_broadcast.options import OPTIONS
from celery_broadcast.restarts import Restart
from celery_broadcast.retry import Retry
from celery_broadcast.subscription import FROM_SETTINGS, Registry, Subscription, registry

Declare = Callable[[str], None]

# Python 3.10 says that a decorator is called on the line of what is below it.
LINE_BELOW_COUNTS = sys.version_info < (3, 11)


def the_only_subscription() -> Subscription:
    (subscription,) = registry.subscriptions
    return subscription


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Run a user's module of this text."""
    file = tmp_path / "consumers.py"

    def run(source: str) -> None:
        imports = "from celery_broadcast import *; import functools\n"
        file.write_text(imports + dedent(source))
        linecache.checkcache(str(file))
        runpy.run_path(str(file))

    return run


# What can be declared.


def test_a_bare_decorator_subscribes_a_function_to_every_event() -> None:
    @on_job_event
    def trail(event: JobEvent) -> None: ...

    subscription = the_only_subscription()
    assert subscription.name == "trail"
    assert subscription.selection.events == (JobEvent,)
    assert (subscription.selection.tasks, subscription.selection.queues, subscription.selector) == (
        (),
        (),
        None,
    )
    assert (subscription.mailbox_size, subscription.overflow) == (FROM_SETTINGS, None)


def test_empty_parentheses_subscribe_to_every_event() -> None:
    @on_job_event()
    def trail(event: JobEvent) -> None: ...

    assert the_only_subscription().selection.events == (JobEvent,)


def test_events_in_the_parentheses_are_the_ones_wanted() -> None:
    @on_job_event(JobFailed, JobFinished)
    def ends(event: JobFailed | JobFinished) -> None: ...

    assert the_only_subscription().selection.events == (JobFailed, JobFinished)


def test_one_event_in_the_parentheses_is_not_taken_for_the_consumer() -> None:
    @on_job_event(JobFailed)
    def page_oncall(event: JobFailed) -> None: ...

    assert the_only_subscription().selection.events == (JobFailed,)


def test_options_without_an_event_are_for_every_event() -> None:
    @on_job_event(queue="eu-*")
    def trail(event: JobEvent) -> None: ...

    assert the_only_subscription().selection.events == (JobEvent,)
    assert the_only_subscription().selection.queues == ("eu-*",)


def test_every_option_is_kept() -> None:
    select = attrgetter("retries")

    @on_job_event(
        JobEnded,
        task=["shop.*", "bakery.*"],
        queue=("eu-1", "eu-2"),
        selector=select,
        name="slow-jobs",
        mailbox_size=50,
        overflow="drop_newest",
    )
    def slow(event: JobEnded) -> None: ...

    subscription = the_only_subscription()
    assert subscription.name == "slow-jobs"
    assert subscription.selection.events == (JobEnded,)
    assert subscription.selection.tasks == ("shop.*", "bakery.*")
    assert subscription.selection.queues == ("eu-1", "eu-2")
    assert subscription.selector is select
    assert subscription.mailbox_size == 50
    assert subscription.overflow == "drop_newest"


def test_every_option_of_how_events_come_is_kept() -> None:
    batch, retry, restart = Batch(max_events=5), Retry(attempts=2), Restart("temporary")

    @on_job_event(JobFailed, exception=[OSError, "shop.Declined"], state="FAILURE", batch=batch)
    async def page(events: list[JobFailed]) -> None: ...

    @on_job_event(
        concurrency=4,
        partition_by=str,
        retry=retry,
        rate_limit="30/m",
        stuck_after=60,
        restart=restart,
    )
    def trail(event: JobEvent) -> None: ...

    first, second = registry.subscriptions
    assert first.selection.exceptions == (OSError, "shop.Declined")
    assert first.selection.states == ("FAILURE",)
    assert (first.batch, first.is_async) == (batch, True)
    assert (second.concurrency, second.partition_by) == (4, str)
    assert (second.retry, second.rate_limit, second.stuck_after) == (retry, 0.5, 60.0)
    assert (second.restart, second.is_async) == (restart, False)


def test_options_of_how_events_come_may_be_none() -> None:
    options: Any = dict.fromkeys(OPTIONS)

    @on_job_event(**options)
    def trail(event: JobEvent) -> None: ...

    @on_job_event
    def bare(event: JobEvent) -> None: ...

    first, second = registry.subscriptions
    for field in ("batch", "concurrency", "partition_by", "retry", "rate_limit", "stuck_after"):
        assert getattr(first, field) == getattr(second, field)
    assert (first.restart, first.selection) == (second.restart, second.selection)


def test_a_remote_consumer_says_how_it_wants_the_values_of_a_job() -> None:
    @on_job_event(JobFailed, remote=True)
    def pager(event: JobFailed) -> None: ...

    @on_job_event(remote=True, payload="json", name="audit-2.eu")
    def audit(event: JobEvent) -> None: ...

    @on_job_event(remote=False)
    def here(event: JobEvent) -> None: ...

    assert [(each.remote, each.payload) for each in registry.subscriptions] == [
        (True, "text"),
        (True, "json"),
        (False, "text"),
    ]


@pytest.mark.parametrize("option", ["remote", "payload"])
def test_only_a_declared_consumer_can_be_remote(option: str) -> None:
    for function in (celery_broadcast.subscribe, celery_broadcast.stream):
        call: Any = function
        arguments = (print,) if function is celery_broadcast.subscribe else ()
        with pytest.raises(ConfigurationError) as caught:
            call(*arguments, **{option: True})
        assert str(caught.value) == (
            f"{function.__name__} has no option {option!r}: a remote consumer runs in another "
            "process, which finds it by its declaration. Declare it with "
            f"@on_job_event(..., {option}=True)."
        )


def test_the_name_of_the_broadcasts_own_consumer_is_taken() -> None:
    with pytest.raises(ConfigurationError, match="A consumer can't be named 'relay'") as caught:

        @on_job_event(name="relay")
        def trail(event: JobEvent) -> None: ...

    assert "Give it another name=" in str(caught.value)


def test_an_option_of_none_is_as_good_as_none_given() -> None:
    @on_job_event(task=None, queue=None, selector=None, name=None, overflow=None)
    def trail(event: JobEvent) -> None: ...

    subscription = the_only_subscription()
    assert (subscription.name, subscription.selection.tasks, subscription.selection.queues) == (
        "trail",
        (),
        (),
    )
    assert (subscription.selector, subscription.overflow) == (None, None)


def test_a_mailbox_size_of_none_is_no_bound() -> None:
    @on_job_event(mailbox_size=None)
    def trail(event: JobEvent) -> None: ...

    assert the_only_subscription().mailbox_size is None


@pytest.mark.parametrize(
    "decorator", [on_job_event, on_job_event(), on_job_event(JobFailed, task="shop.*")]
)
def test_the_decorator_gives_the_function_back_untouched(
    decorator: Callable[[Any], object],
) -> None:
    def trail(event: JobEvent) -> str:
        return event.task_id

    before = dict(vars(trail))

    assert decorator(trail) is trail
    assert vars(trail) == before
    assert trail(make_event(JobStarted, task_id="7")) == "7"


@pytest.mark.parametrize("decorator", [on_job_event, on_job_event(), on_job_event(JobFailed)])
def test_the_decorator_gives_a_class_back_untouched_and_unmade(
    decorator: Callable[[Any], object],
) -> None:
    made: list[Consumer] = []

    class Audit(Consumer):
        def __init__(self) -> None:
            made.append(self)

        def handle(self, event: JobEvent) -> None: ...

    assert decorator(Audit) is Audit
    assert the_only_subscription().name == "Audit"
    assert made == []


def test_each_life_of_a_class_is_a_new_instance() -> None:
    @on_job_event
    class Audit(Consumer):
        def handle(self, event: JobEvent) -> None: ...

    first, second = (the_only_subscription().make_consumer() for _ in range(2))

    assert isinstance(first, Audit)
    assert isinstance(second, Audit)
    assert first is not second


def test_a_function_is_called_with_the_event() -> None:
    handled: list[JobEvent] = []
    on_job_event(name="store")(handled.append)
    event = make_event(JobStarted)

    consumer = the_only_subscription().make_consumer()
    consumer.setup()
    consumer.handle(event)
    consumer.teardown()

    assert handled == [event]


def test_a_class_may_inherit_its_handle() -> None:
    class Base(Consumer):
        def handle(self, event: JobEvent) -> None: ...

    @on_job_event
    class Audit(Base): ...

    assert the_only_subscription().make_consumer is Audit


def test_a_class_may_have_arguments_with_defaults() -> None:
    @on_job_event
    class Audit(Consumer):
        def __init__(self, path: str = "audit.log") -> None:
            self.path = path

        def handle(self, event: JobEvent, *, verbose: bool = False) -> None: ...

    assert the_only_subscription().make_consumer is Audit


def test_a_handle_may_be_static_or_of_the_class() -> None:
    @on_job_event
    class Static(Consumer):
        @staticmethod
        def handle(event: JobEvent) -> None: ...

    @on_job_event
    class OfTheClass(Consumer):
        @classmethod
        def handle(cls, event: JobEvent) -> None: ...

    assert [known.name for known in registry.subscriptions] == ["Static", "OfTheClass"]


class CallableInstance:
    """A callable instance."""

    def __call__(self, event: JobEvent) -> None: ...


def takes_two(prefix: str, event: JobEvent) -> None: ...


@pytest.mark.parametrize(
    "consumer",
    [
        lambda _: None,
        lambda *events: None,
        lambda event, verbose=False: None,
        functools.partial(takes_two, "shop"),
        CallableInstance(),
        [].append,
        print,
        max,  # which has no signature that Python could read
    ],
)
def test_whatever_takes_one_event_is_a_consumer_once_it_has_a_name(
    consumer: Callable[[Any], object],
) -> None:
    assert on_job_event(JobFailed, name="store")(consumer) is consumer

    assert the_only_subscription().name == "store"


def test_a_builtin_function_has_a_name_of_its_own() -> None:
    on_job_event(print)

    assert the_only_subscription().name == "print"


@pytest.mark.parametrize("selector", [bool, print, max, CallableInstance(), lambda _: True])
def test_whatever_takes_one_event_is_a_selector(selector: Callable[[Any], object]) -> None:
    on_job_event(selector=selector, name="store")(print)

    assert the_only_subscription().selector is selector


def test_one_function_may_be_two_consumers_of_different_names() -> None:
    def store(event: JobEnded) -> None: ...

    on_job_event(JobFinished, name="successes")(store)
    on_job_event(JobFailed, name="failures")(store)

    assert [known.name for known in registry.subscriptions] == ["successes", "failures"]


def test_a_user_may_have_event_types_below_ours() -> None:
    class ChargeFailed(JobFailed, frozen=True, kw_only=True): ...

    @on_job_event(ChargeFailed)
    def page_oncall(event: ChargeFailed) -> None: ...

    assert the_only_subscription().selection.events == (ChargeFailed,)


def test_a_subscription_knows_the_file_and_the_line_of_its_declaration(
    declare: Declare, tmp_path: Path
) -> None:
    declare("""
        def nothing(): ...

        @on_job_event(
            JobFailed,
            name="store",
        )
        def page_oncall(event): ...
    """)

    line = 9 if LINE_BELOW_COUNTS else 5
    assert the_only_subscription().declared_at == f"{tmp_path / 'consumers.py'}:{line}"


def test_a_declaration_that_no_file_made_is_kept_too() -> None:
    _thread.start_new_thread(on_job_event, (print,))

    wait_until(lambda: bool(registry.subscriptions))
    assert the_only_subscription().declared_at == "?"


# What can't be declared. First, the ends of what the user is told.

BUT_ONE_EVENT = "but a consumer is called with one event. Write:"
RUNS_NOTHING = "calling it runs nothing. Write it as a plain function."
EVENT_TYPES_ONLY = "Pass event types, such as JobFailed, or none for every event."
NAME_IT = 'has no name of its own. Give it one: on_job_event(..., name="...").'
WHAT_EVENTS_HAVE = (
    "Of a job's events only JobFailed and JobRetried have an exception, each end has one state, "
    "and events of your own have no task. Leave out what doesn't fit, or declare two consumers."
)
NOT_A_NAME = "is not a name. Use some text, such as name='payments-audit'."

#: A user's module with one wrong declaration, and what the user is told.
WRONG: dict[str, str] = {
    # a consumer that can't be one
    "@on_job_event\ndef page(): ...": (
        f"page() takes no arguments, {BUT_ONE_EVENT} def page(event): ..."
    ),
    "@on_job_event(JobFailed)\ndef page(event, reason): ...": (
        f"page() takes (event, reason), {BUT_ONE_EVENT} def page(event): ..."
    ),
    "@on_job_event\ndef page(event, *, reason): ...": (
        f"page() takes (event, *, reason), {BUT_ONE_EVENT} def page(event): ..."
    ),
    ("@on_job_event\ndef page(event):\n    yield"): (f"page() is a generator: {RUNS_NOTHING}"),
    ("@on_job_event\nasync def page(event):\n    yield"): (
        f"page() is an asynchronous generator: {RUNS_NOTHING}"
    ),
    "@on_job_event(ValueError)\ndef page(event): ...": (
        "ValueError is an exception, not a consumer. "
        "Write: on_job_event(JobFailed, exception=ValueError)."
    ),
    "@on_job_event(exception='shop.*')\ndef page(event): ...": (
        "exception='shop.*' is not an exception. Use a class, such as OSError, its qualified "
        "name, such as 'shop.errors.CardDeclined', or a list of such."
    ),
    "@on_job_event\nclass Page: ...": (
        "Page is a class, but not a Consumer. Write: class Page(Consumer): ..."
    ),
    ("@on_job_event(JobFailed)\nclass Page:\n    def handle(self, event): ..."): (
        "Page is a class, but not a Consumer. Write: class Page(Consumer): ..."
    ),
    "@on_job_event\nclass Page(Consumer): ...": (
        "Page handles nothing. Write: def handle(self, event): ..."
    ),
    ("@on_job_event\nclass Page(Consumer):\n    def handle(self): ..."): (
        f"Page.handle() takes (self), {BUT_ONE_EVENT} def handle(self, event): ..."
    ),
    ("@on_job_event\nclass Page(Consumer):\n    def handle(): ..."): (
        f"Page.handle() takes no arguments, {BUT_ONE_EVENT} def handle(self, event): ..."
    ),
    (
        "@on_job_event\n"
        "class Page(Consumer):\n"
        "    async def setup(self): ...\n"
        "    def handle(self, event): ..."
    ): (
        "Page.setup() is a coroutine function, but Page.handle() is not, and its thread runs no "
        "event loop. Write: async def handle(self, event): ..."
    ),
    (
        "@on_job_event\n"
        "class Page(Consumer):\n"
        "    def __init__(self, url): ...\n"
        "    def handle(self, event): ..."
    ): ("Page() needs arguments, but a consumer is made without any. Give them defaults."),
    (
        "class Page(Consumer):\n"
        "    def handle(self, event): ...\n"
        "    @on_job_event(JobFailed)\n"
        "    def page(self, event): ..."
    ): (f"page() takes (self, event), {BUT_ONE_EVENT} def page(event): ..."),
    "on_job_event(JobFailed)('page')": (
        "on_job_event got 'page'. Decorate a function or a Consumer class."
    ),
    # an event that is none
    "@on_job_event('JobFailed')\ndef page(event): ...": (
        "on_job_event got 'JobFailed' (str). "
        "Pass the class: from celery_broadcast import JobFailed."
    ),
    "@on_job_event(JobStarted, 'JobEnded')\ndef page(event): ...": (
        "on_job_event got 'JobEnded' (str). Pass the class: from celery_broadcast import JobEnded."
    ),
    "@on_job_event('task failed')\ndef page(event): ...": (
        f"on_job_event got 'task failed' (str). {EVENT_TYPES_ONLY}"
    ),
    "@on_job_event(5)\ndef page(event): ...": (f"on_job_event got 5 (int). {EVENT_TYPES_ONLY}"),
    "@on_job_event([JobFailed])\ndef page(event): ...": (
        f"on_job_event got [<class 'celery_broadcast.events.JobFailed'>] (list). {EVENT_TYPES_ONLY}"
    ),
    "@on_job_event(JobFailed, OSError)\ndef page(event): ...": (
        "on_job_event got <class 'OSError'> (type). "
        "Write: on_job_event(JobFailed, exception=OSError)."
    ),
    # a name that is none
    "on_job_event(JobFailed)(lambda event: None)": NAME_IT,
    "on_job_event(functools.partial(print))": (
        f"functools.partial(<built-in function print>) {NAME_IT}"
    ),
    "@on_job_event(name='')\ndef page(event): ...": (f"name='' {NOT_A_NAME}"),
    "@on_job_event(name=' ')\ndef page(event): ...": (f"name=' ' {NOT_A_NAME}"),
    "@on_job_event(name=5)\ndef page(event): ...": (f"name=5 {NOT_A_NAME}"),
    # an option that is none
    "@on_job_event(JobFailed, taks='shop.*')\ndef page(event): ...": (
        "on_job_event has no option 'taks'. Did you mean 'task'?"
    ),
    "@on_job_event(filter=print)\ndef page(event): ...": (
        "on_job_event has no option 'filter'. There are: task, queue, exception, state, selector, "
        "name, mailbox_size, overflow, batch, concurrency, partition_by, retry, rate_limit, "
        "stuck_after, restart, remote, payload."
    ),
    **{
        f"@on_job_event(remote={remote})\ndef page(event): ...": (
            f"remote={remote} is neither True nor False. Write remote=True for a consumer that "
            "runs in `celery broadcast consume`, not in the worker."
        )
        for remote in ("1", "'yes'", "[]")
    },
    **{
        f"@on_job_event(remote=True, payload={payload})\ndef page(event): ...": (
            f"payload={payload} is no way to send args, kwargs and result. Use 'text' (each as its "
            "shortened repr) or 'json' (what is JSON, as it is)."
        )
        for payload in ("'pickle'", "True", "''")
    },
    "@on_job_event(payload='json')\ndef page(event): ...": (
        "payload='json' changes nothing without remote=True: a consumer in the worker gets the "
        "values themselves. Leave it out, or add remote=True."
    ),
    "@on_job_event(Event, remote=True)\ndef page(event): ...": (
        "on_job_event(Event, remote=True) can't be: only the events of jobs go to another "
        "process, and Event is none of them. Use JobEvent for every event of a job."
    ),
    (
        "class Incident(Event, frozen=True): ...\n"
        "@on_job_event(JobFailed, Incident, remote=True)\ndef page(event): ..."
    ): (
        "on_job_event(Incident, remote=True) can't be: only the events of jobs go to another "
        "process, and Incident is none of them. Leave remote=True out, or send a job of your own."
    ),
    **{
        f"@on_job_event(remote=True, name={name})\ndef page(event): ...": (
            f"name={name} can't be that of a remote consumer: it names its events on the broker. "
            "Use at most 100 letters (a-z, A-Z), digits, '_', '-' and '.', not ending in "
            "'.dead-letters', such as name='payments-audit'."
        )
        for name in ("'two words'", "'a:b'", "'é'", "'*'", "'pager.dead-letters'", f"'{101 * 'x'}'")
    },
    "@on_job_event(selector='retries')\ndef page(event): ...": (
        "selector='retries' can't be called. Write: selector=lambda event: ..."
    ),
    "@on_job_event(selector=lambda: True)\ndef page(event): ...": (
        "selector takes no arguments, but a selector is called with one event. "
        "Write: lambda event: ..."
    ),
    ("async def paid(event): ...\n@on_job_event(selector=paid)\ndef page(event): ..."): (
        f"selector is a coroutine function: {RUNS_NOTHING}"
    ),
    **{
        f"@on_job_event(mailbox_size={size})\ndef page(event): ...": (
            "mailbox_size must be a number of events of 1 or more, or None for no bound, "
            f"got {size}."
        )
        for size in ("0", "-1", "'5'", "True", "1.5")
    },
    **{
        f"@on_job_event(overflow={policy})\ndef page(event): ...": (
            f"overflow={policy} is not a policy. "
            "Use 'drop_oldest' (keep the newest events) or 'drop_newest' (keep the oldest)."
        )
        for policy in ("'block'", "5", "['drop_oldest']")
    },
    **{
        f"@on_job_event({option}={glob})\ndef page(event): ...": (
            f"{option}={glob} is not a glob. Use {option}='shop.*', or a list of such."
        )
        for option in ("task", "queue")
        for glob in ("''", "[]", "5", "b'shop.*'", "['shop.*', None]", "('',)")
    },
    # what no job can be asked for
    **{
        f"@on_job_event(exception={exception})\ndef page(event): ...": (
            f"exception={exception} is not an exception. Use a class, such as OSError, its "
            "qualified name, such as 'shop.errors.CardDeclined', or a list of such."
        )
        for exception in ("''", "[]", "5", "OSError('no')", "['shop.Declined', None]")
    },
    "@on_job_event(exception=int)\ndef page(event): ...": (
        "exception=<class 'int'> is not an exception. Use a class, such as OSError, its "
        "qualified name, such as 'shop.errors.CardDeclined', or a list of such."
    ),
    **{
        f"@on_job_event(state={state})\ndef page(event): ...": (
            f"state={state} is not how an attempt ends. Use one of FAILURE, IGNORED, PENDING, "
            "REJECTED, RETRY, REVOKED, SUCCESS, or a list of such."
        )
        for state in ("''", "[]", "5", "'FAILED'", "'success'", "['SUCCESS', None]")
    },
    "@on_job_event(JobFailed, state='SUCCESS')\ndef page(event): ...": (
        f"No event is JobFailed with state='SUCCESS'. {WHAT_EVENTS_HAVE}"
    ),
    "@on_job_event(JobStarted, JobFinished, exception='OSError')\ndef page(event): ...": (
        f"No event is JobStarted, JobFinished with exception='OSError'. {WHAT_EVENTS_HAVE}"
    ),
    "@on_job_event(state='SUCCESS', exception=['OSError'])\ndef page(event): ...": (
        f"No event is JobEvent with state='SUCCESS' and exception=['OSError']. {WHAT_EVENTS_HAVE}"
    ),
    (
        "class Incident(Event, frozen=True): ...\n"
        "@on_job_event(Incident, task='shop.*', queue=None)\n"
        "def page(event): ..."
    ): f"No event is Incident with task='shop.*'. {WHAT_EVENTS_HAVE}",
    # how events come
    **{
        f"@on_job_event({option}={value})\ndef page(event): ...": (
            f"{option}={value} is not a {kind}. Write: {option}={example}."
        )
        for option, kind, example, values in (
            ("batch", "Batch", "Batch(max_events=100)", ("500", "True", "'all'")),
            ("retry", "Retry", "Retry(attempts=3)", ("3", "True", "OSError('no')")),
            ("restart", "Restart", 'Restart("transient")', ("3", "False", "'permanent'")),
        )
        for value in values
    },
    "@on_job_event(batch=Batch)\ndef page(event): ...": (
        "batch=<class 'celery_broadcast.batch.Batch'> is not a Batch. "
        "Write: batch=Batch(max_events=100)."
    ),
    "@on_job_event(batch=Batch(max_events=0))\ndef page(event): ...": (
        "Batch(max_events=0) can't be: a call gets 1 event or more. "
        "Write a whole number, such as Batch(max_events=100)."
    ),
    "@on_job_event(retry=Retry(attempts=1))\ndef page(event): ...": (
        "Retry(attempts=1) would try nothing again, since the first try counts. "
        "Write 2 or more, or leave the Retry out."
    ),
    "@on_job_event(restart=Restart('always'))\ndef page(event): ...": (
        "Restart('always') is not a kind of restart. Use 'permanent' (always), 'transient' "
        "(unless it ended itself, by SystemExit) or 'temporary' (never)."
    ),
    **{
        f"@on_job_event(concurrency={count})\ndef page(event): ...": (
            f"concurrency={count} can't be. Write how many threads, or coroutines in flight, the "
            "consumer has in each process: 1 to 1,000."
        )
        for count in ("0", "-1", "1001", "'4'", "True", "1.5")
    },
    **{
        f"@on_job_event(rate_limit={limit})\ndef page(event): ...": (
            f"rate_limit={limit} is not a rate limit. Write '10/s', '100/m' or '10/h' for calls "
            "per second, minute or hour, a number for calls per second, or None for no limit."
        )
        for limit in ("''", "'fast'", "'10/d'", "-1", "True", "[10]")
    },
    **{
        f"@on_job_event(stuck_after={seconds})\ndef page(event): ...": (
            f"stuck_after={seconds} can't be. Write after how many seconds a call is said to be "
            "stuck, more than 0 and at most a day, such as stuck_after=60.0."
        )
        for seconds in ("0", "0.0", "-1", "'5s'", "True", "86401")
    },
    "@on_job_event(partition_by='customer')\ndef page(event): ...": (
        "partition_by='customer' can't be called. Write: partition_by=lambda event: ..."
    ),
    "@on_job_event(partition_by=lambda: 1)\ndef page(event): ...": (
        "partition_by takes no arguments, but a partition_by is called with one event. "
        "Write: lambda event: ..."
    ),
    ("async def key(event): ...\n@on_job_event(partition_by=key)\ndef page(event): ..."): (
        f"partition_by is a coroutine function: {RUNS_NOTHING}"
    ),
    ("def key(event): yield\n@on_job_event(partition_by=key)\ndef page(event): ..."): (
        f"partition_by is a generator: {RUNS_NOTHING}"
    ),
    "@on_job_event(partition_by=str)\ndef page(event): ...": (
        "partition_by= changes nothing without concurrency=: one event after the other, all stay "
        "in order. Write how many run at once, such as concurrency=4."
    ),
    "@on_job_event(partition_by=str, concurrency=4, batch=Batch())\ndef page(events): ...": (
        "partition_by= and batch= don't go together: a batch would hold events of several keys. "
        "Leave one of them out; without concurrency= everything is in order anyway."
    ),
    "@on_job_event(JobFailed, concurency=4)\nasync def page(event): ...": (
        "on_job_event has no option 'concurency'. Did you mean 'concurrency'?"
    ),
}


@pytest.mark.parametrize("source", WRONG, ids=repr)
def test_a_wrong_declaration_is_an_error_on_its_own_line(declare: Declare, source: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare(source)

    assert str(caught.value).endswith(WRONG[source])
    (entry,) = [entry for entry in caught.traceback if Path(entry.path).name == "consumers.py"][-1:]
    declared = ("def", "async def", "class") if LINE_BELOW_COUNTS else ()
    assert str(entry.statement).strip().startswith(("@on_job_event", "on_job_event", *declared))
    assert registry.subscriptions == ()


def test_an_instance_of_an_event_is_not_an_event_type() -> None:
    declare: Any = on_job_event

    with pytest.raises(ConfigurationError, match="Pass its class, JobStarted"):
        declare(make_event(JobStarted))


def test_an_instance_of_a_consumer_is_not_a_consumer() -> None:
    declare: Any = on_job_event(JobFailed)

    with pytest.raises(ConfigurationError, match="Decorate a function or a Consumer class"):
        declare(FunctionConsumer(print))


# Names and lives.


def test_two_consumers_of_one_name_are_an_error_that_names_both_places(
    declare: Declare, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare("""
            on_job_event(JobFailed, name="audit")(print)

            on_job_event(JobFinished, name="audit")(max)
        """)

    file = tmp_path / "consumers.py"
    assert str(caught.value) == (
        f"Two consumers are named 'audit' ({file}:3 and {file}:5). Give one of them name=\"...\"."
    )
    assert the_only_subscription().selection.events == (JobFailed,)


@pytest.fixture
def shop_consumers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module of two consumers that can be imported; return its name."""
    file = tmp_path / "shop_consumers_of_this_test.py"
    file.write_text(
        dedent("""
            from functools import partial
            from test_declaration import takes_two
            from celery_broadcast import Consumer, on_job_event

            @on_job_event
            def trail(event): ...

            def page(number, event): ...

            on_job_event(name="own")(partial(page, "shop"))
            on_job_event(name="of another file")(partial(takes_two, "shop"))

            @on_job_event
            class Audit(Consumer):
                def handle(self, event): ...
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield file.stem
    sys.modules.pop(file.stem, None)


def test_a_module_that_is_imported_again_replaces_its_own_consumers(shop_consumers: str) -> None:
    module = importlib.import_module(shop_consumers)
    before = registry.subscriptions

    importlib.reload(module)

    names = [known.name for known in registry.subscriptions]
    assert names == ["trail", "own", "of another file", "Audit"]
    assert registry.subscriptions[-1].make_consumer is module.Audit
    assert registry.subscriptions[-1].make_consumer is not before[-1].make_consumer


def test_a_consumer_lives_as_long_as_it_is_declared() -> None:
    def declare_and_forget() -> weakref.ref[Callable[[JobEvent], None]]:
        @on_job_event
        def trail(event: JobEvent) -> None: ...

        return weakref.ref(trail)

    trail = declare_and_forget()
    gc.collect()
    assert trail() is not None

    registry.clear()
    gc.collect()
    assert trail() is None


@pytest.mark.parametrize("how", [{}, {"lazy": False}], ids=["as a proxy", "itself"])
def test_a_task_in_place_of_its_name_is_refused_with_its_name(
    app: Celery, how: dict[str, Any]
) -> None:
    def charge() -> None: ...

    declare: Any = app.task
    task = declare(name="shop.charge", **how)(charge)

    with pytest.raises(ConfigurationError, match=r"Use task='shop\.charge', its name, or a list"):
        on_job_event(JobFailed, task=task)


def test_a_reader_of_the_registry_keeps_what_it_read() -> None:
    registry = Registry()
    registry.add(subscribe(print, "first"))
    read = registry.subscriptions

    registry.add(subscribe(print, "second"))

    assert [known.name for known in read] == ["first"]
    assert [known.name for known in registry.subscriptions] == ["first", "second"]


def test_what_the_subscriptions_want_is_known_before_a_job_asks() -> None:
    registry = Registry()
    failures = subscribe(print, "failures", events=(JobFailed,))
    registry.add(failures)
    registry.add(subscribe(print, "ends", events=(JobEnded,)))
    assert registry.wanted == {each for each in EVENT_TYPES.values() if each is not JobStarted}

    registry.subscriptions = (failures,)
    assert registry.wanted == {JobFailed}
    registry.clear()
    assert not registry.wanted


@given(declared=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123"))))
def test_names_stay_unique_whatever_is_declared(declared: list[tuple[str, str]]) -> None:
    registry = Registry()
    first_places: dict[str, str] = {}

    for name, place in declared:
        taken = first_places.setdefault(name, place) != place
        try:
            registry.add(subscribe(print, name, declared_at=place))
        except ConfigurationError:
            assert taken
        else:
            assert not taken

    places = {known.name: known.declared_at for known in registry.subscriptions}
    assert places == first_places
    assert len(registry.subscriptions) == len(places)


def test_a_consumer_that_was_copied_in_its_module_needs_a_name_of_its_own() -> None:
    @on_job_event
    def trail(event: JobEvent) -> None: ...

    with pytest.raises(ConfigurationError, match="Two consumers are named 'trail'"):

        @on_job_event
        def trail(event: JobEvent) -> None: ...


def test_consumers_declared_in_a_loop_need_names_of_their_own() -> None:
    def declare(name: str | None) -> None:
        @on_job_event(name=name)
        def trail(event: JobEvent) -> None: ...

    declare("first")
    declare("second")
    declare(None)

    with pytest.raises(ConfigurationError, match="Two consumers are named 'trail'"):
        declare(None)


@pytest.mark.parametrize(
    "make",
    [lambda: functools.partial(takes_two, "shop"), CallableInstance],
    ids=["a partial", "an instance that can be called"],
)
def test_what_is_made_and_declared_in_a_loop_needs_names_of_its_own(
    make: Callable[[], Callable[[Any], object]],
) -> None:
    def declare() -> None:
        on_job_event(name="page")(make())

    declare()

    with pytest.raises(ConfigurationError, match="Two consumers are named 'page'"):
        declare()
