'''What a tool is: a typed Python function that a model may ask for, and what it gets and gives.

    @tool
    async def weather(city: str, days: Annotated[int, Meta(ge=1, le=7)] = 1) -> str:
        """Tell the weather of a city."""

The name, the description and the JSON schema of the arguments come from the function; `Args:` in its
docstring describe them. A first parameter annotated `ToolContext` gets the context of the run and is no
argument.
'''

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import re
import threading
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol, TypeVar, overload

import msgspec

from holdfast.agents.cancel import CancelToken
from holdfast.agents.folder import Folder, FolderError
from holdfast.domain.events import clean_text

Approval = Literal["always", "ask", "never"]
"""`always` runs without asking, `ask` waits for a person each time, `never` is denied."""

Output = str | dict[str, Any]
Result = TypeVar("Result")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)(?: *\([^)]*\))?: *(.*)")
_FAULT_CHARS = 500


class InvalidArguments(ValueError):
    """The arguments do not fit the tool; the message names the field, and may be told to a model."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back.

    `output` is for the model. `extra` is for the page alone, such as `diff` or `exit_code`. All text is
    valid Unicode without U+0000 once `Tool.call` has returned it.
    """

    output: Output
    failed: bool = False
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended.

    `output` is its stdout and stderr as they came, of which the middle is left out when `truncated`;
    `bytes` is the size of the whole, and `link` the URL path where it can be had.
    """

    exit_code: int | None
    signal: int | None
    output: str
    truncated: bool = False
    bytes: int = 0
    timed_out: bool = False
    link: str | None = None


class RunCommand(Protocol):
    """How a tool runs a command."""

    def __call__(self, command: str, *, timeout_s: float, network: bool = False) -> Awaitable[CommandResult]:
        """Run a command of bash in the session's sandbox and working folder, and tell its output live."""
        ...


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may use of the run that it works for. `emit` tells live output: the stream, then the text."""

    session: str
    folder: Folder
    cancelled: CancelToken
    run: RunCommand
    emit: Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that a model may ask for.

    `parameters` is the JSON schema of the arguments, an object; `confined` says that it runs commands, so
    that it needs a sandbox.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Callable[[ToolContext, dict[str, Any]], Awaitable[object]]
    approval: Approval = "always"
    confined: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of a tool: 1 to 64 letters, digits, `_` and `-`")

    async def call(self, context: ToolContext, args: dict[str, Any]) -> ToolResult:
        """Check the arguments and do the work. What `context.folder` refuses is a failed result in its words.

        Raises:
            InvalidArguments: The arguments do not fit.
            Exception: Whatever else the function raises.
        """
        try:
            return as_result(await self.function(context, args))
        except FolderError as error:
            return ToolResult(str(error), failed=True)
        except SystemExit as error:  # It would end the service.
            raise RuntimeError(f"tool {self.name} raised {error!r}") from error


class Toolbox:
    """Tools by name, in order; it never changes.

    Raises:
        ValueError: Two tools have one name.
    """

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for each in tools:
            if each.name in self._tools:
                raise ValueError(f"two tools are named {each.name!r}")
            self._tools[each.name] = each

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in order."""
        return tuple(self._tools)

    def get(self, name: str) -> Tool | None:
        """The tool of this name, if there is one."""
        return self._tools.get(name)

    def with_(self, tools: Iterable[Tool]) -> "Toolbox":
        """These tools and more.

        Raises:
            ValueError: Two tools have one name.
        """
        return Toolbox([*self, *tools])

    def schemas(self) -> list[dict[str, Any]]:
        """Name, description and parameters of each tool."""
        return [{"name": t.name, "description": t.description, "parameters": deepcopy(t.parameters)} for t in self]

    def unknown_tool(self, name: str) -> str:
        """What to answer a model that asks for a tool that is not here."""
        return f"There is no tool {clean_text(name[:100])!r}; the tools are: {', '.join(self.names) or '(none)'}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model asks for; `id` is the model's own name of the call, or None."""

    name: str
    args: dict[str, Any]
    id: str | None = None


class ApprovalNeeded(BaseException):
    """The run ends here and waits for a person; it goes on in another turn, with what was decided done.

    No `Exception`, so that an agent's `except Exception` lets it through.
    """

    def __init__(self, calls: Sequence[ToolCall]) -> None:
        super().__init__(f"{len(calls)} calls need approval")
        self.calls = tuple(calls)


class Tools(Protocol):
    """The tools of one turn. Each use is an action of the run: committed before it starts, and when it ends."""

    @property
    def toolbox(self) -> Toolbox:
        """What there is to call."""
        ...

    def needs_approval(self, name: str) -> bool:
        """Whether a call of this tool waits for a person now."""
        ...

    async def call(self, name: str, args: dict[str, Any], *, id: str | None = None, ask: bool = False) -> ToolResult:
        """Call a tool; `ask` asks a person even where the rules would not.

        What goes wrong is a failed result: an unknown tool, arguments that do not fit, a tool that
        raises, a tool that is never allowed. `id` is kept as the action's if it is new.

        Raises:
            ApprovalNeeded: A person must decide first; let it through.
        """
        ...

    async def perform(
        self, name: str, args: dict[str, Any], work: Callable[[], Awaitable[object]], *, id: str | None = None
    ) -> ToolResult:
        """Do `work` as an action, for tools that are not in the toolbox; see `call` for what goes wrong.

        Nobody can be asked about such a tool, since only the agent can carry it out: where the rules say
        that it asks first, it is denied.
        """
        ...

    async def ask(self, calls: Sequence[ToolCall]) -> NoReturn:
        """Let a person decide about these calls, of tools in the toolbox, together.

        Raises:
            ApprovalNeeded: Always; let it through.
        """
        ...


class _NoTools:
    """The tools of a turn that has none."""

    toolbox = Toolbox()

    def needs_approval(self, name: str) -> bool:
        return False

    async def call(self, name: str, args: dict[str, Any], *, id: str | None = None, ask: bool = False) -> ToolResult:
        return ToolResult(self.toolbox.unknown_tool(name), failed=True)

    async def perform(
        self, name: str, args: dict[str, Any], work: Callable[[], Awaitable[object]], *, id: str | None = None
    ) -> ToolResult:
        return as_result(await work())

    async def ask(self, calls: Sequence[ToolCall]) -> NoReturn:
        raise ApprovalNeeded(calls)


NO_TOOLS: Tools = _NoTools()


@overload
def tool(function: Callable[..., object], /) -> Tool: ...


@overload
def tool(
    *, name: str | None = None, approval: Approval = "always", confined: bool = False
) -> Callable[[Callable[..., object]], Tool]: ...


def tool(
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    approval: Approval = "always",
    confined: bool = False,
) -> Tool | Callable[[Callable[..., object]], Tool]:
    """Make a tool of a typed function; a decorator, with or without arguments.

    A function that is not async runs in a thread of its own, and cannot be stopped: it must end by itself.
    It may return text, bytes, None, a `ToolResult`, or what msgspec can turn into JSON.

    Raises:
        TypeError: A parameter cannot be given by name, or has a type that JSON cannot have.
        ValueError: The name does not fit.
    """
    if function is None:
        return functools.partial(_make, name=name, approval=approval, confined=confined)
    return _make(function, name=name, approval=approval, confined=confined)


async def in_thread(function: Callable[[], Result]) -> Result:
    """Call `function` in a thread of its own, which nobody waits for when the caller is cancelled."""
    outcome: concurrent.futures.Future[Result] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome.set_result(context.run(function))
        except StopIteration as error:  # No future can hold it.
            outcome.set_exception(RuntimeError(f"the function raised {error!r}"))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name="holdfast-tool", daemon=True).start()
    return await asyncio.wrap_future(outcome)


def _make(function: Callable[..., Any], *, name: str | None, approval: Approval, confined: bool) -> Tool:
    called = name or getattr(function, "__name__", "")
    described, of_arguments = _documented(inspect.getdoc(function) or "")
    wants_context, arguments = _arguments(function)
    is_async = inspect.iscoroutinefunction(function)

    async def call(context: ToolContext, args: dict[str, Any]) -> object:
        given = _check(args, arguments)
        work: Callable[[], Any] = functools.partial(function, *([context] if wants_context else []), **given)
        return await work() if is_async else await in_thread(work)

    return Tool(called, described, _schema(arguments, of_arguments), call, approval, confined)


def _arguments(function: Callable[..., object]) -> tuple[bool, type[msgspec.Struct]]:
    """Whether the function wants the context, and its other parameters as the fields of a struct."""
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())
    wants_context = bool(parameters) and hints.get(parameters[0].name) is ToolContext
    fields: list[tuple[str, Any, Any]] = []
    for parameter in parameters[wants_context:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"`{parameter.name}` of a tool must be a parameter that can be given by name")
        fields.append((parameter.name, hints.get(parameter.name, Any), _default(parameter)))
    return wants_context, msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return msgspec.NODEFAULT
    if isinstance(parameter.default, list | dict | set | bytearray):
        return msgspec.field(default_factory=functools.partial(deepcopy, parameter.default))
    return parameter.default


def _check(args: dict[str, Any], arguments: type[msgspec.Struct]) -> dict[str, Any]:
    """The arguments by name, with defaults; `"5"` and `5.0` are taken for a 5, as models write them."""
    try:
        given = msgspec.convert(args, arguments, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArguments(clean_text(str(error)[:_FAULT_CHARS])) from None
    except UnicodeEncodeError:
        raise InvalidArguments("Object contains a field whose name is unknown, and not valid Unicode") from None
    return {name: getattr(given, name) for name in given.__struct_fields__}


def _schema(arguments: type[msgspec.Struct], described: dict[str, str]) -> dict[str, Any]:
    """The JSON schema of the struct, with the descriptions of the docstring where it has none."""
    (reference,), definitions = msgspec.json.schema_components([arguments])
    schema = definitions.pop(reference["$ref"].rpartition("/")[2])
    schema.pop("title", None)
    for name, text in described.items():
        if name in schema["properties"]:
            schema["properties"][name].setdefault("description", text)
    return {**schema, "$defs": definitions} if definitions else schema


def _documented(doc: str) -> tuple[str, dict[str, str]]:
    """The first paragraph of a docstring on one line, and what its `Args:` say of each."""
    described = " ".join(doc.split("\n\n", 1)[0].split())
    _, found, rest = doc.partition("Args:\n")
    arguments: dict[str, str] = {}
    name, indent = "", 0
    for line in rest.splitlines() if found else ():
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if not text or depth == 0:
            break
        match = _ARGUMENT.fullmatch(text)
        if match and (not indent or depth == indent):
            name, indent = match[1], depth
            arguments[name] = match[2]
        elif name:
            arguments[name] = f"{arguments[name]} {text}".strip()
    return described, arguments


def as_result(value: object) -> ToolResult:
    """What a function returned, as text or as a JSON object, without what no store can hold."""
    if isinstance(value, ToolResult):
        return ToolResult(clean(value.output), value.failed, clean(value.extra))
    if value is None:
        return ToolResult("")
    if isinstance(value, bytes | bytearray | memoryview):
        return ToolResult(clean_text(bytes(value).decode(errors="replace")))
    plain = clean(value if isinstance(value, str) else msgspec.to_builtins(value, str_keys=True))
    return ToolResult(plain if isinstance(plain, str | dict) else msgspec.json.encode(plain).decode())


def clean(value: Any) -> Any:
    """A JSON value without what no store can hold."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean(key): clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    return value
