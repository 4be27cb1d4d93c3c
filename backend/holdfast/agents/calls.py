"""What a model wrote of a tool call, made into what every provider and the journal can hold.

Models invent names, repeat ids and write arguments that are no JSON; a provider that is sent the same
back refuses the whole conversation.
"""

import re
from collections.abc import Container, Mapping
from typing import Any

import msgspec

from holdfast.domain.events import clean_text

_ID = re.compile(r"[A-Za-z0-9_-]{1,40}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_NAME_CHARS = 64


def as_name(name: str) -> str:
    """`name` in the letters that all providers take, 1 to 64 of them."""
    return _NOT_IN_NAMES.sub("_", name)[:_NAME_CHARS] or "_"


def as_id(id: str, taken: Container[str], number: int) -> str:
    """`id` if all providers take it and it is not `taken`, else a new one made of `number`."""
    while not _ID.fullmatch(id) or id in taken:
        id, number = f"call_{number}", number + 1
    return id


def as_arguments(written: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments as a JSON object; text that is none becomes `{"arguments": text}`."""
    try:
        read = msgspec.json.decode(written or "{}") if isinstance(written, str) else _plain(written)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError, ValueError):
        return {"arguments": clean_text(str(written))}
    if read is None:
        return {}
    return read if isinstance(read, dict) else {"arguments": clean_text(str(written))}


def _plain(written: Mapping[str, Any] | None) -> Any:
    """The same by way of JSON, which has no NaN and no broken text."""
    return msgspec.json.decode(msgspec.json.encode(written))
