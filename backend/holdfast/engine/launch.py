"""Starts commands in the sandbox of this node, with its limits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from holdfast.agents.sandbox import Limits, Sandbox, Wrapped
from holdfast.engine import cgroups
from holdfast.engine.processes import OnOutput, Process, spawn


async def launch(
    argv: Sequence[str],
    folder: Path,
    sandbox: Sandbox,
    *,
    session: str,
    limits: Limits,
    total_memory_bytes: int | None,
    on_output: OnOutput,
    mark: str,
    env: Mapping[str, str] | None = None,
    as_owner: bool = False,
    keeper: Sequence[str] = (),
    on_stuck: Callable[[int], object] = lambda _: None,
    held: bool = False,
) -> Process:
    """Start a command that works in `folder`; `session` decides the user that it runs as.

    `keeper` is a program with its arguments that starts it and may outlive the service; `on_stuck` is told of kills
    that did not work. One that is `held` begins at its `release`; all of it together has twice the memory of one
    process, where the machine can limit that.

    Raises:
        OSError: it cannot be started.
        ValueError: a variable cannot be set.
    """
    wrapped = sandbox.wrap(
        argv, folder, session=session, limits=limits, env=env, as_owner=as_owner, outlives=bool(keeper)
    )
    limited = total_memory_bytes or (limits.memory_bytes * 2 if cgroups.limit_memory() or held else None)
    return await spawn(
        [*keeper, *wrapped.argv],
        env=wrapped.env,
        cwd="/" if sandbox.confined else folder,
        on_output=on_output,
        memory_bytes=limited,
        processes=limits.processes * 2,
        grouped=not _is_held(sandbox, wrapped, limits_memory=total_memory_bytes is not None),
        mark=mark,
        on_stuck=on_stuck,
        held=held,
    )


def _is_held(sandbox: Sandbox, wrapped: Wrapped, *, limits_memory: bool) -> bool:
    """Whether a control group would add nothing: entering one makes each start slower by milliseconds.

    A process namespace ends all of a command at once, and a user of its own has a limit of its own on processes; what
    is left is memory, where this machine's groups limit that.
    """
    return sandbox.ends_together and bool(wrapped.uid) and not (cgroups.limit_memory() or limits_memory)
