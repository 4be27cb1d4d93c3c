"""Confines this very process with Landlock, then becomes the command: `python -I -S landlock.py SPEC COMMAND...`.

It is run as a script, before anything of Holdfast is loaded, so that a start costs little. SPEC is JSON:
`folder` (may be written), `readable` and `devices` (paths), `uid` (or null), `limits` ([resource, value]...),
`network`, `parent` (the pid that must be alive). What the command gets in its environment beside what
is there already stands in variables `HOLDFAST_ENV_<name>`.

See https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_TRUNCATE, _IOCTL = 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL

ENV_PREFIX = "HOLDFAST_ENV_"


class _Ruleset(ctypes.Structure):
    _fields_ = [("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def version() -> int:
    """The version of Landlock that the kernel knows; 0 when it has none."""
    return max(0, _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _file_rights(abi: int) -> int:
    """All rights on files that this version can refuse."""
    rights = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        if abi >= since:
            rights |= 1 << bit
    return rights


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow `rights` on `path` and all beneath it; a path that does not exist is left out."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(f"/proc/self/fd/{fd}"):
        rights &= _FILE_RIGHTS
    rule = _Beneath(rights, fd)
    _checked(_LIBC.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0))
    os.close(fd)


def restrict(folder: str, readable: list[str], devices: list[str], *, network: bool) -> None:
    """Refuse this process all files but these, and, where the kernel can, TCP and signals to others.

    Raises:
        OSError: The kernel has no Landlock or does not allow it.
    """
    abi = version()
    every = _file_rights(abi)
    ruleset_attr = _Ruleset(every, 0 if network else 3, 3)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, ctypes.byref(ruleset_attr), ctypes.c_size_t(size), 0))
    _allow(ruleset, folder, every & ~_IOCTL)
    for path in readable:
        _allow(ruleset, path, every & _READ)
    for path in devices:
        _allow(ruleset, path, every & (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL))
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _environment() -> dict[str, str]:
    """What the command sees: the given names win over those that are there."""
    given = {name: value for name, value in os.environ.items() if name.startswith(ENV_PREFIX)}
    base = {name: value for name, value in os.environ.items() if name not in given}
    return base | {name.removeprefix(ENV_PREFIX): value for name, value in given.items()}


def main(spec: str, *command: str) -> None:
    """Confine, and become the command."""
    wanted = json.loads(spec)
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.chdir(wanted["folder"])
    for which, value in wanted["limits"]:
        resource.setrlimit(which, (value, value))
    if wanted["uid"] is not None:
        os.setgroups([])
        os.setresgid(wanted["uid"], wanted["uid"], wanted["uid"])
        os.setresuid(wanted["uid"], wanted["uid"], wanted["uid"])
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if wanted["parent"] not in (None, os.getppid()):
        sys.exit("the service that asked for this command is gone")
    restrict(".", wanted["readable"], wanted["devices"], network=wanted["network"])
    _become(command, _environment())


def _become(command: tuple[str, ...], environment: dict[str, str]) -> None:
    """Become the command, sought in its own PATH; else end with 127 (not found) or 126, as a shell does."""
    folders = [""] if "/" in command[0] else environment["PATH"].split(":")
    fault: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for folder in folders:
        try:
            os.execve(os.path.join(folder, command[0]), command, environment)
        except FileNotFoundError:
            continue
        except OSError as error:
            fault = error
    sys.stderr.write(f"{command[0]}: {fault.strerror}\n")
    sys.exit(127 if isinstance(fault, FileNotFoundError) else 126)


if __name__ == "__main__":
    main(*sys.argv[1:])
