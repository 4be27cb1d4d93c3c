"""Events without a foreign key: whoever appends holds the session, once a batch and not once a row."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from holdfast.store import tables

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """PostgreSQL drops the constraint; SQLite has no way to, so the table is made again."""
    if op.get_context().dialect.name == "postgresql":
        op.drop_constraint("fk_events_session_id", "events", type_="foreignkey")
        return
    op.execute("DROP VIEW message_contents")
    op.rename_table("events", "events_before")
    op.create_table(
        "events",
        sa.Column("session_id", tables.Id(length=36), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", tables.Id(length=36)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("created_at", tables.Moment(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "seq", name=op.f("pk_events")),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO events (session_id, seq, task_id, attempt, type, data, created_at)"
        " SELECT session_id, seq, task_id, attempt, type, data, created_at FROM events_before"
        " ORDER BY session_id, seq"
    )
    op.drop_table("events_before")
    op.execute(tables.MESSAGE_CONTENTS["sqlite"])


def downgrade() -> None:
    """There is no way back."""
    raise CommandError("restore a backup that the older version has made")
