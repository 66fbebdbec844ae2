#!/bin/sh
# Install Debian packages without starting the services they bring.
#
# usage: tools/debian.sh PACKAGE...
set -eu

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed here, and only root on Debian or Ubuntu can have it installed: $*" >&2
    echo "Install it by hand (there: sudo apt-get install $*), then run make again." >&2
    exit 1
fi

# Debian's packages start their services unless this file forbids it. One that
# is already there may have other plans: it is put aside, and comes back.
policy=/usr/sbin/policy-rc.d
restore() {
    rm -f "$policy"
    if [ -e "$policy.aside" ]; then mv "$policy.aside" "$policy"; fi
}
trap restore EXIT
trap 'exit 1' HUP INT TERM
if [ -e "$policy" ]; then mv "$policy" "$policy.aside"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod +x "$policy"

export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet --quiet
apt-get install --quiet --quiet --yes --no-install-recommends "$@"
