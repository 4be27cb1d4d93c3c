"""What the runs of one node work with: the tools, the rules about them, the sandbox, the folders."""

import asyncio
import functools
import logging
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast.agents.builtin import BUILTIN
from holdfast.agents.folder import Folder
from holdfast.agents.sandbox import Limits, Sandbox, SandboxUnavailable, Unconfined, find_sandbox, uid_of
from holdfast.agents.tools import Approval, Tool, Toolbox
from holdfast.config import Settings, approvals_of, folders_of
from holdfast.engine.meters import Meters
from holdfast.engine.processes import boot_id

log = logging.getLogger("holdfast.workshop")


@dataclass(frozen=True, slots=True)
class Rule:
    """Whether a tool may be used.

    `grantable` says that a person may allow it for the whole session; `why` is told to whoever is asked
    or refused.
    """

    approval: Approval
    grantable: bool
    why: str


class Workshop:
    """The tools and places of a node. `toolbox` may be changed until the node starts."""

    def __init__(self, settings: Settings, toolbox: Toolbox = BUILTIN, sandbox: Sandbox | None = None) -> None:
        self.toolbox = toolbox
        self.meters = Meters()
        self.host = socket.gethostname()
        self.boot_id = boot_id()
        self.kill_grace_s = settings.kill_grace_s
        self.output_bytes = settings.tool_output_mb << 20
        self.total_memory_bytes = settings.tool_total_memory_mb << 20 or None
        self.approval_timeout_s = settings.approval_timeout_s or None
        self.limits = Limits(memory_bytes=settings.tool_memory_mb << 20, processes=settings.tool_processes)
        self._wanted: Any = settings.sandbox
        self._unsandboxed = settings.unsandboxed
        self._rules: Mapping[str, Approval] = approvals_of(settings.approvals)
        self._root = Path(settings.data_dir).absolute() / "sessions"
        self._jobs = Path(settings.data_dir).absolute() / "jobs"
        self._job_folders = folders_of(settings.job_folders)
        self._sandbox = sandbox

    @property
    def asks(self) -> bool:
        """Whether any tool may have to ask."""
        return any(self.rule(tool).approval == "ask" for tool in self.toolbox)

    @functools.cached_property
    def sandbox(self) -> Sandbox:
        """What commands run in; found at the first use, or by `find`."""
        return self._sandbox or _found(self._wanted)

    @property
    def runs_jobs(self) -> bool:
        """Whether jobs may run here: in a sandbox, or without one where that is allowed."""
        return self.sandbox.confined or self._unsandboxed == "allow"

    async def find(self) -> None:
        """Find the sandbox, which starts a process, without holding up the loop."""
        await asyncio.to_thread(lambda: self.sandbox)

    def rule(self, tool: Tool) -> Rule:
        """The rule for a tool as the settings and the machine have it."""
        if tool.confined and not self.sandbox.confined:
            if self._unsandboxed == "allow":
                return self.rule_of(tool.name, tool.approval)
            if self._unsandboxed == "off":
                return Rule("never", False, "it runs commands, and this machine has no sandbox")
            if self._rules.get(tool.name) != "never":
                return Rule("ask", False, "there is no sandbox on this machine: it would run as the service itself")
        return self.rule_of(tool.name, tool.approval)

    def rule_of(self, name: str, default: Approval) -> Rule:
        """The rule for a tool by its name alone."""
        approval = self._rules.get(name, default)
        why = {"always": "", "ask": f"{name} asks first", "never": f"{name} is not allowed here"}[approval]
        return Rule(approval, True, why)

    def folder(self, session: str) -> Folder:
        """The working folder of a session; it is made if need be."""
        path = self._root / session / "work"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Folder(path, owner=uid_of(session))

    def output(self, session: str, action: str) -> Path:
        """Where the whole output of an action is kept, if it is large."""
        safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in action)
        return self._root / session / "outputs" / safe[:200]

    def job_folder(self, job: str) -> Path:
        """Where a job's output and its working folder are."""
        return self._jobs / job

    def is_allowed(self, folder: Path) -> bool:
        """Whether jobs may work in a folder of the host."""
        return any(folder.is_relative_to(allowed) for allowed in self._job_folders)

    async def remove(self, session: str) -> None:
        """Take away all files of a session that is gone."""
        await asyncio.to_thread(shutil.rmtree, self._root / session, ignore_errors=True)


@functools.cache
def _found(wanted: Literal["auto", "bubblewrap", "landlock", "off"]) -> Sandbox:
    """The sandbox of this machine; one that was asked for and is gone since the start is none."""
    try:
        return find_sandbox(wanted)
    except SandboxUnavailable as reason:
        log.error("%s", reason)
        return Unconfined()
