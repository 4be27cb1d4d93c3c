"""Refuses to build a wheel without the browser UI in it."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class UiIsBuilt(BuildHookInterface):  # pyright: ignore[reportMissingTypeArgument]
    """The hook that hatchling calls before it builds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Stop with one line when the UI is missing; an editable install needs none."""
        if version != "editable" and not (Path(self.root) / "backend/holdfast/ui/index.html").is_file():
            raise SystemExit("the browser UI is not built: run `make ui` first")
