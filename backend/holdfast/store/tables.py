"""The tables, for SQLite and PostgreSQL alike. `migrations/` is equal to this; a test compares them."""

from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from holdfast.clock import parse_rfc3339, rfc3339
from holdfast.domain.tasks import CancellationStatus, TaskState, UiStatus


class Moment(TypeDecorator[datetime]):
    """An aware UTC time: `timestamptz`, or RFC 3339 text that sorts by time on SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column type of the dialect."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(27))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """What the driver is given."""
        if value is None or dialect.name != "sqlite":
            return value
        return rfc3339(value.astimezone(UTC))

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """What the driver gave, as an aware time."""
        return parse_rfc3339(value) if isinstance(value, str) else value


class Id(TypeDecorator[str]):
    """A UUID, a canonical string in Python: `uuid` on PostgreSQL, text on SQLite."""

    impl = String(36)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column type of the dialect."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(36))
        return dialect.type_descriptor(Uuid(as_uuid=False))


class Json(TypeDecorator[Any]):
    """A JSON value, stored as text that keeps its bytes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """The value as JSON text; None is NULL."""
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """The value that the text holds."""
        return None if value is None else msgspec.json.decode(value)


def _one_of(column: str, values: type[TaskState] | type[CancellationStatus] | type[UiStatus]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""`epoch`: changes when history may diverge, such as after a restore from a backup."""

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("disabled_at", Moment),
    CheckConstraint("role IN ('admin', 'user')", name="role"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_at", Moment),
)
"""`hash` is the SHA-256 of the token, which has 256 bits of its own and needs no salt."""

tickets = Table(
    "tickets",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("expires_at", Moment, nullable=False),
)
"""Single-use credentials for a WebSocket; taking one deletes it."""

nodes = Table(
    "nodes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", String(32), nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("lease_until", Moment, nullable=False),
    Column("dead_at", Moment),
)
"""One row a process. Its lease is the lease of all its tasks; a dead node never comes back."""

sessions = Table(
    "sessions",
    metadata,
    Column("id", Id, primary_key=True),
    Column("owner", Id, ForeignKey("users.id"), nullable=False),
    Column("assignee", Id, ForeignKey("users.id")),
    Column("title", String(500), nullable=False),
    Column("notes", Text),
    Column("repository", String(500)),
    Column("branch", String(500)),
    Column("target_branch", String(500)),
    Column("sandbox", Json),
    Column("ui_status", String(16), nullable=False),
    Column("cancellation_status", String(16)),
    Column("cancelled_at", Moment),
    Column("cancelled_by", Id),
    Column("process_pid", Integer),
    Column("kill_failures", Integer, nullable=False, server_default="0"),
    Column("version", Integer, nullable=False),
    Column("oldest_seq", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    CheckConstraint(_one_of("ui_status", UiStatus), name="ui_status"),
    CheckConstraint(_one_of("cancellation_status", CancellationStatus), name="cancellation_status"),
    Index("ix_sessions_owner_updated_at", "owner", "updated_at", "id"),
    Index("ix_sessions_assignee_updated_at", "assignee", "updated_at", "id"),
)

gates = Table(
    "gates",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("capacity", Integer),
    Column("owner", Id),
    Index(
        "ix_gates_owner",
        "owner",
        sqlite_where=text("owner IS NOT NULL"),
        postgresql_where=text("owner IS NOT NULL"),
    ),
)
"""A row stands for a limit: `session:<id>`, `user:<id>`, `queue:<user>:<name>`. Locking it is how the limit is kept.

`capacity` is how many tasks may be active at once; null: what the node that claims is set to. How many are is
counted under the lock, and stored nowhere. `owner` is the user whose queue it is.
"""

tasks = Table(
    "tasks",
    metadata,
    Column("id", Id, primary_key=True),
    Column("executor", String(16), nullable=False),
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("place", Integer, nullable=False),
    Column("rank", String(36), nullable=False, server_default=""),
    Column("queue", String(100)),
    Column("run_at", Moment),
    Column("attempt", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("node_id", Id),
    Column("traceparent", String(55)),
    Column("input_message_id", Id),
    Column("message_id", Id),
    Column("parent_task_id", Id),
    Column("cancellation_status", String(16)),
    Column("cancel_requested_at", Moment),
    Column("cancel_requested_by", Id),
    Column("cancel_reason", Text),
    Column("failure_reason", Text),
    Column("error", Json),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("last_updated", Moment, nullable=False),
    CheckConstraint(_one_of("state", TaskState), name="state"),
    CheckConstraint(_one_of("cancellation_status", CancellationStatus), name="cancellation_status"),
    CheckConstraint("priority BETWEEN -1000 AND 1000", name="priority"),
    CheckConstraint("(state IN ('Success', 'Failure', 'Canceled')) = (ended_at IS NOT NULL)", name="ended_at"),
    CheckConstraint("(state IN ('Claimed', 'Running')) = (node_id IS NOT NULL)", name="node_id"),
    Index("ix_tasks_session_id_state", "session_id", "state", "place", "id"),
    Index(
        "ix_tasks_pending",
        "executor",
        text("priority DESC"),
        "rank",
        sqlite_where=text("state = 'Pending'"),
        postgresql_where=text("state = 'Pending'"),
    ),
    Index(
        "ix_tasks_run_at",
        "run_at",
        sqlite_where=text("state = 'Pending' AND run_at IS NOT NULL"),
        postgresql_where=text("state = 'Pending' AND run_at IS NOT NULL"),
    ),
    Index(
        "ix_tasks_queue",
        "user_id",
        "queue",
        sqlite_where=text("queue IS NOT NULL AND ended_at IS NULL"),
        postgresql_where=text("queue IS NOT NULL AND ended_at IS NULL"),
    ),
    Index(
        "ix_tasks_node_id",
        "node_id",
        sqlite_where=text("node_id IS NOT NULL"),
        postgresql_where=text("node_id IS NOT NULL"),
    ),
    Index(
        "ix_tasks_user_active",
        "user_id",
        sqlite_where=text("node_id IS NOT NULL"),
        postgresql_where=text("node_id IS NOT NULL"),
    ),
    Index(
        "uq_tasks_session_active",
        "session_id",
        unique=True,
        sqlite_where=text("executor = 'agent' AND node_id IS NOT NULL"),
        postgresql_where=text("executor = 'agent' AND node_id IS NOT NULL"),
    ),
)
"""`place` orders the waiting messages of a session; `version` counts the edits of a waiting one.

Across sessions the order is by priority, then `rank`, which is the task's own id until two exchange theirs. A task
is not claimed before `run_at`. `traceparent` (W3C) names the span that asked for it.
"""

task_gates = Table(
    "task_gates",
    metadata,
    Column("task_id", Id, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("gate_id", String(200), ForeignKey("gates.id"), primary_key=True),
    sqlite_with_rowid=False,
)
"""The limits that a task holds while a node owns it."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", Id, ForeignKey("users.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("command", Json, nullable=False),
    Column("env", Json, nullable=False),
    Column("cwd", Text),
    Column("sandbox", String(16), nullable=False),
    Column("on_restart", String(16), nullable=False),
    Column("timeout_s", Float),
    Column("idle_timeout_s", Float),
    Column("memory_mb", Integer),
    Column("retries", Integer, nullable=False),
    Column("retry_backoff_s", Float, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("host", String(255)),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("error", Text),
    Column("cpu_s", Float),
    Column("max_rss_bytes", BigInteger),
    Column("kill_failures", Integer, nullable=False),
    Column("metadata", Json, nullable=False),
    CheckConstraint("sandbox IN ('on', 'off')", name="sandbox"),
    CheckConstraint("on_restart IN ('end', 'keep')", name="on_restart"),
    Index("ix_jobs_user_id", "user_id", "id"),
)
"""What a task of the executor `process` runs, and how that ended. `failures` are the tries that failed."""

messages = Table(
    "messages",
    metadata,
    Column("id", Id, primary_key=True),
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("task_id", Id),
    Column("role", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("content_seq", BigInteger, nullable=False),
    Column("streaming", SmallInteger, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("seq", BigInteger),
    Column("created_at", Moment, nullable=False),
    Index("ix_messages_session_id_seq", "session_id", "seq", "id"),
)
"""`seq` is the event that put the message into the conversation; null while it waits.

`content` holds the deltas through `content_seq`; what came later is in the journal, and the view
`message_contents` joins the two.
"""

actions = Table(
    "actions",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("message_id", Id, ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("type", String(200), nullable=False),
    Column("position", Integer, nullable=False),
    Column("offset", Integer),
    Column("input", Json, nullable=False),
    Column("output", Json),
    Column("live", Text, nullable=False),
    Column("extra", Json),
    Column("status", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    CheckConstraint("status IN ('pending', 'success', 'error', 'cancelled')", name="status"),
    CheckConstraint("(status = 'pending') = (ended_at IS NULL)", name="ended_at"),
    Index("ix_actions_session_id", "session_id", "id"),
    Index(
        "ix_actions_pending",
        "session_id",
        sqlite_where=text("status = 'pending'"),
        postgresql_where=text("status = 'pending'"),
    ),
)
"""`seq` is the event that began the action; `live` is folded when it ends, and in the journal until then."""

processes = Table(
    "processes",
    metadata,
    Column("mark", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("pid", Integer),
    Column("started", String(64)),
    Column("node_id", Id, nullable=False),
    Column("task_id", Id, nullable=False, index=True),
    Column("action_id", String(128)),
    Column("created_at", Moment, nullable=False),
)
"""A row stands for a process that may live; it is written before the start and goes when all of it is gone."""

interrupts = Table(
    "interrupts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("task_id", Id, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("message_id", Id, nullable=False),
    Column("action_id", String(128), nullable=False),
    Column("tool", String(200), nullable=False),
    Column("args", Json, nullable=False),
    Column("reason", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("expires_at", Moment),
    Column("created_at", Moment, nullable=False),
    Column("resolved_at", Moment),
    Column("resolved_by", Id),
    Column("approved", SmallInteger),
    Column("edited_args", Json),
    Column("note", Text),
    Column("taken_by", Id),
    CheckConstraint("(resolved_at IS NULL) = (approved IS NULL)", name="approved"),
    Index(
        "ix_interrupts_expires_at",
        "expires_at",
        sqlite_where=text("resolved_at IS NULL"),
        postgresql_where=text("resolved_at IS NULL"),
    ),
)
"""A question that a run waits for, and its answer. `taken_by` is the run that carries the answer out."""

grants = Table(
    "grants",
    metadata,
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("tool", String(200), primary_key=True),
    Column("granted_by", Id, nullable=False),
    Column("created_at", Moment, nullable=False),
)
"""A tool that needs no further approval in a session."""

events = Table(
    "events",
    metadata,
    Column("session_id", Id, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("task_id", Id),
    Column("attempt", Integer, nullable=False),
    Column("type", String(40), nullable=False),
    Column("data", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    sqlite_with_rowid=False,
)
"""The journals. No foreign key, which would be checked once a row: whoever appends holds the session instead."""

idempotency = Table(
    "idempotency",
    metadata,
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("session_id", Id, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("op", String(32), nullable=False),
    Column("key", String(200), nullable=False),
    Column("request_hash", String(64), nullable=False),
    Column("result", Json, nullable=False),
    Column("created_at", Moment, nullable=False),
    UniqueConstraint("user_id", "session_id", "op", "key"),
)

MESSAGE_CONTENTS = {
    "sqlite": """
        CREATE VIEW message_contents AS
        SELECT m.id, m.session_id, m.role, m.metadata, m.created_at,
               CASE WHEN m.streaming = 0 THEN m.content ELSE m.content || COALESCE((
                   SELECT group_concat(json_extract(e.data, '$.delta'), '')
                   FROM (SELECT data FROM events
                         WHERE session_id = m.session_id AND seq > m.content_seq
                           AND task_id = m.task_id AND type = 'TEXT_MESSAGE_CONTENT'
                         ORDER BY seq) e), '') END AS content
        FROM messages m
    """,
    "postgresql": """
        CREATE VIEW message_contents AS
        SELECT m.id, m.session_id, m.role, m.metadata, m.created_at,
               CASE WHEN m.streaming = 0 THEN m.content ELSE m.content || COALESCE((
                   SELECT string_agg(e.data::json ->> 'delta', '' ORDER BY e.seq)
                   FROM events e
                   WHERE e.session_id = m.session_id AND e.seq > m.content_seq
                     AND e.task_id = m.task_id AND e.type = 'TEXT_MESSAGE_CONTENT'), '') END AS content
        FROM messages m
    """,
}
"""A message as it stands at this moment, in plain SQL: its content and the deltas since."""
