"""How a conversation looks in a terminal: answers on standard output, all the rest on standard error."""

import re
import sys
from typing import Any

import msgspec

Event = dict[str, Any]

GIST_CHARS = 200
RESULT_CHARS = 2_000

_SIGNS = {"success": "✓", "failed": "✗", "denied": "⊘", "cancelled": "■", "interrupted": "!"}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What could drive the terminal."""


def harmless(text: str) -> str:
    """The text without what could move the cursor, change colours or type for the user."""
    return _CONTROL.sub("", text)


class Display:
    """Shows events as they come, and keeps no more of them than a line needs."""

    def __init__(self) -> None:
        self._out_column = 0
        self._err_column = 0
        self._arguments: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._live: set[str] = set()

    def say(self, text: str) -> None:
        """Show a piece of an answer."""
        if not text:
            return
        self._break_err()
        text = harmless(text)
        print(text, end="", flush=True)
        self._out_column = 0 if text.endswith("\n") else self._out_column + len(text)

    def note(self, text: str) -> None:
        """Show a line about what goes on."""
        self.end_line()
        print(harmless(text), file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Begin a new line, on both, where one has been begun."""
        self._break_err()
        self._break_out()

    def snapshot(self, messages: list[dict[str, Any]]) -> None:
        """Show what was said and done before."""
        for message in messages:
            self.say(("> " if message["role"] == "user" else "") + message["content"])
            for action in message.get("actions", []):
                self._names[action["id"]] = action["type"]
                self.note(f"▸ {action['type']} {gist(action['input'])}")
                if action["outcome"]:
                    self._result(action["id"], action["outcome"], action.get("exit_code"), str(action["output"] or ""))
            if not message["metadata"]["streaming"]:
                self.end_line()

    def event(self, event: Event) -> None:
        """Show one event of the journal."""
        match event["type"]:
            case "TEXT_MESSAGE_CONTENT":
                self.say(event["delta"])
            case "REASONING_MESSAGE_CONTENT" if sys.stderr.isatty():
                self._err(f"\x1b[2m{harmless(event['delta'])}\x1b[0m")
            case "TOOL_CALL_START":
                self._names[event["toolCallId"]] = event["toolCallName"]
                self._arguments[event["toolCallId"]] = ""
            case "TOOL_CALL_ARGS":
                self._arguments[event["toolCallId"]] = self._arguments.get(event["toolCallId"], "") + event["delta"]
            case "TOOL_CALL_END":
                self._begun(event["toolCallId"])
            case "TOOL_CALL_RESULT":
                told = (event.get("metadata") or {}).get("action", {})
                self._result(event["toolCallId"], told.get("outcome"), told.get("exit_code"), event["content"])
            case "CUSTOM" if event["name"] == "action.output":
                self._live.add(event["value"]["toolCallId"])
                self._break_out()
                self._err(harmless(event["value"]["text"]))
            case "CUSTOM" if event["name"] == "history.shortened":
                self.note("[older parts of this conversation are left out of what the model sees]")
            case _:
                pass

    def _begun(self, action: str) -> None:
        try:
            args: Any = msgspec.json.decode(self._arguments.pop(action, "{}") or "{}")
        except msgspec.DecodeError:
            args = {}
        self.note(f"▸ {self._names.get(action, 'tool')} {gist(args)}")

    def _result(self, action: str, outcome: str | None, exit_code: int | None, output: str) -> None:
        if action not in self._live and output:
            shown = output if len(output) <= RESULT_CHARS else f"{output[:RESULT_CHARS]}\n..."
            self.note("\n".join(f"  {line}" for line in shown.splitlines()))
        self._live.discard(action)
        code = f", exit {exit_code}" if exit_code is not None else ""
        self.note(f"{_SIGNS.get(outcome or '', '·')} {self._names.pop(action, 'tool')}: {outcome}{code}")

    def _err(self, text: str) -> None:
        print(text, end="", file=sys.stderr, flush=True)
        self._err_column = 0 if text.endswith("\n") else 1

    def _break_out(self) -> None:
        if self._out_column:
            print(flush=True)
            self._out_column = 0

    def _break_err(self) -> None:
        if self._err_column:
            print(file=sys.stderr, flush=True)
            self._err_column = 0


def gist(args: Any) -> str:
    """What a tool is called with, in a line."""
    if isinstance(args, dict) and len(args) == 1:
        args = next(iter(args.values()))
    text = args if isinstance(args, str) else msgspec.json.encode(args).decode()
    line = " ⏎ ".join(harmless(text).splitlines())
    return line if len(line) <= GIST_CHARS else f"{line[:GIST_CHARS]}…"
