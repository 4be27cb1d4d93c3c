"""Makes the checkout importable and `holdfast` a command, without building a package."""

import sys
import sysconfig
from pathlib import Path

root = Path(__file__).resolve().parent.parent
packages = Path(sysconfig.get_path("purelib"))
command = Path(sysconfig.get_path("scripts")) / "holdfast"
(packages / "holdfast-checkout.pth").write_text(f"{root / 'backend'}\n")
# A shell between them, because a `#!` line takes no path with a space in it.
command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m holdfast.cli "$@"\n')
command.chmod(0o755)
