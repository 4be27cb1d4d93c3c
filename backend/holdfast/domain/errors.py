"""Every error that a client can be told, as one tree.

    HoldfastError
    ├── InvalidFrame, UnknownType, InvalidRequest, TooLarge      the input is wrong
    ├── HelloRequired, UnsupportedVersion                        the handshake is wrong
    ├── Unauthenticated, Forbidden                               the caller may not
    ├── NotFound ── SessionNotFound, RunNotFound                 it is not there (or not yours)
    ├── RunActive, Conflict, IdempotencyConflict, InterruptsPending, NoOpenInterrupt, AlreadyResolved
    ├── RateLimited, Overloaded, Unavailable                     later
    ├── NoSandbox                                       another machine, or another setting
    └── Internal                                                 our fault

`code` is stable and the same on every way in; only `api` knows status and close codes. `LeaseLost`
is no answer to anybody: it tells a run of this process that it is no longer the owner.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One fault of a body: a JSON pointer (RFC 6901) and what is wrong there."""

    pointer: str
    detail: str


class HoldfastError(Exception):
    """An error with a stable `code` that may be told to a client in these words.

    `field` names the faulty field of a frame; `errors` list all faults of a body; `current` is the
    present state for a conflict; `retry_after_s` says when to come again.
    """

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str | None = None,
        *,
        field: str | None = None,
        errors: Sequence[FieldError] = (),
        current: Any = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message or self.title
        super().__init__(self.message)
        self.field = field
        self.errors = tuple(errors)
        self.current = current
        self.retry_after_s = retry_after_s


class InvalidFrame(HoldfastError):
    """A frame whose fields do not fit its type."""

    code = "invalid_frame"
    title = "The frame is not valid"


class InvalidRequest(HoldfastError):
    """A body, query or header that does not fit."""

    code = "invalid_request"
    title = "The request is not valid"


class UnknownType(HoldfastError):
    """A frame of a type that this version does not know."""

    code = "unknown_type"
    title = "Unknown frame type"


class TooLarge(HoldfastError):
    """More bytes than the limit allows."""

    code = "too_large"
    title = "Too large"


class HelloRequired(HoldfastError):
    """The first frame was not a `hello`."""

    code = "hello_required"
    title = "The first frame must be a hello"


class UnsupportedVersion(HoldfastError):
    """A protocol version that this server does not speak."""

    code = "unsupported_version"
    title = "Unsupported protocol version"


class Unauthenticated(HoldfastError):
    """No credentials, or none that are valid."""

    code = "unauthenticated"
    title = "Valid credentials are required"


class Forbidden(HoldfastError):
    """Valid credentials that do not suffice, or a Host or Origin that is not allowed."""

    code = "forbidden"
    title = "Not allowed"


class NotFound(HoldfastError):
    """It does not exist, or belongs to somebody else."""

    code = "not_found"
    title = "Not found"


class SessionNotFound(NotFound):
    """No such session of this user."""

    code = "session_not_found"
    title = "Session not found"


class RunNotFound(NotFound):
    """No such run of this user."""

    code = "run_not_found"
    title = "Run not found"


class JobNotFound(NotFound):
    """No such job of this user."""

    title = "Job not found"


class NoSandbox(HoldfastError):
    """There is no sandbox on this machine, and what is asked for needs one."""

    code = "sandbox_unavailable"
    title = "There is no sandbox on this machine"


class RunActive(HoldfastError):
    """A run goes on, and the caller asked to be refused in that case."""

    code = "run_active"
    title = "A run is active in this session"


class Conflict(HoldfastError):
    """The state has changed since the version that the caller names; `current` is the new state."""

    code = "conflict"
    title = "The state has changed"


class IdempotencyConflict(HoldfastError):
    """The same idempotency key was used with other content."""

    code = "idempotency_conflict"
    title = "The key was used with other content"


class InterruptsPending(HoldfastError):
    """Open approvals must be answered first."""

    code = "interrupts_pending"
    title = "Approvals are pending"


class NoOpenInterrupt(HoldfastError):
    """There is nothing to approve."""

    code = "no_open_interrupt"
    title = "No approval is pending"


class AlreadyResolved(HoldfastError):
    """The approval was answered already, otherwise."""

    code = "already_resolved"
    title = "Already resolved"


class RateLimited(HoldfastError):
    """Too many commands; `retry_after_s` says when the next one is welcome."""

    code = "rate_limited"
    title = "Too many requests"
    retryable = True


class Overloaded(HoldfastError):
    """A bound of the server is reached."""

    code = "overloaded"
    title = "The server is busy"
    retryable = True


class Unavailable(HoldfastError):
    """The database does not answer, or the node is shutting down."""

    code = "unavailable"
    title = "The service is not available for the moment"
    retryable = True


class Internal(HoldfastError):
    """A fault of the server; the message names the id under which the log has it."""

    code = "internal"
    title = "Internal error"


class LeaseLost(Exception):
    """This process no longer owns the run: another attempt, or its end, stands in the journal."""


ERRORS: tuple[type[HoldfastError], ...] = (
    InvalidFrame,
    InvalidRequest,
    UnknownType,
    TooLarge,
    HelloRequired,
    UnsupportedVersion,
    Unauthenticated,
    Forbidden,
    NotFound,
    SessionNotFound,
    RunNotFound,
    RunActive,
    Conflict,
    IdempotencyConflict,
    InterruptsPending,
    NoOpenInterrupt,
    AlreadyResolved,
    RateLimited,
    Overloaded,
    Unavailable,
    NoSandbox,
    Internal,
)
"""Every code a client can be told, for the reference and for the tests that hold it to the code."""
