"""From names to agents: what is found, and what is said when it is not."""

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holdfast.agents.demo import demo
from holdfast.agents.resolve import PROVIDERS, AgentNotFound, resolve_agent
from holdfast.agents.turn import Text, Turn, TurnUser
from pydantic_ai.providers import infer_provider_class

from tests.support.provider import Provider

BACKEND = Path(__file__).resolve().parents[2] / "backend"

MODULE = """
import functools

async def agent(turn):
    yield "hello"

async def two(turn, more):
    yield "hello"

async def coroutine(turn):
    return "hello"

def plain(turn):
    return iter(())

class Spoken:
    async def __call__(self, turn):
        yield "hello"

spoken = Spoken()
partial = functools.partial(two, more=1)
number = 7
"""

KEYS = (
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "ANTHROPIC_API_KEY",
    "GOOGLE_API_KEY",
    "GEMINI_API_KEY",
    "DEEPSEEK_API_KEY",
)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in KEYS:
        monkeypatch.delenv(key, raising=False)
    (tmp_path / "mine_here.py").write_text(MODULE)
    (tmp_path / "mine_broken.py").write_text("raise RuntimeError('broken inside')\n")
    (tmp_path / "mine_exits.py").write_text("import sys; sys.exit(3)\n")
    (tmp_path / "mine_needs.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "deepseek.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine_here", "mine_broken", "mine_exits", "mine_needs", "deepseek"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def complaint(name: str) -> str:
    with pytest.raises(AgentNotFound) as caught:
        resolve_agent(name)
    text = str(caught.value)
    assert "\n" not in text
    assert name in text
    return text


def test_demo() -> None:
    found = resolve_agent("demo")
    assert (found.name, found.agent, found.model) == ("demo", demo, None)


@pytest.mark.parametrize("function", ["agent", "spoken", "spoken.__call__", "partial"])
async def test_a_function_of_the_current_folder(function: str) -> None:
    found = resolve_agent(f"mine_here:{function}")
    assert found.model is None
    said = [event async for event in found.agent(Turn("s", "r", TurnUser("u", "u"), "x"))]
    assert said == ["hello"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "use `demo`"),
        ("nothing", "use `demo`"),
        (":x", "use `demo`"),
        ("x:", "use `demo`"),
        ("no_such_module:agent", "no module `no_such_module`"),
        ("no.such.module:agent", "no module `no.such.module`"),
        ("mine_here:missing", "has no `missing`"),
        ("mine_here:agent.missing", "has no `agent.missing`"),
        ("mine_here:coroutine", "async generator"),
        ("mine_here:plain", "async generator"),
        ("mine_here:number", "async generator"),
        ("mine_here:Spoken", "async generator"),
        ("mine_here:two", "one argument"),
        ("mine_broken:agent", "broken inside"),
        ("mine_exits:agent", "fails"),
        ("mine_needs:agent", "not_installed_anywhere"),
        ("openai:gpt", "OPENAI_API_KEY"),
        ("anthropic:claude", "ANTHROPIC_API_KEY"),
        ("google:gemini", "GOOGLE_API_KEY"),
        ("groq:llama", "pydantic-ai-slim[groq]"),
        ("openrouter:x", "OPENROUTER_API_KEY"),
        ("gateway/openai:gpt", "PYDANTIC_AI_GATEWAY_API_KEY"),
    ],
)
def test_what_is_wrong_and_what_to_do_are_said(name: str, words: str) -> None:
    assert words in complaint(name)


def test_a_provider_wins_over_a_module_of_its_name() -> None:
    assert "DEEPSEEK_API_KEY" in complaint("deepseek:agent")


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai:gpt-5", "OPENAI_API_KEY"),
        ("anthropic:claude-sonnet-4-5", "ANTHROPIC_API_KEY"),
        ("google:gemini-2.5-pro", "GOOGLE_API_KEY"),
        ("google:gemini-2.5-pro", "GEMINI_API_KEY"),
        ("deepseek:deepseek-chat", "DEEPSEEK_API_KEY"),
    ],
)
def test_a_model_with_a_key(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "a-key")
    found = resolve_agent(name)
    assert (found.name, found.model) == (name, name.partition(":")[2])


async def test_openai_needs_no_key_with_a_server_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with Provider() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        agent = resolve_agent("openai:any").agent
        said = [event async for event in agent(Turn("s", "r", TurnUser("u", "u"), "hi"))]
    assert "".join(event.delta for event in said if isinstance(event, Text)) == "I heard: hi"


async def test_ollama_is_asked_on_this_machine_and_gets_no_key_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-openai")
    assert resolve_agent("ollama:llama3.2").model == "llama3.2"
    with Provider() as provider:
        monkeypatch.setenv("OLLAMA_BASE_URL", provider.base_url)
        agent = resolve_agent("ollama:llama3.2").agent
        said = [event async for event in agent(Turn("s", "r", TurnUser("u", "u"), "hi"))]
        assert "a-key-of-openai" not in str(provider.headers)
    assert "".join(event.delta for event in said if isinstance(event, Text)) == "I heard: hi"


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_each_provider_is_one_that_pydantic_ai_knows(provider: str) -> None:
    with contextlib.suppress(ImportError):
        infer_provider_class(provider)


def _in_a_process(code: str) -> tuple[str, float]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=BACKEND, check=True)
    return done.stdout, time.monotonic() - started


def test_demo_does_not_import_pydantic_ai() -> None:
    code = "import sys; from holdfast.agents.resolve import resolve_agent; resolve_agent('demo')\n"
    out, _ = _in_a_process(code + "print([name for name in sys.modules if name.startswith('pydantic')])")
    assert out.strip() == "[]"


@pytest.mark.parametrize("name", ["openai:gpt", "anthropic:claude", "google:gemini", "nonsense:gpt"])
def test_a_missing_key_is_found_in_no_time(name: str) -> None:
    code = (
        "import sys; from holdfast.agents.resolve import resolve_agent, AgentNotFound\n"
        f"try: resolve_agent({name!r})\nexcept AgentNotFound as error: print(error, 'pydantic_ai' in sys.modules)"
    )
    out, seconds = _in_a_process(code)
    assert re.search(r"(set [A-Z_]+|no module).*False", out)
    assert seconds < 2
