from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from nodes.deadline import wait_until

from celery_broadcast import inbox as inbox_module
from celery_broadcast.bell import Bell
from celery_broadcast.inbox import Inbox, Post
from celery_broadcast.mailbox import Mailbox


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_bell_that_rings_before_the_wait_is_heard() -> None:
    bell = Bell()

    bell.be_about_to_wait()
    bell.ring()
    bell.wait()

    assert not bell.is_awaited


def test_a_bell_that_nobody_awaits_leaves_nothing_for_the_next_wait() -> None:
    bell = Bell()

    bell.ring()
    bell.be_about_to_wait()
    bell.wait(0.0)  # for what rang before, it would not have to
    bell.be_about_to_wait()
    for _ in range(3):
        bell.ring()
    bell.wait()
    bell.be_about_to_wait()

    waiting = in_thread(bell.wait)
    assert waiting.is_alive()
    bell.ring()
    waiting.join(10.0)
    assert not waiting.is_alive()


class Rings:
    """A queue in which nothing ever is, and that remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def get_nowait(self) -> None:
        self.asked.append("at once")
        raise queue.Empty

    def get(self, timeout: float) -> None:
        self.asked.append(timeout)
        raise queue.Empty


def test_a_queue_is_asked_at_once_before_it_is_asked_with_a_timeout_and_never_with_none() -> None:
    """Else CPython may wait for ever: in 3.10 for a time of 0, anywhere for a very short one."""
    bell = Bell()
    bell.rings = rings = Rings()  # type: ignore[assignment]

    bell.wait(0.0)
    assert rings.asked == []
    bell.wait(0.5)
    assert rings.asked == ["at once", 0.5]


def test_what_is_put_wakes_the_producer() -> None:
    inbox = Inbox[int]()
    waiting = in_thread(inbox.wait)
    wait_until(lambda: inbox.bell.is_awaited)

    inbox.put(1)

    waiting.join(10.0)
    assert list(inbox.items) == [1]


def test_who_finds_something_in_the_inbox_does_not_wait() -> None:
    inbox = Inbox[int]()
    inbox.put(1)

    inbox.wait()


def test_what_is_put_wakes_who_is_at_the_front_in_the_place_of_the_producer() -> None:
    inbox, bell = Inbox[int](), Bell()
    inbox.bell.be_about_to_wait()
    bell.be_about_to_wait()
    inbox.come_to_front(bell)

    inbox.put(1)

    bell.wait()
    waiting = in_thread(inbox.bell.wait)
    assert waiting.is_alive()
    inbox.put_for_producer(2)
    waiting.join(10.0)
    assert not waiting.is_alive()


def test_only_one_is_at_the_front_and_who_is_not_can_not_step_back() -> None:
    inbox, first, second = Inbox[int](), Bell(), Bell()
    for bell in (inbox.bell, first, second):
        bell.be_about_to_wait()
    inbox.come_to_front(first)
    inbox.come_to_front(second)
    inbox.step_back(second)

    inbox.put(1)

    first.wait()
    inbox.step_back(first)
    inbox.put(2)
    inbox.bell.wait()
    assert second.is_awaited


def test_an_item_wakes_also_if_something_strikes_as_it_is_put() -> None:
    inbox = Inbox[int]()

    class Items:
        def append(self, _: int) -> None:
            raise TimeoutError

    inbox.items = Items()  # type: ignore[assignment]
    inbox.bell.be_about_to_wait()

    with pytest.raises(TimeoutError):
        inbox.put(1)

    inbox.bell.wait()


def test_who_is_at_its_post_moves_on_what_comes_until_its_mailbox_is_ready() -> None:
    inbox, mailbox = Inbox[int](), Mailbox[int](size=10)

    def move_on() -> None:
        item = inbox.items.popleft()
        if item > 1:
            mailbox.put(item)

    post = Post(inbox, move_on)

    def wait() -> None:
        while not mailbox.is_ready():
            post.wait(mailbox)

    waiting = in_thread(wait)

    for item in (0, 1):
        inbox.put(item)
        wait_until(lambda: not inbox.items)
        assert waiting.is_alive()
    inbox.put(2)

    waiting.join(10.0)
    assert mailbox.take(1) == [2]
    inbox.bell.be_about_to_wait()
    inbox.put(3)  # it has left its post
    inbox.bell.wait()


@pytest.mark.parametrize("turn", [lambda mailbox: mailbox.put(1), Mailbox.close])
def test_who_is_at_its_post_hears_also_of_its_mailbox(turn: Callable[[Mailbox[int]], None]) -> None:
    inbox, mailbox = Inbox[int](), Mailbox[int](size=10)
    post = Post(inbox, lambda: None)
    waiting = in_thread(lambda: post.wait(mailbox))

    turn(mailbox)

    waiting.join(10.0)
    assert not waiting.is_alive()


def move(inbox: Inbox[int], mailbox: Mailbox[int]) -> None:
    mailbox.put(inbox.items.popleft())


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox[int]]:
    """Have an inbox whose owner collects what comes, until the end of the test."""
    monkeypatch.setattr(inbox_module, "_SECONDS_TO_COLLECT", 60.0)
    inbox = Inbox[int]()
    owner = in_thread(inbox.collect)
    wait_until(lambda: inbox.is_collecting and inbox.bell.is_awaited)
    yield inbox
    inbox.put_for_producer(-1)
    owner.join(10.0)
    assert not owner.is_alive()
    assert not inbox.is_collecting


def test_while_what_comes_is_collected_nobody_is_woken_for_it(collecting: Inbox[int]) -> None:
    collecting.put(1)
    collecting.put(2)

    assert collecting.bell.rings.empty()
    assert list(collecting.items) == [1, 2]


def test_who_gets_idle_while_what_comes_is_collected_fetches_it(collecting: Inbox[int]) -> None:
    mailbox = Mailbox[int](size=10)
    post = Post(collecting, partial(move, collecting, mailbox))
    collecting.put(1)

    post.wait(mailbox)

    assert mailbox.take(1) == [1]
    assert collecting.is_collecting


def test_who_is_idle_while_what_comes_is_collected_is_woken_for_it(
    collecting: Inbox[int],
) -> None:
    mailbox = Mailbox[int](size=10)
    post = Post(collecting, partial(move, collecting, mailbox))
    waiting = in_thread(lambda: post.wait(mailbox))
    wait_until(lambda: mailbox.bell.is_awaited)

    collecting.put(1)

    waiting.join(10.0)
    assert mailbox.take(1) == [1]


def test_what_came_before_ends_the_collecting_at_once() -> None:
    inbox = Inbox[int]()
    inbox.put(1)

    inbox.collect()

    assert not inbox.is_collecting


def test_who_is_struck_at_its_post_leaves_it_and_moves_on_what_has_come() -> None:
    inbox, mailbox, moved = Inbox[int](), Mailbox[int](size=10), list[int]()
    post = Post(inbox, lambda: moved.append(inbox.items.popleft()))

    def strike() -> bool:
        inbox.put(1)
        raise TimeoutError

    mailbox.is_ready = strike  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        post.wait(mailbox)

    assert moved == [1]
    inbox.bell.be_about_to_wait()
    inbox.put(2)
    inbox.bell.wait()


def test_what_is_left_to_the_producer_wakes_it() -> None:
    inbox = Inbox[int]()
    waiting = in_thread(inbox.wait)
    wait_until(lambda: inbox.bell.is_awaited)

    inbox.leave(lambda: None)

    waiting.join(10.0)
    assert not waiting.is_alive()
    inbox.wait()  # it is still there
