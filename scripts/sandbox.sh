#!/bin/sh
# Sees that there is a bubblewrap for the tests of the sandbox.
set -eu
command -v bwrap >/dev/null 2>&1 || exec "$(dirname "$0")/install.sh" bubblewrap
