"""Idempotency keys: (user, session, op, key) is done once, and its first result is given again."""

import hashlib
from typing import Any

import msgspec
from sqlalchemy import insert, select

from holdfast.domain.errors import IdempotencyConflict
from holdfast.store.database import Tx
from holdfast.store.tables import idempotency


def request_hash(*parts: Any) -> str:
    """What makes two requests the same."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


async def recall(tx: Tx, user: str, session: str, op: str, key: str | None, wanted: str) -> Any | None:
    """The first result of this key, or None when it is new.

    The session's row must be locked, so that two at once are one after the other.

    Raises:
        IdempotencyConflict: the key was used with other content.
    """
    if key is None:
        return None
    found = (
        await tx.conn.execute(
            select(idempotency.c.request_hash, idempotency.c.result).where(
                idempotency.c.user_id == user,
                idempotency.c.session_id == session,
                idempotency.c.op == op,
                idempotency.c.key == key,
            )
        )
    ).first()
    if found is None:
        return None
    if found[0] != wanted:
        raise IdempotencyConflict(field="key")
    return found[1]


async def remember(tx: Tx, user: str, session: str, op: str, key: str | None, wanted: str, result: Any) -> None:
    """Keep the result, in the transaction of its effect."""
    if key is not None:
        await tx.conn.execute(
            insert(idempotency).values(
                user_id=user,
                session_id=session,
                op=op,
                key=key,
                request_hash=wanted,
                result=result,
                created_at=tx.now,
            )
        )
