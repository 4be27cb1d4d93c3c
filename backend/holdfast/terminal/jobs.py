"""`holdfast job`: what is asked for goes to standard output, all the rest to standard error."""

import argparse
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import msgspec

from holdfast.clock import rfc3339
from holdfast.terminal.display import harmless

Json = dict[str, Any]

CANCELLED = 130
_PAUSE_S = 0.3
_PATIENCE_S = 60.0
"""How long a server that is gone is waited for while a job is followed."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Refused(Exception):
    """The server does not do what was asked; the message says why."""


class Jobs:
    """The jobs of one server, over its public HTTP."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url = url
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=60.0)

    def ask(self, method: str, path: str, body: Json | None = None, **query: Any) -> httpx2.Response:
        """One request.

        Raises:
            Refused: the answer is an error, or there is none.
        """
        wanted = {name: value for name, value in query.items() if value is not None}
        try:
            answer = self._http.request(method, path, json=body, params=wanted)
        except httpx2.TransportError as error:
            raise Refused(f"{self._url} does not answer ({error}); is it running?") from None
        if answer.is_error:
            raise Refused(_fault(answer))
        return answer

    def get(self, job: str) -> Json:
        """One job."""
        return self.ask("GET", f"/api/jobs/{job}").json()

    def follow(self, job: str, offset: int = 0) -> int:
        """Show what a job says until it ends; its exit code. A server that restarts meanwhile is waited for."""
        status = _Status()
        lost_at: float | None = None
        while True:
            try:
                found = self.get(job)
                offset = self.show_output(job, offset, status.clear)
                lost_at = None
            except Refused:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _PATIENCE_S:
                    raise
                found = None
            if found is not None and found["completed_at"] is not None:
                status.end(found)
                return exit_code(found)
            status.show(found)
            time.sleep(_PAUSE_S)

    def show_output(self, job: str, offset: int, before: Callable[[], None] = lambda: None) -> int:
        """Write what a job has said since `offset`, as it is; the offset behind it."""
        path = f"/api/jobs/{job}/output"
        try:
            with self._http.stream("GET", path, params={"offset": offset}) as answer:
                if answer.is_error:
                    answer.read()
                    raise Refused(_fault(answer))
                for piece in answer.iter_bytes():
                    before()
                    sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
                return int(answer.headers["X-Next-Offset"])
        except httpx2.TransportError as error:
            raise Refused(f"{self._url} does not answer ({error})") from None


class _Status:
    """One line that says where a job stands: rewritten on a terminal, said once a change in a pipe."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._began = time.monotonic()

    def show(self, job: Json | None) -> None:
        """Where it stands now; None when the server does not answer."""
        words = "the server does not answer" if job is None else _standing(job)
        if self._terminal:
            elapsed = f" {time.monotonic() - self._began:.0f} s"
            print(f"\r\x1b[K[{words}{elapsed}]", end="", file=sys.stderr, flush=True)
        elif words != self._last:
            print(f"[{words}]", file=sys.stderr, flush=True)
        self._last = words

    def clear(self) -> None:
        """Make room for output."""
        if self._terminal and self._last:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._last = ""

    def end(self, job: Json) -> None:
        """How it ended."""
        self.clear()
        error = f": {harmless(job['error'])}" if job["error"] else ""
        print(f"[{job['status']}{error}]", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace, url: str) -> int:
    """Carry out a `holdfast job` command; the exit code."""
    jobs = Jobs(url, arguments.token)
    commands = {"submit": _submit, "list": _list, "show": _show, "logs": _logs, "cancel": _cancel, "queue": _queue}
    try:
        return commands[arguments.job](jobs, arguments)
    except Refused as refused:
        print(f"holdfast: {refused}", file=sys.stderr)
        return 1


def _submit(jobs: Jobs, arguments: argparse.Namespace) -> int:
    body: Json = {"command": arguments.command if len(arguments.command) > 1 else arguments.command[0]}
    names = ("name", "queue", "cwd", "priority", "timeout", "idle_timeout", "memory_mb", "retries", "retry_backoff")
    body |= {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.env:
        body["env"] = dict(entry.partition("=")[::2] for entry in arguments.env)
    if arguments.run_at:
        body["run_at"] = _moment(arguments.run_at)
    if arguments.keep:
        body["on_restart"] = "keep"
    if arguments.no_sandbox:
        body["sandbox"] = "off"
    job = jobs.ask("POST", "/api/jobs", body).json()
    print(job["job_id"], flush=True, file=sys.stderr if arguments.follow else sys.stdout)
    if not arguments.follow:
        return 0
    try:
        return jobs.follow(job["job_id"])
    except KeyboardInterrupt:
        print(f"\n[it goes on; holdfast job cancel {job['job_id']} ends it]", file=sys.stderr)
        return CANCELLED


def _list(jobs: Jobs, arguments: argparse.Namespace) -> int:
    query = {name: getattr(arguments, name) for name in ("status", "queue", "name", "limit")}
    found = jobs.ask("GET", "/api/jobs", **query).json()["items"]
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return 0
    _table(found)
    return 0


def _show(jobs: Jobs, arguments: argparse.Namespace) -> int:
    print(msgspec.json.format(msgspec.json.encode(jobs.get(arguments.id)), indent=1).decode())
    return 0


def _logs(jobs: Jobs, arguments: argparse.Namespace) -> int:
    if arguments.follow:
        return jobs.follow(arguments.id, arguments.offset)
    jobs.show_output(arguments.id, arguments.offset)
    return 0


def _cancel(jobs: Jobs, arguments: argparse.Namespace) -> int:
    body = {"reason": arguments.reason} if arguments.reason else None
    if not arguments.id and not arguments.queue:
        raise Refused("name a job, or a queue with --queue")
    if arguments.queue:
        found = jobs.ask("POST", f"/api/queues/{arguments.queue}/cancel", body).json()
        print(f"{arguments.queue}: {found['removed']} removed, {found['stopping']} stopping", flush=True)
    worst = 0
    for job in arguments.id:
        try:
            print(f"{job}  {jobs.ask('POST', f'/api/jobs/{job}/cancel', body).json()['message']}", flush=True)
        except Refused as refused:
            print(f"holdfast: {job}: {refused}", file=sys.stderr)
            worst = 1
    return worst


def _queue(jobs: Jobs, arguments: argparse.Namespace) -> int:
    if arguments.max_running is not None:
        jobs.ask("PATCH", f"/api/queues/{arguments.queue}", {"max_running": arguments.max_running})
    found = jobs.ask("GET", "/api/jobs/queue", queue=arguments.queue).json()
    print(f"{found['queue']}: {found['running']} of {found['max_running']} running, {found['queued']} queued")
    _table(found["jobs"])
    return 0


def _table(found: list[Json]) -> None:
    """A line for each job; the same in a pipe as on a terminal."""
    for job in found:
        when = job["completed_at"] or job["started_at"] or job["created_at"]
        print(f"{job['job_id']}  {_standing(job):<12}  {when[:19]}Z  {job['queue']}  {harmless(job['name'])}")


def _standing(job: Json) -> str:
    position = f" {job['position']}" if job["position"] else ""
    asked = ", cancelling" if job["status"] == "running" and job["cancellation_status"] else ""
    return f"{job['status']}{position}{asked}"


def exit_code(job: Json) -> int:
    """What the command ends with that has followed a job."""
    if job["status"] == "completed":
        return 0
    if job["status"] == "cancelled":
        return CANCELLED
    return job["exit_code"] or 1


def _moment(text: str) -> str:
    """A time as it is, or `+` and a duration from now, such as `+30s`, `+2h`."""
    if text.startswith("+") and text[-1] in _UNITS and text[1:-1].isdigit():
        later = timedelta(seconds=int(text[1:-1]) * _UNITS[text[-1]])
        return rfc3339(datetime.now(UTC) + later)
    return text


def _fault(answer: httpx2.Response) -> str:
    """What an error says, in one line."""
    try:
        told = answer.json()
        faults = [f"{fault['pointer']}: {fault['detail']}" for fault in told.get("errors", [])]
        return "; ".join(faults) or told.get("detail") or told["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"the server answered with {answer.status_code}"
