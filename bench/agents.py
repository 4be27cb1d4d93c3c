"""Agents for the benchmarks: they say as much as they can, or so much a second, with a time in each chunk."""

import asyncio
import time
from collections.abc import AsyncIterator

from holdfast.agents.turn import AgentEvent, Text, Turn


async def steady(turn: Turn) -> AsyncIterator[AgentEvent]:
    """`N RATE`: N chunks, RATE a second, each with the moment at which it was said. `run C`: runs the command C."""
    if turn.prompt.startswith("run "):
        await turn.tools.call("bash", {"command": turn.prompt[4:]})
        return
    count, rate = (int(word) for word in turn.prompt.split())
    begin = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        if turn.cancelled.is_set:
            return
        yield Text(f"@{time.monotonic_ns()}@ ")
