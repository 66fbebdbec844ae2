"""What the app's own broker settings tell of a Redis."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

import pytest
from redis import Connection, CredentialProvider, SSLConnection, UnixDomainSocketConnection

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.relay.redis_servers import RedisServers, facts_of, unfitness


class Vault(CredentialProvider):
    """Gives what one logs in with."""

    def get_credentials(self) -> tuple[str, str]:
        return "user", "secret"


def connections(
    url: str | list[str], use_ssl: object = None, **options: Any
) -> list[tuple[type[Any], dict[str, Any]]]:
    servers = RedisServers(url, options, use_ssl)
    return [servers._connection(address, 5.0) for address in servers._addresses]


@pytest.mark.parametrize(
    ("url", "connection_class", "expected"),
    [
        ("redis://", Connection, {"host": "127.0.0.1", "port": 6379, "db": 0, "password": None}),
        ("redis://h/", Connection, {"host": "h", "db": 0}),
        ("redis://:p%40ss@h:1/3", Connection, {"port": 1, "db": 3, "password": "p@ss"}),
        ("redis://u:p@h", Connection, {"username": "u", "password": "p"}),
        ("redis://[::1]:7/1", Connection, {"host": "::1", "port": 7}),
        ("rediss://h?ssl_cert_reqs=required", SSLConnection, {"ssl_cert_reqs": "required"}),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", SSLConnection, {"ssl_cert_reqs": "none"}),
        ("redis://h?ssl_check_hostname=false", SSLConnection, {"ssl_check_hostname": False}),
        (
            "redis+socket://:p@/var/run/redis.sock?virtual_host=2",
            UnixDomainSocketConnection,
            {"path": "/var/run/redis.sock", "db": 2, "password": "p"},
        ),
    ],
)
def test_a_url_says_where_the_server_is_and_how_to_log_in(
    url: str, connection_class: type[Any], expected: Mapping[str, Any]
) -> None:
    ((found_class, options),) = connections(url)

    assert found_class is connection_class
    assert {name: options[name] for name in expected} == expected
    assert options["socket_timeout"] == 5.0


def test_what_the_app_says_of_tls_and_sockets_is_used() -> None:
    tls = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "ca.pem"}

    ((connection_class, options),) = connections(
        "redis://h", tls, socket_keepalive=True, client_name="shop", socket_timeout=None
    )

    assert connection_class is SSLConnection
    assert options["ssl_ca_certs"] == "ca.pem"
    assert options["socket_keepalive"] is True
    assert options["client_name"] == "shop"
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 5.0


def test_a_credential_provider_stands_in_for_a_password() -> None:
    url = f"redis://u:p@h?credential_provider={__name__}.Vault"
    ((_, options),) = connections(url)

    assert isinstance(options["credential_provider"], Vault)
    assert options.get("username") is options.get("password") is None


def test_several_servers_are_told_apart() -> None:
    for urls in ("redis://a;redis://b:1/2", ["redis://a", "redis://b:1/2"]):
        places = [(options["host"], options["port"]) for _, options in connections(urls)]

        assert places == [("a", 6379), ("b", 1)]


def test_tls_without_a_word_on_certificates_is_said_to_be_unsafe(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ((_, options),) = connections("rediss://h:1/0")

    assert options["ssl_cert_reqs"] == "none"
    assert "rediss://h:1/0?ssl_cert_reqs=required" in caplog.text


def test_neither_name_nor_password_is_shown() -> None:
    assert RedisServers(
        "redis://u:secret@h:1/2;rediss://:x@i?ssl_cert_reqs=none", {}, None
    ).shown == ("redis://h:1/2;rediss://i:6379")


@pytest.mark.parametrize(
    ("url", "options", "use_ssl", "message"),
    [
        ("", {}, None, "is empty"),
        ("amqp://h", {}, None, "'amqp'"),
        ("localhost:6379", {}, None, "'localhost:6379'"),
        ("redis://h:x", {}, None, "can't be read"),
        ("redis://h/shop", {}, None, "'shop' where the number of a database belongs"),
        ("redis://h?dbb=1", {}, None, "'dbb'"),
        ("rediss://h?ssl_cert=x", {}, None, "ssl_cert"),
        ("redis://h", {}, {"cert": 1}, "cert"),
        ("rediss://h?ssl_cert_reqs=maybe", {}, None, "maybe"),
        ("redis://h?credential_provider=no.Such", {}, None, "'no.Such' can't be loaded"),
        ("sentinel://h", {}, None, "master_name"),
        ("sentinel://h;redis://i", {"master_name": "m"}, None, "mixes"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    url: str, options: dict[str, Any], use_ssl: object, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisServers(url, options, use_ssl)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (b"# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\n", "Redis 6.0.16"),
        (b"redis_version:7.2.4\r\nredis_mode:cluster\r\n", "Redis Cluster"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_apart(info: bytes, why: str) -> None:
    assert why in unfitness(facts_of(info))


@pytest.mark.parametrize(
    "info", [b"", b"redis_version:6.2.0\r\n", b"redis_version:10.0.1\r\n", b"\xff:\xff"]
)
def test_every_other_server_is_tried(info: bytes) -> None:
    assert not unfitness(facts_of(info))
