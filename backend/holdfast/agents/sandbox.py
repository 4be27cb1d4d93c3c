"""The sandbox that a session's commands run in.

A sandbox does not start anything: it turns a command into one that confines itself (`Wrapped`), which
`engine.processes` starts. Inside, a command sees `/usr` read-only, the little of `/etc` that programs
need, a private `/tmp`, and its working folder at `/work`; it has no capability, no network unless it
is allowed, limits on memory, processes, file size and time, and nothing of the service's environment.

| | Bubblewrap | Landlock | off |
| --- | --- | --- | --- |
| files of the host | absent | refused | open |
| other processes | invisible (pid namespace) | visible to signals on kernels before 6.12 | open |
| network off | all of it | TCP, on kernels since 6.7 | no |
| ends with the service | all | the command, not what it left behind | the command |
| working folder | `/work` | its own path | its own path |

What no sandbox here limits: the sum of the files in the working folder, and, as root, the user
namespaces that a command makes for itself. With `network` a command reaches all that the host reaches.
"""

import hashlib
import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from holdfast.agents import landlock

log = logging.getLogger("holdfast.sandbox")

Wanted = Literal["auto", "bubblewrap", "landlock", "off"]

_PATH = "/usr/local/bin:/usr/bin:/bin"
_TEMPORARY_BYTES = 256 << 20
_FIRST_UID, _UIDS = 300_000, 60_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_ETC_FOLDERS = ("/etc", "/etc/pki", "/etc/pki/tls", "/etc/ssl")
_READABLE = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
_READABLE_WITH_NETWORK = ("/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf")
_DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")


class SandboxUnavailable(Exception):
    """The sandbox that was asked for does not start here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one command may use.

    `memory_bytes` holds for each process by itself (its private writable memory), `processes` for all
    of a session together, `file_bytes` for each file, `open_files` and `cpu_s` for each process.
    """

    memory_bytes: int = 1 << 30
    processes: int = 128
    file_bytes: int = 1 << 30
    open_files: int = 1024
    cpu_s: int | None = None
    network: bool = False


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A command that confines itself: what to start, with which whole environment.

    `uid` owns the files inside, and files that the service puts there must belong to it; None is the
    service's own user.
    """

    argv: list[str]
    env: dict[str, str]
    uid: int | None


class Sandbox(Protocol):
    """A way to confine commands.

    `confined` is False when it does not confine at all; `ends_together` is true when all that a command has
    started ends with its first process, whatever it did.
    """

    name: str
    confined: bool
    ends_together: bool

    def wrap(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        session: str,
        limits: Limits,
        env: Mapping[str, str] | None = None,
        as_owner: bool = False,
        outlives: bool = False,
    ) -> Wrapped:
        """The command, confined to `folder`, which is given to the user of the session.

        With `as_owner` the command runs as the user that the folder belongs to already; with `outlives` it ends with
        whoever starts it, which need not be the service.

        Raises:
            ValueError: A name in `env` is not a name of a variable, or a value has U+0000.
            OSError: The folder is missing, or cannot be given.
        """
        ...


def uid_of(session: str) -> int | None:
    """The user id that a session's commands run under; None when the service is not root."""
    if os.geteuid() != 0:
        return None
    digest = hashlib.blake2b(session.encode(), digest_size=8).digest()
    return _FIRST_UID + int.from_bytes(digest, "big") % _UIDS


def _user_of(session: str, folder: Path, *, as_owner: bool) -> int | None:
    """The user id that a command runs under; None when the service is not root."""
    return folder.stat().st_uid if as_owner and os.geteuid() == 0 else uid_of(session)


class Bubblewrap:
    """Namespaces by bubblewrap: as root with a user id for each session, else in a user namespace.

    `privileged` False takes the user namespace even as root, for containers whose root may not
    unshare anything else.
    """

    name = "bubblewrap"
    confined = True
    ends_together = True

    def __init__(self, program: str = "/usr/bin/bwrap", *, privileged: bool | None = None) -> None:
        self._program = program
        self._privileged = os.geteuid() == 0 if privileged is None else privileged
        self._system = list(_system_folders())
        self._options = _help_of(program)

    def wrap(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        session: str,
        limits: Limits,
        env: Mapping[str, str] | None = None,
        as_owner: bool = False,
        outlives: bool = False,
    ) -> Wrapped:
        """See `Sandbox`."""
        uid = _user_of(session, folder, as_owner=as_owner) if self._privileged else None
        _give(folder, uid)
        inner, variables = _within("/work", command, env)
        if uid is not None:
            inner = [*_setpriv(uid), *inner]
        argv = [
            *_with_names(1000 if uid is None else uid),
            self._program,
            *self._namespaces(uid, network=limits.network),
            *self._files(folder, network=limits.network),
            "--",
            *_limited(limits, inner),
        ]
        return Wrapped(argv, {**_base_environment("/work"), **variables}, uid)

    def _namespaces(self, uid: int | None, *, network: bool) -> list[str]:
        args = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        args += [] if network else ["--unshare-net"]
        args += ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        if uid is None:
            args += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
            args += ["--disable-userns"] if "--disable-userns" in self._options else []
        else:
            args += [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
        return args

    def _files(self, folder: Path, *, network: bool) -> list[str]:
        args = list(self._system)
        for path in _ETC_FOLDERS:
            args += ["--perms", "0755", "--dir", path]
        for descriptor, path in (("3", "/etc/passwd"), ("4", "/etc/group")):
            args += ["--perms", "0644", "--ro-bind-data", descriptor, path]
        for path in _READABLE + (_READABLE_WITH_NETWORK if network else ()):
            args += ["--ro-bind-try", path, path]
        args += ["--proc", "/proc", "--dev", "/dev", *self._tmpfs("/dev/shm"), "--remount-ro", "/dev"]
        args += [*self._tmpfs("/tmp"), "--bind", str(folder), "/work", "--remount-ro", "/"]
        return args

    def _tmpfs(self, path: str) -> list[str]:
        """A private folder in memory; its size is limited where this bubblewrap can."""
        size = ["--size", str(_TEMPORARY_BYTES)] if "--size" in self._options else []
        return [*size, "--perms", "1777", "--tmpfs", path]


class Landlock:
    """Landlock rules on files and TCP, for machines where namespaces are closed; it has no pid namespace."""

    name = "landlock"
    confined = True
    ends_together = False

    def wrap(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        session: str,
        limits: Limits,
        env: Mapping[str, str] | None = None,
        as_owner: bool = False,
        outlives: bool = False,
    ) -> Wrapped:
        """See `Sandbox`."""
        uid = _user_of(session, folder, as_owner=as_owner)
        _give(folder, uid)
        readable = [
            "/usr",
            "/bin",
            "/sbin",
            "/lib",
            "/lib32",
            "/lib64",
            "/libx32",
            *_READABLE,
            "/etc/passwd",
            "/etc/group",
        ]
        spec = {
            "folder": str(folder),
            "readable": [*readable, *(_READABLE_WITH_NETWORK if limits.network else ())],
            "devices": _DEVICES,
            "uid": uid,
            "limits": [(which, value) for _, which, value in _resources(limits if uid else _shared(limits))],
            "network": limits.network,
            "parent": None if outlives else os.getpid(),
        }
        base = {**_base_environment(str(folder)), "TMPDIR": str(folder)}
        argv = [sys.executable, "-I", "-S", landlock.__file__, json.dumps(spec), *command]
        return Wrapped(argv, {**base, **_prefixed(env)}, uid)


class Unconfined:
    """No sandbox: limits on what a command uses, and an environment of its own, as the service's user."""

    name = "off"
    confined = False
    ends_together = False

    def wrap(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        session: str,
        limits: Limits,
        env: Mapping[str, str] | None = None,
        as_owner: bool = False,
        outlives: bool = False,
    ) -> Wrapped:
        """See `Sandbox`."""
        inner, variables = _within(str(folder), command, env)
        argv = ["/usr/bin/setpriv", "--pdeathsig", "KILL", *_limited(_shared(limits), inner)]
        return Wrapped(argv, {**_base_environment(str(folder)), **variables}, None)


def find_sandbox(wanted: Wanted = "auto") -> Sandbox:
    """The first sandbox that really starts a command here; `auto` may end with none (`confined` False).

    Raises:
        SandboxUnavailable: `wanted` names one that does not start.
    """
    if wanted == "off":
        return Unconfined()
    reasons: list[str] = []
    for sandbox in _candidates(wanted):
        reason = _why_not(sandbox)
        if reason is None:
            return sandbox
        reasons.append(f"{sandbox.name}: {reason}")
        if wanted == "auto":
            log.warning("the sandbox %s does not start: %s", sandbox.name, reason)
    told = "; ".join(dict.fromkeys(reasons))
    if wanted != "auto":
        raise SandboxUnavailable(f"the sandbox does not start ({told}); choose another --sandbox, or `auto`")
    log.error("no sandbox starts on this machine; install bubblewrap")
    return Unconfined()


def _candidates(wanted: Wanted) -> Iterator[Sandbox]:
    if wanted in ("auto", "bubblewrap"):
        program = shutil.which("bwrap", path=f"{_PATH}:/usr/sbin") or "/usr/bin/bwrap"
        if os.geteuid() == 0:
            yield Bubblewrap(program, privileged=True)
        yield Bubblewrap(program, privileged=False)
    if wanted in ("auto", "landlock"):
        yield Landlock()


def _why_not(sandbox: Sandbox) -> str | None:
    """Why a sandbox does not start a command; None when it does."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        wrapped = sandbox.wrap(["true"], Path(folder), session="trial", limits=Limits())
        try:
            result = subprocess.run(
                wrapped.argv,
                env=wrapped.env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if result.returncode == 0:
        return None
    said = result.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else f"it exits with {result.returncode}"


def _help_of(program: str) -> str:
    """The options that this bubblewrap knows."""
    try:
        return subprocess.run([program, "--help"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _system_folders() -> Iterator[str]:
    """The arguments that show `/usr` and its old names, as they are on the host."""
    yield from ("--ro-bind", "/usr", "/usr")
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", os.readlink(path).removeprefix("/"), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)


def _give(folder: Path, uid: int | None) -> None:
    """Let the working folder itself belong to who works in it."""
    owner = os.geteuid() if uid is None else uid
    if folder.stat().st_uid != owner:
        os.chown(folder, owner, -1 if uid is None else uid)


def _setpriv(uid: int) -> list[str]:
    """Become the user of the session for good, without one capability."""
    ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"]
    return ["/usr/bin/setpriv", *ids, "--inh-caps=-all", "--bounding-set=-all"]


def _with_names(uid: int) -> list[str]:
    """Open a `passwd` and a `group` that know the two users inside, as descriptors 3 and 4."""
    users = f"root:x:0:0::/:/usr/sbin/nologin\nuser:x:{uid}:{uid}::/work:/bin/sh"
    groups = f"root:x:0:\nuser:x:{uid}:"
    return ["/bin/sh", "-c", f'unset PWD OLDPWD SHLVL _\nexec "$@" 3<<P 4<<G\n{users}\nP\n{groups}\nG\n', "holdfast"]


def _base_environment(home: str) -> dict[str, str]:
    return {"PATH": _PATH, "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb"}


def _prefixed(env: Mapping[str, str] | None) -> dict[str, str]:
    """Variables under names that no program of the prefix obeys: it may run as root, and LD_PRELOAD is one of them."""
    for name, value in (env or {}).items():
        if not _NAME.fullmatch(name) or "\0" in value:
            raise ValueError(f"{name!r} is not a name of a variable, or its value has U+0000")
    return {landlock.ENV_PREFIX + name: value for name, value in (env or {}).items()}


def _within(folder: str, command: Sequence[str], env: Mapping[str, str] | None) -> tuple[list[str], dict[str, str]]:
    """A command that goes into `folder` and takes its variables from their prefixed names, and those."""
    prefixed = _prefixed(env)
    script = 'cd "$0" || exit 126\nunset OLDPWD SHLVL _'
    for name in prefixed:
        script += f'\nexport {name.removeprefix(landlock.ENV_PREFIX)}="${name}"\nunset {name}'
    return ["/bin/sh", "-c", f'{script}\nexec "$@"', folder, *command], prefixed


def _resources(limits: Limits) -> Iterator[tuple[str, int, int]]:
    """Each limit as the option of prlimit, the resource and its value; never above what the service itself has."""
    wanted = [
        ("core", resource.RLIMIT_CORE, 0),
        ("data", resource.RLIMIT_DATA, limits.memory_bytes),
        ("fsize", resource.RLIMIT_FSIZE, limits.file_bytes),
        ("nofile", resource.RLIMIT_NOFILE, limits.open_files),
        ("nproc", resource.RLIMIT_NPROC, limits.processes),
    ]
    if limits.cpu_s is not None:
        wanted.append(("cpu", resource.RLIMIT_CPU, limits.cpu_s))
    for option, which, value in wanted:
        hard = resource.getrlimit(which)[1]
        yield option, which, value if hard == resource.RLIM_INFINITY else min(value, hard)


def _shared(limits: Limits) -> Limits:
    """The limits for a user that runs other things too: the kernel counts those in `processes`."""
    return replace(limits, processes=limits.processes + sum(_tasks_of(os.geteuid())))


def _tasks_of(uid: int) -> Iterator[int]:
    """How many threads each process of a user has."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                if entry.stat().st_uid == uid:
                    yield os.stat(f"{entry.path}/task").st_nlink - 2
            except OSError:
                continue


def _limited(limits: Limits, command: Sequence[str]) -> list[str]:
    """The command under its limits."""
    return ["/usr/bin/prlimit", *(f"--{option}={value}" for option, _, value in _resources(limits)), "--", *command]
