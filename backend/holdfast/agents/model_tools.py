"""The tools of a turn as pydantic-ai's: each call that a model makes is an action of the run.

    a tool of the turn's toolbox      turn.tools.call
    a name that the model invented    turn.tools.call
    a tool of the agent's own         turn.tools.perform, around pydantic-ai's way to run it
    a tool that asks first            collected; turn.tools.ask, once the others of the response are done;
                                      one of the agent's own is denied

Arguments that do not fit go the same ways, so that they are seen as actions; what comes of it is told to
the model, and no budget of retries ends the run.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import (
    ApprovalRequired,
    ModelRetry,
    ToolFailedError,
    ToolRetryError,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturn, ToolReturnPart
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolDefinition, ToolDenied
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_ai.toolsets.external import TOOL_SCHEMA_VALIDATOR

from holdfast.agents.calls import as_arguments, as_id, as_name
from holdfast.agents.faults import Unfinished
from holdfast.agents.tools import ApprovalNeeded, Output, Toolbox, ToolCall, ToolResult, Tools

_DENIED = "Denied: it needs an approval, and nobody can be asked about a tool that the agent keeps to itself"

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class Waiting(Exception):
    """The run of pydantic-ai ends because calls need approval; `needed` is what the turn is to raise."""

    def __init__(self, needed: ApprovalNeeded) -> None:
        super().__init__(str(needed))
        self.needed = needed


@dataclass
class TurnTools(AbstractCapability[Any]):
    """Gives a model the tools of one turn.

    `silent` is true when the last response had nothing in it, and answered what tools had given back.
    """

    tools: Tools
    silent: bool = field(default=False, init=False)
    _foreign: set[str] = field(default_factory=set[str], init=False)
    """Names of the toolbox, and invented ones: none of the agent's own."""
    _misfits: dict[str, Exception] = field(default_factory=dict[str, Exception], init=False)
    """What is wrong with the arguments of a call of the agent's own, by its id."""

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """The agent's own tools and those of the toolbox; of two with one name, the agent's own."""
        return _WithToolbox(toolset, self.tools.toolbox, self._foreign)

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        """Make each call one that can be done, answered, and sent back to the provider.

        Raises:
            Unfinished: a limit on the length or a filter ended the response; none of its calls is done.
        """
        check_end(response)
        self.silent = not any(_is_something(part) for part in response.parts) and _asks_on(request_context)
        seen: set[str] = set()
        parts: list[Any] = []
        for number, part in enumerate(response.parts):
            if isinstance(part, ToolCallPart):
                id = as_id(part.tool_call_id, seen, number)
                seen.add(id)
                part = replace(part, tool_name=as_name(part.tool_name), args=as_arguments(part.args), tool_call_id=id)
                self._make_known(ctx, part.tool_name)
            parts.append(part)
        return replace(response, parts=parts)

    async def wrap_tool_validate(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: Any, handler: Any
    ) -> dict[str, Any]:
        """Let all arguments through: what is wrong with them comes out when the call is done."""
        if call.tool_name in self._foreign:
            return as_arguments(args)
        try:
            return await handler(args)
        except ModelRetry as error:
            self._misfits[call.tool_call_id] = error
            return as_arguments(args)

    async def on_tool_validate_error(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: Any, error: Exception
    ) -> dict[str, Any]:
        """Remember what is wrong with the arguments of one of the agent's own tools, and let them through."""
        self._misfits[call.tool_call_id] = error
        return as_arguments(args)

    async def wrap_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any], handler: Any
    ) -> Any:
        """Do the call as an action, unless a person must decide first."""
        name, id = call.tool_name, call.tool_call_id
        if name in self._foreign and self.tools.toolbox.get(name) is not None and self.tools.needs_approval(name):
            raise ApprovalRequired()
        try:
            if name in self._foreign:
                return (await self.tools.call(name, args, id=id)).output
            own = _OwnCall(call, handler, self._misfits.pop(id, None), is_last=ctx.retry >= ctx.max_retries)
            return own.end(await self.tools.perform(name, as_arguments(call.args), lambda: own.work(args), id=id))
        except ApprovalNeeded as needed:
            raise ApprovalRequired() from needed

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Any], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """Let a person decide about all calls of the response that need it.

        One of the agent's own tools is denied: once the run has ended to wait, nobody could carry it out.

        Raises:
            Waiting: when there are calls of tools in the toolbox.
        """
        calls = [ToolCall(call.tool_name, as_arguments(call.args), call.tool_call_id) for call in requests.approvals]
        denied: dict[str, Any] = {}
        for call in calls:
            if call.name not in self._foreign:
                await self.tools.perform(call.name, call.args, _deny, id=call.id)
                denied[call.id or ""] = ToolDenied(_DENIED)
        asked = [call for call in calls if call.name in self._foreign]
        if not asked:
            return DeferredToolResults(approvals=denied) if denied else None
        try:
            await self.tools.ask(asked)
        except ApprovalNeeded as needed:
            raise Waiting(needed) from None

    def _make_known(self, ctx: RunContext[Any], name: str) -> None:
        """Let pydantic-ai take an invented name for a tool, in this step alone."""
        manager = ctx.tool_manager
        if manager is not None and manager.tools is not None and name not in manager.tools:
            self._foreign.add(name)
            manager.tools = {**manager.tools, name: _as_tool(manager.toolset, ToolDefinition(name=name))}


def check_end(response: ModelResponse) -> None:
    """Raise when the answer is not whole, although the stream ended in good order.

    Raises:
        Unfinished: a limit on its length or a filter ended it.
    """
    if response.finish_reason == "length":
        raise Unfinished("The answer is longer than the model gives at once; what came is kept.")
    if response.finish_reason == "content_filter":
        raise Unfinished("The content filter of the model provider stopped the answer; what came is kept.")


@dataclass
class _WithToolbox(WrapperToolset[Any]):
    """The agent's own toolset with the toolbox beside it; `foreign` gets the names that are the toolbox's."""

    toolbox: Toolbox
    foreign: set[str]

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        own = await self.wrapped.get_tools(ctx)
        given = {each["name"]: each for each in self.toolbox.schemas() if each["name"] not in own}
        self.foreign.clear()
        self.foreign.update(given)
        return {
            **own,
            **{
                name: _as_tool(
                    self,
                    ToolDefinition(
                        name=name, description=each["description"], parameters_json_schema=each["parameters"]
                    ),
                )
                for name, each in given.items()
            },
        }


class _OwnCall:
    """A call of one of the agent's own tools, inside an action: what it gave or raised is kept as it was.

    `misfit` is what is wrong with the arguments; `is_last` says that pydantic-ai would end the run at one
    more retry, so that the model is told in an ordinary return instead.
    """

    def __init__(self, call: ToolCallPart, handler: Handler, misfit: Exception | None, *, is_last: bool) -> None:
        self._call = call
        self._handler = handler
        self._misfit = misfit
        self._is_last = is_last
        self._given: list[Any] = []
        self._raised: Exception | None = None

    async def work(self, args: dict[str, Any]) -> ToolResult:
        """Do it; what the action shows.

        Raises:
            Exception: whatever the tool raised that is no word to the model.
        """
        if self._misfit is not None:
            return self._refused(self._misfit)
        try:
            value = await self._handler(args)
        except (ModelRetry, ToolRetryError, ToolFailedError, ApprovalRequired) as error:
            self._raised = error
            return ToolResult(_told(error), failed=True)
        except UnexpectedModelBehavior as error:
            if isinstance(error.__cause__, ModelRetry):
                return self._refused(error.__cause__)
            self._raised = error
            raise
        except Exception as error:
            self._raised = error
            raise
        self._given = [value]
        return ToolResult(self._text(value))

    def _refused(self, error: Exception) -> ToolResult:
        if self._is_last:
            self._given = [_told(error)]
        else:
            self._raised = error
        return ToolResult(_told(error), failed=True)

    def end(self, result: ToolResult) -> Any:
        """What pydantic-ai is given, once the action has ended in `result`."""
        if self._raised is not None:
            raise self._raised
        return self._given[0] if self._given else result.output

    def _text(self, value: Any) -> Output:
        content = value.return_value if isinstance(value, ToolReturn) else value
        call = self._call
        return ToolReturnPart(
            tool_name=call.tool_name, content=content, tool_call_id=call.tool_call_id
        ).model_response_str()


async def _deny() -> ToolResult:
    return ToolResult(_DENIED, failed=True)


def _told(error: BaseException) -> str:
    """What an error says to the model."""
    if isinstance(error, ToolRetryError):
        return error.tool_retry.model_response_str() if isinstance(error.tool_retry, ToolReturnPart) else str(error)
    return str(error) or "This needs approval."


def _as_tool(toolset: AbstractToolset[Any], definition: ToolDefinition) -> ToolsetTool[Any]:
    return ToolsetTool(toolset=toolset, tool_def=definition, max_retries=0, args_validator=TOOL_SCHEMA_VALIDATOR)


def _is_something(part: Any) -> bool:
    return isinstance(part, ToolCallPart) or (isinstance(part, TextPart) and bool(part.content))


def _asks_on(request: ModelRequestContext) -> bool:
    """Whether the last thing that was sent is what a tool gave back."""
    last = request.messages[-1] if request.messages else None
    return isinstance(last, ModelRequest) and any(isinstance(part, ToolReturnPart) for part in last.parts)
