"""A control group for each process that the service starts, where the machine gives one.

A group knows exactly who belongs to a process, whatever it forked, and can end them all at once.
Version 2 gives that and, where the service's own group is delegated to it, limits on memory and on
the number of processes. Of version 1 `pids` is used, and `memory` when a limit on it is asked for. Groups
are made below the service's own, so its own limits hold for them too.
"""

import functools
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "holdfast-"


@dataclass(frozen=True, slots=True)
class Usage:
    """What all of a group used; None where the kernel does not say."""

    peak_memory_bytes: int | None
    cpu_s: float | None
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class Group:
    """The folders of one group, in each hierarchy that it is in."""

    folders: tuple[Path, ...]

    @property
    def entries(self) -> list[Path]:
        """The files that a process writes 0 into to enter the group."""
        return [folder / "cgroup.procs" for folder in self.folders]

    def pids(self) -> set[int]:
        """Who is in the group now."""
        found: set[int] = set()
        for entry in self.entries:
            with suppress(OSError):
                found.update(int(line) for line in entry.read_text().split())
        return found - {0}

    def enter(self, pid: int) -> None:
        """Put a process into the group, from outside; takes milliseconds, most of them the kernel's."""
        for entry in self.entries:
            _write(entry, str(pid))

    def limit(self, *, memory_bytes: int | None, processes: int | None) -> None:
        """Set what limits the kernel takes here."""
        for folder in self.folders:
            if memory_bytes is not None:
                _write(folder / "memory.max", str(memory_bytes))
                _write(folder / "memory.swap.max", "0")
                _write(folder / "memory.oom.group", "1")
                _write(folder / "memory.limit_in_bytes", str(memory_bytes))
                _write(folder / "memory.memsw.limit_in_bytes", str(memory_bytes))
            if processes is not None:
                _write(folder / "pids.max", str(processes))

    def kill(self) -> None:
        """SIGKILL all of it (version 2), and let nobody fork any more."""
        for folder in self.folders:
            _write(folder / "pids.max", "0")
            _write(folder / "cgroup.kill", "1")

    def usage(self) -> Usage:
        """What the group has used so far."""
        peak, cpu_us, kills = None, None, 0
        for folder in self.folders:
            peak = _number(folder / "memory.peak") or _number(folder / "memory.max_usage_in_bytes") or peak
            cpu_us = _field(folder / "cpu.stat", "usage_usec") or cpu_us
            if (cpu_ns := _number(folder / "cpuacct.usage")) is not None:
                cpu_us = cpu_ns // 1000
            kills += _field(folder / "memory.events", "oom_kill") or 0
            kills += _field(folder / "memory.oom_control", "oom_kill") or 0
        return Usage(peak, None if cpu_us is None else cpu_us / 1e6, kills > 0)

    def remove(self) -> bool:
        """Take the empty group away; False when somebody is still in it."""
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


def make_counted(name: str, *, memory_bytes: int) -> Group | None:
    """A new group that counts processor time and memory, and limits that, where version 1 does so; else None."""
    group = _made(name, (*memory_parents(), *time_parents()))
    if group is not None:
        group.limit(memory_bytes=memory_bytes, processes=None)
    return group


def make(name: str, *, memory_bytes: int | None, processes: int | None) -> Group | None:
    """A new group; None when this machine gives none to this user."""
    group = _made(name, (*parents(), *(memory_parents() if memory_bytes is not None else ())))
    if group is not None:
        group.limit(memory_bytes=memory_bytes, processes=processes)
    return group


def _made(name: str, where: Iterable[Path]) -> Group | None:
    """A new group in each of these places that allows it; None when none does."""
    folders: list[Path] = []
    for parent in where:
        folder = parent / f"{_PREFIX}{name}"
        with suppress(OSError):
            folder.mkdir()
            folders.append(folder)
    return Group(tuple(folders)) if folders else None


def find(name: str) -> Group | None:
    """The group of that name, made by this service or by one before it; None when there is none."""
    everywhere = (*parents(), *memory_parents(), *time_parents())
    places = (parent / f"{_PREFIX}{name}" for parent in everywhere)
    folders = [folder for folder in places if folder.is_dir()]
    return Group(tuple(folders)) if folders else None


@functools.cache
def parents() -> tuple[Path, ...]:
    """The folders in which groups are made: of version 2, and of the `pids` of version 1."""
    return (*(folder for own in _hierarchies("") for folder in _writable(_delegated(own))), *_version_1("pids"))


@functools.cache
def memory_parents() -> tuple[Path, ...]:
    """Where version 1 limits memory, on a machine where version 2 does not."""
    return () if limit_memory() else _version_1("memory")


@functools.cache
def time_parents() -> tuple[Path, ...]:
    """Where version 1 counts processor time, on a machine where version 2 does not."""
    return () if limit_memory() else _version_1("cpuacct")


def _version_1(controller: str) -> tuple[Path, ...]:
    return tuple(folder for own in _hierarchies(controller) for folder in _writable(own))


def _writable(folder: Path) -> tuple[Path, ...]:
    return (folder,) if os.access(folder, os.W_OK) else ()


def _hierarchies(controller: str) -> list[Path]:
    """The service's own group, wherever that controller is mounted; of version 2 under the empty name."""
    own = _own_paths()
    found: dict[Path, None] = {}
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        is_it = kind == "cgroup" and controller in options.split(",") if controller else kind == "cgroup2"
        if is_it and controller in own:
            found[_below(mount, root, own[controller])] = None
    return list(found)


@functools.cache
def limit_memory() -> bool:
    """Whether the groups of version 2 limit the memory of a family here."""
    return any("memory" in line.split() for parent in parents() for line in _lines(f"{parent}/cgroup.subtree_control"))


def _own_paths() -> dict[str, str]:
    """The path of the service's own group by controller; that of version 2 under the empty name."""
    paths: dict[str, str] = {}
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        paths.update((name, path) for name in controllers.split(","))
    return paths


def _below(mount: str, root: str, path: str) -> Path:
    """Where a group's path lies when `root` of its hierarchy is mounted at `mount`."""
    inside = path if root == "/" else path.removeprefix(root)
    return Path(mount) / inside.lstrip("/")


def _delegated(own: Path) -> Path:
    """The group of version 2 in which limits can be set: the service's own, or, if systemd gave that, its parent.

    A group that has processes of its own cannot hand out limits, so a service is put one level down
    (`Delegate=yes` with `DelegateSubgroup=`). Without either, groups are made all the same, without limits.
    """
    for folder in (own, own.parent):
        if folder == own or _is_delegated(folder):
            for controller in ("memory", "pids"):
                _write(folder / "cgroup.subtree_control", f"+{controller}")
            if "memory" in _text(folder / "cgroup.subtree_control"):
                return folder
    return own


def _is_delegated(folder: Path) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _write(path: Path, text: str) -> None:
    """Write what the kernel may refuse, or has not got; a group's file is never made here."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _lines(path: str) -> list[str]:
    return _text(path).splitlines()


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int | None:
    """The number behind a name, in a file of names and numbers."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None
