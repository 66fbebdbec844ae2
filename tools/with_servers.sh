#!/bin/sh
# Run a command where Redis, RabbitMQ, PostgreSQL, tmux and Prometheus's promtool are installed;
# install them if need be.
#
# usage: tools/with_servers.sh COMMAND [ARGUMENT...]
#
# The tests start servers of their own, on free ports: only the programs must be
# there. In this order: they are; apt-get brings them; a container has them.
set -eu

tools=$(dirname "$0")

# Debian keeps servers where only root's PATH leads, and PostgreSQL's where nobody's does.
is_there() {
    PATH="$PATH:/usr/local/sbin:/usr/sbin" command -v "$1" >/dev/null
}
missing=
is_there redis-server || missing="$missing redis-server"
is_there rabbitmq-server || missing="$missing rabbitmq-server"
is_there initdb || is_there /usr/lib/postgresql/*/bin/initdb || missing="$missing postgresql"
is_there promtool || missing="$missing prometheus"
services=$missing
is_there tmux || missing="$missing tmux"

if [ -z "$missing" ]; then
    exec "$@"
fi

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086 # one word per package
    "$tools/debian.sh" $missing
    # Installed for the tests, so not to be started with the machine either.
    if [ -n "$services" ] && command -v systemctl >/dev/null; then
        # shellcheck disable=SC2086
        systemctl --quiet disable $services
    fi
    exec "$@"
fi

if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then
    exec docker compose --file "$tools/../tests/compose.yaml" run --rm tests
fi

cat >&2 <<END
The tests start servers of their own, and these programs are not installed:$missing
Install them, then run make again:
    Debian, Ubuntu   sudo apt-get install --no-install-recommends$missing
    macOS            brew install redis rabbitmq postgresql tmux prometheus
or start a Docker engine, and the tests run in a container.
END
exit 1
