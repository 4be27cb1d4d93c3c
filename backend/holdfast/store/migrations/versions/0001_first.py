"""The first schema."""

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from holdfast.store import tables
from holdfast.store.schema import new_epoch

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables, the view and the epoch."""
    op.create_table('gates',
    sa.Column('id', sa.String(length=200), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_gates'))
    )
    op.create_table('meta',
    sa.Column('key', sa.String(length=64), nullable=False),
    sa.Column('value', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('key', name=op.f('pk_meta'))
    )
    op.create_table('nodes',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('host', sa.String(length=255), nullable=False),
    sa.Column('boot_id', sa.String(length=64), nullable=False),
    sa.Column('pid', sa.Integer(), nullable=False),
    sa.Column('process_started', sa.String(length=32), nullable=False),
    sa.Column('started_at', tables.Moment(), nullable=False),
    sa.Column('lease_until', tables.Moment(), nullable=False),
    sa.Column('dead_at', tables.Moment(), nullable=True),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_nodes'))
    )
    op.create_table('users',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.Column('disabled_at', tables.Moment(), nullable=True),
    sa.CheckConstraint("role IN ('admin', 'user')", name=op.f('ck_users_role')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_users')),
    sa.UniqueConstraint('name', name=op.f('uq_users_name'))
    )
    op.create_table('sessions',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('owner', tables.Id(length=36), nullable=False),
    sa.Column('assignee', tables.Id(length=36), nullable=True),
    sa.Column('title', sa.String(length=500), nullable=False),
    sa.Column('notes', sa.Text(), nullable=True),
    sa.Column('repository', sa.String(length=500), nullable=True),
    sa.Column('branch', sa.String(length=500), nullable=True),
    sa.Column('target_branch', sa.String(length=500), nullable=True),
    sa.Column('sandbox', tables.Json(), nullable=True),
    sa.Column('ui_status', sa.String(length=16), nullable=False),
    sa.Column('cancellation_status', sa.String(length=16), nullable=True),
    sa.Column('cancelled_at', tables.Moment(), nullable=True),
    sa.Column('cancelled_by', tables.Id(length=36), nullable=True),
    sa.Column('process_pid', sa.Integer(), nullable=True),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('oldest_seq', sa.BigInteger(), nullable=False),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.Column('updated_at', tables.Moment(), nullable=False),
    sa.CheckConstraint("cancellation_status IN ('Requested', 'Cancelled')", name=op.f('ck_sessions_cancellation_status')),
    sa.CheckConstraint("ui_status IN ('Idle', 'InProgress', 'NeedsReview', 'Archived')", name=op.f('ck_sessions_ui_status')),
    sa.ForeignKeyConstraint(['assignee'], ['users.id'], name=op.f('fk_sessions_assignee')),
    sa.ForeignKeyConstraint(['owner'], ['users.id'], name=op.f('fk_sessions_owner')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_sessions'))
    )
    op.create_index('ix_sessions_assignee_updated_at', 'sessions', ['assignee', 'updated_at', 'id'], unique=False)
    op.create_index('ix_sessions_owner_updated_at', 'sessions', ['owner', 'updated_at', 'id'], unique=False)
    op.create_table('tickets',
    sa.Column('hash', sa.String(length=64), nullable=False),
    sa.Column('user_id', tables.Id(length=36), nullable=False),
    sa.Column('expires_at', tables.Moment(), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_tickets_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('hash', name=op.f('pk_tickets'))
    )
    op.create_table('tokens',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('user_id', tables.Id(length=36), nullable=False),
    sa.Column('name', sa.String(length=200), nullable=False),
    sa.Column('hash', sa.String(length=64), nullable=False),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.Column('expires_at', tables.Moment(), nullable=True),
    sa.Column('revoked_at', tables.Moment(), nullable=True),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_tokens_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tokens')),
    sa.UniqueConstraint('hash', name=op.f('uq_tokens_hash'))
    )
    op.create_index(op.f('ix_tokens_user_id'), 'tokens', ['user_id'], unique=False)
    op.create_table('events',
    sa.Column('session_id', tables.Id(length=36), nullable=False),
    sa.Column('seq', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('task_id', tables.Id(length=36), nullable=True),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('type', sa.String(length=40), nullable=False),
    sa.Column('data', sa.Text(), nullable=False),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_events_session_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('session_id', 'seq', name=op.f('pk_events')),
    sqlite_with_rowid=False
    )
    op.create_table('idempotency',
    sa.Column('user_id', tables.Id(length=36), nullable=False),
    sa.Column('session_id', tables.Id(length=36), nullable=False),
    sa.Column('op', sa.String(length=32), nullable=False),
    sa.Column('key', sa.String(length=200), nullable=False),
    sa.Column('request_hash', sa.String(length=64), nullable=False),
    sa.Column('result', tables.Json(), nullable=False),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_idempotency_session_id'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_idempotency_user_id'), ondelete='CASCADE'),
    sa.UniqueConstraint('user_id', 'session_id', 'op', 'key', name=op.f('uq_idempotency_user_id_session_id_op_key'))
    )
    op.create_table('messages',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('session_id', tables.Id(length=36), nullable=False),
    sa.Column('task_id', tables.Id(length=36), nullable=True),
    sa.Column('role', sa.String(length=16), nullable=False),
    sa.Column('content', sa.Text(), nullable=False),
    sa.Column('content_seq', sa.BigInteger(), nullable=False),
    sa.Column('streaming', sa.SmallInteger(), nullable=False),
    sa.Column('metadata', tables.Json(), nullable=False),
    sa.Column('seq', sa.BigInteger(), nullable=True),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_messages_session_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_messages'))
    )
    op.create_index('ix_messages_session_id_seq', 'messages', ['session_id', 'seq', 'id'], unique=False)
    op.create_table('tasks',
    sa.Column('id', tables.Id(length=36), nullable=False),
    sa.Column('executor', sa.String(length=16), nullable=False),
    sa.Column('session_id', tables.Id(length=36), nullable=True),
    sa.Column('user_id', tables.Id(length=36), nullable=False),
    sa.Column('state', sa.String(length=16), nullable=False),
    sa.Column('priority', sa.SmallInteger(), nullable=False),
    sa.Column('place', sa.Integer(), nullable=False),
    sa.Column('attempt', sa.Integer(), nullable=False),
    sa.Column('version', sa.Integer(), nullable=False),
    sa.Column('node_id', tables.Id(length=36), nullable=True),
    sa.Column('input_message_id', tables.Id(length=36), nullable=True),
    sa.Column('message_id', tables.Id(length=36), nullable=True),
    sa.Column('parent_task_id', tables.Id(length=36), nullable=True),
    sa.Column('cancellation_status', sa.String(length=16), nullable=True),
    sa.Column('cancel_requested_at', tables.Moment(), nullable=True),
    sa.Column('cancel_requested_by', tables.Id(length=36), nullable=True),
    sa.Column('cancel_reason', sa.Text(), nullable=True),
    sa.Column('failure_reason', sa.Text(), nullable=True),
    sa.Column('error', tables.Json(), nullable=True),
    sa.Column('created_at', tables.Moment(), nullable=False),
    sa.Column('started_at', tables.Moment(), nullable=True),
    sa.Column('ended_at', tables.Moment(), nullable=True),
    sa.Column('last_updated', tables.Moment(), nullable=False),
    sa.CheckConstraint("(state IN ('Claimed', 'Running')) = (node_id IS NOT NULL)", name=op.f('ck_tasks_node_id')),
    sa.CheckConstraint("(state IN ('Success', 'Failure', 'Canceled')) = (ended_at IS NOT NULL)", name=op.f('ck_tasks_ended_at')),
    sa.CheckConstraint("cancellation_status IN ('Requested', 'Cancelled')", name=op.f('ck_tasks_cancellation_status')),
    sa.CheckConstraint("state IN ('Waiting', 'Pending', 'Paused', 'Claimed', 'Running', 'Success', 'Failure', 'Canceled')", name=op.f('ck_tasks_state')),
    sa.CheckConstraint('priority BETWEEN -1000 AND 1000', name=op.f('ck_tasks_priority')),
    sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_tasks_session_id'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_tasks_user_id')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tasks'))
    )
    op.create_index('ix_tasks_node_id', 'tasks', ['node_id'], unique=False, sqlite_where=sa.text('node_id IS NOT NULL'), postgresql_where=sa.text('node_id IS NOT NULL'))
    op.create_index('ix_tasks_session_id_state', 'tasks', ['session_id', 'state', 'place', 'id'], unique=False)
    op.create_index('ix_tasks_user_active', 'tasks', ['user_id'], unique=False, sqlite_where=sa.text('node_id IS NOT NULL'), postgresql_where=sa.text('node_id IS NOT NULL'))
    op.create_index('uq_tasks_session_active', 'tasks', ['session_id'], unique=True, sqlite_where=sa.text("executor = 'agent' AND node_id IS NOT NULL"), postgresql_where=sa.text("executor = 'agent' AND node_id IS NOT NULL"))
    op.create_table('actions',
    sa.Column('id', sa.String(length=128), nullable=False),
    sa.Column('message_id', tables.Id(length=36), nullable=False),
    sa.Column('session_id', tables.Id(length=36), nullable=False),
    sa.Column('type', sa.String(length=200), nullable=False),
    sa.Column('position', sa.Integer(), nullable=False),
    sa.Column('input', tables.Json(), nullable=False),
    sa.Column('output', tables.Json(), nullable=True),
    sa.Column('status', sa.String(length=16), nullable=False),
    sa.Column('outcome', sa.String(length=16), nullable=True),
    sa.Column('started_at', tables.Moment(), nullable=True),
    sa.Column('ended_at', tables.Moment(), nullable=True),
    sa.CheckConstraint("status IN ('pending', 'success', 'error', 'cancelled')", name=op.f('ck_actions_status')),
    sa.ForeignKeyConstraint(['message_id'], ['messages.id'], name=op.f('fk_actions_message_id'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['session_id'], ['sessions.id'], name=op.f('fk_actions_session_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', 'message_id', name=op.f('pk_actions'))
    )
    op.create_index(op.f('ix_actions_session_id'), 'actions', ['session_id'], unique=False)
    op.create_index(
        'ix_tasks_pending',
        'tasks',
        ['executor', sa.text('priority DESC'), 'id'],
        unique=False,
        sqlite_where=sa.text("state = 'Pending'"),
        postgresql_where=sa.text("state = 'Pending'"),
    )
    op.execute(tables.MESSAGE_CONTENTS[op.get_context().dialect.name])
    op.execute(f"INSERT INTO meta (key, value) VALUES ('epoch', '{new_epoch()}')")


def downgrade() -> None:
    """There is nothing before it."""
    raise CommandError("drop the database")
