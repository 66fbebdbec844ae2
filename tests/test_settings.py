from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from hypothesis import example, given
from hypothesis import strategies as st

import celery_broadcast
from celery_broadcast.errors import BroadcastError, ConfigurationError
from celery_broadcast.events import EVENT_TYPES, JobFailed
from celery_broadcast.settings import Settings, find, load

# A value other than the default for each setting, and what it becomes.
GIVEN: dict[str, tuple[object, object]] = {
    "enabled": (True, True),
    "mailbox_size": (7, 7),
    "overflow": ("drop_newest", "drop_newest"),
    "drain_timeout": (2, 2.0),
    "payload": (False, False),
    "traceback_limit": (0, 0),
    "events": ([JobFailed, "JobEnded"], ("JobEnded", "JobFailed")),
    "relay_url": ("redis://here;redis://there", "redis://here;redis://there"),
    "relay_lease": (5, 5.0),
    "relay_max_bytes": (1024**2, 1024**2),
    "relay_ttl": (60, 60.0),
    "relay_max_deliveries": (1, 1),
    "relay_key": ("k" * 16, (b"k" * 16,)),
    "redact": ("shop.privacy.redact", "shop.privacy.redact"),
    "metrics_port": (9808, 9808),
    "metrics_host": ("0.0.0.0", "0.0.0.0"),  # noqa: S104  # said, and not bound
    "opentelemetry": (True, True),
}

NAMES = list(Settings.__struct_fields__)


class Unshowable:
    """A value whose own `repr` raises."""

    def __repr__(self) -> str:
        msg = "no"
        raise OSError(msg)


def load_one(key: str, value: object) -> Settings:
    return load({key: value}, environment={})


def complaint(
    configuration: Mapping[str, object],
    environment: dict[str, str] | None = None,
    namespace: str | None = None,
) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(configuration, environment or {}, namespace)
    return str(caught.value)


def test_without_any_setting_the_broadcast_is_off_and_bounded() -> None:
    assert load({}, environment={}) == Settings(
        enabled=False,
        mailbox_size=10_000,
        overflow="drop_oldest",
        drain_timeout=5.0,
        payload=True,
        traceback_limit=10_000,
        events=None,
    )


def test_each_setting_has_a_test_here() -> None:
    assert list(GIVEN) == NAMES


@pytest.mark.parametrize("spelling", ["broadcast_{}", "celery_broadcast_{}"])
@pytest.mark.parametrize("name", NAMES)
def test_each_setting_can_be_spelled_in_lower_case(name: str, spelling: str) -> None:
    value, meaning = GIVEN[name]

    assert getattr(load_one(spelling.format(name), value), name) == meaning


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_can_be_spelled_in_upper_case(name: str) -> None:
    value, meaning = GIVEN[name]

    assert getattr(load_one(f"CELERY_BROADCAST_{name.upper()}", value), name) == meaning


@pytest.mark.parametrize("name", NAMES)
def test_each_setting_can_be_spelled_with_the_namespace_of_the_app(name: str) -> None:
    value, meaning = GIVEN[name]

    settings = load({f"SHOP_BROADCAST_{name.upper()}": value}, {}, namespace="SHOP")

    assert getattr(settings, name) == meaning


@pytest.mark.parametrize("namespace", ["SHOP_", "shop"])
def test_a_namespace_is_read_as_celery_reads_it(namespace: str) -> None:
    key = "SHOP_BROADCAST_ENABLED" if namespace.isupper() else "shop_broadcast_enabled"

    assert load({key: True}, {}, namespace).enabled


def test_another_namespace_is_not_ours() -> None:
    assert not load({"BAKERY_BROADCAST_ENABLED": True}, {}, namespace="SHOP").enabled


def test_a_mailbox_without_a_bound_is_none() -> None:
    assert load_one("broadcast_mailbox_size", None).mailbox_size is None


def test_every_event_is_none() -> None:
    assert load_one("broadcast_events", None).events is None


@pytest.mark.parametrize("collection", [list, tuple, set, frozenset])
def test_events_may_stand_in_any_plain_collection(collection: Callable[[list[str]], Any]) -> None:
    assert load_one("broadcast_events", collection(["JobFailed"])).events == ("JobFailed",)


@pytest.mark.parametrize(
    "word", [True, 1, "1", "true", "True", "TRUE", "yes", "on", "On", "y", "t", " true\n"]
)
@pytest.mark.parametrize("name", ["enabled", "payload"])
def test_words_for_yes_mean_yes(name: str, word: object) -> None:
    assert getattr(load_one(f"broadcast_{name}", word), name) is True


@pytest.mark.parametrize(
    "word", [False, 0, "0", "false", "False", "FALSE", "no", "off", "OFF", "n", "f", ""]
)
@pytest.mark.parametrize("name", ["enabled", "payload"])
def test_words_for_no_mean_no(name: str, word: object) -> None:
    assert getattr(load_one(f"broadcast_{name}", word), name) is False


@pytest.mark.parametrize(("word", "enabled"), [("1", True), ("off", False)])
@pytest.mark.parametrize("configured", [True, False])
def test_the_environment_beats_the_configuration(
    word: str, *, configured: bool, enabled: bool
) -> None:
    settings = load({"broadcast_enabled": configured}, {"CELERY_BROADCAST_ENABLED": word})

    assert settings.enabled is enabled


@pytest.mark.parametrize("configured", [True, False])
def test_an_empty_variable_is_as_good_as_none(*, configured: bool) -> None:
    settings = load({"broadcast_enabled": configured}, {"CELERY_BROADCAST_ENABLED": " "})

    assert settings.enabled is configured


def test_the_environment_sets_nothing_else() -> None:
    assert load({}, {"CELERY_BROADCAST_MAILBOX_SIZE": "1"}) == Settings()


def test_a_wrong_word_in_the_environment_is_an_error_that_says_so() -> None:
    assert complaint({}, {"CELERY_BROADCAST_ENABLED": "maybe"}) == (
        "the environment variable CELERY_BROADCAST_ENABLED must be True or False "
        "(or 1, 0, yes, no, on, off), got 'maybe'."
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "broadcast_enabled",
            "maybe",
            "broadcast_enabled must be True or False (or 1, 0, yes, no, on, off), got 'maybe'.",
        ),
        (
            "CELERY_BROADCAST_PAYLOAD",
            None,
            "CELERY_BROADCAST_PAYLOAD must be True or False (or 1, 0, yes, no, on, off), got None.",
        ),
        (
            "broadcast_mailbox_size",
            0,
            (
                "broadcast_mailbox_size must be a number of events of 1 or more, "
                "or None for no bound, got 0."
            ),
        ),
        (
            "broadcast_overflow",
            "block",
            (
                "broadcast_overflow='block' is not a policy. "
                "Use 'drop_oldest' (keep the newest events) or 'drop_newest' (keep the oldest)."
            ),
        ),
        (
            "CELERY_BROADCAST_DRAIN_TIMEOUT",
            "5s",
            (
                "CELERY_BROADCAST_DRAIN_TIMEOUT must be a number of seconds of 0 or more "
                "(at most a day), got '5s'."
            ),
        ),
        (
            "broadcast_traceback_limit",
            -1,
            "broadcast_traceback_limit must be a number of characters of 0 or more, got -1.",
        ),
        (
            "broadcast_events",
            "JobFailed",
            "broadcast_events must be a list of event types or of their names, got 'JobFailed'.",
        ),
        (
            "broadcast_events",
            ["JobFailed", 5],
            "broadcast_events must hold event types or their names, got 5 in it.",
        ),
        (
            "broadcast_relay_url",
            "localhost:6379",
            (
                "broadcast_relay_url must be the URL of a Redis or RabbitMQ, such as "
                "'redis://localhost:6379/1' or 'amqp://localhost//', several with ';' between "
                "them, or None for the app's broker_url. Got a str, not shown here, as it may hold "
                "a password."
            ),
        ),
        (
            "broadcast_relay_lease",
            0.5,
            (
                "broadcast_relay_lease must be a number of seconds of 1 or more (at most a day), "
                "got 0.5."
            ),
        ),
        (
            "broadcast_relay_max_bytes",
            1000,
            (
                "broadcast_relay_max_bytes must be a number of bytes, from 1,048,576 (1 MiB) to "
                "1,099,511,627,776 (1 TiB), got 1000."
            ),
        ),
        (
            "broadcast_relay_ttl",
            0,
            (
                "broadcast_relay_ttl must be a number of seconds of 1 or more (at most 49 days, "
                "4,233,600), got 0."
            ),
        ),
        (
            "broadcast_relay_max_deliveries",
            0,
            "broadcast_relay_max_deliveries must be a number of deliveries from 1 to 1,000, got 0.",
        ),
        (
            "broadcast_relay_key",
            "hush-hush",
            (
                "broadcast_relay_key must be a secret of 16 bytes or more, such as what "
                'python -c "import secrets; print(secrets.token_hex(32))" prints, a list of such, '
                "of which the first signs, or None for unsigned events. "
                "Got one of 9 bytes, which can be guessed."
            ),
        ),
        (
            "broadcast_redact",
            "redact",
            (
                "broadcast_redact must be the dotted path of a function, such as "
                "'shop.privacy.redact', or None, got 'redact'."
            ),
        ),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_setting_the_value_and_what_is_allowed(
    key: str, value: object, message: str
) -> None:
    assert complaint({key: value}) == message


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("enabled", [2, -1, 1.0, [], b"1", "enabled", 10**5000]),
        ("mailbox_size", [-1, True, 1.5, "5", "", [], math.inf, -(10**5000)]),
        ("overflow", [None, "", "DROP_OLDEST", 1, ["drop_oldest"]]),
        ("drain_timeout", [-0.1, math.nan, math.inf, None, True, "5", 86_401, 10**400, [5]]),
        ("payload", ["ja", None]),
        ("traceback_limit", [None, True, 1.0, "10", -(10**5000)]),
        ("events", [JobFailed, {}, {"JobFailed": 1}, 5, [None], [["JobFailed"]]]),
        ("relay_url", ["", "redis", "://x", 5, b"redis://", ["redis://here"], "redis://a b"]),
        ("relay_lease", [0, -1, math.nan, math.inf, None, True, "60", 86_401]),
        ("relay_max_bytes", [0, -1, 1024.0**3, None, True, "1G", 1024**5]),
        ("relay_ttl", [0, -1, math.nan, math.inf, None, True, "60", 4_233_601, 10**400]),
        ("relay_max_deliveries", [0, -1, 5.0, None, True, "5", 1_001]),
        ("relay_key", ["", b"short", 5, [], ["k" * 16, "short"], ["k" * 16, None], {}]),
        ("redact", ["", ".", "shop.", "shop..redact", "shop:redact", print, 5]),
        ("metrics_port", [0, -1, 65_536, True, "9808", 98.08]),
        ("metrics_host", ["", " ", None, 5, b"127.0.0.1"]),
        ("opentelemetry", ["ja", None]),
    ],
)
def test_a_wrong_value_is_an_error_whatever_it_is(name: str, values: list[object]) -> None:
    for value in [*values, Unshowable()]:
        assert f"broadcast_{name}" in complaint({f"broadcast_{name}": value})


def test_no_message_and_no_repr_shows_a_password_or_a_key() -> None:
    url, key = "redis://:hush@here/0", "hush" * 8
    loaded = load({"broadcast_relay_url": url, "broadcast_relay_key": key}, {})
    shown = [repr(loaded), str(loaded), f"{loaded}", str(loaded.__rich_repr__())]
    for name, values in {"url": (url, f"{url}1"), "key": (key, f"{key}1")}.items():
        spellings = (f"broadcast_relay_{name}", f"CELERY_BROADCAST_RELAY_{name.upper()}")
        shown.append(complaint(dict(zip(spellings, values, strict=True))))
    shown += [
        complaint({"broadcast_relay_url": "hush"}),
        complaint({"broadcast_relay_key": "hush"}),
    ]

    assert not [text for text in shown if "hush" in text]
    assert "relay_lease=60.0" in shown[0]


def test_several_keys_are_kept_in_their_order() -> None:
    assert load_one("broadcast_relay_key", ["b" * 16, b"a" * 16]).relay_key == (
        b"b" * 16,
        b"a" * 16,
    )


def test_a_value_that_cant_be_shown_is_named_by_its_type() -> None:
    assert complaint({"broadcast_traceback_limit": Unshowable()}).endswith(
        "got a Unshowable that can't be shown."
    )


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("broadcast_mailbox_sise", "broadcast_mailbox_size"),
        ("broadcast_enable", "broadcast_enabled"),
        ("CELERY_BROADCAST_OVERFLOWS", "CELERY_BROADCAST_OVERFLOW"),
        ("celery_broadcast_event", "celery_broadcast_events"),
    ],
)
def test_a_misspelt_setting_is_an_error_that_suggests_the_right_one(key: str, meant: str) -> None:
    assert complaint({key: 1}) == (
        f"{key} is not a setting of celery-broadcast. Did you mean {meant}?"
    )


def test_a_misspelt_setting_in_a_namespace_is_suggested_in_that_namespace() -> None:
    assert complaint({"SHOP_BROADCAST_ENABELD": 1}, namespace="SHOP") == (
        "SHOP_BROADCAST_ENABELD is not a setting of celery-broadcast. "
        "Did you mean SHOP_BROADCAST_ENABLED?"
    )


def test_a_setting_like_no_other_is_an_error_that_lists_them_all() -> None:
    assert complaint({"broadcast_zzz": 1}) == (
        "broadcast_zzz is not a setting of celery-broadcast. "
        f"There are: {', '.join(f'broadcast_{name}' for name in NAMES)}."
    )


@pytest.mark.parametrize("key", ["celery_broadcast", "CELERY_BROADCAST"])
def test_all_settings_in_one_dictionary_are_an_error_that_lists_the_keys(key: str) -> None:
    enabled = "BROADCAST_ENABLED" if key.isupper() else "broadcast_enabled"

    message = complaint({key: {"enabled": True}})

    assert message.startswith(f"{key} is not a setting of celery-broadcast. There are: ")
    assert enabled in message


def test_a_setting_that_is_given_twice_with_different_values_is_an_error() -> None:
    both = {"broadcast_mailbox_size": 5, "CELERY_BROADCAST_MAILBOX_SIZE": 6}

    assert complaint(both) == (
        "broadcast_mailbox_size and CELERY_BROADCAST_MAILBOX_SIZE are the same setting "
        "with different values, 5 and 6. Remove one."
    )


def test_a_setting_that_is_given_twice_with_one_meaning_is_fine() -> None:
    both = {"broadcast_enabled": True, "CELERY_BROADCAST_ENABLED": "yes"}

    assert load(both, environment={}).enabled


@pytest.mark.parametrize(
    "key",
    [
        *("broker_url", "task_broadcast_enabled", "CELERY_TASK_BROADCAST_ENABLED"),
        *("broadcasting", "broadcasts_enabled", "BROADCASTER", "enabled", "_", ""),
        *(5, None, ("broadcast_enabled",)),
    ],
)
def test_a_key_that_is_not_ours_is_ignored(key: object) -> None:
    assert load({key: object()}, environment={}) == Settings()  # type: ignore[dict-item]


def test_in_a_namespace_a_key_without_it_is_another_programs() -> None:
    django = {"BROADCAST_URL": "redis://", "CELERY_BROADCAST_ENABLED": True}

    assert load(django, {}, namespace="CELERY") == Settings(enabled=True)


@pytest.mark.parametrize("key", ["Broadcast", "broadcast", "BROADCAST_DRIVER", "Broadcast_url"])
def test_what_only_looks_like_a_setting_is_another_programs(key: str) -> None:
    """`from kombu.common import Broadcast`, say, in a configuration that is a module."""
    assert load({key: object()}, environment={}) == Settings()


def test_a_configuration_that_imports_the_package_is_fine() -> None:
    configuration = {"celery_broadcast": celery_broadcast, "broadcast_enabled": True}

    assert load(configuration, environment={}) == Settings(enabled=True)


def test_a_configuration_error_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ConfigurationError, BroadcastError)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_frozen(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Settings(), name, None)


# Anything that can stand in a configuration, and more of what is nearly right.
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.sampled_from(["drop_oldest", "drop_newest", "true", "off", Unshowable(), JobFailed, int]),
    st.lists(st.one_of(st.sampled_from([*EVENT_TYPES, *EVENT_TYPES.values()]), st.integers())),
    st.sets(st.sampled_from(list(EVENT_TYPES))),
    st.dictionaries(st.text(), st.integers()),
)
spellings = st.sampled_from(["broadcast_{}", "celery_broadcast_{}"]).flatmap(
    lambda spelling: st.sampled_from(NAMES).map(spelling.format)
)


@given(key=st.one_of(spellings, spellings.map(str.upper)), value=anything)
@example(key="broadcast_drain_timeout", value=10**400)
@example(key="broadcast_enabled", value=10**5000)
def test_any_value_gives_settings_of_the_right_types_or_a_configuration_error(
    key: str, value: object
) -> None:
    try:
        settings = load_one(key, value)
    except ConfigurationError as error:
        assert key in str(error)  # noqa: PT017  # either outcome is right
        return

    assert isinstance(settings.enabled, bool)
    assert settings.mailbox_size is None or settings.mailbox_size >= 1
    assert settings.overflow in {"drop_oldest", "drop_newest"}
    assert isinstance(settings.drain_timeout, float)
    assert 0 <= settings.drain_timeout <= 86_400
    assert isinstance(settings.payload, bool)
    assert settings.traceback_limit >= 0
    assert settings.events is None or all(isinstance(name, str) for name in settings.events)


@given(
    configuration=st.dictionaries(
        st.one_of(
            st.text(),
            st.text().map("broadcast_{}".format),
            st.text().map("CELERY_BROADCAST_{}".format),
            spellings,
        ),
        anything,
    ),
    word=st.one_of(st.none(), st.text()),
    namespace=st.one_of(st.none(), st.text(), st.just("SHOP")),
)
def test_any_configuration_gives_settings_or_a_configuration_error(
    configuration: dict[str, object], word: str | None, namespace: str | None
) -> None:
    environment = {} if word is None else {"CELERY_BROADCAST_ENABLED": word}

    try:
        settings = load(configuration, environment, namespace)
    except ConfigurationError as error:
        assert str(error).endswith((".", "?"))  # noqa: PT017  # either outcome is right
    else:
        assert isinstance(settings, Settings)


# The ways to configure an app, each of which sets `enabled` and `mailbox_size`.


def configuration_module(**values: object) -> ModuleType:
    module = ModuleType("shop_configuration")
    vars(module).update(values)
    return module


def load_of(app: Any) -> Settings:
    return load(app.conf, environment={}, namespace=app.namespace)


LOWER_CASE = {"broadcast_enabled": True, "broadcast_mailbox_size": 5}
UPPER_CASE = {"CELERY_BROADCAST_ENABLED": True, "CELERY_BROADCAST_MAILBOX_SIZE": 5}


def by_attributes(app: Celery) -> None:
    app.conf.broadcast_enabled = True
    app.conf.broadcast_mailbox_size = 5


def by_update(app: Celery) -> None:
    app.conf.update(LOWER_CASE)


def by_update_in_upper_case(app: Celery) -> None:
    app.conf.update(UPPER_CASE)


def by_update_after_the_first_access(app: Celery) -> None:
    assert app.conf.task_serializer == "json"
    app.conf.update(LOWER_CASE)


def by_a_dictionary(app: Celery) -> None:
    app.config_from_object(LOWER_CASE)


def by_a_module(app: Celery) -> None:
    app.config_from_object(configuration_module(**LOWER_CASE))


def by_a_module_in_upper_case(app: Celery) -> None:
    app.config_from_object(configuration_module(**UPPER_CASE))


def by_a_module_that_also_has_celerys_own_settings(app: Celery) -> None:
    app.config_from_object(configuration_module(task_acks_late=True, **UPPER_CASE))


def by_a_module_that_imports_the_package(app: Celery) -> None:
    app.config_from_object(configuration_module(celery_broadcast=celery_broadcast, **LOWER_CASE))


def by_a_namespace(app: Celery) -> None:
    app.config_from_object(configuration_module(**UPPER_CASE), namespace="CELERY")


def by_a_namespace_of_ones_own(app: Celery) -> None:
    settings = {key.replace("CELERY", "SHOP"): value for key, value in UPPER_CASE.items()}
    app.config_from_object(configuration_module(**settings), namespace="SHOP")


def by_a_namespace_and_an_attribute(app: Celery) -> None:
    app.config_from_object(configuration_module(CELERY_BROADCAST_ENABLED=True), namespace="CELERY")
    app.conf.broadcast_mailbox_size = 5


def by_the_settings_of_django(app: Celery) -> None:
    django = configuration_module(DEBUG=True, BROADCAST_URL="redis://", **UPPER_CASE)
    app.config_from_object(django, namespace="CELERY")


def by_defaults(app: Celery) -> None:
    app.add_defaults(lambda: LOWER_CASE)


def by_the_name_of_a_module(app: Celery) -> None:
    app.config_from_object("shop_configuration")


def by_an_environment_variable_that_names_a_module(app: Celery) -> None:
    app.config_from_envvar("SHOP_CONFIGURATION")


@pytest.mark.parametrize(
    "configure",
    [
        by_attributes,
        by_update,
        by_update_in_upper_case,
        by_update_after_the_first_access,
        by_a_dictionary,
        by_a_module,
        by_a_module_in_upper_case,
        by_a_module_that_also_has_celerys_own_settings,
        by_a_module_that_imports_the_package,
        by_a_namespace,
        by_a_namespace_of_ones_own,
        by_a_namespace_and_an_attribute,
        by_the_settings_of_django,
        by_defaults,
        by_the_name_of_a_module,
        by_an_environment_variable_that_names_a_module,
    ],
)
def test_settings_are_read_from_an_app_however_it_was_configured(
    configure: Callable[[Celery], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shop_configuration", configuration_module(**LOWER_CASE))
    monkeypatch.setenv("SHOP_CONFIGURATION", "shop_configuration")
    app = Celery("shop", set_as_current=False)

    configure(app)

    assert load_of(app) == Settings(enabled=True, mailbox_size=5)


def test_an_app_that_sets_nothing_of_ours_has_the_defaults() -> None:
    app = Celery("shop", set_as_current=False)

    assert load_of(app) == Settings()


def test_a_misspelt_setting_of_an_app_is_an_error() -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.broadcast_enabeld = True

    with pytest.raises(ConfigurationError, match="Did you mean broadcast_enabled"):
        load_of(app)


def test_every_mistake_is_found_with_its_origin_and_no_secret_is_shown() -> None:
    configuration = {
        "broadcast_mailbox_size": -1,
        "broadcast_overflow": "drop_newest",
        "broadcast_nothing": 1,
        "broadcast_relay_url": "redis://:hunter2@localhost",
    }

    found = list(find(configuration, {"CELERY_BROADCAST_ENABLED": "perhaps"}))

    wrong = {each.origin for each in found if each.error is not None}
    variable = "the environment variable CELERY_BROADCAST_ENABLED"
    assert wrong == {"broadcast_mailbox_size", "broadcast_nothing", variable}
    assert "hunter2" not in repr(found)
