"""What the work of this moment is about: stands on every line that it logs."""

import contextlib
import logging
from collections.abc import Generator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))


@contextlib.contextmanager
def about(**names: str | None) -> Generator[None]:
    """Within this, and in the asyncio tasks begun in it, log lines carry these names, such as `task`, `user`."""
    known = {name: value for name, value in names.items() if value is not None}
    token = _about.set({**_about.get(), **known})
    try:
        yield
    finally:
        _about.reset(token)


class AddContext(logging.Filter):
    """Gives each record what it is about, as `about` (by name) and `about_text` (for people)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        names = _about.get()
        record.about = names
        record.about_text = "".join(f" {name}={value}" for name, value in names.items())
        return True
