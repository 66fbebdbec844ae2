"""What of a job's own data leaves the process: text of bounded length, or JSON."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

MOST_CHARACTERS = 1024
"""Of one value as text, and of a key."""

MOST_VALUES = 64
"""Of `args`, of `kwargs` and of `headers`; a last one says how many more there were."""

MOST_JSON = 65_536
"""Of what travels as JSON in one field, in characters; what is over goes as text."""

_DEEPEST_JSON = 32
_MOST_ITEMS = 64
_DEEPEST_TEXT = 6
_FEW = 8
_FEW_CHARACTERS = 64
_FEW_BITS = 200
_CONTAINERS = (dict, list, tuple)
_MOST_BITS = 3_000  # of a whole number that is written out; Python 3.11 refuses above 14 000

#: Makes one value into what travels.
Convert: TypeAlias = Callable[[Any], Any]


def converter(payload: str) -> Convert:
    """Return what makes the values of one field into what travels; for one field only.

    Args:
        payload: "json" for what JSON can say as it is, and the rest as text; "text"
            for each as its `repr`.
    """
    return _as_json_within(_Purse(MOST_JSON)) if payload == "json" else text_of


def items_of(args: Any, convert: Convert) -> tuple[Any, ...]:
    """Return positional arguments as they travel; never raise."""
    if isinstance(args, str | bytes):  # a redaction's "***"
        return (text_of(args),)
    try:
        shown = tuple(convert(value) for value in itertools.islice(args, MOST_VALUES))
        more = len(args) - len(shown)
    except Exception:  # noqa: BLE001  # not what a task's arguments are, or changed meanwhile
        return (text_of(args),)
    return (*shown, f"... {more} more") if more > 0 else shown


def pairs_of(kwargs: Any, convert: Convert) -> dict[str, Any]:
    """Return keyword arguments, or headers, as they travel; never raise."""
    try:
        pairs = dict(kwargs)  # in one go: the job may change its own meanwhile
        shown = {
            _key(key): convert(value) for key, value in itertools.islice(pairs.items(), MOST_VALUES)
        }
    except Exception:  # noqa: BLE001  # as above
        return {"...": text_of(kwargs)}
    more = len(pairs) - MOST_VALUES
    return {**shown, "...": f"{more} more"} if more > 0 else shown


def _key(key: Any) -> str:
    return cut(key if isinstance(key, str) else text_of(key))


def cut(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return the beginning of a text, with "..." for what is left out."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def encodable(text: str) -> str:
    """Return a text that UTF-8 can say: a lone surrogate, as file names have, as its number."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# Text.


def text_of(value: Any) -> str:
    """Return a value's `repr` in at most `MOST_CHARACTERS`; never raise.

    What is long, deep or has many items is not shown in full, and not asked to.
    """
    kind = type(value)
    if kind is str:
        if len(value) <= MOST_CHARACTERS:
            return cut(repr(value))
        return f"{repr(value[:MOST_CHARACTERS])[: MOST_CHARACTERS - 3]}..."
    try:
        return cut(repr(value) if _is_short(value) else _Text().repr(value))
    except Exception as error:  # noqa: BLE001  # theirs, and it may do anything
        return cut(f"<{kind.__name__}: its repr() raised {type(error).__name__}>")


def _is_short(value: Any, depth: int = 2) -> bool:
    """Tell whether it is one of Python's own that surely has a short `repr`: most are."""
    kind = type(value)
    if kind is str:
        return len(value) <= _FEW_CHARACTERS
    if kind is int:
        return bool(value.bit_length() <= _FEW_BITS)
    if value is None or kind is bool or kind is float:
        return True
    if depth == 0 or kind not in _CONTAINERS or len(value) > _FEW:
        return False
    if kind is dict and not all(type(key) is str and len(key) <= _FEW_CHARACTERS for key in value):
        return False
    items = value.values() if kind is dict else value
    return all(_is_short(item, depth - 1) for item in items)


class _Text(reprlib.Repr):
    """The `repr` of one value, which ends soon after enough of it has been written."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = _DEEPEST_TEXT
        self.maxtuple = self.maxlist = self.maxarray = self.maxdict = _MOST_ITEMS
        self.maxset = self.maxfrozenset = self.maxdeque = _MOST_ITEMS
        self.maxstring = self.maxlong = self.maxother = MOST_CHARACTERS
        self._left = MOST_CHARACTERS

    def repr1(self, x: Any, level: int) -> str:
        """Show one value within another, as long as there is room."""
        if self._left <= 0:
            return "..."
        before = self._left
        text = super().repr1(x, level)
        self._left = min(self._left, before - len(text))  # what is within it has been counted
        return text

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002  # as the base's
        """Show a whole number, if it has not too many digits."""
        bits = x.bit_length()
        return repr(x) if bits <= _MOST_BITS else f"<int of {bits} bits>"

    def repr_instance(self, x: Any, level: int) -> str:  # noqa: ARG002  # as above
        """Show what is none of Python's own containers, as it shows itself."""
        return cut(repr(x))


# JSON.


class _NotJSON(Exception):  # noqa: N818  # never seen outside
    """A value is nothing that JSON can say, or too much of it."""


class _Purse:
    """What may still be spent, in characters."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, characters: int) -> None:
        if characters > self.left:
            raise _NotJSON
        self.left -= characters


def _as_json_within(purse: _Purse) -> Convert:
    def convert(value: Any) -> Any:
        before = purse.left
        try:
            return _copied(value, purse, 0)
        except (_NotJSON, RuntimeError):  # RuntimeError: the job changed it meanwhile
            purse.left = before
            return text_of(value)

    return convert


def _copied(value: Any, purse: _Purse, depth: int) -> Any:
    """Return a copy of a value that JSON can say: the job may still change its own.

    Raises:
        _NotJSON: it can't, or the purse doesn't last.
    """
    kind = type(value)
    if kind is str:
        purse.spend(len(value) + 3)
        return value
    purse.spend(6)
    if value is None or kind is bool:
        return value
    if kind is int and -(2**63) <= value < 2**63:
        return value
    if kind is float and math.isfinite(value):
        return value
    if depth >= _DEEPEST_JSON:
        raise _NotJSON
    if kind is list or kind is tuple:
        return [_copied(item, purse, depth + 1) for item in value]
    if kind is dict:
        return _copied_pairs(value, purse, depth)
    raise _NotJSON


def _copied_pairs(pairs: Mapping[Any, Any], purse: _Purse, depth: int) -> dict[str, Any]:
    copied = {}
    for key, value in pairs.items():
        if type(key) is not str:
            raise _NotJSON
        purse.spend(len(key) + 3)
        copied[key] = _copied(value, purse, depth + 1)
    return copied
