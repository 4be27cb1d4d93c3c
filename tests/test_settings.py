"""The settings: which of their sources wins, and that the reference lists them all.

`python -m tests.test_settings` writes the table of the reference anew.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from holdfast import config
from holdfast.config import ENTRIES, SettingError

from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def table() -> str:
    """The reference's table, made from the code."""
    rows = ["| flag | variable | default | meaning |", "| --- | --- | --- | --- |"]
    for entry in ENTRIES:
        words = entry.metadata["help"].replace("|", "\\|")
        if choices := entry.metadata.get("choices"):
            words += f" One of {', '.join(f'`{one}`' for one in choices)}."
        elif "low" in entry.metadata:
            words += f" From {entry.metadata['low']} to {entry.metadata['high']}."
        default = f"`{entry.default}`" if entry.default != "" else "empty"
        rows.append(f"| `{config.flag(entry.name)}` | `{config.variable(entry.name)}` | {default} | {words} |")
    return "\n".join(rows) + "\n"


def regenerate() -> None:
    """Write the table into the reference."""
    head, _, rest = REFERENCE.read_text().partition(BEGIN)
    tail = rest.partition(END)[2]
    REFERENCE.write_text(f"{head}{BEGIN}{table()}{END}{tail}")


def test_the_reference_lists_exactly_the_settings() -> None:
    written = REFERENCE.read_text().partition(BEGIN)[2].partition(END)[0]
    assert written == table(), "run `.venv/bin/python -m tests.test_settings` to write the table anew"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_setting_has_a_text(entry: Any) -> None:
    text = entry.metadata["help"]
    assert text.endswith(".")
    assert len(text) > 10


def test_a_flag_beats_the_variable_the_file_and_the_default(tmp_path: Path) -> None:
    toml = tmp_path / "holdfast.toml"
    assert config.load({}, {}, toml).port == 8000
    toml.write_text("port = 8001\n")
    assert config.load({}, {}, toml).port == 8001
    assert config.load({}, {"HOLDFAST_PORT": "8002"}, toml).port == 8002
    assert config.load({"port": "8003"}, {"HOLDFAST_PORT": "8002"}, toml).port == 8003


def test_a_flag_that_was_not_given_leaves_the_variable(tmp_path: Path) -> None:
    assert config.load({"port": None}, {"HOLDFAST_PORT": "8002"}, tmp_path / "none.toml").port == 8002


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_setting_has_a_flag_a_variable_and_a_line(entry: Any, tmp_path: Path) -> None:
    value = {"auth": "tokens", "role": "web", "log_format": "json"}.get(entry.name, entry.default)
    toml = tmp_path / "holdfast.toml"
    toml.write_text(f"{entry.name} = {value!r}\n")
    others: dict[str, Any] = {}
    assert getattr(config.load(others, {}, toml), entry.name) == value
    assert getattr(config.load({entry.name: str(value)}), entry.name) == value
    assert getattr(config.load({}, {config.variable(entry.name): str(value)}), entry.name) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "x", "--port is 'x'; it must be a whole number"),
        ("port", "1.5", "--port is '1.5'; it must be a whole number"),
        ("port", "-1", "from 0 to 65535"),
        ("lease_s", "nan", "--lease-s is 'nan'"),
        ("lease_s", "inf", "--lease-s is 'inf'"),
        ("auth", "", "one of local, tokens"),
        ("role", "both", "one of all, web, worker"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        config.load({name: value})
    assert words in str(caught.value)


async def test_the_password_of_the_database_is_not_in_the_start_line(
    postgres: PostgresServer, make_server: Callable[..., ServerProcess]
) -> None:
    url = await postgres.create_database()
    scheme, _, rest = url.partition("://")
    user, _, where = rest.partition("@")
    secret = "open-sesame"
    with_password = f"{scheme}://{user.partition(':')[0]}:{secret}@{where}"
    server = make_server("--database-url", with_password, start=False)
    command = [sys.executable, "-m", "holdfast.cli", "migrate", "--database-url", with_password]
    subprocess.run(command, env=server.env, check=True, capture_output=True, timeout=30)
    server.start()
    shown = server.log.read_text()
    server.stop()
    await postgres.drop_database(url)
    assert "postgresql" in shown
    assert secret not in shown
    assert secret not in server.log.read_text()


if __name__ == "__main__":
    regenerate()
