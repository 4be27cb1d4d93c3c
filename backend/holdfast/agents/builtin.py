"""The tools that every agent has: `bash`, files, and a search in them.

Only `bash` runs commands. The others reach files through the session's `Folder` alone, and work without a
sandbox.
"""

import asyncio
import difflib
import fnmatch
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, BinaryIO

from msgspec import Meta

from holdfast.agents.folder import Folder, FolderError
from holdfast.agents.tools import InvalidArguments, Toolbox, ToolContext, ToolResult, in_thread, tool
from holdfast.domain.events import clean_text

READ_CHARS = 256 << 10
"""The most that `file_read` shows at once."""

LINE_BYTES = 2000
"""The most that is shown of one line."""

SCAN_BYTES = 64 << 20
"""How far into a file `file_read` goes."""

DIFF_CHARS = 64 << 10
DIFF_LINES = 2000
"""A change that spans more lines is shown as all the old and then all the new ones."""

SEARCH_S = 20.0
"""How long a search may take."""

SEARCH_FILE_BYTES = 8 << 20
"""Larger files are not searched."""

NOT_SEARCHED = frozenset({".git", "node_modules"})

_SAMPLE_BYTES = 8192
_STOP_S = 1.0
_GLOBS = 64
_AROUND = 3

_MATCHER = r"""
import json, re, resource, sys

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
source, sink = sys.stdin.buffer, sys.stdout.buffer

def answer(value):
    sink.write(json.dumps(value).encode() + b"\n")
    sink.flush()

pattern, ignore_case = json.loads(source.readline())
try:
    find = re.compile(pattern, re.IGNORECASE if ignore_case else 0).search
except (re.error, OverflowError, RecursionError) as error:
    answer(str(error))
    sys.exit()
answer(None)
for head in source:
    size, wanted = map(int, head.split())
    found = []
    for number, line in enumerate(source.read(size).decode("utf-8", "replace").split("\n"), 1):
        match = find(line.rstrip("\r"))
        if match:
            start = max(0, match.start() - 100)
            found.append([number, line[start : start + 300].strip()])
            if len(found) == wanted:
                break
    answer(found)
"""
"""Python's regular expressions cannot be stopped, so they run in a process that can be; it reaches no file."""

Path = Annotated[str, Meta(description="Path within the working folder")]
Offset = Annotated[int, Meta(ge=0, description="Lines to skip")]
Lines = Annotated[int, Meta(ge=1, le=10_000, description="Lines to read")]
Seconds = Annotated[float, Meta(gt=0, le=3600, description="Stop the command after so many seconds")]
Command = Annotated[str, Meta(min_length=1, description="What bash is to run")]
Content = Annotated[str, Meta(description="All that the file is to hold")]
Old = Annotated[str, Meta(min_length=1, description="The exact text to replace, with its whitespace")]
New = Annotated[str, Meta(description="What stands there afterwards")]
All = Annotated[bool, Meta(description="Replace every occurrence; else there must be exactly one")]
Pattern = Annotated[str, Meta(min_length=1, max_length=2000, description="Regular expression of Python")]
Glob = Annotated[str, Meta(max_length=500, description="Only files like this, such as `*.py` or `src/**/*.ts`")]
Matches = Annotated[int, Meta(ge=1, le=2000, description="Matching lines to show")]


@tool(confined=True)
async def bash(context: ToolContext, command: Command, timeout_s: Seconds = 120) -> ToolResult:
    """Run a command of bash in the working folder and show its output and how it ended."""
    if clean_text(command) != command:
        raise InvalidArguments("command: has U+0000, or is not valid Unicode")
    result = await context.run(command, timeout_s=timeout_s)
    notes: list[str] = []
    if result.truncated:
        notes.append(f"({result.bytes} bytes in all; the middle is left out)")
    if result.timed_out:
        notes.append(f"(stopped after {timeout_s:g} s)")
    elif result.signal is not None:
        notes.append(f"(ended by signal {result.signal})")
    elif result.exit_code:
        notes.append(f"(exit code {result.exit_code})")
    elif not result.output:
        notes.append("(no output)")
    extra = {"exit_code": result.exit_code, "signal": result.signal, "bytes": result.bytes, "link": result.link}
    return ToolResult(
        _with_notes(result.output, notes),
        failed=result.timed_out or result.exit_code != 0,
        extra={name: value for name, value in extra.items() if value is not None},
    )


@tool
def file_read(context: ToolContext, path: Path, offset: Offset = 0, limit: Lines = 2000) -> str:
    """Show a text file with line numbers, or what is in it by pages with `offset` and `limit`."""
    with os.fdopen(context.folder.open(path), "rb") as file:
        if b"\0" in file.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]:
            return f"{path} is a binary file of {os.fstat(file.fileno()).st_size} bytes"
        shown, passed, more = _page(file, offset, limit)
    if shown:
        return _with_notes("\n".join(shown), [f"(there is more; go on with offset={passed})"] if more else [])
    if more:
        return f"({path} has no line {offset + 1} within its first {SCAN_BYTES >> 20} MiB)"
    return f"({path} has only {passed} lines)" if passed else f"({path} is empty)"


@tool
def file_write(context: ToolContext, path: Path, content: Content) -> ToolResult:
    """Create a text file or replace all that is in it; folders on the way are made."""
    data = _encoded("content", content)
    previous = context.folder.write(path, data)
    done = f"{'Created' if previous is None else 'Replaced'} {path}: {len(data)} bytes"
    return ToolResult(done, extra=_changed(context.folder, path, previous, data))


@tool
def file_edit(context: ToolContext, path: Path, old: Old, new: New, all: All = False) -> ToolResult:
    """Replace text in a file.

    There must be exactly one occurrence, unless `all` is set.
    """
    _encoded("old", old)
    _encoded("new", new)
    previous, text = _text_of(context.folder, path)
    if "\r\n" in text and old not in text:
        old, new = _with_crlf(old), _with_crlf(new)
    count = text.count(old)
    if fault := _why_not(text, old, new, count, all=all):
        return ToolResult(f"{path}: {fault}", failed=True)
    if len(text) + count * (len(new) - len(old)) > context.folder.limit_bytes:
        raise FolderError(f"{path}: would be too large")
    data = text.replace(old, new).encode()
    context.folder.write(path, data)
    times = "once" if count == 1 else f"{count} times"
    return ToolResult(f"Replaced {times} in {path}", extra=_changed(context.folder, path, previous, data))


@tool
async def search(
    context: ToolContext,
    pattern: Pattern,
    path: Path = "",
    glob: Glob | None = None,
    ignore_case: bool = False,
    limit: Matches = 200,
) -> ToolResult:
    """Find the lines of text files that match a regular expression, in one file or in all below a folder.

    Binary files, very large ones, links, `.git` and `node_modules` are left out.
    """
    for name, text in (("pattern", pattern), ("glob", glob or "")):
        _encoded(name, text)
    seeker = _Seeker(context.folder, pattern, path, glob, limit, ignore_case=ignore_case)
    work = asyncio.ensure_future(in_thread(seeker.run))
    cancelled = asyncio.ensure_future(context.cancelled.wait())
    try:
        await asyncio.wait({work, cancelled}, timeout=SEARCH_S, return_when=asyncio.FIRST_COMPLETED)
        cut = not work.done()
        seeker.stop()
        await asyncio.wait({work}, timeout=_STOP_S)
        if work.done():
            work.result()
    finally:
        seeker.stop()
        cancelled.cancel()
        work.cancel()
    if context.cancelled.is_set:
        return ToolResult("The search was cancelled", failed=True)
    return seeker.result(cut=cut)


BUILTIN = Toolbox([bash, file_read, file_write, file_edit, search])


class _Seeker:
    """One search. `run` is called in a thread; `stop` from any other ends it soon."""

    def __init__(
        self, folder: Folder, pattern: str, path: str, glob: str | None, limit: int, *, ignore_case: bool
    ) -> None:
        self._folder = folder
        self._asked = json.dumps([pattern, ignore_case])
        self._path = path
        self._globs = _expand(glob) if glob else None
        self._limit = limit
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._found: list[str] = []
        self._large = 0
        self._at = path

    def stop(self) -> None:
        """End the search; what was found stays."""
        self._stopped.set()
        if self._process is not None:
            self._process.kill()

    def run(self) -> None:
        """Search until all is searched, enough is found, or `stop`.

        Raises:
            FolderError: There is nothing of this path, or the pattern needs too much memory.
            InvalidArguments: The pattern is none.
        """
        command = [sys.executable, "-I", "-S", "-c", _MATCHER]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
        )
        self._process = process
        try:
            self._search(process)
        except EOFError:
            if not self._stopped.is_set():
                raise FolderError(f"{self._at}: the pattern needs too much memory here") from None
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close() if pipe else None

    def result(self, *, cut: bool) -> ToolResult:
        """What was found, and what was left out."""
        found = list(self._found)
        notes: list[str] = []
        if cut:
            notes.append(f"(stopped after {SEARCH_S:g} s at {self._at}: narrow the search or simplify the pattern)")
        if len(found) > self._limit:
            notes.append(f"(there are more than {self._limit} matches)")
        if self._large:
            notes.append(f"(left out: {self._large} files of more than {SEARCH_FILE_BYTES >> 20} MiB)")
        if not found and not cut:
            notes.insert(0, "No matches")
        return ToolResult(_with_notes("\n".join(found[: self._limit]), notes), failed=cut and not found)

    def _search(self, process: "subprocess.Popen[bytes]") -> None:
        fault = _ask(process, self._asked.encode() + b"\n")
        if fault is not None:
            raise InvalidArguments(f"pattern: {fault}")
        for path, size in self._files():
            if self._stopped.is_set() or len(self._found) > self._limit:
                return
            self._at = clean_text(path)
            if size > SEARCH_FILE_BYTES:
                self._large += 1
                continue
            with suppress(FolderError):
                data, _ = self._folder.read(path, 0, SEARCH_FILE_BYTES)
                if b"\0" not in data[:_SAMPLE_BYTES]:
                    wanted = self._limit + 1 - len(self._found)
                    found = _ask(process, b"%d %d\n" % (len(data), wanted), data)
                    self._found += [f"{self._at}:{number}: {clean_text(line)}" for number, line in found]

    def _files(self) -> Iterator[tuple[str, int]]:
        """The paths and sizes of the files to search."""
        try:
            fd = self._folder.open(self._path)
        except FolderError:
            for path, entry in self._folder.walk(self._path, skip=NOT_SEARCHED):
                if self._stopped.is_set():
                    return
                if entry.kind == "file" and self._is_asked(path):
                    yield path, entry.bytes
        else:
            with os.fdopen(fd, "rb"):
                size = os.fstat(fd).st_size
            yield self._path, size

    def _is_asked(self, path: str) -> bool:
        if self._globs is None:
            return True
        names = (path, path.rpartition("/")[2])
        return any(fnmatch.fnmatchcase(name, glob) for glob in self._globs for name in names)


def _ask(process: "subprocess.Popen[bytes]", *parts: bytes) -> Any:
    """Send to the matcher and take its answer.

    Raises:
        EOFError: It has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for part in parts:
            process.stdin.write(part)
        process.stdin.flush()
    except BrokenPipeError:
        raise EOFError from None
    answer = process.stdout.readline()
    if not answer.endswith(b"\n"):
        raise EOFError
    return json.loads(answer)


def _expand(glob: str) -> list[str]:
    """What `fnmatch` knows: `{a,b}` as two, `**/` as any folders or none."""
    ready: set[str] = set()
    waiting = [glob.removeprefix("/")]
    while waiting and len(ready) + len(waiting) <= _GLOBS:
        head = waiting.pop()
        if match := re.search(r"\{([^{}]*)\}", head):
            waiting += [head[: match.start()] + each + head[match.end() :] for each in match[1].split(",")]
        else:
            ready |= {head, head.replace("**/", "")}
    return [*ready, *waiting]


def _page(file: BinaryIO, offset: int, limit: int) -> tuple[list[str], int, bool]:
    """Numbered lines of a file from `offset`, how many lines were passed or shown, and whether there is more."""
    shown: list[str] = []
    passed = chars = 0
    while line := file.readline(LINE_BYTES):
        left_out = 0 if line.endswith(b"\n") else _skip_line(file)
        if len(shown) == limit or chars > READ_CHARS:
            return shown, passed, True
        passed += 1
        if passed > offset:
            text = line.rstrip(b"\r\n").decode(errors="replace")
            shown.append(f"{passed:>6}\t{text}" + (f" ... ({left_out} bytes more)" if left_out else ""))
            chars += len(text)
        if file.tell() > SCAN_BYTES:
            return shown, passed, True
    return shown, passed, False


def _skip_line(file: BinaryIO) -> int:
    """Go to the next line; returns how many bytes were passed over, without the end of the line."""
    passed = 0
    while (rest := file.readline(1 << 16)) and file.tell() <= SCAN_BYTES:
        passed += len(rest.rstrip(b"\r\n"))
        if rest.endswith(b"\n"):
            break
    return passed


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArguments(f"{name}: is not valid Unicode") from None


def _text_of(folder: Folder, path: str) -> tuple[bytes, str]:
    """A whole text file, as it is and decoded."""
    data, size = folder.read(path)
    if size > len(data):
        raise FolderError(f"{path}: {size} bytes are too many to edit")
    try:
        return data, data.decode()
    except UnicodeDecodeError:
        raise FolderError(f"{path}: is not a text file in UTF-8") from None


def _with_crlf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _why_not(text: str, old: str, new: str, count: int, *, all: bool) -> str | None:
    """Why a replacement is not done."""
    if old == new:
        return "`old` and `new` are the same"
    if count == 0:
        return "`old` is not in the file; it must be the exact text, with its whitespace and without line numbers"
    if count > 1 and not all:
        return f"`old` is there {count} times ({_places(text, old)}); make it longer until it is unique, or set `all`"
    return None


def _places(text: str, old: str) -> str:
    """The lines where the first occurrences begin."""
    lines: list[str] = []
    at = 0
    while len(lines) < 5 and (at := text.find(old, at)) >= 0:
        lines.append(str(text.count("\n", 0, at) + 1))
        at += len(old)
    return f"lines {', '.join(lines)}"


def _changed(folder: Folder, path: str, before: bytes | None, after: bytes) -> dict[str, Any]:
    """What the page shows of a change: the size, and a diff where both are text that was read whole."""
    extra: dict[str, Any] = {"bytes": len(after)}
    if len(before or b"") < folder.limit_bytes and b"\0" not in (before or b"") + after:
        extra["diff"] = unified_diff(path, before, after)
    return extra


def unified_diff(path: str, before: bytes | None, after: bytes) -> str:
    """The change of a file as a unified diff; bounded in length, and in the time that it takes.

    Empty when nothing has changed.
    """
    old, new = _lines(before or b""), _lines(after)
    shown: list[str] = []
    chars = 0
    for line in _diff_lines(old, new):
        chars += len(line)
        if chars > DIFF_CHARS:
            shown.append("(the rest of the change is not shown)\n")
            break
        shown.append(line)
    if not shown and before is not None:
        return ""
    return "".join([f"--- {'/dev/null' if before is None else path}\n", f"+++ {path}\n", *shown])


def _diff_lines(old: list[str], new: list[str]) -> Iterator[str]:
    for group in _groups(old, new):
        (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
        yield f"@@ -{_range(i1, i2)} +{_range(j1, j2)} @@\n"
        for tag, i1, i2, j1, j2 in group:
            yield from ((" " if tag == "equal" else "-") + line for line in islice(old, i1, i2))
            if tag != "equal":
                yield from ("+" + line for line in islice(new, j1, j2))


_Opcode = tuple[str, int, int, int, int]


def _groups(old: list[str], new: list[str]) -> Iterator[list[_Opcode]]:
    """The changes with the lines around them; only what lies between the equal ends is compared."""
    most = min(len(old), len(new))
    head = next((at for at in range(most) if old[at] != new[at]), most)
    tail = next((at for at in range(most - head) if old[-1 - at] != new[-1 - at]), most - head)
    above, below = min(head, _AROUND), min(tail, _AROUND)
    start = head - above
    before, after = old[start : len(old) - tail + below], new[start : len(new) - tail + below]
    i, j = len(before) - below, len(after) - below
    groups: Iterable[list[_Opcode]] = [
        [("equal", 0, above, 0, above), ("replace", above, i, above, j), ("equal", i, i + below, j, j + below)]
    ]
    if max(i, j) - above <= DIFF_LINES:
        groups = difflib.SequenceMatcher(None, before, after).get_grouped_opcodes(_AROUND)
    for group in groups:
        yield [(tag, i1 + start, i2 + start, j1 + start, j2 + start) for tag, i1, i2, j1, j2 in group]


def _range(first: int, end: int) -> str:
    """A range of lines as a unified diff has it."""
    return f"{first + 1}" if end - first == 1 else f"{first + (end > first)},{end - first}"


def _lines(data: bytes) -> list[str]:
    """Lines with their ends; a last one without an end says so, as in a diff."""
    *lines, last = data.decode(errors="replace").split("\n")
    return [f"{line}\n" for line in lines] + ([f"{last}\n\\ No newline at end of file\n"] if last else [])


def _with_notes(text: str, notes: Iterable[str]) -> str:
    return "\n".join([*([text.rstrip("\n")] if text else []), *notes])
