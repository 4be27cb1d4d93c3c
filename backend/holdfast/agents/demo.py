"""The demo agent: no model, no key, no network, and no pretence.

Each line of a message that is a command is carried out, in order:

    slow N         N words, about 20 a second        fast N    N words, as fast as possible
    fail after N   N words, then an exception        think T   reasoning, then an answer

Anything else is answered with what it can do, and an echo. What it says depends on the message alone,
so that an answer that was handed over goes on exactly where it stopped.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import cycle, islice

from holdfast.agents.turn import Agent, AgentEvent, CancelToken, Reasoning, Text, Turn, Usage

WORDS = (
    "The tide comes in and the anchor holds fast while the wind turns over the harbour and every rope "
    "that was tied by a careful hand is still there in the morning when the fog lifts "
).split()

SLOW_S = 0.05
ANSWER_S = 0.015

Pause = Callable[[CancelToken, float], Awaitable[None]]
Step = tuple[AgentEvent, float]
"""What is said, and how long to wait after it."""

_COMMAND = re.compile(r"(slow|fast|fail after)\s+(\d{1,9})|think\s+(\S.*)")

HELP = """I am the **demo agent**: I have no model, and I understand these commands, one a line:

- `slow <n>` says n words, about 20 a second
- `fast <n>` says n words as fast as it can
- `think <text>` thinks aloud before it answers
- `fail after <n>` says n words and then fails

Everything I say is committed before you see it. Reload the page, open a second tab or kill the server
while I talk, and nothing is lost.

You said:

"""


async def pause(cancelled: CancelToken, seconds: float) -> None:
    """Wait, or return at once when the turn is to stop."""
    if seconds:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(cancelled.wait(), seconds)


class DemoFailure(RuntimeError):
    """The failure that `fail after` asks for."""


def make_demo(pause: Pause = pause) -> Agent:
    """The demo agent with its own way to wait."""

    async def demo(turn: Turn) -> AsyncIterator[AgentEvent]:
        prompt, skip = _what_to_say(turn)
        said = 0
        for event, wait_s in script(prompt):
            if turn.cancelled.is_set:
                return
            if skip and not isinstance(event, Text):
                continue
            if skip:
                length = len(event.delta) if isinstance(event, Text) else 0
                skip, before = max(0, skip - length), skip
                if before >= length:
                    continue
                event = Text(event.delta[before:])
            yield event
            said += 1
            await pause(turn.cancelled, wait_s)
        yield Usage(len(prompt.split()), said, "demo")

    return demo


demo = make_demo()


def script(prompt: str) -> Iterator[Step]:
    """What is said to a message, step by step; lazily, however long."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    commands = [_COMMAND.fullmatch(line) for line in lines]
    if not lines or not all(commands):
        yield from _explain(prompt)
        return
    for match in commands:
        assert match is not None
        if match[3] is not None:
            yield from _think(match[3])
        else:
            yield from _count(match[1], int(match[2]))


def _count(command: str, n: int) -> Iterator[Step]:
    wait_s = 0.0 if command == "fast" else SLOW_S
    for word in islice(cycle(WORDS), n):
        yield Text(word + " "), wait_s
    if command == "fail after":
        raise DemoFailure(f"failed after {n} words, as asked")


def _think(text: str) -> Iterator[Step]:
    for word in text.split():
        yield Reasoning(word + " "), SLOW_S
    for word in f"I have thought about: {text}\n".split(" "):
        yield Text(word + " "), ANSWER_S


def _explain(prompt: str) -> Iterator[Step]:
    quoted = "\n".join(f"> {line}" for line in prompt.splitlines()[:200]) or "> (nothing)"
    for piece in re.findall(r"\S+\s*|\s+", HELP + quoted + "\n"):
        yield Text(piece), ANSWER_S


def _what_to_say(turn: Turn) -> tuple[str, int]:
    """The message to answer, and how many characters of the answer are said already."""
    if turn.prompt:
        return turn.prompt, len(turn.said)
    said = len(turn.said)
    for message in reversed(turn.history):
        if message.role == "user":
            return message.content, said
        said += len(message.content)
    return "", said
