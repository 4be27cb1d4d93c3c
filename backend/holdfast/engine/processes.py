r"""Processes that the service starts: their output, their end, and what they leave behind.

A process is the head of a family: all that it forks, wherever that goes (`engine.families`). The service
is the subreaper of all of them.

    running -- ends by itself -------------------------> sweep -> ended (exited)
    running -- stop -> SIGTERM, SIGCONT -> all gone ---> sweep -> ended (terminated)
                                        \-> grace over -> SIGKILL until nothing lives -> ended (killed)

The head stays a zombie until its family is gone, so that its pid stays its own. Programs that the service
starts by other means must stay in its session, or be waited for by their pid at once: zombies of other
sessions that nobody here started are taken for orphans and reaped.
"""

import asyncio
import ctypes
import errno
import functools
import inspect
import logging
import os
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

import msgspec

from holdfast.engine import cgroups
from holdfast.engine.families import (
    MARK,
    Family,
    ProcessIdentity,
    boot_id,
    children_of,
    heads,
    look_at,
    process_started,
)

__all__ = [
    "Ending",
    "OnOutput",
    "Process",
    "ProcessIdentity",
    "boot_id",
    "end_leftover",
    "new_mark",
    "process_started",
    "spawn",
]

log = logging.getLogger("holdfast.processes")

_QUIET_LOOKS, _QUIET_S = 3, 0.05
"""How often, and how far apart, nothing may be seen of a family before it counts as gone."""

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], object]

_CHUNK_BYTES = 64 << 10
_LINGER_S = 0.25
_DRAIN_S = 2.0
_PR_SET_CHILD_SUBREAPER = 36


class Ending(msgspec.Struct, frozen=True):
    """How a process ended.

    `took_ms` counts from the stop request (0 when there was none); `left` are pids that had left the
    process group and were swept. `peak_memory_bytes` is that of all together where the machine counts
    it, else that of the largest process, if that is larger than the service; `out_of_memory` is known only
    where a group limits memory.
    """

    exit_code: int | None
    signal: int | None
    how: Literal["exited", "terminated", "killed"]
    took_ms: int = 0
    timed_out: bool = False
    left: tuple[int, ...] = ()
    peak_memory_bytes: int | None = None
    cpu_s: float | None = None
    out_of_memory: bool = False


class Process:
    """A process that runs or has ended; made by `spawn`.

    All of it belongs to the event loop that spawned it. It ends on its own, by `stop`, or by a limit
    given to `wait`; it is not ended by a cancel of who waits.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], family: Family, on_output: OnOutput, stdin: bytes | None
    ) -> None:
        self._popen = popen
        self._family = family
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(popen.pid)
        self._exit = self._loop.create_future()
        self._stop_asked = asyncio.Event()
        self._asked_at = 0.0
        self._grace_s = 0.0
        self._timed_out = False
        self._detached = False
        self.is_outside = False
        self._heard_at = time.monotonic()
        self._fault: BaseException | None = None
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._pumps = [
            self._loop.create_task(self._pump("stdout", popen.stdout)),
            self._loop.create_task(self._pump("stderr", popen.stderr)),
            self._loop.create_task(self._feed(None if stdin is None else popen.stdin, stdin or b"")),
        ]
        heads.add(popen.pid)
        self._life = self._loop.create_task(self._live())

    @property
    def pid(self) -> int:
        """The pid of the outermost process."""
        return self._popen.pid

    @property
    def identity(self) -> ProcessIdentity:
        """What to keep, so that `end_leftover` finds the process after a crash of the service."""
        return self._family.identity

    @property
    def kill_failures(self) -> int:
        """How many times a kill was refused or had no effect within a second; it is tried again until it has."""
        return self._family.failures

    async def wait(
        self, *, timeout_s: float | None = None, idle_s: float | None = None, grace_s: float = 5.0
    ) -> Ending:
        """Wait for the end; stop the process after `timeout_s`, or after `idle_s` without output.

        Raises:
            Exception: What `on_output` raised, once nothing of the process lives.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._life.done():
            bounds = [] if deadline is None else [deadline]
            bounds += [] if idle_s is None else [self._heard_at + idle_s]
            left_s = min(bounds) - time.monotonic() if bounds else None
            if left_s is not None and left_s <= 0 and not self._stop_asked.is_set():
                log.info("process %d: out of time", self.pid)
                self._timed_out = True
                self._ask(grace_s)
            if self._stop_asked.is_set():
                left_s = None
            await asyncio.wait({self._life}, timeout=left_s)
        if self._fault is not None:
            raise self._fault
        return self._life.result()

    async def stop(self, grace_s: float) -> Ending:
        """SIGTERM, `grace_s`, SIGKILL; returns when nothing of it lives, and only then.

        The first call decides the grace; all calls wait for the one end. A cancel of the caller does not
        call it off. It must not be awaited inside `on_output`.
        """
        self._ask(grace_s)
        return await asyncio.shield(self._life)

    async def enter(self) -> None:
        """Put one that is held into its group, if it is not in it."""
        if self.is_outside:
            await asyncio.to_thread(self._family.enter)

    def release(self) -> None:
        """Let a process begin that was held."""
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with suppress(BrokenPipeError, BlockingIOError):
                os.write(self._popen.stdin.fileno(), b"\n")
            self._popen.stdin.close()

    def detach(self) -> None:
        """Leave it alone: it goes on, and nothing here waits for it or hears it any more. One that has ended has."""
        if self._pidfd < 0:
            return
        self._detached = True
        for task in (self._life, *self._pumps):
            task.cancel()
        if not self._exit.done():
            self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe and not pipe.closed:
                self._loop.remove_reader(pipe.fileno())
                self._loop.remove_writer(pipe.fileno())
                pipe.close()
        heads.discard(self.pid)
        self._popen.returncode = 0  # It is not this object's to wait for.

    def _ask(self, grace_s: float) -> None:
        if not self._stop_asked.is_set() and not self._life.done():
            log.info("process %d: stop, with %.1f s of grace", self.pid, grace_s)
            self._asked_at, self._grace_s = time.monotonic(), grace_s
            self._stop_asked.set()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if not self._exit.done():
            self._exit.set_result(None)

    async def _live(self) -> Ending:
        """The whole life: the one place that ends and reaps the process."""
        asked = self._loop.create_task(self._stop_asked.wait())
        await asyncio.wait({self._exit, asked}, return_when=asyncio.FIRST_COMPLETED)
        how: Literal["exited", "terminated", "killed"] = "exited"
        if self._exit.done():
            await asyncio.wait({asked, self._gathered()}, timeout=_LINGER_S, return_when=asyncio.FIRST_COMPLETED)
            await self._family.kill()
        else:
            how = "terminated" if await self._family.terminate(self._grace_s) else "killed"
            await self._family.kill()
        asked.cancel()
        await self._exit
        await self._close_pipes()
        return await self._reap(how)

    def _gathered(self) -> "asyncio.Task[object]":
        return self._loop.create_task(_all_done(self._pumps[:2]))

    async def _close_pipes(self) -> None:
        """Take what is still in the pipes, for a bounded time, and close them."""
        self._pumps[2].cancel()
        _, late = await asyncio.wait(self._pumps, timeout=_DRAIN_S)
        if late:
            log.warning("process %d: the rest of its output is dropped", self.pid)
        for pump in late:
            pump.cancel()
        await asyncio.wait(self._pumps)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe:
                pipe.close()

    async def _reap(self, how: Literal["exited", "terminated", "killed"]) -> Ending:
        code, usage = _reaped(self._popen)
        os.close(self._pidfd)
        self._pidfd = -1
        heads.discard(self.pid)
        counted = await self._family.forget()
        _reap_orphans()
        took_ms = round((time.monotonic() - self._asked_at) * 1000) if self._stop_asked.is_set() else 0
        asked = f", {took_ms} ms after it was asked to stop" if self._stop_asked.is_set() else ""
        log.info("process %d: %s with %s%s", self.pid, how, code, asked)
        peak = _peak_bytes(usage)
        cpu_s = usage and usage.ru_utime + usage.ru_stime
        return Ending(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            how=how,
            took_ms=took_ms,
            timed_out=self._timed_out,
            left=tuple(sorted(self._family.left)),
            peak_memory_bytes=(counted and counted.peak_memory_bytes) or peak,
            cpu_s=(counted and counted.cpu_s) or cpu_s,
            out_of_memory=counted is not None and counted.out_of_memory,
        )

    async def _pump(self, stream: Literal["stdout", "stderr"], pipe: IO[bytes] | None) -> None:
        """Hand on what comes, a chunk at a time; the next one is read when this one was taken."""
        assert pipe is not None
        descriptor = pipe.fileno()
        while chunk := await self._read(descriptor):
            self._heard_at = time.monotonic()
            if self._fault is None:
                await self._hand_on(stream, chunk)
            await asyncio.sleep(0)

    async def _hand_on(self, stream: Literal["stdout", "stderr"], chunk: bytes) -> None:
        try:
            taken = self._on_output(stream, chunk)
            if inspect.isawaitable(taken):
                await taken
        except Exception as fault:
            log.error("process %d: its output is not taken any more (%r); it is killed", self.pid, fault)
            self._fault = fault
            self._ask(0.0)

    async def _read(self, descriptor: int) -> bytes:
        while True:
            try:
                return os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:
                await self._ready(descriptor, self._loop.add_reader, self._loop.remove_reader)

    async def _feed(self, pipe: IO[bytes] | None, data: bytes) -> None:
        """Write all of the input, and close it; a process that does not read it is no fault."""
        if pipe is None:
            return
        rest = memoryview(data)
        with suppress(BrokenPipeError):
            while rest:
                try:
                    rest = rest[os.write(pipe.fileno(), rest[:_CHUNK_BYTES]) :]
                except BlockingIOError:
                    await self._ready(pipe.fileno(), self._loop.add_writer, self._loop.remove_writer)
        pipe.close()

    async def _ready(self, descriptor: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Wait until a pipe can be read or written."""
        ready = self._loop.create_future()
        add(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            if not self._detached:  # Else the number may be somebody else's by now.
                remove(descriptor)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _all_done(tasks: Iterable["asyncio.Task[None]"]) -> None:
    await asyncio.wait(set(tasks))


async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | str | None = None,
    on_output: OnOutput,
    stdin: bytes = b"",
    memory_bytes: int | None = None,
    processes: int | None = None,
    grouped: bool = True,
    mark: str | None = None,
    on_stuck: Callable[[int], object] = lambda _: None,
    held: bool = False,
) -> Process:
    """Start a process in a session of its own, with exactly this environment and a mark.

    Each piece of output, at most 64 KiB, goes to `on_output(stream, data)`; an awaitable that this
    returns is awaited before more is read. `memory_bytes` and `processes` are limits on the whole family,
    where the machine has control groups for it (`grouped` False uses none, but one that counts for who is held).
    `mark` is one of `new_mark`, for those who wrote it down before. One that is `held` begins at its `release`.
    `on_stuck` is told how many kills had no effect so far. Call it in the thread of the event loop that lives as long
    as the service: programs that end with their parent watch that thread.

    Raises:
        FileNotFoundError: There is no such program, or `cwd` is missing.
        PermissionError: The program or `cwd` may not be used.
    """
    _become_subreaper()
    program = _found(argv[0], env, cwd)
    mark = mark or new_mark()
    group, entries = None, list[str]()
    if grouped:
        group = cgroups.make(mark, memory_bytes=memory_bytes, processes=processes)
        entries = [str(entry) for entry in group.entries] if group else []
    elif held and memory_bytes is not None:
        group = cgroups.make_counted(mark, memory_bytes=memory_bytes)
    try:
        prefix = _prefix(entries, held=held)
        popen = _start([*prefix, program, *argv[1:]], {**env, MARK: mark}, cwd, piped_in=bool(stdin) or held)
    except BaseException:
        if group:
            group.remove()
        raise
    member = look_at(popen.pid)
    identity = ProcessIdentity(boot_id(), popen.pid, member.started if member else "unknown", mark)
    log.info("process %d: started %s", popen.pid, Path(program).name)
    family = Family(identity, group, ours=True)
    family.on_failure = on_stuck
    process = Process(popen, family, on_output, None if held else stdin)
    process.is_outside = group is not None and not entries
    return process


def new_mark() -> str:
    """A mark that no other family has."""
    return secrets.token_hex(16)


async def end_leftover(identity: ProcessIdentity, grace_s: float) -> bool:
    """End a process that a service before this one has left, with its family; whether anything lived.

    Only that very process is signalled, what descends from it, what is in its group and what carries its
    mark: a pid that belongs to somebody else by now is left alone.
    """
    if identity.boot_id != boot_id():
        return False
    family = Family(identity, cgroups.find(identity.mark) if identity.mark else None, ours=False)
    found, quiet = False, 0
    while quiet < _QUIET_LOOKS:  # One that is just becoming another program shows no mark for a moment.
        if family.members():
            log.warning("process %d: left by a service that is gone; it is ended", identity.pid)
            await family.terminate(grace_s)
            await family.kill()
            found, quiet = True, 0
        else:
            quiet += 1
            await asyncio.sleep(_QUIET_S)
    await family.forget()
    return found


def _start(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path | str | None, *, piped_in: bool
) -> subprocess.Popen[bytes]:
    popen = subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE if piped_in else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    for pipe in (popen.stdin, popen.stdout, popen.stderr):
        if pipe:
            os.set_blocking(pipe.fileno(), False)
    return popen


def _reaped(popen: subprocess.Popen[bytes]) -> tuple[int | None, resource.struct_rusage | None]:
    """Take the zombie away: its exit code (below zero a signal) and what it and its children used."""
    try:
        _, status, usage = os.wait4(popen.pid, 0)
    except ChildProcessError:
        popen.returncode = 0
        return None, None
    popen.returncode = os.waitstatus_to_exitcode(status)
    return popen.returncode, usage


def _peak_bytes(usage: resource.struct_rusage | None) -> int | None:
    """The most that one process of the family held; None when that is less than the service itself has held.

    The kernel counts what a child shares with its parent until it becomes its program.
    """
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage.ru_maxrss << 10 if usage and usage.ru_maxrss > own else None


def _prefix(entries: Sequence[str], *, held: bool) -> list[str]:
    """A start that enters the groups before anything can be forked, and is the first to go when memory runs out.

    One that is held reads a line first, and ends when there is none.
    """
    enter = "".join(f'echo 0 >"${{{place}}}" || exit 126\n' for place, _ in enumerate(entries, 1))
    enter += "read -r _ || exit 125\nexec </dev/null\n" if held else ""
    script = f"{enter}shift {len(entries)}\necho 1000 >/proc/self/oom_score_adj\nunset PWD OLDPWD SHLVL _\n"
    return ["/bin/sh", "-c", f'{script}exec "$@"', "holdfast", *entries]


def _found(program: str, env: Mapping[str, str], cwd: Path | str | None) -> str:
    """The full path of a program, sought in the PATH that it is to have."""
    if "/" in program:
        path = os.path.join(cwd or "", program)
        found = program if os.access(path, os.X_OK) and not os.path.isdir(path) else None
        missing = not os.path.exists(path)
    else:
        found, missing = shutil.which(program, path=env.get("PATH", os.defpath)), True
    if found is None:
        number = errno.ENOENT if missing else errno.EACCES
        raise OSError(number, os.strerror(number), program)
    return found


@functools.cache
def _become_subreaper() -> None:
    """Let orphans of what this service starts come to the service, where they are found."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        log.warning("orphans of processes do not come to the service: %s", os.strerror(ctypes.get_errno()))


def _reap_orphans() -> None:
    """Reap orphans that have ended, and no child that somebody else waits for."""
    own = os.getsid(0)
    for pid in children_of(os.getpid()) - heads:
        member = look_at(pid)
        if member and member.state == "Z" and member.session != own:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
