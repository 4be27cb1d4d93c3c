"""Actions of a run: begun before their tools, one result each, in order; both databases, real processes."""

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Any

import psutil
import pytest
from holdfast.agents.builtin import BUILTIN
from holdfast.agents.tools import ToolContext, ToolResult, tool
from holdfast.agents.turn import HistoryMessage
from holdfast.domain.users import User
from holdfast.engine import cgroups
from holdfast.engine.engine import Engine
from holdfast.store import transcripts
from holdfast.store.tables import actions, processes, sessions
from sqlalchemy import func, select

from tests.conftest import MakeEngine
from tests.support.agents import Puppet
from tests.support.following import Follower, Record, assert_whole, same_as_fold, stored


@tool
async def double(n: int) -> int:
    """Double a number."""
    return n * 2


@tool
async def explode() -> str:
    """Fail with a secret."""
    raise LookupError("the password is swordfish")


@tool
async def pause(seconds: float) -> str:
    """Take a while."""
    await asyncio.sleep(seconds)
    return "rested"


@tool
async def stubborn() -> str:
    """Stop late, when told to."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)
        return "done after all"
    return "never"


@tool
async def chatty(context: ToolContext) -> str:
    """Say something on the way."""
    await context.emit("stdout", "half ")
    await context.emit("stdout", "way")
    return "there"


@tool
async def huge(size: int) -> str:
    """Say a lot."""
    return "x" * size


@tool(approval="never")
async def forbidden() -> str:
    """Never be used."""
    raise AssertionError


TOOLS = BUILTIN.with_([double, explode, pause, stubborn, chatty, huge, forbidden])


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
async def engine(make_engine: MakeEngine, puppet: Puppet) -> Engine:
    return await make_engine(puppet, toolbox=TOOLS, kill_grace_s=1.0, cancel_grace_s=0.3)


class Talk:
    """One run, followed."""

    def __init__(self, engine: Engine, user: User, session: str, puppet: Puppet) -> None:
        self.engine, self.user, self.session, self.puppet = engine, user, session, puppet
        self.follower = Follower(engine, session)
        self.run = ""

    async def begin(self, content: str = "go") -> "Talk":
        sent, _, _ = await self.engine.send(self.user, self.session, content)
        self.run = sent.run
        return self

    async def end(self) -> Record:
        self.puppet.end()
        return await self.over()

    async def over(self) -> Record:
        end = await self.follower.until_end(self.run)
        await same_as_fold(self.engine, self.session)
        assert_whole(await stored(self.engine, self.session))
        async with self.engine.database.read() as conn:
            assert await conn.scalar(select(func.count()).select_from(processes)) == 0
            assert await conn.scalar(select(sessions.c.process_pid).filter_by(id=self.session)) is None
        return end

    async def until(self, kind: str, id: str | None = None) -> dict[str, Any]:
        found = await self.follower.until(
            lambda r: r["event"]["type"] == kind and id in (None, r["event"].get("toolCallId"))
        )
        return found["event"]

    async def started(self) -> None:
        """A process of the run is known to the store."""
        async with asyncio.timeout(10):
            while True:
                async with self.engine.database.read() as conn:
                    if await conn.scalar(select(processes.c.pid).where(processes.c.pid.is_not(None))):
                        return
                await asyncio.sleep(0.01)

    def kinds(self) -> list[str]:
        return [record["event"]["type"] for record in self.follower.records]

    async def actions(self) -> list[Any]:
        rows = [message for _, message in await transcripts.page(self.engine.database, self.session, None, 100)]
        return [action for message in rows for action in message.actions]


@pytest.fixture
async def talk(engine: Engine, user: User, session: str, puppet: Puppet) -> Talk:
    return await Talk(engine, user, session, puppet).begin()


async def test_an_action_is_committed_as_pending_before_its_tool_starts(
    make_engine: MakeEngine, user: User, session: str, puppet: Puppet
) -> None:
    seen: list[Any] = []
    engines: list[Engine] = []

    @tool
    async def look(n: int) -> str:
        """See what is committed."""
        async with engines[0].database.read() as conn:
            seen.extend((await conn.execute(select(actions))).mappings().all())
        seen.append(await stored(engines[0], session))
        return "seen"

    engines.append(await make_engine(puppet, toolbox=BUILTIN.with_([look])))
    talk = await Talk(engines[0], user, session, puppet).begin()
    puppet.say("Let me look. ")
    puppet.call("look", n=1)
    await talk.end()
    row, journal = seen
    assert (row["type"], row["input"], row["status"], row["output"]) == ("look", {"n": 1}, "pending", None)
    assert [r["event"]["type"] for r in journal][-3:] == ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END"]
    assert "Let me look. " in json.dumps(journal)


async def test_text_and_actions_keep_their_order(talk: Talk, puppet: Puppet) -> None:
    puppet.say("one ")
    first = puppet.call("double", n=1)
    puppet.say("two ")
    second = puppet.call("double", n=4)
    puppet.say("three")
    await talk.end()
    assert [(await first).output, (await second).output] == ["2", "8"]
    told = [kind for kind in talk.kinds() if kind in ("TEXT_MESSAGE_CONTENT", "TOOL_CALL_START", "TOOL_CALL_RESULT")]
    text, start, result = "TEXT_MESSAGE_CONTENT", "TOOL_CALL_START", "TOOL_CALL_RESULT"
    assert told == [text, start, result, text, start, result, text]
    found = await talk.actions()
    assert [(each.input, each.output, each.position, each.offset, each.status, each.outcome) for each in found] == [
        ({"n": 1}, "2", 0, 4, "success", "success"),
        ({"n": 4}, "8", 1, 8, "success", "success"),
    ]
    assert all(each.started_at <= each.ended_at for each in found)


async def test_actions_at_once_each_get_their_own_result(talk: Talk, puppet: Puppet) -> None:
    async def both(turn: Any) -> list[ToolResult]:
        calls = [turn.tools.call("pause", {"seconds": s}, id=f"c{s}") for s in (0.2, 0.1, 0.0)]
        return await asyncio.gather(*calls)

    results = puppet.do(both)
    await talk.end()
    assert [result.output for result in await results] == ["rested"] * 3
    assert sorted(each.id for each in await talk.actions()) == ["c0.0", "c0.1", "c0.2"]
    assert sorted(each.position for each in await talk.actions()) == [0, 1, 2]


async def test_an_id_that_the_session_has_is_not_used_again(talk: Talk, puppet: Puppet) -> None:
    for _ in range(2):
        puppet.call("double", id="mine", n=1)
    puppet.call("double", id="", n=1)
    puppet.call("double", id="x" * 200, n=1)
    puppet.call("double", id="a\x00b", n=1)
    await talk.end()
    ids = [each.id for each in await talk.actions()]
    assert ids[0] == "mine"
    assert len(set(ids)) == 5
    assert all(each and len(each) <= 128 for each in ids)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("invented", {"a": 1}, "There is no tool 'invented'"),
        ("double", {}, "n"),
        ("double", {"n": "many"}, "Invalid arguments"),
        ("double", {"n": 1, "more": 2}, "Invalid arguments"),
        ("bash", {"command": 3}, "Invalid arguments"),
        ("double", {"n": float("nan")}, "Invalid arguments"),
        ("in\x00vented \ud800", {"deep": [[[["\x00"]]]]}, "There is no tool"),
    ],
)
async def test_what_the_model_got_wrong_is_a_result_that_says_so(
    talk: Talk, puppet: Puppet, name: str, args: dict[str, Any], words: str
) -> None:
    wrong = puppet.call(name, **args)
    right = puppet.call("double", n=2)
    end = await talk.end()
    assert (await wrong).failed
    assert words in str((await wrong).output)
    assert (await right).output == "4"
    assert end["event"]["outcome"] == {"type": "success"}
    first = (await talk.actions())[0]
    assert (first.status, first.outcome) == ("error", "failed")
    assert words in first.output


async def test_a_tool_that_raises_is_told_by_an_error_id_alone(
    talk: Talk, puppet: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    result = puppet.call("explode")
    await talk.end()
    told = (await talk.until("TOOL_CALL_RESULT"))["metadata"]["action"]
    assert (await result).failed
    assert told["outcome"] == "failed"
    assert told["error"] in str((await result).output)
    assert "swordfish" not in json.dumps(await stored(talk.engine, talk.session))
    assert told["error"] in caplog.text
    assert "swordfish" in caplog.text


async def test_a_tool_that_is_never_allowed_is_denied(talk: Talk, puppet: Puppet) -> None:
    result = puppet.call("forbidden")
    await talk.end()
    assert "not allowed" in str((await result).output)
    assert (await talk.actions())[0].outcome == "denied"


async def test_what_a_tool_says_on_the_way_is_told_live_and_kept(talk: Talk, puppet: Puppet) -> None:
    puppet.call("chatty", id="c")
    await talk.until("TOOL_CALL_RESULT")
    await same_as_fold(talk.engine, talk.session)
    await talk.end()
    live = [r["event"]["value"] for r in talk.follower.records if r["event"].get("name") == "action.output"]
    assert "".join(each["text"] for each in live) == "half way"
    assert {each["toolCallId"] for each in live} == {"c"}
    assert (await talk.actions())[0].live == "half way"


async def test_a_result_of_any_size_is_kept_whole_and_told_by_its_ends(talk: Talk, puppet: Puppet) -> None:
    small, large = puppet.call("huge", size=1000), puppet.call("huge", id="big", size=3_000_000)
    await talk.end()
    assert (await small).output == "x" * 1000
    told = (await talk.until("TOOL_CALL_RESULT", "big"))["metadata"]["action"]
    assert len(str((await large).output)) < 200_000
    assert "left out" in str((await large).output)
    assert told["link"].endswith("/actions/big/output")
    assert told["bytes"] == 3_000_000
    whole = talk.engine.workshop.output(talk.session, "big")
    assert whole.read_bytes() == b"x" * 3_000_000


class TestCommands:
    """bash, in the sandbox that this machine has."""

    async def test_output_is_live_and_the_exit_code_told(self, talk: Talk, puppet: Puppet) -> None:
        result = puppet.bash("echo one; sleep 0.3; echo two >&2; exit 3", id="b")
        first = await talk.follower.until(lambda r: r["event"].get("name") == "action.output")
        assert first["event"]["value"] == {"toolCallId": "b", "stream": "stdout", "text": "one\n"}
        assert "TOOL_CALL_RESULT" not in talk.kinds()
        await same_as_fold(talk.engine, talk.session)
        await talk.end()
        assert (await result).failed
        assert "one\ntwo\n" in str((await result).output)
        action = (await talk.actions())[0]
        assert (action.exit_code, action.status, action.live) == (3, "error", "one\ntwo\n")

    async def test_its_files_are_those_of_the_session(self, talk: Talk, puppet: Puppet) -> None:
        written = puppet.call("file_write", path="a/b.txt", content="from outside\n")
        read = puppet.bash("cat a/b.txt; echo from inside > c.txt")
        back = puppet.call("file_read", path="c.txt")
        await talk.end()
        assert not (await written).failed
        assert "from outside" in str((await read).output)
        assert "from inside" in str((await back).output)

    async def test_the_session_shows_the_pid_while_it_lives(self, talk: Talk, puppet: Puppet) -> None:
        puppet.bash("sleep 0.5")
        await talk.started()
        async with talk.engine.database.read() as conn:
            pid = await conn.scalar(select(sessions.c.process_pid).filter_by(id=talk.session))
            row = (await conn.execute(select(processes))).mappings().one()
        assert pid == row["pid"]
        assert psutil.Process(pid).parent() == psutil.Process()
        assert row["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        await talk.end()

    async def test_output_that_is_no_text_is_shown_and_kept_byte_for_byte(self, talk: Talk, puppet: Puppet) -> None:
        result = puppet.bash(
            r"printf '\x00\xff\xfe one \xf0\x9f\x98\x80 \xed\xa0\x80'; head -c 300000 /dev/urandom", id="b"
        )
        await talk.end()
        assert "one 😀" in str((await result).output)
        kept = talk.engine.workshop.output(talk.session, "b").read_bytes()
        assert kept.startswith(b"\x00\xff\xfe one \xf0\x9f\x98\x80 \xed\xa0\x80")
        assert len(kept) == 300_000 + len(b"\x00\xff\xfe one \xf0\x9f\x98\x80 \xed\xa0\x80")

    async def test_endless_output_is_stopped_at_its_limit(
        self, make_engine: MakeEngine, user: User, session: str, puppet: Puppet
    ) -> None:
        engine = await make_engine(puppet, tool_output_mb=2)
        talk = await Talk(engine, user, session, puppet).begin()
        result = puppet.bash("yes", id="b")
        await talk.end()
        assert "it said more than 2 MiB" in str((await result).output)
        told = (await talk.until("TOOL_CALL_RESULT"))["metadata"]["action"]
        assert told["link"].endswith("/b/output")
        assert sum(len(json.dumps(r)) for r in talk.follower.records) < 2_000_000
        assert engine.workshop.output(session, "b").stat().st_size <= 3 << 20

    async def test_the_memory_of_all_its_processes_together_is_limited(
        self, make_engine: MakeEngine, user: User, session: str, puppet: Puppet
    ) -> None:
        if not (cgroups.limit_memory() or cgroups.memory_parents()):
            pytest.skip("this machine gives no control group for memory")
        hog = "for i in 1 2 3 4; do (head -c 40000000 /dev/zero | tail -c 40000000 | wc -c; sleep 1) & done; wait"
        outputs: list[str] = []
        for total in (0, 96):
            engine = await make_engine(puppet, tool_total_memory_mb=total)
            talk = await Talk(engine, user, session, puppet).begin()
            result = puppet.bash(hog)
            await talk.end()
            await engine.stop()
            outputs.append(str((await result).output))
        assert outputs[0].count("40000000") == 4
        assert outputs[1].count("40000000") < 4
        assert "it ran out of memory" in outputs[1]

    async def test_a_command_has_a_time(self, talk: Talk, puppet: Puppet) -> None:
        result = puppet.bash("echo begun; sleep 60", timeout_s=1)
        await talk.end()
        assert (await result).failed
        assert "begun" in str((await result).output)
        assert "1" in str((await result).output)

    async def test_what_it_leaves_behind_is_ended_with_it(self, talk: Talk, puppet: Puppet) -> None:
        tag = f"left-{os.getpid()}-{id(talk)}"
        result = puppet.bash(f"(setsid bash -c 'exec -a {tag} sleep 300' >/dev/null 2>&1 &) ; sleep 0.2; echo gone")
        await talk.end()
        assert "gone" in str((await result).output)
        assert alive(tag) == []

    async def test_without_a_sandbox_they_are_off_where_that_is_set(
        self, make_engine: MakeEngine, user: User, session: str, puppet: Puppet
    ) -> None:
        engine = await make_engine(puppet, sandbox="off", unsandboxed="off")
        talk = await Talk(engine, user, session, puppet).begin()
        command, file = puppet.bash("touch ran"), puppet.call("file_write", path="a", content="b")
        await talk.end()
        assert "no sandbox" in str((await command).output)
        assert not (await file).failed
        assert (await talk.actions())[0].outcome == "denied"
        assert not (engine.workshop.folder(session).root / "ran").exists()


def alive(tag: str) -> list[int]:
    """The processes with this name."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if tag in " ".join(p.info["cmdline"] or [])]


OBEYS = "echo ready; exec sleep 300"
IGNORES = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
LEAVES = "setsid bash -c \"trap '' TERM; while :; do sleep 0.1; done\" & disown; echo ready; sleep 300"
FORKS = "f() { sleep 300 & trap f TERM; }; trap f TERM; echo ready; while :; do sleep 0.05; f; done"
STOPPED = "echo ready; kill -STOP $$; sleep 300"
SILENT = "echo ready; exec >&- 2>&-; sleep 300"


class TestCancel:
    """The user stops it."""

    @pytest.mark.parametrize(
        ("command", "how"),
        [(OBEYS, "terminated"), (IGNORES, "killed"), (LEAVES, None), (FORKS, None), (STOPPED, None), (SILENT, None)],
        ids=["obeys", "ignores", "leaves", "forks", "stopped", "silent"],
    )
    async def test_a_command_is_ended_down_to_the_last_process(
        self, talk: Talk, puppet: Puppet, command: str, how: str | None
    ) -> None:
        tag = f"tag-{os.getpid()}-{id(talk)}"
        puppet.say("Wait. ")
        puppet.bash(f"exec -a {tag} bash -c {shlex.quote(command)} {tag}", id="b")
        await talk.follower.until(lambda r: "ready" in str(r["event"].get("value")))
        await talk.started()
        assert alive(tag)
        effect, concerned, _ = await talk.engine.cancel(talk.user, talk.session, reason="enough")
        assert (effect, concerned) == ("requested", [talk.run])
        end = await talk.over()
        assert alive(tag) == []
        action = (await talk.actions())[0]
        assert (action.status, action.outcome) == ("cancelled", "cancelled")
        assert "ready" in action.output
        told = end["event"]["metadata"]["cancel"]
        assert told["reason"] == "enough"
        assert len(told["processes"]) == 1
        if how:
            assert told["processes"][0]["how"] == how

    async def test_a_function_is_interrupted(self, talk: Talk, puppet: Puppet) -> None:
        puppet.call("pause", seconds=60)
        await talk.until("TOOL_CALL_END")
        await talk.engine.cancel(talk.user, talk.session)
        await talk.over()
        assert (await talk.actions())[0].outcome == "cancelled"

    async def test_what_a_function_gives_in_its_grace_is_kept(self, talk: Talk, puppet: Puppet) -> None:
        puppet.call("stubborn")
        await talk.until("TOOL_CALL_END")
        await talk.engine.cancel(talk.user, talk.session)
        await talk.over()
        action = (await talk.actions())[0]
        assert (action.output, action.outcome) == ("done after all", "success")

    async def test_nothing_begins_after_it(self, talk: Talk, puppet: Puppet) -> None:
        begun = asyncio.Event()

        async def late(turn: Any) -> ToolResult:
            begun.set()
            await turn.cancelled.wait()
            return await turn.tools.call("bash", {"command": "touch late"})

        puppet.do(late)
        await begun.wait()
        await talk.engine.cancel(talk.user, talk.session)
        await talk.over()
        assert await talk.actions() == []
        assert not (talk.engine.workshop.folder(talk.session).root / "late").exists()

    async def test_all_of_several_at_once(self, talk: Talk, puppet: Puppet) -> None:
        async def three(turn: Any) -> None:
            await asyncio.gather(*(turn.tools.call("bash", {"command": OBEYS}, id=f"b{n}") for n in range(3)))

        puppet.do(three)
        for n in range(3):
            await talk.follower.until(lambda r, n=n: r["event"].get("value", {}).get("toolCallId") == f"b{n}")
        await talk.engine.cancel(talk.user, talk.session)
        end = await talk.over()
        assert [each.outcome for each in await talk.actions()] == ["cancelled"] * 3
        assert len(end["event"]["metadata"]["cancel"]["processes"]) == 3

    async def test_twice_is_the_same_as_once(self, talk: Talk, puppet: Puppet) -> None:
        puppet.bash(IGNORES)
        await talk.follower.until(lambda r: "ready" in str(r["event"].get("value")))
        for _ in range(5):
            await talk.engine.cancel(talk.user, talk.session)
        await talk.over()
        assert talk.kinds().count("TOOL_CALL_RESULT") == 1

    async def test_a_time_limit_of_the_run_ends_its_command(
        self, make_engine: MakeEngine, user: User, session: str, puppet: Puppet
    ) -> None:
        engine = await make_engine(puppet, run_timeout_s=1.0)
        talk = await Talk(engine, user, session, puppet).begin()
        puppet.bash(OBEYS)
        end = await talk.over()
        assert end["event"]["code"] == "timeout"
        assert (await talk.actions())[0].status in ("error", "cancelled")

    async def test_an_agent_that_fails_leaves_no_command_behind(self, talk: Talk, puppet: Puppet) -> None:
        async def careless(turn: Any) -> None:
            task = asyncio.create_task(turn.tools.call("bash", {"command": OBEYS}))
            await talk.follower.until(lambda r: "ready" in str(r["event"].get("value")))
            task.cancel()
            raise RuntimeError("forgot it")

        puppet.do(careless)
        end = await talk.over()
        assert end["event"]["code"] == "agent_error"
        assert len(await talk.actions()) == 1


class TestHistory:
    """What the next turn is given."""

    async def test_it_has_the_actions_with_their_outcomes(self, talk: Talk, puppet: Puppet) -> None:
        puppet.say("Hm. ")
        puppet.call("double", id="d", n=3)
        puppet.call("forbidden", id="f")
        puppet.say("Six.")
        await talk.end()
        await talk.begin("more")
        await talk.end()
        history = puppet.turns[-1].history
        assert [message.role for message in history] == ["user", "assistant"]
        answer = history[1]
        assert answer.content == "Hm. Six."
        assert [
            (each.id, each.name, each.input, each.output, each.outcome, each.offset) for each in answer.actions
        ] == [
            ("d", "double", {"n": 3}, "6", "success", 4),
            ("f", "forbidden", {}, answer.actions[1].output, "denied", 4),
        ]

    async def test_one_that_is_too_long_is_shortened_and_that_is_told(
        self, make_engine: MakeEngine, user: User, session: str, puppet: Puppet
    ) -> None:
        engine = await make_engine(puppet, toolbox=TOOLS, history_tokens=500)
        talk = await Talk(engine, user, session, puppet).begin("first")
        puppet.call("huge", size=10_000)
        puppet.say("Much.")
        await talk.end()
        assert "history.shortened" not in json.dumps(talk.follower.records)
        await talk.begin("second")
        puppet.say("Now")
        await talk.follower.until_said("Now")
        await same_as_fold(engine, session)
        await talk.end()
        history = puppet.turns[-1].history
        assert "left out" in history[1].actions[0].output
        assert history[0] == HistoryMessage("user", "first")
        told = next(r for r in talk.follower.records if r["event"].get("name") == "history.shortened")
        assert told["run"] == talk.run
        assert told["event"]["value"]["omitted"] == 1
        answer = (await transcripts.page(engine.database, session, None, 10))[-1][1]
        assert answer.metadata["shortened"] == told["event"]["value"]
