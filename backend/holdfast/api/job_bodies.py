"""What requests about jobs may say, and what is wrong with it beyond its types."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from holdfast.api.bodies import Body
from holdfast.domain.errors import FieldError

_ARGUMENT_BYTES = 120_000
"""The kernel takes at most 128 KiB in one argument or variable."""

_ALL_BYTES = 1_000_000
_METADATA_BYTES = 64 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,100}")

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class NewJob(Body, frozen=True):
    """`POST /api/jobs`. `command` is a program with its arguments, or text for bash; times are in seconds."""

    command: list[str] | str
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)] | None = None
    env: dict[str, str] = {}
    cwd: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    queue: str = "default"
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    run_at: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    sandbox: Literal["on", "off"] = "on"
    on_restart: Literal["end", "keep"] = "end"
    timeout: Seconds | None = None
    idle_timeout: Seconds | None = None
    memory_mb: Annotated[int, msgspec.Meta(ge=32, le=1_048_576)] | None = None
    retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    retry_backoff: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 1.0
    metadata: dict[str, Any] = {}


class QueueEdit(Body, frozen=True):
    """`PATCH /api/queues/{name}`."""

    max_running: Annotated[int, msgspec.Meta(ge=1, le=10_000)]


def is_queue_name(text: str) -> bool:
    """Whether a queue may have this name."""
    return _QUEUE.fullmatch(text) is not None


def name_of(command: list[str] | str) -> str:
    """What a job without a name is called."""
    text = command if isinstance(command, str) else " ".join(command)
    return " ".join(text.split())[:80] or "job"


def faults(body: NewJob) -> list[FieldError]:
    """All that is wrong with a job as such."""
    found = [*_command_faults(body.command), *_env_faults(body.env)]
    if not is_queue_name(body.queue):
        found.append(FieldError("/queue", "must be 1 to 100 letters, digits, '.', '_' or '-'"))
    if len(msgspec.json.encode(body.metadata)) > _METADATA_BYTES:
        found.append(FieldError("/metadata", f"must be at most {_METADATA_BYTES} bytes of JSON"))
    return found


def _command_faults(command: list[str] | str) -> list[FieldError]:
    if isinstance(command, str):
        if not command.strip():
            return [FieldError("/command", "must not be empty")]
        return [FieldError("/command", "is too long")] if _bytes(command) > _ARGUMENT_BYTES else []
    if not command:
        return [FieldError("/command", "must not be empty")]
    if not command[0].strip():
        return [FieldError("/command/0", "must name a program")]
    for place, argument in enumerate(command):
        if _bytes(argument) > _ARGUMENT_BYTES:
            return [FieldError(f"/command/{place}", "is too long")]
    return [FieldError("/command", "is too long")] if sum(map(_bytes, command)) > _ALL_BYTES else []


def _env_faults(env: dict[str, str]) -> list[FieldError]:
    for name, value in env.items():
        pointer = "/env/" + name[:100].replace("~", "~0").replace("/", "~1")
        if not _VARIABLE.fullmatch(name) or len(name) > 255:
            return [FieldError(pointer, "is not a name of a variable")]
        if name.startswith("HOLDFAST_"):
            return [FieldError(pointer, "belongs to the service")]
        if _bytes(value) > _ARGUMENT_BYTES:
            return [FieldError(pointer, "is too long")]
    too_long = sum(_bytes(name) + _bytes(value) for name, value in env.items()) > _ALL_BYTES
    return [FieldError("/env", "is too long")] if too_long else []


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
