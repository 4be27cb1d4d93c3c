"""Logs and metrics."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast.clock import SystemClock, rfc3339
from holdfast.context import AddContext

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
        line |= getattr(record, "about", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(style: str, level: str) -> None:
    """Log to stderr, for people or for machines."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s%(about_text)s")
    handler.setFormatter(JsonFormatter() if style == "json" else plain)
    handler.addFilter(AddContext())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.error", "uvicorn", "httpx", "httpx2", "openai", "anthropic", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel("ERROR" if level == "error" else "WARNING")


class Metrics(Collector):
    """What a node tells Prometheus: read when asked, nothing is counted twice on the hot path."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.count_sockets: Callable[[], int] = lambda: 0
        self.waiting: dict[str, int] = {}
        """How many tasks of each executor wait; whoever asks for the metrics reads it first."""
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        engine = self._engine
        yield CounterMetricFamily("holdfast_journal_commits", "Group commits", engine.journal.commits)
        yield CounterMetricFamily("holdfast_journal_events", "Events committed by runs", engine.journal.events)
        yield from self._tasks()
        yield GaugeMetricFamily("holdfast_sockets", "Open WebSockets", self.count_sockets())
        yield GaugeMetricFamily("holdfast_sessions_followed", "Sessions followed here", len(engine.hub.sessions))
        yield GaugeMetricFamily("holdfast_lease_held", "1 while this node may claim", int(engine.lease.held))

    def _tasks(self) -> Iterator[Metric]:
        """What becomes of tasks, by their executor."""
        engine, meters, by = self._engine, self._engine.meters, ["executor"]
        waiting = GaugeMetricFamily("holdfast_tasks_waiting", "Tasks that wait, on all nodes", labels=by)
        active = GaugeMetricFamily("holdfast_tasks_active", "Tasks going on here", labels=by)
        claimed = CounterMetricFamily("holdfast_tasks_claimed", "Tasks claimed by this node", labels=by)
        for executor, worker in engine.workers.items():
            waiting.add_metric([executor], self.waiting.get(executor, 0))
            active.add_metric([executor], len(worker.running))
            claimed.add_metric([executor], worker.claimed)
        ended = CounterMetricFamily("holdfast_tasks_ended", "Tries that ended here", labels=["executor", "status"])
        for labels, count in meters.ends.items():
            ended.add_metric(list(labels), count)
        waits = HistogramMetricFamily("holdfast_task_wait_seconds", "From due to claimed", labels=by)
        for executor, durations in meters.waits.items():
            waits.add_metric([executor], durations.buckets(), durations.sum_s)
        runs = HistogramMetricFamily("holdfast_task_run_seconds", "From claimed to ended", labels=by)
        for executor, durations in meters.runs.items():
            runs.add_metric([executor], durations.buckets(), durations.sum_s)
        kills = CounterMetricFamily("holdfast_kills", "Processes that were stopped, by how it went", labels=["how"])
        for how in ("terminated", "killed"):
            kills.add_metric([how], meters.kills[how])
        yield from (waiting, active, claimed, ended, waits, runs, kills)
        yield CounterMetricFamily("holdfast_kill_failures", "Kills that had no effect", meters.kill_failures)
        yield CounterMetricFamily("holdfast_leases_lost", "Leases that this node has lost", meters.leases_lost)
