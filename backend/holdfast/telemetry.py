"""Logs and metrics."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.clock import SystemClock, rfc3339

if TYPE_CHECKING:
    from holdfast.engine.engine import Engine


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "ts": rfc3339(SystemClock().now()),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(style: str, level: str) -> None:
    """Log to stderr, for people or for machines."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "uvicorn", "httpx", "httpx2", "openai", "anthropic", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel("ERROR" if level == "error" else "WARNING")


class Metrics(Collector):
    """What a node tells Prometheus: read when asked, nothing is counted twice on the hot path."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.count_sockets: Callable[[], int] = lambda: 0
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        engine = self._engine
        yield CounterMetricFamily("holdfast_journal_commits", "Group commits", engine.journal.commits)
        yield CounterMetricFamily("holdfast_journal_events", "Events committed by runs", engine.journal.events)
        yield CounterMetricFamily("holdfast_runs_claimed", "Runs claimed by this node", engine.worker.claimed)
        yield GaugeMetricFamily("holdfast_runs_active", "Runs going on here", len(engine.worker.running))
        yield GaugeMetricFamily("holdfast_sockets", "Open WebSockets", self.count_sockets())
        yield GaugeMetricFamily("holdfast_sessions_followed", "Sessions followed here", len(engine.hub.sessions))
        yield GaugeMetricFamily("holdfast_lease_held", "1 while this node may claim", int(engine.lease.held))
