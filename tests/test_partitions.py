from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from celery_broadcast.partitions import Partitions


def test_the_first_item_of_a_key_is_handled_now() -> None:
    partitions: Partitions[str] = Partitions()

    assert partitions.begin("a", "first")
    assert partitions.waiting == 0


def test_items_of_a_key_in_hand_wait_and_come_in_their_order() -> None:
    partitions: Partitions[str] = Partitions()
    partitions.begin("a", "first")

    assert not partitions.begin("a", "second")
    assert not partitions.begin("a", "third")

    assert partitions.waiting == 2
    assert [partitions.next_of("a") for _ in range(3)] == ["second", "third", None]
    assert partitions.waiting == 0


def test_another_key_goes_on() -> None:
    partitions: Partitions[str] = Partitions()
    partitions.begin("a", "first")

    assert partitions.begin("b", "second")
    assert partitions.next_of("b") is None


def test_a_key_is_free_after_its_last_item() -> None:
    partitions: Partitions[str] = Partitions()
    partitions.begin("a", "first")
    assert partitions.next_of("a") is None

    assert partitions.begin("a", "second")


def test_none_is_a_key_like_any_other() -> None:
    partitions: Partitions[str] = Partitions()

    assert partitions.begin(None, "first")
    assert not partitions.begin(None, "second")


def test_a_key_that_is_free_takes_no_memory() -> None:
    partitions: Partitions[int] = Partitions()

    for key in range(10_000):
        partitions.begin(key, 1)
        partitions.begin(key, 2)
        while partitions.next_of(key) is not None:
            pass

    assert not partitions._waiting


def test_a_clear_gives_back_what_waits_and_leaves_keys_in_hand() -> None:
    partitions: Partitions[str] = Partitions()
    partitions.begin("a", "first")
    partitions.begin("a", "second")

    assert partitions.clear() == ["second"]

    assert partitions.waiting == 0
    assert not partitions.begin("a", "third")
    assert [partitions.next_of("a"), partitions.next_of("a")] == ["third", None]


def test_a_key_that_nobody_has_in_hand_has_no_next_item() -> None:
    with pytest.raises(KeyError):
        Partitions[str]().next_of("a")


def test_a_key_that_cannot_be_hashed_changes_nothing() -> None:
    partitions: Partitions[str] = Partitions()

    with pytest.raises(TypeError, match="unhashable"):
        partitions.begin([], "first")  # type: ignore[arg-type]

    assert not partitions._waiting


class OneInHand(RuleBasedStateMachine):
    """Whatever comes and whoever is done first: each item once, in its key's order."""

    def __init__(self) -> None:
        super().__init__()
        self.partitions: Partitions[int] = Partitions()
        self.came: dict[str, list[int]] = defaultdict(list)
        self.handled: dict[str, list[int]] = defaultdict(list)
        self.in_hand: dict[str, int] = {}
        self.number = 0

    @rule(key=st.sampled_from("abc"))
    def comes(self, key: str) -> None:
        self.number += 1
        self.came[key].append(self.number)
        may_begin = self.partitions.begin(key, self.number)
        assert may_begin == (key not in self.in_hand)
        if may_begin:
            self.in_hand[key] = self.number

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def is_done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.in_hand)))
        self.handled[key].append(self.in_hand.pop(key))
        item = self.partitions.next_of(key)
        if item is not None:
            self.in_hand[key] = item

    @rule()
    def is_cleared(self) -> None:
        self.partitions.clear()
        for key in self.came:
            del self.came[key][self._begun(key) :]

    @invariant()
    def every_item_is_handled_in_hand_or_waits(self) -> None:
        waiting = 0
        for key, came in self.came.items():
            begun = self._begun(key)
            in_hand = [self.in_hand[key]] if key in self.in_hand else []
            assert [*self.handled[key], *in_hand] == came[:begun]
            assert key in self.in_hand or begun == len(came)
            waiting += len(came) - begun
        assert self.partitions.waiting == waiting

    @invariant()
    def only_keys_in_hand_take_memory(self) -> None:
        assert self.partitions._waiting.keys() == self.in_hand.keys()

    def teardown(self) -> None:
        while self.in_hand:
            for key in list(self.in_hand):
                self.handled[key].append(self.in_hand.pop(key))
                item = self.partitions.next_of(key)
                if item is not None:
                    self.in_hand[key] = item
        assert {key: items for key, items in self.handled.items() if items} == {
            key: items for key, items in self.came.items() if items
        }

    def _begun(self, key: str) -> int:
        return len(self.handled[key]) + (key in self.in_hand)


TestOneInHand = OneInHand.TestCase
