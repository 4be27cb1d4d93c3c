"""All that one process has forked, wherever it went, and how that is ended.

The family of a head is known by its control group where there is one; else by walking down from the head
and from orphans that came to the service and carry the mark of the head in their environment. Nobody is
signalled but through a descriptor of that very process whose start time fits.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from holdfast.engine.cgroups import Group, Usage

log = logging.getLogger("holdfast.processes")

MARK = "HOLDFAST_PROCESS"
"""The variable in the environment of a whole family."""

heads: set[int] = set()
"""The heads that this service has started and not reaped yet."""

_LONGEST_PAUSE_S = 1.0

_EMPTY_S = 0.25
"""How long a pid namespace in which nothing runs may take to tell its exit code, or to start its command."""


class ProcessIdentity(msgspec.Struct, frozen=True):
    """Which process: `started` is in clock ticks since boot; `mark` is in the environment of its family."""

    boot_id: str
    pid: int
    started: str
    mark: str = ""


def boot_id() -> str:
    """The id of this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def process_started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot; None when there is no such process."""
    member = look_at(pid)
    return None if member is None or member.state in ("Z", "X") else member.started


class Member(NamedTuple):
    """One process as the kernel lists it."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: str


def look_at(pid: int) -> Member | None:
    """A process or zombie; None when there is none of that pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    fields = stat.rpartition(")")[2].split()
    return Member(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), fields[19])


def children_of(pid: int) -> set[int]:
    """The pids of a process's children, zombies too."""
    found: set[int] = set()
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found.update(int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        pass
    return found


def _mark_of(pid: int) -> str | None:
    """The mark in the environment of a process; None when it has none or may not be read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    for entry in environment.split(b"\0"):
        if entry.startswith(MARK.encode() + b"="):
            return entry.partition(b"=")[2].decode(errors="replace")
    return None


def _is_init(pid: int) -> bool:
    """Whether a process is the first of a pid namespace below this one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            inner = line.split()[1:]
            return len(inner) > 1 and inner[-1] == "1"
    return False


def _send(member: Member, number: signal.Signals) -> None:
    """Signal that very process; nothing when it is gone.

    Raises:
        PermissionError: The service may not.
    """
    try:
        descriptor = os.pidfd_open(member.pid)
    except ProcessLookupError:
        return
    try:
        if process_started(member.pid) == member.started:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


class Family:
    """A head and all that comes from it, and how it is ended. `failures` counts kills that did not work."""

    def __init__(self, identity: ProcessIdentity, group: Group | None, *, ours: bool) -> None:
        self.identity = identity
        self.failures = 0
        self.on_failure: Callable[[int], object] = lambda _: None
        self.left: set[int] = set()
        self._group = group
        self._ours = ours
        self._known: dict[int, str] = {identity.pid: identity.started}

    def enter(self) -> None:
        """Put the head into the group."""
        if self._group:
            self._group.enter(self.identity.pid)

    def members(self) -> dict[int, Member]:
        """All of the family that live, by pid; zombies do not."""
        found: dict[int, Member] = {}
        waiting = self._roots()
        while waiting:
            pid = waiting.pop()
            member = look_at(pid)
            if pid in found or member is None:
                continue
            found[pid] = member
            waiting |= children_of(pid)
        alive = {pid: member for pid, member in found.items() if member.state not in ("Z", "X")}
        self._known.update((pid, member.started) for pid, member in alive.items())
        return alive

    def _roots(self) -> set[int]:
        """Where the walk begins: the group, the known that are still themselves, and marked orphans."""
        roots = {pid for pid, started in self._known.items() if (seen := look_at(pid)) and seen.started == started}
        if self._group:
            roots |= self._group.pids()
        everybody = children_of(os.getpid()) - heads if self._ours else _all_pids()
        roots |= {pid for pid in everybody - roots if self._is_marked(pid)}
        return roots - {os.getpid()}

    def _is_marked(self, pid: int) -> bool:
        if self._ours and (member := look_at(pid)) and member.session == self.identity.pid:
            return True
        return bool(self.identity.mark) and _mark_of(pid) == self.identity.mark

    async def terminate(self, grace_s: float) -> bool:
        """Ask all to end, also those that appear meanwhile; whether all that could be asked have obeyed in time."""
        until = time.monotonic() + grace_s
        empty_at = time.monotonic() + _EMPTY_S
        asked: set[tuple[int, str]] = set()
        pause_s = 0.002
        while members := self.members():
            askable = self._askable(members)
            for member in askable:
                if (member.pid, member.started) not in asked:
                    asked.add((member.pid, member.started))
                    self._ask(member)
            now = time.monotonic()
            if askable:
                empty_at = now + _EMPTY_S
            if now >= min(until, empty_at):
                return not askable
            await asyncio.sleep(min(pause_s, until - now))
            pause_s = min(pause_s * 1.5, 0.05)
        return True

    def _askable(self, members: dict[int, Member]) -> list[Member]:
        """Whom SIGTERM is for: not the first of a pid namespace, nor what is above it; their end kills all at once."""
        keepers: set[int] = set()
        for pid in members:
            if pid not in keepers and _is_init(pid):
                keepers |= _upwards(pid, members)
        if not keepers:
            self._note_left(members.values())
        return [member for pid, member in members.items() if pid not in keepers]

    def _note_left(self, members: Iterable[Member]) -> None:
        self.left |= {member.pid for member in members if member.group != self.identity.pid}

    def _ask(self, member: Member) -> None:
        log.info("process %d: SIGTERM to %d", self.identity.pid, member.pid)
        try:
            _send(member, signal.SIGTERM)
            _send(member, signal.SIGCONT)
        except PermissionError:
            log.warning("process %d: no permission to ask %d to end", self.identity.pid, member.pid)

    async def kill(self) -> None:
        """SIGKILL until nothing lives, however long that takes."""
        began = time.monotonic()
        pause_s = 0.001
        # A second look: the kernel may leave out a child when another one ends in the middle of the list.
        while members := self.members() or self.members():
            if not any(map(_is_init, members)):
                self._note_left(members.values())
            log.info("process %d: SIGKILL to %s", self.identity.pid, sorted(members))
            refused = self._kill_once(members)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            if refused or time.monotonic() - began > 1.0:
                self.failures += 1
                self.on_failure(self.failures)
                log.error("process %d: %s could not be killed yet", self.identity.pid, refused or sorted(members))

    def _kill_once(self, members: dict[int, Member]) -> list[int]:
        """Kill the group, the process group and each one; the pids that may not be killed."""
        if self._group:
            self._group.kill()
        if self._ours:
            # The unreaped head still owns this number, and the kernel lets no fork slip through a signal to a group.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, signal.SIGKILL)
        refused: list[int] = []
        for member in members.values():
            try:
                _send(member, signal.SIGKILL)
            except PermissionError:
                refused.append(member.pid)
        return refused

    async def forget(self) -> Usage | None:
        """Take the group away, and what it had used."""
        if self._group is None:
            return None
        usage = self._group.usage()
        for _ in range(50):
            if self._group.remove():
                return usage
            await asyncio.sleep(0.01)
        log.error("process %d: its control group cannot be removed", self.identity.pid)
        return usage


def _upwards(pid: int, members: dict[int, Member]) -> set[int]:
    """A member and those above it."""
    found: set[int] = set()
    while pid in members and pid not in found:
        found.add(pid)
        pid = members[pid].parent
    return found


def _all_pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}
