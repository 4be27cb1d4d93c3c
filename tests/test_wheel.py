"""The wheel: built, installed in an empty environment with the lock file, and served from there."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import free_port

ROOT = Path(__file__).parents[1]
START_S = 30.0
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("wheel")]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command; what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(one) for one in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT)
    (found,) = folder.glob("holdfast-*.whl")
    return found


@pytest.fixture(scope="module")
def holdfast(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, in an environment that has the wheel and the lock file, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile")
    run(*pip, *quiet, "--require-hashes", "--no-deps", "-r", ROOT / "requirements" / "run.txt")
    run(*pip, *quiet, "--no-deps", "--no-index", wheel)
    return folder / "bin" / "holdfast"


def get(url: str) -> tuple[int, str]:
    """The status and the body of a page."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status, answer.read().decode()


@pytest.fixture
def served(holdfast: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server from the wheel, and its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [holdfast, "serve", "--port", str(port), "--data-dir", tmp_path / "data"],
            cwd=tmp_path,
            env=env,
            stdout=log,
            stderr=log,
        )
    limit = time.monotonic() + START_S
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError):
            if get(f"{url}/ready")[0] == 200:
                break
        time.sleep(0.05)
    else:
        process.kill()
        process.wait(10)
        raise AssertionError((tmp_path / "log").read_text())
    yield process, url
    if process.poll() is None:
        process.kill()
        process.wait(10)


def test_the_wheel_holds_the_page_and_the_migrations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    sources = ROOT / "backend"
    wanted = [
        *(sources / "holdfast" / "store" / "migrations").rglob("*.py"),
        *(path for path in (sources / "holdfast" / "ui").rglob("*") if path.is_file()),
        *(sources / "holdfast").rglob("*.py"),
        *sources.rglob("py.typed"),
    ]
    assert {"holdfast/ui/index.html", "holdfast/py.typed"} <= files
    assert {str(path.relative_to(sources)) for path in wanted} <= files
    assert not [name for name in files if name.startswith("tests") or "__pycache__" in name]


def test_the_wheel_serves_the_page_and_ends_with_0(served: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = served
    status, page = get(f"{url}/")
    assert status == 200
    script = re.search(r'<script[^>]+src="([^"]+\.js)"', page)
    assert script is not None
    address = script[1] if script[1].startswith("/") else f"/{script[1].removeprefix('./')}"
    assert get(f"{url}{address}")[0] == 200
    assert get(f"{url}/health")[0] == 200
    process.terminate()
    assert process.wait(30) == 0
