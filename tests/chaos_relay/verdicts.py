"""Whether a run was as it should be: each check tells what was wrong, and with which event."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from celery_broadcast.relay.outgoing import BATCH
from chaos_relay.journal import Drained, Handled, Key, Published
from chaos_relay.run import CONCURRENCY, GROUPS, MURDER, POISON, REPLICAS, WORKERS, Result

#: Where they are put aside, and why.
SHOULD_BE_PUT_ASIDE = {POISON: ("pager", "raised"), MURDER: ("audit", "killed")}

_SHOWN = 5

# What no process may have to say.
_WRONG_WORDS = (
    *("broadcast failed", "nobody reads for it any more", "a bug of ours", "has not got"),
)


def complaints(result: Result) -> list[str]:
    """Return all that is wrong, a text for each."""
    return [
        *result.troubles,
        *_of_workers(result),
        *_of_groups(result),
        *_of_ids(result),
        *_of_letters(result),
        *_of_strikes(result),
        *_of_ends(result),
    ]


def duplicates(result: Result) -> Counter[str]:
    """Return how often each group handled an event that it had handled before."""
    times: dict[str, Counter[Key]] = {group: Counter() for group in GROUPS}
    for line in result.lines:
        if isinstance(line, Handled):
            times[line.group][line.key] += 1
    return Counter({group: of.total() - len(of) for group, of in times.items()})


def restarts(result: Result) -> int:
    """Return how often the broker was restarted."""
    return sum(count for name, count in result.done.items() if name.startswith("restart"))


def most_duplicates(result: Result, group: str) -> int:
    """Return how many there may be: what was in a hand that was struck comes again.

    A replica has a parcel, which it may handle all but the last word. A relay
    whose parcel wasn't confirmed sends it again, to all groups.
    """
    hands = restarts(result) * (REPLICAS + WORKERS * CONCURRENCY)
    return BATCH.max_events * (hands + result.done["kill"] + 2 * result.deaths[group])


def _of_workers(result: Result) -> Iterator[str]:
    """Every process of a worker drained, and its relay sent all that it was given."""
    numbers: dict[int, Drained] = {}
    for line in result.lines:
        if isinstance(line, Drained):
            numbers[line.writer] = line
    published = Counter(line.writer for line in result.lines if isinstance(line, Published))
    if not published:
        yield "No worker has published anything."
    for pid, count in published.items():
        if pid not in numbers:
            yield f"Process {pid} of a worker ended without a drain."
            continue
        for name in ("relay", "witness"):
            stats = numbers[pid].numbers.get(name)
            if stats is None or stats.handled != stats.offered or not stats.handled:
                yield f"In process {pid} of a worker the consumer {name!r} lost events: {stats}"
        witness = numbers[pid].numbers.get("witness")
        if witness is not None and witness.handled != count:
            yield f"Process {pid} wrote down {count} events and counted {witness.handled}."


def _of_groups(result: Result) -> Iterator[str]:
    """Every group got every event that was published, and nothing else."""
    published = {line.key for line in result.lines if isinstance(line, Published)}
    for group, wants_starts in GROUPS.items():
        wanted = {key for key in published if wants_starts or key[0] != "JobStarted"}
        handled = {
            line.key for line in result.lines if isinstance(line, Handled) and line.group == group
        }
        dead = {task_id for letter in result.letters.get(group, ()) for task_id in letter.task_ids}
        lost = {key for key in wanted - handled if key[1] not in dead}
        if lost:
            yield f"Group {group!r} never got {len(lost)} events, such as {sorted(lost)[:_SHOWN]}"
        if odd := handled - wanted:
            yield f"Group {group!r} got {len(odd)} events from nowhere: {sorted(odd)[:_SHOWN]}"
        again, most = duplicates(result)[group], most_duplicates(result, group)
        if again > most:
            yield f"Group {group!r} got {again} events again; what was struck had {most} at most."


def _of_ids(result: Result) -> Iterator[str]:
    """An event has one id, in every group and delivery, and no other event has it."""
    ids: dict[Key, set[str]] = defaultdict(set)
    keys: dict[str, set[Key]] = defaultdict(set)
    for line in result.lines:
        if isinstance(line, Handled):
            ids[line.key].add(line.event_id)
            keys[line.event_id].add(line.key)
    for key, several in ids.items():
        if len(several) > 1:
            yield f"{key} has several ids: {sorted(several)}"
    for event_id, events in keys.items():
        if len(events) > 1 or not event_id:
            yield f"The id {event_id!r} is that of {len(events)} events: {sorted(events)[:_SHOWN]}"


def _of_letters(result: Result) -> Iterator[str]:
    """What is poison is put aside, alone, and only where it is poison.

    Twice, if the broker went just when it had one and was to forget the event.
    """
    ended = {
        line.key: line.task_id
        for line in result.lines
        if isinstance(line, Published) and line.event != "JobStarted"
    }
    expected: dict[str, list[tuple[tuple[str, ...], str]]] = {group: [] for group in GROUPS}
    for mark, (group, reason) in SHOULD_BE_PUT_ASIDE.items():
        marked = [task_id for task_id in ended.values() if task_id.startswith(mark)]
        if not marked:
            yield f"No job {mark}... has run, so nothing is known of what becomes of it."
        expected[group] += [((task_id,), reason) for task_id in marked]
    for group in GROUPS:
        found = Counter(
            (letter.task_ids, letter.reason) for letter in result.letters.get(group, ())
        )
        wanted = Counter(expected[group])
        again = found - wanted
        if wanted - found or set(again) - set(wanted) or again.total() > restarts(result):
            yield f"The dead letters of {group!r} are {found}, and should be {wanted}"
        bad = [
            line
            for line in result.lines
            if isinstance(line, Handled)
            and line.group == group
            and any(line.task_id == letter[0][0] for letter in expected[group])
            and line.event != "JobStarted"
        ]
        if bad:
            yield f"Group {group!r} handled what it can't: {bad[:_SHOWN]}"


def _of_strikes(result: Result) -> Iterator[str]:
    """What was to be done was done: a run in which nothing is killed proves nothing."""
    order = result.order
    if restarts(result) != order.restarts:
        yield f"The broker was restarted {restarts(result)} times, and not {order.restarts}."
    if result.done["kill"] < order.kills / 2:
        yield f"Only {result.done['kill']} of {order.kills} replicas were killed."


def _of_ends(result: Result) -> Iterator[str]:
    """Every process ended as it was asked to, and said nothing that is wrong."""
    for name, code in result.exit_codes.items():
        if code and not (code == 1 and name in result.given_up):
            yield f"The exit code of {name} is {code}."
    if len(result.exit_codes) != WORKERS + REPLICAS * len(GROUPS):
        yield f"Only these have ended: {sorted(result.exit_codes)}"
    for name, log in result.logs.items():
        for line in log.splitlines():
            if any(word in line for word in _WRONG_WORDS):
                yield f"{name} wrote: {line}"
