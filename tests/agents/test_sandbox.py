"""The sandbox: what a command may do, and hostile commands, each refused."""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from holdfast.agents import landlock, sandbox
from holdfast.agents.sandbox import (
    Bubblewrap,
    Landlock,
    Limits,
    Sandbox,
    SandboxUnavailable,
    Unconfined,
    find_sandbox,
    uid_of,
)

pytestmark = pytest.mark.xdist_group("processes")

SECRET = "b7c1-of-somebody-else"
ROOT = os.geteuid() == 0


@dataclass
class Room:
    """A sandbox, a session's folder, and what lies outside: a database, tokens, another session."""

    sandbox: Sandbox
    folder: Path
    outside: Path

    def run(
        self, script: str, *, env: Mapping[str, str] | None = None, **limits: Any
    ) -> subprocess.CompletedProcess[str]:
        wrapped = self.sandbox.wrap(
            ["/bin/bash", "-c", script], self.folder, session="one", limits=Limits(**limits), env=env
        )
        return subprocess.run(
            wrapped.argv, env=wrapped.env, cwd="/", capture_output=True, text=True, timeout=30, check=False
        )

    def refused(self, script: str, **limits: Any) -> None:
        """Run a script of which nothing may succeed and which may not see the secret."""
        result = self.run(script, **limits)
        assert result.returncode != 0, result
        assert SECRET not in result.stdout + result.stderr

    @property
    def hides_processes(self) -> bool:
        return self.sandbox.name == "bubblewrap"


@pytest.fixture(params=["privileged", "user-namespace", "landlock"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Room:
    program = shutil.which("bwrap") or "/usr/bin/bwrap"
    made: dict[str, Sandbox] = {
        "privileged": Bubblewrap(program, privileged=True),
        "user-namespace": Bubblewrap(program, privileged=False),
        "landlock": Landlock(),
    }
    chosen = made[request.param]
    if request.param == "privileged" and not ROOT:
        pytest.skip("only root has this one")
    if reason := sandbox.__dict__["_why_not"](chosen):
        pytest.skip(reason)
    folder, outside = tmp_path / "one", tmp_path / "outside"
    folder.mkdir()
    (outside / "two").mkdir(parents=True)
    for name in ("holdfast.db", "tokens", f"two/{SECRET}"):
        (outside / name).write_text(SECRET)
    return Room(chosen, folder, outside)


@pytest.fixture
def service() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the service's user that has the secret in its environment."""
    process = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], "SECRET": SECRET})
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A server on 127.0.0.1: its port, and who has connected."""
    server, connected = socket.create_server(("127.0.0.1", 0)), list[object]()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = server.accept()
                connected.append(peer)
                connection.sendall(b"hello\n")
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1], connected
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def test_a_command_works_in_its_folder(room: Room) -> None:
    result = room.run("mkdir -p a && echo text > a/file && cat a/file && grep -c . /usr/bin/env >/dev/null; ls")
    assert (result.stdout, result.stderr) == ("text\na\n", "")
    assert (room.folder / "a/file").read_text() == "text\n"


def test_its_files_belong_to_the_user_of_the_session(room: Room) -> None:
    wrapped = room.sandbox.wrap(["touch", "file"], room.folder, session="one", limits=Limits())
    subprocess.run(wrapped.argv, env=wrapped.env, cwd="/", check=True)
    assert (room.folder / "file").stat().st_uid == (os.geteuid() if wrapped.uid is None else wrapped.uid)


@pytest.mark.parametrize("name", ["holdfast.db", "tokens"])
def test_the_files_of_the_service_cannot_be_read(room: Room, name: str) -> None:
    room.refused(f"cat {room.outside / name}")
    room.refused(f"cat /work/../{room.outside / name}")


def test_the_folder_of_another_session_cannot_be_listed(room: Room) -> None:
    room.refused(f"ls {room.outside / 'two'}")
    room.refused(f"ls {room.outside}")


def test_the_environment_of_the_service_cannot_be_read(room: Room, service: subprocess.Popen[bytes]) -> None:
    room.refused(f"cat /proc/{service.pid}/environ")
    room.refused("cat /proc/*/environ | tr '\\0' '\\n'; false")


def test_the_environment_of_the_first_process_has_nothing_of_the_service(room: Room) -> None:
    result = room.run("cat /proc/1/environ | tr '\\0' '\\n'")
    assert not set(os.environ) - {"PATH", "HOME", "LANG", "TERM", "PWD"} & {
        line.partition("=")[0] for line in result.stdout.splitlines()
    }


def test_the_network_of_the_host_cannot_be_reached(room: Room, listener: tuple[int, list[object]]) -> None:
    port, connected = listener
    room.refused(f"exec 3<>/dev/tcp/127.0.0.1/{port} && cat <&3")
    assert not connected


def test_a_command_that_is_allowed_the_network_reaches_it(room: Room, listener: tuple[int, list[object]]) -> None:
    port, connected = listener
    result = room.run(f"exec 3<>/dev/tcp/127.0.0.1/{port} && cat <&3", network=True)
    assert (result.returncode, result.stdout, len(connected)) == (0, "hello\n", 1)


@pytest.mark.parametrize("path", ["/usr/holdfast", "/usr/bin/holdfast", "/etc/holdfast", "/holdfast", "/dev/holdfast"])
def test_the_system_cannot_be_written(room: Room, path: str) -> None:
    room.refused(f"touch {path}")
    room.refused(f"echo x > {path}")
    assert not Path(path).exists()


def test_a_program_of_the_system_cannot_be_replaced(room: Room) -> None:
    room.refused("echo x >> /usr/bin/env")
    room.refused("mv /usr/bin/env /usr/bin/other")


def test_a_command_is_not_root_and_cannot_become_it(room: Room) -> None:
    if ROOT:
        copy = room.folder / "id"
        shutil.copy("/usr/bin/id", copy)
        copy.chmod(0o4755)
    shown = room.run("./id -u; id -u; setpriv --reuid=0 id -u; su root -c 'id -u'").stdout.split()
    assert len(shown) >= (2 if ROOT else 1)
    assert "0" not in shown


def test_nothing_can_be_mounted(room: Room) -> None:
    room.refused("mount -t tmpfs x /tmp")
    room.refused("mount --bind /usr /work")
    room.refused("umount /usr || umount /work")


def test_no_capability_is_left(room: Room) -> None:
    if not room.hides_processes:
        pytest.skip("its /proc cannot be read")
    status = room.run("cat /proc/self/status").stdout
    for line in status.splitlines():
        if line.startswith("Cap"):
            assert int(line.split()[1], 16) == 0, line
    assert "NoNewPrivs:\t1" in status


def test_a_link_out_of_the_folder_leads_nowhere(room: Room) -> None:
    room.refused(f"ln -s {room.outside}/tokens link; cat link")
    room.refused("echo evil > link")
    room.refused(f"ln -s {room.outside} folder; ls folder/")
    room.refused(f"ln {room.outside}/tokens hard")
    assert (room.outside / "tokens").read_text() == SECRET


def test_the_service_cannot_be_signalled_or_traced(room: Room, service: subprocess.Popen[bytes]) -> None:
    if room.sandbox.name == "landlock" and uid_of("one") is None and landlock.version() < 6:
        pytest.skip("this kernel lets signals out")
    room.refused(f"kill -9 {service.pid}")
    room.refused(f"cat /proc/{service.pid}/mem")
    room.refused(f"cat /proc/{service.pid}/root/etc/passwd")
    assert service.poll() is None


def test_the_first_process_cannot_be_ended(room: Room) -> None:
    result = room.run("kill -9 1; echo still here")
    assert result.stdout == "still here\n"


def test_the_variables_are_those_that_are_given(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    wrapped = room.sandbox.wrap(
        ["env"], room.folder, session="one", limits=Limits(), env={"A": 'it\'s "$HOME"\n', "HOME": "/"}
    )
    result = subprocess.run(wrapped.argv, env=wrapped.env, cwd="/", capture_output=True, text=True, check=True)
    lines = set(result.stdout.splitlines())
    assert {'A=it\'s "$HOME"', "HOME=/", "LANG=C.UTF-8", "TERM=dumb"} <= lines
    names = {line.partition("=")[0] for line in lines if "=" in line}
    assert names - {"TMPDIR", "PWD"} == {"A", "HOME", "LANG", "TERM", "PATH"}


def test_a_given_variable_does_not_reach_the_programs_that_confine(room: Room) -> None:
    given = {"LD_PRELOAD": "/work/evil.so", "BASH_ENV": "evil", "PATH": "/work"}
    wrapped = room.sandbox.wrap(["true"], room.folder, session="one", limits=Limits(), env=given)
    assert not {"LD_PRELOAD", "BASH_ENV"} & set(wrapped.env)
    assert wrapped.env["PATH"] == "/usr/local/bin:/usr/bin:/bin"
    result = room.run('echo "$LD_PRELOAD"', env={"LD_PRELOAD": "/work/evil.so"})
    assert result.stdout == "/work/evil.so\n"
    assert result.stderr.count("cannot be preloaded") <= 2


@pytest.mark.parametrize("name", ["", "1A", "A B", "A;id", "A\n"])
def test_a_name_that_is_none_is_refused(room: Room, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        room.sandbox.wrap(["true"], room.folder, session="one", limits=Limits(), env={name: "x"})


def test_a_missing_program_exits_with_127(room: Room) -> None:
    wrapped = room.sandbox.wrap(["no-such-program"], room.folder, session="one", limits=Limits())
    result = subprocess.run(wrapped.argv, env=wrapped.env, cwd="/", capture_output=True, text=True, check=False)
    assert result.returncode == 127
    assert "no-such-program" in result.stderr


def test_the_limits_hold(room: Room) -> None:
    limits: dict[str, Any] = {
        "memory_bytes": 64 << 20,
        "processes": 20,
        "file_bytes": 1 << 20,
        "open_files": 50,
        "cpu_s": 9,
    }
    shown = room.run("for limit in d f n t c; do ulimit -$limit; done; ulimit -u", **limits).stdout.split()
    assert shown[:5] == ["65536", "1024", "50", "9", "0"]
    assert int(shown[5]) == 20 or (room.sandbox.name == "landlock" and not ROOT)


def test_cpu_time_runs_out(room: Room) -> None:
    began = time.monotonic()
    result = room.run("while :; do :; done", cpu_s=1)
    assert result.returncode != 0
    assert time.monotonic() - began < 15


def test_a_limit_above_that_of_the_service_becomes_that(room: Room) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert room.run("ulimit -n", open_files=hard + 1).stdout.strip() == str(hard)


def test_temporary_files_are_private_and_bounded(room: Room) -> None:
    if not room.hides_processes:
        pytest.skip("it has no /tmp of its own")
    assert room.run("touch /tmp/mine && ls /tmp").stdout == "mine\n"
    assert room.run("ls /tmp").stdout == ""
    room.refused("head -c 300m /dev/zero > /tmp/big")
    room.refused("head -c 300m /dev/zero > /dev/shm/big")


def test_only_a_little_of_etc_is_there(room: Room) -> None:
    room.refused("cat /etc/shadow")
    room.refused("cat /etc/hostname || cat /etc/fstab || cat /etc/ssh/ssh_config")
    assert room.run("cat /etc/passwd").returncode == 0


def test_the_user_has_a_name_inside(room: Room) -> None:
    if not room.hides_processes:
        pytest.skip("it has the users of the host")
    assert room.run("id -un; id -gn; cd; pwd").stdout == "user\nuser\n/work\n"


def test_a_start_is_cheap(room: Room) -> None:
    def fastest(argv: list[str], env: dict[str, str]) -> float:
        took: list[float] = []
        for _ in range(10):
            began = time.monotonic()
            subprocess.run(argv, env=env, cwd="/", check=True)
            took.append(time.monotonic() - began)
        return min(took)

    wrapped = room.sandbox.wrap(["true"], room.folder, session="one", limits=Limits())
    bare = fastest(["/bin/true"], {})
    assert fastest(wrapped.argv, wrapped.env) - bare < 2 * 0.015


def test_a_session_has_a_user_id_of_its_own() -> None:
    ids = {uid_of(f"session-{number}") for number in range(100)}
    if not ROOT:
        assert ids == {None}
        return
    assert uid_of("session-1") == uid_of("session-1")
    assert len(ids) > 95
    assert all(number is not None and 300_000 <= number < 360_000 for number in ids)


def test_one_session_cannot_read_anothers_files(room: Room) -> None:
    if room.sandbox.wrap(["true"], room.folder, session="one", limits=Limits()).uid is None:
        pytest.skip("all sessions have one user here")
    room.run("echo x > mine; chmod 600 mine")
    other = room.sandbox.wrap(["true"], room.outside / "two", session="two", limits=Limits())
    assert (room.folder / "mine").stat().st_uid != other.uid


def test_a_missing_folder_is_an_error(room: Room) -> None:
    with pytest.raises(FileNotFoundError):
        room.sandbox.wrap(["true"], room.folder / "missing", session="one", limits=Limits())


def test_without_a_sandbox_a_command_runs_open_with_limits(tmp_path: Path) -> None:
    off = find_sandbox("off")
    assert isinstance(off, Unconfined)
    assert not off.confined
    wrapped = off.wrap(
        ["sh", "-c", "pwd; ulimit -f; echo $A"],
        tmp_path,
        session="one",
        limits=Limits(file_bytes=1 << 20),
        env={"A": "b"},
    )
    result = subprocess.run(wrapped.argv, env=wrapped.env, cwd="/", capture_output=True, text=True, check=True)
    assert result.stdout == f"{tmp_path}\n2048\nb\n"
    assert wrapped.uid is None


def test_without_a_sandbox_all_that_is_refused_is_open(
    tmp_path: Path, service: subprocess.Popen[bytes], listener: tuple[int, list[object]]
) -> None:
    (tmp_path / "tokens").write_text(SECRET)
    room = Room(Unconfined(), tmp_path, tmp_path)
    for script in (
        f"cat {tmp_path}/tokens",
        f"cat /proc/{service.pid}/environ",
        f"ln -s {tmp_path}/tokens link; cat link",
    ):
        assert SECRET in room.run(script).stdout
    assert room.run(f"cat 3<>/dev/tcp/127.0.0.1/{listener[0]} <&3").stdout == "hello\n"
    assert room.run(f"kill -9 {service.pid}").returncode == 0


def test_what_does_not_start_is_not_chosen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: "/nowhere/bwrap")
    with pytest.raises(SandboxUnavailable, match="bubblewrap"):
        find_sandbox("bubblewrap")
    assert find_sandbox("auto").name in ("landlock", "off")
    assert "the sandbox bubblewrap does not start" in caplog.text
