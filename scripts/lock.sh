#!/bin/sh
# Resolves the newest versions into lock files that carry hashes and no addresses.
set -eu
.venv/bin/python -m pip install --quiet uv
lock() {
  out=$1
  shift
  .venv/bin/uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
    --no-annotate --upgrade --quiet -o "$out" "$@"
}
lock requirements/run.txt pyproject.toml
lock requirements/dev.txt pyproject.toml --group dev -c requirements/run.txt
lock requirements/ui.txt --group ui
