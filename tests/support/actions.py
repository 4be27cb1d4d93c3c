"""The tools of one turn, as the engine gives them, with the actions kept in memory."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from holdfast.agents.cancel import CancelToken
from holdfast.agents.folder import Folder
from holdfast.agents.tools import (
    ApprovalNeeded,
    CommandResult,
    InvalidArguments,
    Tool,
    Toolbox,
    ToolCall,
    ToolContext,
    ToolResult,
    as_result,
)


@dataclass
class Action:
    """One use of a tool; `result` is None until it ends."""

    name: str
    args: dict[str, Any]
    id: str | None
    performed: bool = False
    result: ToolResult | None = None
    ended_by: BaseException | None = None


@dataclass
class Recorded:
    """Tools that do what they are asked and keep a list of it; `asking` are the names that wait for a person."""

    toolbox: Toolbox
    asking: set[str] = field(default_factory=set[str])
    actions: list[Action] = field(default_factory=list[Action])
    asked: list[tuple[ToolCall, ...]] = field(default_factory=list[tuple[ToolCall, ...]])

    @classmethod
    def of(cls, *tools: Tool, asking: Iterable[str] = ()) -> "Recorded":
        """With these tools."""
        return cls(Toolbox(tools), set(asking))

    def needs_approval(self, name: str) -> bool:
        return name in self.asking

    async def call(self, name: str, args: dict[str, Any], *, id: str | None = None, ask: bool = False) -> ToolResult:
        found = self.toolbox.get(name)
        if found is None:
            unknown = self.toolbox.unknown_tool(name)
            return await self._act(Action(name, args, id), lambda: _failed(unknown))
        if ask or self.needs_approval(name):
            raise ApprovalNeeded([ToolCall(name, args, id)])
        return await self._act(Action(name, args, id), lambda: found.call(_context(), args))

    async def perform(
        self, name: str, args: dict[str, Any], work: Callable[[], Awaitable[object]], *, id: str | None = None
    ) -> ToolResult:
        if self.needs_approval(name):
            raise ApprovalNeeded([ToolCall(name, args, id)])
        return await self._act(Action(name, args, id, performed=True), work)

    async def ask(self, calls: Sequence[ToolCall]) -> NoReturn:
        self.asked.append(tuple(calls))
        raise ApprovalNeeded(calls)

    async def _act(self, action: Action, work: Callable[[], Awaitable[object]]) -> ToolResult:
        self.actions.append(action)
        try:
            action.result = as_result(await work())
        except InvalidArguments as error:
            action.result = ToolResult(f"The arguments do not fit: {error}", failed=True)
        except Exception as error:
            action.result = ToolResult(f"The tool failed: {error!r}", failed=True)
        except BaseException as error:
            action.ended_by = error
            raise
        return action.result


async def _failed(text: str) -> ToolResult:
    return ToolResult(text, failed=True)


def _context() -> ToolContext:
    async def run(command: str, *, timeout_s: float, network: bool = False) -> CommandResult:
        raise AssertionError("no command is run here")

    async def emit(stream: str, text: str) -> None:
        raise AssertionError("nothing is told live here")

    return ToolContext("s", Folder(Path("/nowhere")), CancelToken(), run, emit)
