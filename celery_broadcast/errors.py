"""The exceptions that a user of the broadcast can see."""

from __future__ import annotations


class BroadcastError(Exception):
    """The base of every exception that the broadcast raises to a user."""


class ConfigurationError(BroadcastError, ValueError):
    """A setting, a consumer or an option is wrong.

    Raised on the line that is wrong: the decorator's for a consumer, and while
    the worker starts for a setting, so that none starts half configured.
    """


class RelayError(BroadcastError):
    """The broker that the relay goes through can't be reached, refuses, or takes too long."""


class WireError(BroadcastError, ValueError):
    """What came from the broker is no parcel of events that can be read."""
