"""Who calls, and what they may do with a session."""

from typing import Literal

import msgspec

Role = Literal["admin", "user"]


class User(msgspec.Struct, frozen=True):
    """A person or program with credentials; the body of `GET /api/me`."""

    id: str
    name: str
    role: Role

    @property
    def is_admin(self) -> bool:
        """Whether they may see and manage everything."""
        return self.role == "admin"


Access = Literal["owner", "assignee"]


def access(user: User, *, owner: str, assignee: str | None) -> Access | None:
    """What a user may do with a session.

    Owners and admins may do everything; an assignee reads, cancels and writes notes; nobody else
    learns that the session exists.
    """
    if user.is_admin or user.id == owner:
        return "owner"
    return "assignee" if user.id == assignee else None
