"""The working folder of a session, and the only way that tools reach files.

Whoever names the paths is a model, and what is in the folder was made by commands that may be hostile and
that go on while it is read. No path leads out of the folder: not with `..`, not as an absolute path, not
over a symbolic link, not by a folder that becomes a link between a check and its use. Every file is opened
below a descriptor of the folder, by the kernel's own rule (`openat2` with RESOLVE_BENEATH) or, where the
kernel has none, component by component without following any link.

Inside a sandbox the folder is mounted at `/work`, so that `/work/a` means `a`. See openat2(2).
"""

import ctypes
import errno
import functools
import os
import posixpath
import secrets
import stat
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec

from holdfast.domain.events import clean_text

LIMIT_BYTES = 16 << 20
"""The most that is read at once, or written."""

MOUNT = "/work"
"""Where commands see the folder; see `sandbox`."""

_OPENAT2 = 437
_NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x02, 0x04, 0x08
_TRIES = 64
"""How often a path is resolved again when a rename elsewhere disturbed it."""

_LINKS = 16
_SCANNED = 100_000
"""How many entries of one folder a walk looks at."""

_PATH_BYTES, _NAME_BYTES = 4095, 255
_LAST_SECOND = 253_402_300_799.0
"""The end of the year 9999."""

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_WORDS = {
    errno.EACCES: "permission denied",
    errno.EAGAIN: "is being moved about; try again",
    errno.EDQUOT: "there is no space left",
    errno.EISDIR: "is a folder",
    errno.ELOOP: "goes over a link that is not followed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOSPC: "there is no space left",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.ENXIO: "is not a regular file",
    errno.EPERM: "permission denied",
    errno.EXDEV: "leads out of the working folder",
}

Kind = Literal["file", "folder", "link", "other"]

_Parts = list[str]


class FolderError(ValueError):
    """Why a file cannot be had, in words that a model and a user may see: no path of the host is in them."""


class Entry(msgspec.Struct, frozen=True):
    """What a folder holds under one name. A link is not followed: its size and time are its own.

    What is not Unicode in a name is U+FFFD; `modified` is aware UTC.
    """

    name: str
    kind: Kind
    bytes: int
    modified: datetime


_Found = list[tuple[str, Entry]]


class Folder:
    """The files of one session. All methods block, and may be called from any thread.

    Args:
        root: The folder. It must exist, and who works in it must not be able to replace it.
        owner: The user and group id that new files and folders are given; None leaves them the service's own.
        limit_bytes: The most that is read at once, or written.
        kernel: Whether the kernel resolves paths; None asks it. Without it no link is followed, inside or out.
    """

    def __init__(
        self, root: Path, *, owner: int | None = None, limit_bytes: int = LIMIT_BYTES, kernel: bool | None = None
    ) -> None:
        self.root = root
        self.owner = owner
        self.limit_bytes = limit_bytes
        self._kernel = _has_openat2() if kernel is None else kernel

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> tuple[bytes, int]:
        """At most `limit` bytes of a file from `offset`, and the size of the whole file.

        Raises:
            FolderError: There is no such regular file.
        """
        fd = self.open(path)
        try:
            with _told(path):
                wanted = self.limit_bytes if limit is None else min(limit, self.limit_bytes)
                return _pread(fd, offset, wanted), os.fstat(fd).st_size
        finally:
            os.close(fd)

    def open(self, path: str) -> int:
        """A descriptor to read a regular file from; the caller closes it.

        Raises:
            FolderError: There is no such regular file.
        """
        with _told(path), self._rooted() as root:
            fd = self._open(root, _parts(path), _READ)
            try:
                _check_regular(os.fstat(fd), path)
            except FolderError:
                os.close(fd)
                raise
            return fd

    def write(self, path: str, data: bytes) -> bytes | None:
        """Create or replace a file at once, so that nobody sees half of it; folders on the way are made.

        A file that was there keeps its permissions, and a link inside the folder leads to what is replaced.

        Returns:
            What the file held before, at most `limit_bytes` of it; None when it is new.

        Raises:
            FolderError: The file cannot be written, has other hard links, or `data` is too long.
        """
        if len(data) > self.limit_bytes:
            raise FolderError(f"{_shown(path)}: {len(data)} bytes are too many; at most {self.limit_bytes}")
        with _told(path), self._rooted() as root, self._place(root, path) as (directory, name):
            previous, mode = self._previous(directory, name, path)
            self._replace(directory, name, data, mode)
            return previous

    def list(self, path: str = "", limit: int = 10_000) -> Sequence[Entry]:
        """What a folder holds, by name; at most `limit` entries, whichever come first.

        Raises:
            FolderError: There is no such folder.
        """
        with _told(path), self._rooted() as root:
            found = self._scan(root, _parts(path), limit, links=True)
        return sorted((entry for _, entry in found), key=lambda entry: entry.name)

    def walk(
        self, path: str = "", *, limit: int = 100_000, depth: int = 32, skip: Collection[str] = ()
    ) -> Iterator[tuple[str, Entry]]:
        """All below a folder, as (path from the working folder, entry), each folder by name before what it holds.

        Links are not followed. It ends after `limit` entries, does not go deeper than `depth` folders, nor
        into folders whose name is in `skip`. A path may hold surrogates for what is not Unicode in it (PEP 383).

        Raises:
            FolderError: There is no such folder. One that vanishes on the way is passed over.
        """
        start = _parts(path)
        with _told(path), self._rooted() as root:
            waiting = _reversed(start, self._scan(root, start, _SCANNED, links=True))
        while waiting and limit > 0:
            parts, entry = waiting.pop()
            limit -= 1
            yield "/".join(parts), entry
            if entry.kind == "folder" and parts[-1] not in skip and len(parts) - len(start) < depth:
                with suppress(OSError), self._rooted() as root:
                    waiting += _reversed(parts, self._scan(root, parts, _SCANNED, links=False))
            del waiting[: max(len(waiting) - limit, 0)]

    @contextmanager
    def _rooted(self) -> Generator[int]:
        """A descriptor of the folder itself."""
        try:
            fd = os.open(self.root, _FOLDER)
        except OSError as error:
            raise FolderError("the working folder cannot be opened") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, root: int, parts: _Parts, flags: int, *, links: bool = True) -> int:
        """Open what lies below `root`, by whichever way there is."""
        if self._kernel:
            resolve = _BENEATH | _NO_MAGICLINKS | (0 if links else _NO_SYMLINKS)
            return _openat2(root, "/".join(parts) or ".", flags, resolve)
        return _open_stepwise(root, parts, flags)

    def _scan(self, root: int, parts: _Parts, limit: int, *, links: bool) -> _Found:
        """What a folder holds: at most `limit` times a name as the system has it, and its entry."""
        fd = self._open(root, parts, _FOLDER, links=links)
        try:
            with os.scandir(fd) as found:
                entries = [(each.name, _entry(each)) for each in islice(found, max(limit, 0))]
        finally:
            os.close(fd)
        return [(name, entry) for name, entry in entries if entry is not None]

    @contextmanager
    def _place(self, root: int, path: str) -> Generator[tuple[int, str]]:
        """Where a file is to be written: its folder, made if need be, and its name there, which is no link."""
        parts = _parts(path)
        directory = self._make_folders(root, parts[:-1])
        try:
            for _ in range(_LINKS):
                if not parts or parts[-1] in (".", ".."):
                    raise IsADirectoryError(errno.EISDIR, "")
                target = _link(directory, parts[-1])
                if target is None:
                    yield directory, parts[-1]
                    return
                parts = self._beside(parts, target)
                os.close(directory)
                directory = -1
                directory = self._open(root, parts[:-1], _FOLDER)
            raise OSError(errno.ELOOP, "")
        finally:
            if directory >= 0:
                os.close(directory)

    def _beside(self, link: _Parts, target: str) -> _Parts:
        """Where a link leads to, left for the kernel to resolve."""
        if not self._kernel:
            raise OSError(errno.ELOOP, "")
        if target.startswith("/"):
            raise OSError(errno.EXDEV, "")
        return [*link[:-1], *(part for part in target.split("/") if part)]

    def _make_folders(self, root: int, parts: _Parts) -> int:
        """Open a folder; make it, and those above it, where they are not there."""
        directory = self._open(root, [], _FOLDER)
        for end in range(1, len(parts) + 1):
            try:
                inner = self._open(root, parts[:end], _FOLDER)
            except FileNotFoundError:
                inner = self._make_folder(directory, parts[end - 1])
            finally:
                os.close(directory)
            directory = inner
        return directory

    def _make_folder(self, directory: int, name: str) -> int:
        made = False
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=directory)
            made = True
        fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=directory)
        try:
            if made:
                self._give(fd, 0o755)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _previous(self, directory: int, name: str, path: str) -> tuple[bytes | None, int]:
        """What a file holds that is to be replaced, and its permissions."""
        try:
            fd = os.open(name, _READ | os.O_NOFOLLOW, dir_fd=directory)
        except FileNotFoundError:
            return None, 0o644
        try:
            status = os.fstat(fd)
            _check_regular(status, path)
            if status.st_nlink > 1:
                raise FolderError(
                    f"{_shown(path)}: is not written, since the same file has {status.st_nlink} names (hard links)"
                )
            return _pread(fd, 0, self.limit_bytes), status.st_mode & 0o777
        finally:
            os.close(fd)

    def _replace(self, directory: int, name: str, data: bytes, mode: int) -> None:
        temporary = f".holdfast-{secrets.token_hex(8)}"
        fd = os.open(temporary, _NEW, 0o600, dir_fd=directory)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                self._give(fd, mode)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def _give(self, fd: int, mode: int) -> None:
        """Let what was made belong to who works here."""
        if self.owner is not None:
            os.fchown(fd, self.owner, self.owner)
        os.fchmod(fd, mode)


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_How), ctypes.c_size_t]
_syscall.restype = ctypes.c_long


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open by openat2(2); a path that was disturbed (EAGAIN) is tried again."""
    how = _How(flags, 0, resolve)
    error = 0
    for _ in range(_TRIES):
        fd = int(_syscall(_OPENAT2, directory, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error, os.strerror(error))


@functools.cache
def _has_openat2() -> bool:
    """False on kernels before 5.6, and where a filter of system calls refuses it."""
    try:
        os.close(_openat2(-100, ".", os.O_PATH | os.O_CLOEXEC, _BENEATH))
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def _open_stepwise(root: int, parts: _Parts, flags: int) -> int:
    """Open component by component, each a folder and not a link; `parts` has no `..`."""
    directory = os.dup(root)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _STEP, dir_fd=directory)
            os.close(directory)
            directory = inner
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)


def _parts(path: str) -> _Parts:
    """The components of a path as a model writes it; `..` is taken back by the component before it.

    Raises:
        FolderError: It is absolute, leads out, or is no path at all.
    """
    if "\0" in path:
        raise FolderError(f"{_shown(path)}: a path has no U+0000")
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError:
        raise FolderError(f"{_shown(path)}: is not valid Unicode") from None
    within = path
    if path == MOUNT or path.startswith(f"{MOUNT}/"):
        within = path[len(MOUNT) :].lstrip("/")
    normal = posixpath.normpath(within) if within else "."
    if normal.startswith("/"):
        raise FolderError(f"{_shown(path)}: name a path within the working folder, without `/` in front")
    parts = [] if normal == "." else normal.split("/")
    if ".." in parts:
        raise FolderError(f"{_shown(path)}: {_WORDS[errno.EXDEV]}")
    if size > _PATH_BYTES or any(len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        raise FolderError(f"{_shown(path)}: {_WORDS[errno.ENAMETOOLONG]}")
    return parts


def _shown(path: str) -> str:
    """A path for a message: valid Unicode, and not too long."""
    return clean_text(path if len(path) <= 200 else f"{path[:200]}...") or "(no path)"


@contextmanager
def _told(path: str) -> Generator[None]:
    """Turn what the system says into words about `path`."""
    try:
        yield
    except OSError as error:
        words = _WORDS.get(error.errno or 0) or os.strerror(error.errno or 0).lower()
        raise FolderError(f"{_shown(path)}: {words}") from error


def _check_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise FolderError(f"{_shown(path)}: {_WORDS[errno.EISDIR]}")
    if not stat.S_ISREG(status.st_mode):
        raise FolderError(f"{_shown(path)}: {_WORDS[errno.ENXIO]}")


def _pread(fd: int, offset: int, limit: int) -> bytes:
    """At most `limit` bytes; fewer only at the end of the file."""
    chunks: list[bytes] = []
    while limit > 0 and (chunk := os.pread(fd, min(limit, 1 << 20), offset)):
        chunks.append(chunk)
        offset += len(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _link(directory: int, name: str) -> str | None:
    """What a link holds; None when there is no link."""
    try:
        return os.readlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def _entry(found: "os.DirEntry[str]") -> Entry | None:
    """What was found; None when it is gone again."""
    try:
        status = found.stat(follow_symlinks=False)
    except OSError:
        return None
    modified = datetime.fromtimestamp(min(max(status.st_mtime, 0.0), _LAST_SECOND), UTC)
    return Entry(clean_text(found.name), _kind(status.st_mode), status.st_size, modified)


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


def _reversed(parts: _Parts, found: _Found) -> list[tuple[_Parts, Entry]]:
    """Entries with their paths, the last by name first."""
    return [([*parts, name], entry) for name, entry in sorted(found, key=lambda each: each[0], reverse=True)]
