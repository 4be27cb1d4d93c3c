#!/bin/sh
# Sees that there is a Chromium for the browser tests.
set -eu
command -v chromium >/dev/null 2>&1 || exec "$(dirname "$0")/install.sh" chromium fonts-dejavu-core
