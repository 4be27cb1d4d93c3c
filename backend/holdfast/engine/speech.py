"""What an agent says, turned into a run's events: spans opened and closed, chunks cut to size."""

from typing import Any

from msgspec import UNSET

from holdfast.agents.turn import AgentEvent, Reasoning, Text, Usage
from holdfast.clock import Clock
from holdfast.domain import events as ev
from holdfast.store.claims import Claim
from holdfast.store.journal import RunWriter

CHUNK_CHARS = 16 * 1024
"""The longest delta of one event; what an agent says at once may be longer."""

FIRST_CHECKPOINT = 64 * 1024
_JOINED = 512
_CHUNK = "TEXT_MESSAGE_CONTENT"


class Speech:
    """One attempt of a run as it speaks: writes events and keeps what is not folded yet."""

    def __init__(self, claim: Claim, writer: RunWriter, clock: Clock, reasoning: str = "", said_chars: int = 0) -> None:
        self.writer = writer
        self._claim = claim
        self._clock = clock
        self._prefix = ev.chunk_prefix(claim.message)
        self._tail: list[str] = []
        self._recent: list[str] = []
        self._tail_chars = 0
        self._folded_chars = 0
        self._said_chars = said_chars
        self._reasoning = [reasoning] if reasoning else []
        self._span: str | None = None
        self._spans = (claim.attempt - 1) * 1000
        self._started = clock.monotonic()
        self._first_token: float | None = None
        self._usage: Usage | None = None
        self.shortened: dict[str, int] | None = None
        """What was left out of the history that the agent is given: {omitted, tokens}."""

    @property
    def checkpoint_due(self) -> bool:
        """Whether as much is unfolded as is folded, so that folding costs little a chunk."""
        return self._tail_chars >= max(FIRST_CHECKPOINT, self._folded_chars)

    @property
    def offset(self) -> int:
        """How many characters the message has, those of earlier attempts too."""
        return self._said_chars + self._folded_chars + self._tail_chars

    def say(self, event: AgentEvent) -> None:
        """Write down one thing that the agent says."""
        if isinstance(event, Text):
            if event.delta:
                self._say_text(ev.clean_text(event.delta))
        elif isinstance(event, Reasoning):
            if event.delta:
                self._say_reasoning(ev.clean_text(event.delta))
        else:
            self._usage = event

    def note(self, event: AgentEvent) -> None:
        """Keep what an agent tells after it was stopped: the tokens that it has used, and no more words."""
        if isinstance(event, Usage):
            self._usage = event

    def take_tail(self) -> str:
        """The text since the last fold; it counts as folded afterwards."""
        tail = "".join((*self._tail, *self._recent))
        self._folded_chars += self._tail_chars
        self._tail, self._recent, self._tail_chars = [], [], 0
        return tail

    def closing(self) -> tuple[ev.Event, ...]:
        """What closes an open reasoning span."""
        span, self._span = self._span, None
        return (ev.ReasoningMessageEnd(message_id=span), ev.ReasoningEnd(message_id=span)) if span else ()

    def close_span(self) -> None:
        """Close an open reasoning span: what comes next is no reasoning."""
        for event in self.closing():
            self._put(event)

    def metadata(self, *, ended: bool) -> dict[str, Any]:
        """The message's metadata as far as the run itself knows it."""
        result: dict[str, Any] = {}
        if self._reasoning:
            result["reasoning"] = "".join(self._reasoning)
        if self._first_token is not None:
            result["first_token_ms"] = round((self._first_token - self._started) * 1000)
        if self._usage is not None:
            if self._usage.model:
                result["model"] = self._usage.model
            tokens = {"input_tokens": self._usage.input_tokens, "output_tokens": self._usage.output_tokens}
            result["usage"] = tokens
        if self.shortened is not None:
            result["shortened"] = self.shortened
        if ended:
            result["duration_ms"] = round((self._clock.monotonic() - self._started) * 1000)
        return result

    def usage(self) -> tuple[ev.TokenUsage, ...]:
        """The tokens as AG-UI tells them at the end."""
        if self._usage is None:
            return ()
        said = self._usage
        return (ev.TokenUsage(said.input_tokens, said.output_tokens, said.model or UNSET),)

    def _say_text(self, delta: str) -> None:
        if self._first_token is None:
            self._first_token = self._clock.monotonic()
        self.close_span()
        put, prefix = self.writer.put, self._prefix
        if len(delta) <= CHUNK_CHARS:
            put(_CHUNK, ev.encode_chunk(prefix, delta))
        else:
            for start in range(0, len(delta), CHUNK_CHARS):
                put(_CHUNK, ev.encode_chunk(prefix, delta[start : start + CHUNK_CHARS]))
        self._tail_chars += len(delta)
        self._recent.append(delta)
        if len(self._recent) >= _JOINED:  # A word by itself costs ten times its letters.
            self._tail.append("".join(self._recent))
            self._recent = []

    def _say_reasoning(self, delta: str) -> None:
        if self._span is None:
            self._spans += 1
            self._span = f"{self._claim.message}:r{self._spans}"
            self._put(ev.ReasoningStart(message_id=self._span))
            self._put(ev.ReasoningMessageStart(message_id=self._span))
            if self._reasoning:
                self._reasoning.append("\n\n")
        for start in range(0, len(delta), CHUNK_CHARS):
            piece = delta[start : start + CHUNK_CHARS]
            self._put(ev.ReasoningMessageContent(message_id=self._span, delta=piece))
        self._reasoning.append(delta)

    def _put(self, event: ev.Event) -> None:
        self.writer.put(ev.event_type(event), ev.encode(event))
