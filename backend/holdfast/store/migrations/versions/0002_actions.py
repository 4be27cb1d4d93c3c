"""Actions, their processes and approvals."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from holdfast.store import tables

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """The table of actions was empty until now: it is made again."""
    op.drop_table("actions")
    op.create_table(
        "actions",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("message_id", tables.Id(length=36), nullable=False),
        sa.Column("session_id", tables.Id(length=36), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("offset", sa.Integer()),
        sa.Column("input", tables.Json(), nullable=False),
        sa.Column("output", tables.Json()),
        sa.Column("live", sa.Text(), nullable=False),
        sa.Column("extra", tables.Json()),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("started_at", tables.Moment()),
        sa.Column("ended_at", tables.Moment()),
        sa.CheckConstraint("status IN ('pending', 'success', 'error', 'cancelled')", name=op.f("ck_actions_status")),
        sa.CheckConstraint("(status = 'pending') = (ended_at IS NULL)", name=op.f("ck_actions_ended_at")),
        sa.ForeignKeyConstraint(["message_id"], ["messages.id"], op.f("fk_actions_message_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], op.f("fk_actions_session_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", "message_id", name=op.f("pk_actions")),
    )
    op.create_index("ix_actions_session_id", "actions", ["session_id", "id"])
    pending = sa.text("status = 'pending'")
    op.create_index("ix_actions_pending", "actions", ["session_id"], sqlite_where=pending, postgresql_where=pending)
    op.create_table(
        "processes",
        sa.Column("mark", sa.String(64), nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("boot_id", sa.String(64), nullable=False),
        sa.Column("pid", sa.Integer()),
        sa.Column("started", sa.String(64)),
        sa.Column("node_id", tables.Id(length=36), nullable=False),
        sa.Column("task_id", tables.Id(length=36), nullable=False),
        sa.Column("action_id", sa.String(128)),
        sa.Column("created_at", tables.Moment(), nullable=False),
        sa.PrimaryKeyConstraint("mark", name=op.f("pk_processes")),
    )
    op.create_index(op.f("ix_processes_task_id"), "processes", ["task_id"])
    op.create_table(
        "interrupts",
        sa.Column("id", tables.Id(length=36), nullable=False),
        sa.Column("session_id", tables.Id(length=36), nullable=False),
        sa.Column("task_id", tables.Id(length=36), nullable=False),
        sa.Column("message_id", tables.Id(length=36), nullable=False),
        sa.Column("action_id", sa.String(128), nullable=False),
        sa.Column("tool", sa.String(200), nullable=False),
        sa.Column("args", tables.Json(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("expires_at", tables.Moment()),
        sa.Column("created_at", tables.Moment(), nullable=False),
        sa.Column("resolved_at", tables.Moment()),
        sa.Column("resolved_by", tables.Id(length=36)),
        sa.Column("approved", sa.SmallInteger()),
        sa.Column("edited_args", tables.Json()),
        sa.Column("note", sa.Text()),
        sa.Column("taken_by", tables.Id(length=36)),
        sa.CheckConstraint("(resolved_at IS NULL) = (approved IS NULL)", name=op.f("ck_interrupts_approved")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], op.f("fk_interrupts_session_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], op.f("fk_interrupts_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_interrupts")),
    )
    op.create_index(op.f("ix_interrupts_session_id"), "interrupts", ["session_id"])
    op.create_index(op.f("ix_interrupts_task_id"), "interrupts", ["task_id"])
    unresolved = sa.text("resolved_at IS NULL")
    op.create_index(
        "ix_interrupts_expires_at",
        "interrupts",
        ["expires_at"],
        sqlite_where=unresolved,
        postgresql_where=unresolved,
    )
    op.create_table(
        "grants",
        sa.Column("session_id", tables.Id(length=36), nullable=False),
        sa.Column("tool", sa.String(200), nullable=False),
        sa.Column("granted_by", tables.Id(length=36), nullable=False),
        sa.Column("created_at", tables.Moment(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], op.f("fk_grants_session_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("session_id", "tool", name=op.f("pk_grants")),
    )


def downgrade() -> None:
    """There is no way back: the table of actions had no room for what it now holds."""
    raise CommandError("restore a backup that the older version has made")
