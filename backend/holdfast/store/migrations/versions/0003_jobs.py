"""Jobs, and limits in their general form."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from holdfast.store import tables

revision = "0003"
down_revision = "0002"

_OPEN = "state NOT IN ('Success', 'Failure', 'Canceled')"


def upgrade() -> None:
    """Tasks learn of queues and times; what has not ended gets its limits as rows."""
    op.add_column("gates", sa.Column("capacity", sa.Integer()))
    op.add_column("gates", sa.Column("owner", tables.Id(length=36)))
    owned = sa.text("owner IS NOT NULL")
    op.create_index("ix_gates_owner", "gates", ["owner"], sqlite_where=owned, postgresql_where=owned)
    op.execute("UPDATE gates SET capacity = 1 WHERE id LIKE 'session\\:%'")
    op.execute(
        "INSERT INTO gates (id) SELECT 'user\\:' || CAST(id AS VARCHAR(36)) FROM users WHERE 'user\\:' ||"
        " CAST(id AS VARCHAR(36)) NOT IN (SELECT id FROM gates)"
    )
    op.execute(
        "INSERT INTO gates (id, capacity, owner)"
        " SELECT 'queue\\:' || CAST(id AS VARCHAR(36)) || '\\:default', 1, id FROM users"
    )
    op.add_column("sessions", sa.Column("kill_failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("tasks", sa.Column("rank", sa.String(36), server_default="", nullable=False))
    op.add_column("tasks", sa.Column("queue", sa.String(100)))
    op.add_column("tasks", sa.Column("run_at", tables.Moment()))
    op.add_column("tasks", sa.Column("traceparent", sa.String(55)))
    op.execute("UPDATE tasks SET rank = CAST(id AS VARCHAR(36))")
    op.drop_index("ix_tasks_pending", "tasks")
    _partial("ix_tasks_pending", ["executor", sa.text("priority DESC"), "rank"], "state = 'Pending'")
    _partial("ix_tasks_run_at", ["run_at"], "state = 'Pending' AND run_at IS NOT NULL")
    _partial("ix_tasks_queue", ["user_id", "queue"], "queue IS NOT NULL AND ended_at IS NULL")
    op.create_table(
        "task_gates",
        sa.Column("task_id", tables.Id(length=36), nullable=False),
        sa.Column("gate_id", sa.String(200), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], op.f("fk_task_gates_task_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["gate_id"], ["gates.id"], op.f("fk_task_gates_gate_id")),
        sa.PrimaryKeyConstraint("task_id", "gate_id", name=op.f("pk_task_gates")),
        sqlite_with_rowid=False,
    )
    for kind in ("session", "user"):
        op.execute(
            f"INSERT INTO task_gates SELECT id, '{kind}\\:' || CAST({kind}_id AS VARCHAR(36)) FROM tasks WHERE {_OPEN}"
        )
    op.create_table(
        "jobs",
        sa.Column("id", tables.Id(length=36), nullable=False),
        sa.Column("user_id", tables.Id(length=36), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("command", tables.Json(), nullable=False),
        sa.Column("env", tables.Json(), nullable=False),
        sa.Column("cwd", sa.Text()),
        sa.Column("sandbox", sa.String(16), nullable=False),
        sa.Column("on_restart", sa.String(16), nullable=False),
        sa.Column("timeout_s", sa.Float()),
        sa.Column("idle_timeout_s", sa.Float()),
        sa.Column("memory_mb", sa.Integer()),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("retry_backoff_s", sa.Float(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(255)),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("signal", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("cpu_s", sa.Float()),
        sa.Column("max_rss_bytes", sa.BigInteger()),
        sa.Column("kill_failures", sa.Integer(), nullable=False),
        sa.Column("metadata", tables.Json(), nullable=False),
        sa.CheckConstraint("sandbox IN ('on', 'off')", name=op.f("ck_jobs_sandbox")),
        sa.CheckConstraint("on_restart IN ('end', 'keep')", name=op.f("ck_jobs_on_restart")),
        sa.ForeignKeyConstraint(["id"], ["tasks.id"], op.f("fk_jobs_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], op.f("fk_jobs_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_user_id", "jobs", ["user_id", "id"])


def _partial(name: str, columns: list, where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, "tasks", columns, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """There is no way back: an older version would take jobs for runs."""
    raise CommandError("restore a backup that the older version has made")
