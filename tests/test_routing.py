from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_broadcast.relay.routing import KEY_BYTES, binding_patterns, routing_key, wants
from celery_broadcast.relay.transport import Group


def group(*tasks: str, event_types: tuple[str, ...] = ("JobFailed",)) -> Group:
    return Group(name="pager", event_types=event_types, tasks=tasks or None)


def topic_matches(pattern: list[str], key: list[str]) -> bool:
    """What RabbitMQ does, word by word."""
    if not pattern:
        return not key
    if pattern[0] == "#":
        return any(topic_matches(pattern[1:], key[start:]) for start in range(len(key) + 1))
    return bool(key) and pattern[0] in {"*", key[0]} and topic_matches(pattern[1:], key[1:])


@pytest.mark.parametrize(
    ("glob", "pattern"),
    [
        ("shop.tasks.charge", "JobFailed.shop.tasks.charge"),
        ("shop.*", "JobFailed.shop.#"),
        ("shop.tasks.ch*", "JobFailed.shop.tasks.#"),
        ("shop.tasks.ch?rge", "JobFailed.shop.tasks.#"),
        ("shop.[ab].charge", "JobFailed.shop.#"),
        ("*.charge", "JobFailed.#"),
        ("*", "JobFailed.#"),
        ("sh*", "JobFailed.#"),
    ],
)
def test_a_glob_becomes_the_narrowest_pattern_that_rabbitmq_knows(glob: str, pattern: str) -> None:
    assert binding_patterns(group(glob)) == [pattern]


def test_a_group_without_tasks_is_bound_to_all_of_its_event_types() -> None:
    wanted = group(event_types=("JobFailed", "JobLost"))

    assert binding_patterns(wanted) == ["JobFailed.#", "JobLost.#"]


def test_globs_that_come_to_the_same_are_bound_once() -> None:
    assert binding_patterns(group("a*", "b*", "*")) == ["JobFailed.#"]


NAMES = st.text(st.sampled_from("ab.*#?[é\ud800"), max_size=12) | st.text(max_size=300)
GLOBS = st.text(st.sampled_from("ab.*?[]é\ud800"), min_size=1, max_size=8) | NAMES.filter(bool)


@given(NAMES, GLOBS)
def test_whatever_a_glob_matches_is_routed_to_the_group(name: str, glob: str) -> None:
    key = routing_key("JobFailed", name)
    patterns = binding_patterns(group(glob))

    assert all(len(each.encode()) <= KEY_BYTES for each in [key, *patterns])
    if fnmatchcase(name, glob):
        assert any(topic_matches(each.split("."), key.split(".")) for each in patterns)


@pytest.mark.parametrize("length", range(235, 270))
def test_a_name_that_is_too_long_is_still_routed(length: int) -> None:
    name = "é." * (length // 3) + "x" * (length % 3)
    key = routing_key("JobFailed", name)

    for glob in (name, name[:-1] + "*", name[: length // 2] + "*"):
        assert any(
            topic_matches(pattern.split("."), key.split("."))
            for pattern in binding_patterns(group(glob))
        )


def test_what_a_binding_lets_through_is_filtered_by_the_same_rules_as_in_a_worker() -> None:
    wanted = group("shop.ch*", "shop.tasks.refund")

    assert wants(wanted, "JobFailed", "shop.charge")
    assert wants(wanted, "JobFailed", "shop.ch.x.y")
    assert wants(wanted, "JobFailed", "shop.tasks.refund")
    assert not wants(wanted, "JobFailed", "shop.tasks.charge")
    assert not wants(wanted, "JobFinished", "shop.charge")
    assert not wants(group("*"), "JobFailed", "")
    assert wants(group(), "JobFailed", "")
