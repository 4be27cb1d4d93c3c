"""The working folder: nothing leads out of it, with the kernel's help and without."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from holdfast.agents import folder as module
from holdfast.agents.folder import Folder, FolderError

SECRET = b"of somebody else"
ROOT = os.geteuid() == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A session's folder, and beside it what is not its own."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(SECRET)
    (tmp_path / "outside/secret").touch()
    path = tmp_path / "session"
    path.mkdir()
    return path


@pytest.fixture
def outside(root: Path) -> Path:
    return root.parent / "outside"


@pytest.fixture(params=[True, False], ids=["openat2", "stepwise"])
def folder(request: pytest.FixtureRequest, root: Path) -> Folder:
    if request.param and not module.__dict__["_has_openat2"]():
        pytest.skip("this kernel has no openat2")
    return Folder(root, limit_bytes=1 << 20, kernel=request.param)


@pytest.fixture
def by_kernel(root: Path) -> Folder:
    if not module.__dict__["_has_openat2"]():
        pytest.skip("this kernel has no openat2")
    return Folder(root, kernel=True)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


def contents(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_what_is_written_is_read(folder: Folder, root: Path) -> None:
    assert folder.write("a/b/file", b"one") is None
    assert folder.write("a/b/file", b"three") == b"one"
    assert folder.read("a/b/file") == (b"three", 5)
    assert folder.read("a/b/file", 1, 2) == (b"hr", 5)
    assert folder.read("a/b/file", 9) == (b"", 5)
    assert contents(root) == {"a/b/file": b"three"}


@pytest.mark.parametrize("path", ["file", "/work/file", "./file", "a/../file", "/work//file", "/work/./a/../file"])
def test_ways_to_name_one_file(folder: Folder, root: Path, path: str) -> None:
    folder.write(path, b"x")
    assert folder.read(path) == (b"x", 1)
    assert contents(root) == {"file": b"x"}


@pytest.mark.parametrize(
    "path",
    [
        "../outside/file",
        "a/../../outside/file",
        "/work/../outside/file",
        "/etc/passwd",
        "//etc/passwd",
        "/workshop/file",
        "/proc/self/environ",
        "..",
        "/",
    ],
)
def test_a_path_that_leads_out_is_refused(folder: Folder, root: Path, outside: Path, path: str) -> None:
    for attempt in (folder.read, folder.open, folder.list, lambda path: list(folder.walk(path))):  # type: ignore[misc]
        with pytest.raises(FolderError):
            attempt(path)
    with pytest.raises(FolderError):
        folder.write(path, b"x")
    assert contents(outside) == {"file": SECRET, "secret": b""}
    assert contents(root) == {}


@pytest.mark.parametrize("path", ["", ".", "/work", "/work/", "a\0b", "\0", "\ud800", "n" * 256, "a/" * 2100 + "a"])
def test_what_is_no_name_of_a_file_is_refused(folder: Folder, root: Path, path: str) -> None:
    with pytest.raises(FolderError) as read:
        folder.read(path)
    with pytest.raises(FolderError):
        folder.write(path, b"x")
    assert list(root.iterdir()) == []
    assert len(str(read.value)) < 400
    str(read.value).encode()


def test_a_message_names_no_path_of_the_host(folder: Folder, root: Path) -> None:
    (root / "link").symlink_to(root.parent / "outside/file")
    (root / "a").write_bytes(b"")
    told: list[str] = []
    for path in ("none", "a/b", "link", "../x", "/etc/passwd"):
        with pytest.raises(FolderError) as fault:
            folder.read(path)
        told.append(str(fault.value))
    with pytest.raises(FolderError) as fault:
        Folder(root / "none").read("a")
    assert str(fault.value) == "the working folder cannot be opened"
    assert all(str(root.parent) not in each for each in told)
    assert told[0] == "none: there is no such file or folder"
    assert told[1] == "a/b: a part of the path is not a folder"


@pytest.mark.parametrize(
    "target", ["../outside/file", "{outside}/file", "/proc/self/environ", "../session/../outside/file"]
)
def test_a_link_that_leads_out_is_refused(folder: Folder, root: Path, outside: Path, target: str) -> None:
    (root / "link").symlink_to(target.format(outside=outside))
    (root / "over").symlink_to("link")
    for path in ("link", "over"):
        with pytest.raises(FolderError):
            folder.read(path)
        with pytest.raises(FolderError):
            folder.write(path, b"x")
    assert contents(outside) == {"file": SECRET, "secret": b""}
    assert (root / "link").is_symlink()


def test_a_folder_that_is_a_link_out_is_refused(folder: Folder, root: Path, outside: Path) -> None:
    (root / "link").symlink_to(outside)
    for attempt in (lambda: folder.read("link/file"), lambda: folder.list("link"), lambda: list(folder.walk("link"))):
        with pytest.raises(FolderError):
            attempt()
    for path in ("link/file", "link/new", "link/new/new"):
        with pytest.raises(FolderError):
            folder.write(path, b"x")
    assert contents(outside) == {"file": SECRET, "secret": b""}


def test_a_magic_link_of_the_kernel_is_refused(by_kernel: Folder, root: Path) -> None:
    with pytest.raises(FolderError):
        Folder(Path("/proc/self"), kernel=True).read("root/etc/passwd")
    with pytest.raises(FolderError):
        Folder(Path("/proc/self"), kernel=True).read("cwd/pyproject.toml")


def test_links_inside_are_followed_by_the_kernel(by_kernel: Folder, root: Path) -> None:
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_bytes(b"one")
    (root / "to_file").symlink_to("a/file")
    (root / "to_folder").symlink_to("a/b/")
    (root / "a/b/up").symlink_to("../../to_file")
    (root / "to_nothing").symlink_to("a/new")
    assert by_kernel.read("to_folder/up") == (b"one", 3)
    assert by_kernel.write("to_folder/up", b"two") == b"one"
    assert by_kernel.write("to_nothing", b"new") is None
    assert contents(root / "a") == {"file": b"two", "new": b"new", "b/up": b"two"}
    assert all((root / name).is_symlink() for name in ("to_file", "to_folder", "a/b/up", "to_nothing"))


def test_links_are_not_followed_step_by_step(root: Path) -> None:
    (root / "file").write_bytes(b"one")
    (root / "link").symlink_to("file")
    folder = Folder(root, kernel=False)
    with pytest.raises(FolderError, match="a link that is not followed"):
        folder.read("link")
    with pytest.raises(FolderError, match="a link that is not followed"):
        folder.write("link", b"x")
    assert contents(root) == {"file": b"one", "link": b"one"}


def test_links_in_a_circle_end(folder: Folder, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(FolderError, match="link"):
        folder.read("a")
    with pytest.raises(FolderError, match="link"):
        folder.write("a", b"x")


SWAPPER = """
import ctypes, sys

libc = ctypes.CDLL(None, use_errno=True)
one, other = (name.encode() for name in sys.argv[1:])
print(flush=True)
swaps = 0
while True:
    for _ in range(500):
        if libc.renameat2(-100, one, -100, other, 2):
            assert ctypes.get_errno() == 2
        swaps += 1
    print(swaps, flush=True)
"""
"""Exchanges two names, each time at once, as a hostile command can; tells how often."""


@contextlib.contextmanager
def swapping(one: Path, other: Path) -> Generator[Callable[[], int]]:
    """Swap two names as fast as possible; gives a function that says how often so far."""
    command = [sys.executable, "-I", "-S", "-c", SWAPPER, str(one), str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout
        lines.readline()
        try:
            yield lambda: int(lines.readline())
        finally:
            process.kill()


def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(folder: Folder, root: Path, outside: Path) -> None:
    (root / "swapped/inner").mkdir(parents=True)
    (root / "swapped/file").write_bytes(b"inside")
    (root / "other").symlink_to(outside)
    seen: set[bytes] = set()
    attempts = refused = swaps = 0
    with swapping(root / "swapped", root / "other") as swapped:
        while swaps < 5000 or attempts < 700 or not refused or not seen:
            swaps = swapped()
            attempts += 1
            for attempt in (
                lambda: seen.add(folder.read("swapped/file")[0]),
                lambda: folder.write(f"swapped/{attempts % 7}", b"mine"),  # noqa: B023
                lambda: folder.write(f"swapped/deep/{attempts % 7}/file", b"mine"),  # noqa: B023
                lambda: seen.update(each.name.encode() for each in folder.list("swapped") if each.name == "secret"),
                lambda: seen.update(path.encode() for path, _ in folder.walk() if path.endswith("secret")),
            ):
                try:
                    attempt()
                except FolderError:
                    refused += 1
    assert seen == {b"inside"}
    assert contents(outside) == {"file": SECRET, "secret": b""}


def test_a_file_that_is_swapped_for_a_link_leads_nowhere(folder: Folder, root: Path, outside: Path) -> None:
    (root / "file").write_bytes(b"inside")
    (root / "other").symlink_to(outside / "file")
    seen: set[bytes | None] = set()
    attempts = swaps = 0
    with swapping(root / "file", root / "other") as swapped:
        while swaps < 5000 or attempts < 700 or b"inside" not in seen:
            swaps = swapped()
            attempts += 1
            if not (root / "file").is_symlink() and not (root / "other").is_symlink():
                (root / "fresh").symlink_to(outside / "file")
                os.replace(root / "fresh", root / "other")
            elif (root / "file").is_symlink() and (root / "other").is_symlink():  # One was swapped between two looks.
                (root / "fresh").write_bytes(b"inside")
                os.replace(root / "fresh", root / "other")
            with contextlib.suppress(FolderError):
                seen.add(folder.read("file")[0])
            with contextlib.suppress(FolderError):
                seen.add(folder.write("file", b"inside"))
    assert seen <= {b"inside", None}
    assert contents(outside) == {"file": SECRET, "secret": b""}


def test_what_is_no_regular_file_does_not_hang(folder: Folder, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(root):
        server.bind("socket")
    names = ["fifo", "socket", "folder"]
    if ROOT:
        os.mknod(root / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        names.append("device")
    started = time.monotonic()
    for name in names:
        for attempt in (folder.read, folder.open, lambda name: folder.write(name, b"x")):  # type: ignore[misc]
            with pytest.raises(FolderError, match="is a folder" if name == "folder" else "not a regular file"):
                attempt(name)
    assert time.monotonic() - started < 5
    assert {entry.name: entry.kind for entry in folder.list()} == {
        name: "folder" if name == "folder" else "other" for name in names
    }


def test_a_file_with_hard_links_is_not_written(folder: Folder, root: Path, outside: Path) -> None:
    os.link(outside / "file", root / "file")
    with pytest.raises(FolderError, match="2 names"):
        folder.write("file", b"x")
    assert contents(outside) == {"file": SECRET, "secret": b""}
    assert os.stat(root / "file").st_nlink == 2


def test_a_huge_file_is_read_in_part(folder: Folder, root: Path) -> None:
    with open(root / "huge", "wb") as file:
        file.truncate(1 << 40)
    data, size = folder.read("huge")
    assert (len(data), size) == (1 << 20, 1 << 40)
    assert len(folder.read("huge", limit=1 << 30)[0]) == 1 << 20
    previous = folder.write("huge", b"small")
    assert previous == bytes(1 << 20)
    with pytest.raises(FolderError, match="too many"):
        folder.write("file", bytes((1 << 20) + 1))
    assert contents(root) == {"huge": b"small"}


def test_a_write_is_seen_whole_or_not_at_all(folder: Folder, root: Path) -> None:
    one, two = b"1" * 500_000, b"2" * 500_000
    folder.write("file", one)
    done = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not done.is_set():
            seen.add((root / "file").read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        folder.write("file", two)
        folder.write("file", one)
    done.set()
    thread.join()
    assert seen <= {one, two}
    assert [each.name for each in root.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing(folder: Folder, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("file", b"one")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(FolderError, match="no space left"):
        folder.write("file", b"two")
    assert contents(root) == {"file": b"one"}


def test_modes_of_what_is_made_and_of_what_is_replaced(folder: Folder, root: Path) -> None:
    before = os.umask(0o077)
    try:
        folder.write("a/file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "a/file").stat().st_mode) == 0o644
    (root / "a/file").chmod(0o4750)
    folder.write("a/file", b"#!/bin/sh")
    assert stat.S_IMODE((root / "a/file").stat().st_mode) == 0o750


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_what_is_made_belongs_to_the_owner(folder: Folder, root: Path) -> None:
    folder.owner = 300_001
    (root / "old").mkdir()
    folder.write("old/a/b/file", b"")
    folder.write("old/a/b/file", b"again")
    owners = {name: ((root / name).stat().st_uid, (root / name).stat().st_gid) for name in ("old/a", "old/a/b/file")}
    assert set(owners.values()) == {(300_001, 300_001)}
    assert (root / "old").stat().st_uid == 0


@pytest.mark.skipif(ROOT, reason="root may read all")
def test_a_file_that_may_not_be_read_is_told(folder: Folder, root: Path) -> None:
    (root / "file").touch(0o000)
    with pytest.raises(FolderError, match="permission denied"):
        folder.read("file")


def test_a_list_says_what_is_there(folder: Folder, root: Path) -> None:
    (root / "b").mkdir()
    (root / "a").write_bytes(b"123")
    os.utime(root / "a", (0, 86400))
    os.utime(root / "b", (0, 1 << 34))
    (root / "link").symlink_to("/nowhere")
    (root / os.fsdecode(b"z\xff\n")).touch()
    entries = {entry.name: entry for entry in folder.list("/work")}
    assert [(name, entry.kind) for name, entry in entries.items()] == [
        ("a", "file"),
        ("b", "folder"),
        ("link", "link"),
        ("z\ufffd\n", "file"),
    ]
    assert (entries["a"].bytes, entries["a"].modified) == (3, datetime(1970, 1, 2, tzinfo=UTC))
    assert b'"kind":"file"' in msgspec.json.encode(list(entries.values()))
    assert len(folder.list(limit=2)) == 2
    with pytest.raises(FolderError, match="not a folder"):
        folder.list("a")


def test_a_walk_is_bounded_and_follows_no_link(folder: Folder, root: Path, outside: Path) -> None:
    for name in ("a/b/c/file", "node_modules/file", "z", "b/file"):
        folder.write(name, b"")
    (root / "out").symlink_to(outside)
    (root / "round").symlink_to(".")
    paths = [path for path, _ in folder.walk(skip={"node_modules"})]
    assert paths == ["a", "a/b", "a/b/c", "a/b/c/file", "b", "b/file", "node_modules", "out", "round", "z"]
    assert [path for path, _ in folder.walk("a", depth=2)] == ["a/b", "a/b/c"]
    assert [path for path, _ in folder.walk(limit=4)] == paths[:4]
    assert next(folder.walk("z/.."))[0] == "a"
    with pytest.raises(FolderError):
        list(folder.walk("none"))


def test_a_walk_passes_over_what_vanishes(folder: Folder, root: Path) -> None:
    for name in ("a/file", "b/file", "c"):
        folder.write(name, b"")
    walk = folder.walk()
    assert next(walk)[0] == "a"
    (root / "a/file").unlink()
    (root / "a").rmdir()
    (root / "a").symlink_to("b")
    assert [path for path, _ in walk] == ["b", "b/file", "c"]


def test_names_that_are_not_unicode_can_be_read_on_a_walk(folder: Folder, root: Path) -> None:
    (root / os.fsdecode(b"\xff")).write_bytes(b"x")
    ((path, entry),) = folder.walk()
    assert entry.name == "\ufffd"
    assert folder.read(path) == (b"x", 1)


def test_an_open_file_can_be_streamed(folder: Folder, root: Path) -> None:
    folder.write("file", b"one")
    fd = folder.open("file")
    with os.fdopen(fd, "rb") as file:
        assert not os.get_inheritable(fd)
        folder.write("file", b"two")
        assert file.read() == b"one"


def test_without_openat2_the_steps_are_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a filter of system calls that knows no openat2: another number is refused in the same way."""
    has_openat2 = module.__dict__["_has_openat2"]
    monkeypatch.setattr(module, "_OPENAT2", 9999)
    has_openat2.cache_clear()
    try:
        folder = Folder(root)
        folder.write("a/file", b"x")
        (root / "link").symlink_to("a")
        assert folder.read("a/file") == (b"x", 1)
        with pytest.raises(FolderError):
            folder.read("link/file")
    finally:
        has_openat2.cache_clear()
