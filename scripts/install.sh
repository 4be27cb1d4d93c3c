#!/bin/sh
# Installs Debian packages as root or with sudo, or says which are missing.
set -eu
if [ "$(id -u)" = 0 ]; then as_root=""
elif sudo -n true 2>/dev/null; then as_root="sudo -n"
else
  echo "missing: $*. Install it (apt-get install $*) and run make again." >&2
  exit 1
fi
echo "installing $*"
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
