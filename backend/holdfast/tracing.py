"""OpenTelemetry traces, from a frame to its commit, its provider and its processes; none unless set up.

The trace of a task is kept in its row (`traceparent`, W3C), so that it goes on wherever and whenever the task is
claimed. Set up by the usual variables: `OTEL_EXPORTER_OTLP_ENDPOINT` turns it on.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

log = logging.getLogger("holdfast.tracing")

_tracer: Any = None
_NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str, **attributes: str | int | None) -> AbstractContextManager[Any]:
    """A span around a piece of work; costs nothing unless tracing is set up."""
    if _tracer is None:
        return _NOTHING
    return _span(name, None, attributes)


def part(name: str) -> AbstractContextManager[Any]:
    """A span that is only worth telling as a part of another one."""
    if _tracer is None or traceparent() is None:
        return _NOTHING
    return _span(name, None, {})


def going_on(traceparent: str | None, name: str, **attributes: str | int | None) -> AbstractContextManager[Any]:
    """A span whose parent may have been on another node, at another time."""
    if _tracer is None:
        return _NOTHING
    return _span(name, traceparent, attributes)


def traceparent() -> str | None:
    """The span of this moment, to be kept; None without one."""
    if _tracer is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - only where tracing is on
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def set_up() -> Callable[[], None]:
    """Begin to export traces if the environment says where to; what to call at the end."""
    global _tracer  # noqa: PLW0603 - one tracer a process
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - an optional extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an optional extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an optional extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an optional extra
    except ImportError:
        log.warning("there is an OTEL_EXPORTER_OTLP_ENDPOINT, but no exporter: pip install 'holdfast[otel]'")
        return lambda: None
    name = os.environ.get("OTEL_SERVICE_NAME", "holdfast")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer("holdfast")
    _trace_models(provider)
    return provider.shutdown


def _trace_models(provider: Any) -> None:
    """Let calls of models tell what they are, how long they take and what they use: no prompt and no answer."""
    from pydantic_ai import Agent  # noqa: PLC0415 - only where tracing is on
    from pydantic_ai.models.instrumented import InstrumentationSettings  # noqa: PLC0415 - only where tracing is on

    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider, include_content=False))


@contextlib.contextmanager
def _span(name: str, parent: str | None, attributes: dict[str, str | int | None]) -> Generator[Any]:
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - only where tracing is on
        TraceContextTextMapPropagator,
    )

    context = TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None
    known = {f"holdfast.{key}": value for key, value in attributes.items() if value is not None}
    with _tracer.start_as_current_span(name, context=context, attributes=known) as made:
        yield made
