"""Processes: real ones, sandboxed and not, that obey, resist, multiply, flood and hide."""

import asyncio
import errno
import gc
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from holdfast.agents.sandbox import Limits, Sandbox, SandboxUnavailable, find_sandbox
from holdfast.engine import cgroups, families
from holdfast.engine.processes import Process, ProcessIdentity, boot_id, end_leftover, process_started, spawn

from tests.support import recycled
from tests.support.jobs import alive, until

pytestmark = pytest.mark.xdist_group("processes")
"""One worker runs these: they count the control groups of this machine."""

GRACE_S = 0.3


@dataclass
class Place:
    """Where commands run in a test, and what they said."""

    sandbox: Sandbox
    grouped: bool
    folder: Path
    said: bytearray
    tag: str

    async def start(self, script: str, **limits: Any) -> Process:
        wrapped = self.sandbox.wrap(
            ["/bin/sh", "-c", script.replace("TAG", self.tag)], self.folder, session=self.tag, limits=Limits(**limits)
        )
        processes = limits.get("processes")
        return await spawn(
            wrapped.argv,
            env=wrapped.env,
            cwd="/",
            on_output=lambda _, data: self.said.extend(data),
            processes=None if processes is None else processes + 8,
            grouped=self.grouped,
        )

    async def ready(self, script: str, **limits: Any) -> Process:
        """Start a script that says "ready", and wait until it has."""
        process = await self.start(script, **limits)
        await until(lambda: b"ready" in self.said)
        return process

    @property
    def is_confined(self) -> bool:
        return self.sandbox.name == "bubblewrap"


@pytest.fixture(params=["bubblewrap", "bubblewrap-ungrouped", "landlock-ungrouped", "off", "off-ungrouped"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    name, _, ungrouped = request.param.partition("-")
    try:
        sandbox = find_sandbox(name)
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    if not ungrouped and not cgroups.parents():
        pytest.skip("no control groups for this user")
    return Place(sandbox, not ungrouped, tmp_path, bytearray(), f"60.{secrets.randbelow(10**12):012}")


async def start_shell(script: str, on_output: Callable[..., object] = lambda *_: None, **options: Any) -> Process:
    """A bare shell, without a sandbox."""
    return await spawn(["sh", "-c", script], env={"PATH": "/usr/bin:/bin"}, on_output=on_output, **options)


def start_other(argv: list[str]) -> subprocess.Popen[bytes]:
    """A child of this process that the module under test did not start."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, env=env)


def groups_left() -> list[Path]:
    return [folder for parent in cgroups.parents() for folder in parent.glob("holdfast-*")]


@pytest.fixture
def groups_made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the control groups that this test makes; others make theirs on the same machine."""
    made: list[Path] = []
    make = cgroups.make

    def noted(name: str, **limits: Any) -> cgroups.Group | None:
        group = make(name, **limits)
        made.extend(group.folders if group else ())
        return group

    monkeypatch.setattr(cgroups, "make", noted)
    return made


async def test_one_that_obeys_is_terminated_at_once(place: Place) -> None:
    process = await place.ready("echo ready; exec sleep TAG")
    ending = await process.stop(10)
    assert ending.how == "terminated"
    assert ending.took_ms < 1000
    assert not alive(place.tag)


async def test_one_that_has_hardly_started_can_be_stopped(place: Place) -> None:
    for pause_s in (0, 0, 0.001, 0.002, 0.003, 0.005, 0.01):
        process = await place.start("exec sleep TAG")
        await asyncio.sleep(pause_s)
        ending = await process.stop(10)
        assert ending.how == "terminated"
        assert ending.took_ms < 1000
        assert not alive(place.tag)


async def test_one_that_ignores_it_is_killed_when_the_grace_is_over(place: Place) -> None:
    process = await place.ready("trap '' TERM; echo ready; while :; do sleep 0.1; done; : TAG")
    ending = await process.stop(GRACE_S)
    assert ending.how == "killed"
    assert 300 <= ending.took_ms < 300 + 2 * 200
    assert not alive(place.tag)


async def test_one_that_says_goodbye_has_the_grace_for_it(place: Place) -> None:
    process = await place.ready("trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.05; done")
    ending = await process.stop(10)
    assert (ending.how, ending.exit_code) == ("terminated", 7)
    assert b"goodbye" in place.said


async def test_what_has_left_the_session_is_ended_too(place: Place) -> None:
    process = await place.ready("setsid sh -c 'trap \"\" TERM; echo ready; sleep TAG; : TAG' & sleep TAG")
    ending = await process.stop(GRACE_S)
    assert not alive(place.tag)
    assert place.is_confined or (ending.how == "killed" and ending.left)


async def test_a_daemon_whose_parents_are_gone_is_ended_too(place: Place) -> None:
    process = await place.ready("(setsid sh -c 'setsid sleep TAG & echo ready' &); sleep TAG")
    await process.stop(GRACE_S)
    assert not alive(place.tag)


async def test_what_forks_while_it_is_ended_is_ended(place: Place) -> None:
    script = "trap 'while :; do setsid sleep TAG & sleep 0.01; done' TERM; echo ready; while :; do sleep 0.02; done"
    process = await place.ready(script)
    await process.stop(GRACE_S)
    assert not alive(place.tag)


async def test_one_that_has_stopped_itself_can_still_obey(place: Place) -> None:
    process = await place.ready("echo ready; kill -STOP $$; sleep TAG")
    await asyncio.sleep(0.05)
    ending = await process.stop(10)
    assert ending.how == "terminated"
    assert ending.took_ms < 1000


async def test_one_that_closes_its_output_is_waited_for(place: Place) -> None:
    process = await place.start("exec >&- 2>&-; sleep 0.4; exit 4")
    ending = await process.wait(timeout_s=20)
    assert (ending.how, ending.exit_code, ending.timed_out) == ("exited", 4, False)


async def test_what_keeps_the_pipe_open_does_not_hold_up_the_end(place: Place) -> None:
    process = await place.start("setsid sleep TAG & echo ready")
    ending = await asyncio.wait_for(process.wait(), 10)
    assert (ending.how, ending.exit_code, bytes(place.said)) == ("exited", 0, b"ready\n")
    assert not alive(place.tag)


async def test_a_fork_bomb_is_bounded_and_ends(place: Place) -> None:
    if os.geteuid() == 0 and not place.grouped and place.sandbox.name == "off":
        pytest.skip("nothing limits root here")
    process = await place.start("f() { f | f & f; }; f TAG", processes=40)
    seen = 0

    def look() -> None:
        nonlocal seen
        seen = max(seen, len(alive(place.tag)))

    waiting = asyncio.create_task(process.wait(timeout_s=1, grace_s=GRACE_S))
    while not waiting.done():
        look()
        await asyncio.sleep(0.1)
    ending = await waiting
    assert ending.how in ("exited", "terminated", "killed")
    assert seen < 60
    assert not alive(place.tag)
    again = await place.start("echo fine")
    assert (await again.wait(timeout_s=20)).exit_code == 0


async def test_a_memory_hog_hits_its_limit(place: Place) -> None:
    process = await place.start("head -c 300m /dev/zero | tail | wc -c", memory_bytes=64 << 20)
    await process.wait(timeout_s=30)
    assert b"memory exhausted" in place.said


async def test_a_disk_filler_hits_its_limit(place: Place) -> None:
    process = await place.start("head -c 5m /dev/zero > big; exit 9", file_bytes=1 << 20)
    assert (await process.wait(timeout_s=30)).exit_code == 9
    assert (place.folder / "big").stat().st_size == 1 << 20


async def test_endless_output_can_be_stopped(place: Place) -> None:
    process = await place.start("yes TAG")
    await until(lambda: len(place.said) > 1 << 20)
    ending = await process.stop(10)
    assert ending.how == "terminated"
    assert not alive(place.tag)


async def test_output_comes_byte_for_byte(place: Place) -> None:
    data = bytes(range(256)) * 4096 + secrets.token_bytes(1 << 20)
    (place.folder / "data").write_bytes(data)
    process = await place.start("cat data")
    await process.wait(timeout_s=30)
    assert bytes(place.said) == data


@pytest.mark.parametrize(("script", "code"), [("true", 0), ("exit 3", 3), ("no-such-program", 127), ("/tmp", 126)])
async def test_exit_codes_are_told(place: Place, script: str, code: int) -> None:
    process = await place.start(script)
    ending = await process.wait(timeout_s=20)
    assert (ending.how, ending.exit_code, ending.signal, ending.took_ms) == ("exited", code, None, 0)


async def test_the_environment_is_made_from_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "of the service")
    process = await place.start("exec env")
    await process.wait(timeout_s=20)
    names = {line.partition("=")[0] for line in place.said.decode().splitlines()}
    assert names - {"TMPDIR", "PWD"} == {"PATH", "HOME", "LANG", "TERM", "HOLDFAST_PROCESS"}


async def test_stopping_twice_is_the_same_as_once(place: Place) -> None:
    process = await place.ready("trap '' TERM; echo ready; while :; do sleep 0.1; done")
    one, two = await asyncio.gather(process.stop(GRACE_S), process.stop(60))
    assert one is two
    assert await process.stop(0) is one
    assert await process.wait() is one


async def test_a_stop_whose_caller_is_cancelled_goes_on(place: Place) -> None:
    process = await place.ready("trap '' TERM; echo ready; sleep TAG; sleep TAG")
    stopping = asyncio.create_task(process.stop(GRACE_S))
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await until(lambda: not alive(place.tag))
    assert (await process.wait()).how == "killed"


async def test_time_runs_out(place: Place) -> None:
    process = await place.start("exec sleep TAG")
    ending = await process.wait(timeout_s=0.2, grace_s=10)
    assert (ending.how, ending.timed_out) == ("terminated", True)


async def test_silence_runs_out_but_output_extends_it() -> None:
    process = await start_shell("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done; exec sleep 60")
    began = time.monotonic()
    ending = await process.wait(idle_s=0.6, grace_s=10)
    assert ending.timed_out
    assert time.monotonic() - began > 1.3


async def test_stopping_what_has_ended_changes_nothing() -> None:
    process = await start_shell("exit 5")
    ending = await process.wait()
    assert await process.stop(1) is ending
    assert (ending.how, ending.exit_code, ending.took_ms) == ("exited", 5, 0)


async def test_a_signal_is_told() -> None:
    ending = await (await start_shell("kill -9 $$")).wait()
    assert (ending.exit_code, ending.signal, ending.how) == (None, signal.SIGKILL, "exited")


async def test_input_is_given_and_ended() -> None:
    data, said = secrets.token_bytes(1 << 20), bytearray()
    process = await start_shell("cat", lambda _, chunk: said.extend(chunk), stdin=data)
    assert (await process.wait(timeout_s=20)).exit_code == 0
    assert bytes(said) == data


async def test_input_that_nobody_reads_is_no_fault() -> None:
    assert (await (await start_shell("exit 0", stdin=bytes(1 << 20))).wait(timeout_s=20)).exit_code == 0


async def test_the_streams_are_told_apart() -> None:
    said: dict[str, bytes] = {}
    process = await start_shell("echo out; echo err >&2", said.__setitem__)
    await process.wait()
    assert said == {"stdout": b"out\n", "stderr": b"err\n"}


async def test_what_is_used_is_told() -> None:
    ending = await (await start_shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).wait()
    assert ending.cpu_s is not None
    assert 0.005 < ending.cpu_s < 10
    mine_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    fill = f"{sys.executable} -I -S -c 'x = b\"x\" * ({mine_mib + 150} << 20)'"
    big = await (await start_shell(fill)).wait()
    assert big.peak_memory_bytes is not None
    assert big.peak_memory_bytes > (mine_mib + 100) << 20


@pytest.mark.parametrize(
    ("program", "number"),
    [("no-such-program", errno.ENOENT), ("/no/such", errno.ENOENT), ("/etc/passwd", errno.EACCES)],
)
async def test_a_missing_program_is_an_error_that_leaves_nothing(
    program: str, number: int, groups_made: list[Path]
) -> None:
    with pytest.raises(OSError, match=program) as raised:
        await spawn([program], env={}, on_output=lambda *_: None)
    assert raised.value.errno == number
    assert not any(folder.exists() for folder in groups_made)


async def test_a_missing_folder_is_an_error_that_leaves_nothing(tmp_path: Path, groups_made: list[Path]) -> None:
    with pytest.raises(FileNotFoundError):
        await start_shell("true", cwd=tmp_path / "missing")
    assert not any(folder.exists() for folder in groups_made)


async def test_a_slow_reader_holds_the_process_back() -> None:
    gate, sizes = asyncio.Event(), list[int]()

    async def take(_: str, data: bytes) -> None:
        sizes.append(len(data))
        await gate.wait()

    process = await start_shell("head -c 10m /dev/zero", take)
    await asyncio.sleep(0.3)
    assert len(sizes) == 1
    gate.set()
    assert (await process.wait(timeout_s=30)).exit_code == 0
    assert sum(sizes) == 10 << 20
    assert max(sizes) <= 64 << 10


async def test_much_output_costs_no_memory_and_leaves_room_for_others() -> None:
    total, gaps = 0, list[float]()

    def take(_: str, data: bytes) -> None:
        nonlocal total
        total += len(data)

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - before)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ticking = asyncio.create_task(tick())
    process = await start_shell("head -c 100m /dev/zero", take)
    await process.wait(timeout_s=60)
    ticking.cancel()
    assert total == 100 << 20
    assert max(gaps) < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10


async def test_a_failing_reader_ends_the_process_and_is_told() -> None:
    def take(*_: object) -> None:
        raise ValueError("cannot take it")

    process = await start_shell("echo ready; trap '' TERM; sleep 60; sleep 60", take)
    with pytest.raises(ValueError, match="cannot take it"):
        await asyncio.wait_for(process.wait(), 10)
    assert process_started(process.pid) is None


async def test_a_refused_kill_is_counted_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = families.__dict__["_send"], 0

    def refuse_twice(member: families.Member, number: signal.Signals) -> None:
        nonlocal refusals
        if number == signal.SIGKILL and refusals < 2:
            refusals += 1
            raise PermissionError
        real(member, number)

    monkeypatch.setattr(families, "_send", refuse_twice)
    tag = f"60.{secrets.randbelow(10**12):012}"
    said = bytearray()
    script = f"setsid sh -c 'trap \"\" TERM; echo ready; sleep {tag}; : {tag}' & sleep {tag}"
    process = await start_shell(script, lambda _, data: said.extend(data), grouped=False)
    await until(lambda: b"ready" in said)
    ending = await process.stop(0.1)
    assert (ending.how, refusals) == ("killed", 2)
    assert process.kill_failures >= 1
    assert not alive(tag)


async def test_two_hundred_processes_leave_nothing_behind(groups_made: list[Path]) -> None:
    await (await start_shell("true")).wait()
    gc.collect()  # What other tests have left open is closed now, and not in between.
    before = set(os.listdir("/proc/self/fd"))

    async def one(number: int) -> None:
        process = await start_shell(["true", "(setsid true &)", "echo x", "sleep 60"][number % 4])
        await (process.stop(1) if number % 4 == 3 else process.wait())

    for batch in range(20):
        await asyncio.gather(*(one(batch * 10 + number) for number in range(10)))
    assert set(os.listdir("/proc/self/fd")) == before
    assert bool(groups_made) == bool(cgroups.parents())
    assert not any(folder.exists() for folder in groups_made)
    await (await start_shell("sleep 0.1")).wait()
    zombies = [
        pid for pid in families.children_of(os.getpid()) if (seen := families.look_at(pid)) and seen.state == "Z"
    ]
    assert not zombies
    assert not families.heads


async def test_children_of_others_are_not_reaped() -> None:
    other = start_other(["sh", "-c", "exit 6"])
    await until(lambda: process_started(other.pid) is None)
    await (await start_shell("true")).wait()
    assert other.wait(10) == 6
    other.communicate()


SERVICE = """
import asyncio, json, sys
from pathlib import Path
import msgspec
from holdfast.agents.sandbox import Limits, find_sandbox
from holdfast.engine.processes import spawn

async def main(name, folder, script, grouped):
    wrapped = find_sandbox(name).wrap(["/bin/sh", "-c", script], Path(folder), session="one", limits=Limits())
    process = None
    def heard(_, data):
        print(json.dumps(msgspec.to_builtins(process.identity)), flush=True)
    process = await spawn(wrapped.argv, env=wrapped.env, cwd="/", on_output=heard, grouped=grouped == "True")
    await process.wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("daemon", [False, True], ids=["head", "daemon"])
async def test_a_crash_of_the_service_leaves_nothing(place: Place, daemon: bool) -> None:
    script = f"setsid sleep {place.tag} & echo ready; wait" if daemon else f"echo ready; exec sleep {place.tag}"
    arguments = [place.sandbox.name, str(place.folder), script, str(place.grouped)]
    service = start_other([sys.executable, "-c", SERVICE, *arguments])
    assert service.stdout
    identity = ProcessIdentity(**json.loads(await asyncio.to_thread(service.stdout.readline)))
    assert process_started(identity.pid) == identity.started
    service.kill()
    service.wait()
    service.stdout.close()
    if place.is_confined or not daemon:
        await until(lambda: not alive(place.tag))
    await end_leftover(identity, GRACE_S)
    assert not alive(place.tag)
    assert not [folder for folder in groups_left() if identity.mark in folder.name]


async def test_a_leftover_that_still_lives_is_ended_with_grace() -> None:
    said = bytearray()
    script = "trap 'echo goodbye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    process = await start_shell(script, lambda _, data: said.extend(data))
    await until(lambda: b"ready" in said)
    assert await end_leftover(process.identity, 10)
    assert (await process.wait()).exit_code == 7
    assert b"goodbye" in said
    assert not await end_leftover(process.identity, 10)


async def test_a_pid_that_is_somebody_elses_by_now_is_left_alone() -> None:
    other = start_other(["sleep", "60"])
    try:
        started = process_started(other.pid)
        assert started
        for identity in (
            ProcessIdentity(boot_id(), other.pid, str(int(started) - 1), secrets.token_hex(16)),
            ProcessIdentity(boot_id(), other.pid, str(int(started) - 1)),
            ProcessIdentity("another boot", other.pid, started),
        ):
            assert not await end_leftover(identity, 0)
        assert process_started(other.pid) == started
    finally:
        other.kill()
        other.communicate()


async def test_one_that_is_let_go_takes_nothing_from_those_that_come_after() -> None:
    """The numbers of its descriptors are used again at once; whoever has them then is still heard and seen to end."""
    for _ in range(5):
        tag = f"60.{secrets.randbelow(10**12):012}"
        first = await start_shell(f"sleep {tag}")
        await until(lambda tag=tag: alive(tag))
        first.detach()
        said = bytearray()
        second = await start_shell("sleep 0.05; echo heard", lambda _, data, said=said: said.extend(data))
        async with asyncio.timeout(10):
            ending = await second.wait()
        assert (ending.exit_code, bytes(said)) == (0, b"heard\n")
        assert alive(tag), "it goes on"
        assert await end_leftover(first.identity, GRACE_S)


async def test_one_that_is_held_begins_when_it_is_released_and_not_before() -> None:
    said = bytearray()
    process = await start_shell("echo begun", lambda _, data: said.extend(data), held=True)
    await asyncio.sleep(0.2)
    assert said == b""
    process.release()
    assert (await process.wait()).exit_code == 0
    assert said == b"begun\n"
    never = await start_shell("echo begun", lambda _, data: said.extend(data), held=True)
    await never.stop(GRACE_S)
    assert said == b"begun\n"


async def test_a_pid_that_is_used_again_is_left_alone() -> None:
    """Really used again: in a pid namespace whose last number is set back, so that the next process gets the same."""
    program = Path(recycled.__file__)
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(program)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    )
    if "Operation not permitted" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("no pid namespace for this user")
    assert (done.returncode, done.stdout) == (0, "left alone\n"), done.stderr
