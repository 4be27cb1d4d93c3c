"""The demo agent: no model, no key, no network, and no pretence.

Each line of a message that is a command is carried out, in order:

    slow N         N words, about 20 a second        fast N           N words, as fast as possible
    fail after N   N words, then an exception        think T          reasoning, then an answer
    run C          runs the command C                ask C            the same, but asks for approval first
    read P         shows the file P                  write P T        writes the text T into the file P

Anything else is answered with what it can do, and an echo. What it says and does depends on the message
alone, so that an answer that was handed over, cut or approved goes on exactly where it stopped.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from holdfast.agents.turn import Agent, AgentEvent, CancelToken, Reasoning, Text, Turn, Usage

WORDS = tuple(
    "The tide comes in and the anchor holds fast while the wind turns over the harbour and every rope "  # noqa: SIM905
    "that was tied by a careful hand is still there in the morning when the fog lifts ".split()
)

SLOW_S = 0.05
ANSWER_S = 0.015
ECHO_CHARS = 4000
"""The longest echo; what is longer is cut, and the answer says so."""

_BREATH = 256
"""After so many words without a pause, others get their turn on the event loop."""

_COMMAND = re.compile(
    r"(?P<count>slow|fast|fail after)[ \t]+(?P<n>[0-9]{1,12})|think[ \t]+(?P<thought>\S.*)"
    r"|(?P<how>run|ask)[ \t]+(?P<command>\S.*)|read[ \t]+(?P<read>\S+)"
    r"|write[ \t]+(?P<write>\S+)[ \t]+(?P<text>\S.*)"
)
_PIECE = re.compile(r"\S+\s*|\s+")

HELP = """I am the **demo agent**: I have no model, and I understand these commands, one a line:

- `slow <n>` says n words, about 20 a second
- `fast <n>` says n words as fast as it can
- `think <text>` thinks aloud before it answers
- `fail after <n>` says n words and then fails
- `run <command>` runs a command of bash, `ask <command>` asks you first
- `write <path> <text>` writes a file of this session's folder, `read <path>` shows one

Everything I say is committed before you see it. Reload the page, open a second tab or kill the server
while I talk, and nothing is lost.

You said:

"""

GO_ON = "I go on, but all that I had to say is said already.\n"

Pause = Callable[[CancelToken, float], Awaitable[None]]


class DemoFailure(RuntimeError):
    """The failure that `fail after` asks for."""


@dataclass(frozen=True, slots=True)
class Act:
    """A tool call; `ask` wants a person's approval first."""

    tool: str
    args: dict[str, Any]
    ask: bool = False


Step = tuple[AgentEvent | DemoFailure | Act, float]
"""What is said, done or raised, and how many seconds to wait after it."""


async def pause(cancelled: CancelToken, seconds: float) -> None:
    """Wait, or return at once when the turn is to stop."""
    if seconds:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await cancelled.wait()
    else:
        await asyncio.sleep(0)


def make_demo(pause: Pause = pause) -> Agent:
    """The demo agent with its own way to wait."""

    async def demo(turn: Turn) -> AsyncIterator[AgentEvent]:
        place = _find_place(turn)
        words = 0
        for step, (event, wait_s) in enumerate(_remaining(place)):
            if turn.cancelled.is_set:
                return
            if isinstance(event, Act):
                await turn.tools.call(event.tool, event.args, ask=event.ask)
                words += 1
            elif event is not None:
                yield event
                words += 1
            if wait_s or step % _BREATH == 0:
                await pause(turn.cancelled, wait_s)
        if place.continues and not words and not _was_asked(turn):
            yield Text(GO_ON)
        yield Usage(len(place.prompt.split()), words, "demo")

    return demo


demo = make_demo()


def script(prompt: str) -> Iterator[Step]:
    """What is said to a message, step by step; lazily, however long."""
    lines = [stripped for line in prompt.split("\n") if (stripped := line.strip())]
    commands = [match for line in lines if (match := _COMMAND.fullmatch(line))]
    if not lines or len(commands) < len(lines):
        yield from _explain(prompt)
        return
    for match in commands:
        if match["count"]:
            yield from _count(match["count"], int(match["n"]))
        elif match["thought"]:
            yield from _think(match["thought"])
        else:
            yield _act(match), 0.0


def _act(match: re.Match[str]) -> Act:
    if match["how"]:
        return Act("bash", {"command": match["command"]}, ask=match["how"] == "ask")
    if match["read"]:
        return Act("file_read", {"path": match["read"]})
    return Act("file_write", {"path": match["write"], "content": match["text"] + "\n"})


def _count(command: str, n: int) -> Iterator[Step]:
    wait_s = 0.0 if command == "fast" else SLOW_S
    for word in islice(cycle(WORDS), n):
        yield Text(word + " "), wait_s
    if command == "fail after":
        yield DemoFailure(f"failed after {n} words, as asked"), 0.0


def _think(text: str) -> Iterator[Step]:
    for piece in _pieces(text):
        yield Reasoning(piece), SLOW_S
    for piece in _pieces(f"Thought about: {text}\n"):
        yield Text(piece), ANSWER_S


def _explain(prompt: str) -> Iterator[Step]:
    left_out = len(prompt) - ECHO_CHARS
    quoted = "\n".join(f"> {line}" for line in prompt[:ECHO_CHARS].splitlines()) or "> (nothing)"
    more = f"\n\nand {left_out} characters more." if left_out > 0 else ""
    for piece in _pieces(f"{HELP}{quoted}{more}\n"):
        yield Text(piece), ANSWER_S


def _pieces(text: str) -> Iterator[str]:
    return (match[0] for match in _PIECE.finditer(text))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the answer to `prompt` stands: so many characters of it are said, so many calls are done."""

    prompt: str
    said_chars: int = 0
    done: int = 0
    continues: bool = False
    failed: bool = False


def _was_asked(turn: Turn) -> bool:
    """Whether the turn goes on because a person has decided about what the last message was to do."""
    return bool(turn.history) and bool(turn.history[-1].actions) and turn.history[-1].cut is None


def _find_place(turn: Turn) -> _Place:
    said_chars, done = len(turn.said), len(turn.done)
    if turn.prompt:
        return _Place(turn.prompt, said_chars, done)
    failed = bool(turn.history) and turn.history[-1].cut == "error" and not turn.said
    for message in reversed(turn.history):
        if message.role == "user":
            return _Place(message.content, said_chars, done, True, failed)
        said_chars += len(message.content)
        done += len(message.actions)
    return _Place("", said_chars, done, True, failed)


def _remaining(place: _Place) -> Iterator[tuple[AgentEvent | Act | None, float]]:
    """The steps that are left, and a None for each that was taken already, or was failed at already."""
    skip, done, failed = place.said_chars, place.done, place.failed
    for event, wait_s in script(place.prompt):
        if isinstance(event, DemoFailure):
            if not skip and not done and not failed:
                raise event
            failed = failed and (skip > 0 or done > 0)
        elif isinstance(event, Act):
            yield (None, 0.0) if done else (event, wait_s)
            done = max(0, done - 1)
        elif not isinstance(event, Text):
            yield (None, 0.0) if skip else (event, wait_s)
        elif skip >= len(event.delta):
            skip -= len(event.delta)
            yield None, 0.0
        else:
            yield Text(event.delta[skip:]), wait_s
            skip, failed = 0, False
