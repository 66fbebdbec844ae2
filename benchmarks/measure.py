"""Measure things in turn, and compare them round by round."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import msgspec
from rich.progress import track

#: Measures, and returns values by their names.
Measurement: TypeAlias = Callable[[], Mapping[str, float]]

_NOISY_SPREAD = 0.20


class Spread(msgspec.Struct, frozen=True):
    """What came out of the rounds."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up one value a round."""
        return cls(statistics.median(values), min(values), max(values))


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was measured, beside its peer.

    Attributes:
        subject: what was measured.
        peer: what it is compared with.
        unit: of `value` and `peer_value`.
        value: the subject's.
        peer_value: the peer's.
        ratio: the subject's value through its peer's, of the same turn.
        at_least: what the ratio has to reach; None if nothing.
        at_most: what the ratio must not exceed; None if nothing.
        value_at_most: what the value itself must not exceed; None if nothing.
    """

    subject: str
    peer: str
    unit: str
    value: Spread
    peer_value: Spread
    ratio: Spread
    at_least: float | None = None
    at_most: float | None = None
    value_at_most: float | None = None

    @property
    def is_missed(self) -> bool:
        """Tell whether a median is not where it has to be."""
        ratio = self.ratio.median
        too_low = self.at_least is not None and ratio < self.at_least
        too_high = self.at_most is not None and ratio > self.at_most
        too_much = self.value_at_most is not None and self.value.median > self.value_at_most
        return too_low or too_high or too_much

    @property
    def is_noisy(self) -> bool:
        """Tell whether the ratio differs a lot from round to round."""
        return self.ratio.maximum - self.ratio.minimum > _NOISY_SPREAD * self.ratio.median


class Rounds(msgspec.Struct, frozen=True):
    """What was measured.

    Attributes:
        unit: of the values.
        values: for each name, those of each round's turns.
    """

    unit: str
    values: Mapping[str, Sequence[Sequence[float]]]

    def compare(
        self,
        subject: str,
        peer: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        value_at_most: float | None = None,
    ) -> Comparison:
        """Compare two of the things measured, by their names.

        What a round says is the median of its turns, of ratios too: the two
        values of one turn were measured one right after the other.
        """
        values, peer_values = self.values[subject], self.values[peer]
        ratios = [
            [a / b for a, b in zip(turns, peer_turns, strict=True)]
            for turns, peer_turns in zip(values, peer_values, strict=True)
        ]
        return Comparison(
            subject=subject,
            peer=peer,
            unit=self.unit,
            value=Spread.of(list(map(statistics.median, values))),
            peer_value=Spread.of(list(map(statistics.median, peer_values))),
            ratio=Spread.of(list(map(statistics.median, ratios))),
            at_least=at_least,
            at_most=at_most,
            value_at_most=value_at_most,
        )


def measure_in_turn(
    measurements: Mapping[str, Callable[[], float]], *, unit: str, rounds: int, turns: int
) -> Rounds:
    """Measure A B C A B C and so on, so that what else the machine does meets all alike.

    Args:
        measurements: what to call for one measurement of each thing.
        unit: of what they return.
        rounds: how many values are wanted of each.
        turns: of how many measurements each round is the median. The speed of
            a shared machine changes by the second, so a turn should be short.
    """
    return measure_all_in_turn(as_measurements(measurements), unit=unit, rounds=rounds, turns=turns)


def as_measurements(measurements: Mapping[str, Callable[[], float]]) -> list[Measurement]:
    """Return what gives each value by its name."""
    return [partial(_as_mapping, name, measure) for name, measure in measurements.items()]


def _as_mapping(name: str, measure: Callable[[], float]) -> Mapping[str, float]:
    return {name: measure()}


def measure_all_in_turn(
    measurements: Sequence[Measurement],
    *,
    unit: str,
    rounds: int,
    turns: int,
) -> Rounds:
    """Measure in turn what gives several values at once.

    Args:
        measurements: what to call for one measurement; it gives values by their names.
        unit: of these.
        rounds: as above.
        turns: as above.
    """
    return measure_anew(lambda: nullcontext(measurements), unit=unit, rounds=rounds, turns=turns)


def measure_anew(
    start: Callable[[], AbstractContextManager[Sequence[Measurement]]],
    *,
    unit: str,
    rounds: int,
    turns: int,
) -> Rounds:
    """Measure in turn what is started anew for each round.

    Of two processes of one program one may be faster, all its life, by some percent:
    by what lies where in its memory.

    Args:
        start: starts what is measured, and ends it again; it gives what to call.
        unit: as above.
        rounds: as above.
        turns: as above.
    """
    values: defaultdict[str, list[list[float]]] = defaultdict(list)
    for _ in track(range(rounds), "rounds", transient=True):
        of_this_round: defaultdict[str, list[float]] = defaultdict(list)
        with start() as measurements:
            for _ in range(turns):
                for measure in measurements:
                    for name, value in measure().items():
                        of_this_round[name].append(value)
        for name, samples in of_this_round.items():
            values[name].append(samples)
    return Rounds(unit, values)
