"""Users, their tokens, and the single-use tickets for sockets. Only hashes of secrets are stored."""

import hashlib
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, delete, insert, or_, select, update

from holdfast.clock import rfc3339
from holdfast.domain.errors import Conflict, NotFound
from holdfast.domain.users import Role, User
from holdfast.store import gates
from holdfast.store.connection import Connection
from holdfast.store.database import Tx
from holdfast.store.tables import tickets, tokens, users


def secret_hash(secret: str) -> str:
    """What is stored of a secret that has 256 bits of randomness of its own."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def ensure_user(tx: Tx, name: str, role: Role, new_id: str) -> User:
    """The user of this name, made with `role` when there is none."""
    found = await find_user(tx.conn, name)
    if found is not None:
        return found
    await tx.conn.execute(insert(users).values(id=new_id, name=name, role=role, created_at=tx.now))
    await gates.ensure(tx, f"user:{new_id}", None)
    await gates.ensure(tx, f"queue:{new_id}:default", 1, new_id)
    return User(new_id, name, role)


async def create_user(tx: Tx, name: str, role: Role, new_id: str) -> User:
    """A new user.

    Raises:
        Conflict: the name is taken.
    """
    if await find_user(tx.conn, name) is not None:
        raise Conflict(f"A user named {name!r} exists already", field="name")
    return await ensure_user(tx, name, role, new_id)


async def find_user(conn: Connection, name: str) -> User | None:
    """The user of this name."""
    row = (await conn.execute(select(users.c.id, users.c.name, users.c.role).filter_by(name=name))).first()
    return User(*row) if row else None


async def list_users(conn: Connection, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Users in order of their ids, after `after`."""
    statement = select(users).order_by(users.c.id).limit(limit)
    if after:
        statement = statement.where(users.c.id > after)
    return [_user_body(row) for row in (await conn.execute(statement)).mappings()]


async def set_role(tx: Tx, user_id: str, role: Role) -> None:
    """Change what a user may do."""
    await tx.conn.execute(update(users).where(users.c.id == user_id).values(role=role))


async def set_disabled(tx: Tx, user_id: str, *, disabled: bool) -> dict[str, Any]:
    """Lock a user out, or let them in again.

    Raises:
        NotFound: no such user.
    """
    when = tx.now if disabled else None
    await tx.conn.execute(update(users).where(users.c.id == user_id).values(disabled_at=when))
    row = (await tx.conn.execute(select(users).filter_by(id=user_id))).mappings().first()
    if row is None:
        raise NotFound("User not found")
    return _user_body(row)


async def create_token(
    tx: Tx, user_id: str, name: str, secret: str, new_id: str, expires: timedelta | None
) -> dict[str, Any]:
    """Store a new token's hash; the body of the token without its secret."""
    expires_at = tx.now + expires if expires else None
    await tx.conn.execute(
        insert(tokens).values(
            id=new_id,
            user_id=user_id,
            name=name,
            hash=secret_hash(secret),
            created_at=tx.now,
            expires_at=expires_at,
        )
    )
    return {
        "id": new_id,
        "name": name,
        "user": user_id,
        "created_at": rfc3339(tx.now),
        "expires_at": rfc3339(expires_at) if expires_at else None,
        "revoked_at": None,
    }


async def list_tokens(conn: Connection, after: str | None, limit: int) -> list[dict[str, Any]]:
    """Tokens in order of their ids, without anything of the secrets."""
    statement = select(tokens).order_by(tokens.c.id).limit(limit)
    if after:
        statement = statement.where(tokens.c.id > after)
    return [_token_body(row) for row in (await conn.execute(statement)).mappings()]


async def revoke_token(tx: Tx, token_id: str) -> None:
    """End a token; twice is the same as once.

    Raises:
        NotFound: no such token.
    """
    done = await tx.conn.execute(
        update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=tx.now)
    )
    if done.rowcount == 0 and await tx.conn.scalar(select(tokens.c.id).filter_by(id=token_id)) is None:
        raise NotFound("Token not found")


async def user_of_token(conn: Connection, secret: str, now: datetime) -> User | None:
    """Whose token this is, when it is valid at `now`. The hash is looked up, so timing tells nothing."""
    statement = (
        select(users.c.id, users.c.name, users.c.role)
        .join(tokens, tokens.c.user_id == users.c.id)
        .where(
            tokens.c.hash == secret_hash(secret),
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now),
            users.c.disabled_at.is_(None),
        )
    )
    row = (await conn.execute(statement)).first()
    return User(*row) if row else None


async def create_ticket(tx: Tx, user_id: str, secret: str, lifetime_s: float) -> None:
    """Store a ticket's hash, and forget tickets that were never used."""
    await tx.conn.execute(delete(tickets).where(tickets.c.expires_at < tx.now))
    await tx.conn.execute(
        insert(tickets).values(
            hash=secret_hash(secret), user_id=user_id, expires_at=tx.now + timedelta(seconds=lifetime_s)
        )
    )


async def take_ticket(tx: Tx, secret: str) -> User | None:
    """Whose ticket this is; it is gone afterwards."""
    wanted = secret_hash(secret)
    statement = (
        select(users.c.id, users.c.name, users.c.role)
        .join(tickets, tickets.c.user_id == users.c.id)
        .where(tickets.c.hash == wanted, tickets.c.expires_at > tx.now, users.c.disabled_at.is_(None))
    )
    row = (await tx.conn.execute(statement)).first()
    taken = await tx.conn.execute(delete(tickets).where(tickets.c.hash == wanted))
    return User(*row) if row and taken.rowcount == 1 else None


def _user_body(row: RowMapping) -> dict[str, Any]:
    disabled = row["disabled_at"]
    return {
        "id": row["id"],
        "name": row["name"],
        "role": row["role"],
        "created_at": rfc3339(row["created_at"]),
        "disabled_at": rfc3339(disabled) if disabled else None,
    }


def _token_body(row: RowMapping) -> dict[str, Any]:
    times = {name: row[name] for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": row["id"],
        "name": row["name"],
        "user": row["user_id"],
        **{name: rfc3339(moment) if moment else None for name, moment in times.items()},
    }
