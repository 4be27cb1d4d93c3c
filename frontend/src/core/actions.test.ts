import { describe, expect, it } from "vitest";
import { LONGEST_LIVE, parts } from "./actions";
import type { Action, AgUiEvent, Recorded } from "./frames";
import { Transcript } from "./transcript";

class Journal {
  readonly transcript = new Transcript("s");
  private readonly records: Recorded[] = [];

  tell(run: string, ...events: AgUiEvent[]): this {
    const from = this.records.length + 1;
    const fresh = events.map((event, place) => ({ seq: from + place, run, ts: `2026-01-01T00:00:0${from + place}Z`, event }));
    this.records.push(...fresh);
    this.transcript.applyAll(fresh);
    return this;
  }

  action(id = "c"): Action | undefined {
    return this.transcript.messages.flatMap((message) => message.actions).find((action) => action.id === id);
  }
}

const asked = { id: "i", reason: "tool_approval", message: "it writes", toolCallId: "c", metadata: { tool: "bash", args: { command: "ls" } } };
const begin: AgUiEvent[] = [
  { type: "RUN_STARTED", runId: "r", input: { messages: [{ id: "u", content: "go" }] }, metadata: { message: "m" } },
  { type: "TEXT_MESSAGE_START", messageId: "m", role: "assistant" },
  { type: "TEXT_MESSAGE_CONTENT", messageId: "m", delta: "😀 I look." },
  { type: "TOOL_CALL_START", toolCallId: "c", toolCallName: "bash", parentMessageId: "m", metadata: { action: { status: "pending" }, offset: 9 } },
  { type: "TOOL_CALL_ARGS", toolCallId: "c", delta: '{"comm' },
  { type: "TOOL_CALL_ARGS", toolCallId: "c", delta: 'and":"ls"}' },
  { type: "TOOL_CALL_END", toolCallId: "c" },
];
const waits: AgUiEvent[] = [
  { type: "TEXT_MESSAGE_END", messageId: "m" },
  { type: "RUN_FINISHED", runId: "r", outcome: { type: "interrupt", interrupts: [asked, { ...asked, id: "j", toolCallId: "d", expiresAt: "2026-01-01T00:05:00Z" }] } },
];
const output = (text: string, more: Record<string, unknown> = {}): AgUiEvent => ({ type: "CUSTOM", name: "action.output", value: { toolCallId: "c", stream: "stdout", text, ...more } });
const result = (action: Record<string, unknown>): AgUiEvent => ({ type: "TOOL_CALL_RESULT", messageId: "x", toolCallId: "c", content: "done", metadata: { action } });

describe("an action", () => {
  it("is there from its start, with what it writes", () => {
    const journal = new Journal().tell("r", ...begin.slice(0, 4));
    expect(journal.action()).toMatchObject({ type: "bash", status: "pending", input: {}, offset: 9, live: "" });
    journal.tell("r", ...begin.slice(4), output("a\n"), output("b\n", { stream: "stderr" }), output("", { cut: true }));
    expect(journal.action()).toMatchObject({ input: { command: "ls" }, live: "a\nb\n", output: null });
    expect(journal.transcript.cut.has("c")).toBe(true);
  });

  it("keeps what it wrote, and tells its end", () => {
    const more = { status: "error", outcome: "failed", exit_code: 2, link: "/api/x", diff: "@@", input: { command: "ls -l" } };
    const journal = new Journal().tell("r", ...begin, output("a\n"), result(more));
    expect(journal.action()).toMatchObject({ ...more, live: "a\n", output: "done" });
  });

  it("keeps the newest of a flood, whole characters only", () => {
    const journal = new Journal().tell("r", ...begin, output("old"), ...Array.from({ length: 65 }, () => output("😀".repeat(1_024))));
    expect(journal.action()?.live).toBe("😀".repeat(LONGEST_LIVE));
    journal.tell("r", output("x"));
    expect(journal.action()?.live).toBe(`${"😀".repeat(LONGEST_LIVE - 1)}x`);
  });

  it("is the same whether its output comes at once or bit by bit", () => {
    const bits = ["a", "b\n", "c"].map((text) => output(text));
    const once = new Journal().tell("r", ...begin, ...bits);
    const bitwise = bits.reduce((journal, bit) => journal.tell("r", bit), new Journal().tell("r", ...begin));
    expect(bitwise.transcript.state()).toEqual(once.transcript.state());
    expect(bitwise.transcript.seq).toBe(once.transcript.seq);
  });
});

describe("a run that waits for approval", () => {
  it("stays, with what it asks", () => {
    const { transcript } = new Journal().tell("r", ...begin, ...waits);
    expect(transcript.activeRun).toEqual({ run: "r", status: "waiting", message: "m", cancelRequested: false });
    expect(transcript.interrupts[0]).toEqual({ id: "i", run: "r", action: "c", tool: "bash", args: { command: "ls" }, reason: "it writes", expires_at: null });
    expect(transcript.interrupts[1]?.expires_at).toBe("2026-01-01T00:05:00Z");
    expect(transcript.state().open.actions).toEqual(["c"]);
  });

  it("loses one question by one answer, from any tab", () => {
    const { transcript } = new Journal().tell("r", ...begin, ...waits, { type: "CUSTOM", name: "interrupt.resolved", value: { id: "i", approved: true, by: "u" } });
    expect(transcript.interrupts.map((one) => one.id)).toEqual(["j"]);
    expect(transcript.activeRun?.status).toBe("waiting");
  });

  it("goes on as a new run, whose results are those of the earlier message's actions", () => {
    const journal = new Journal().tell("r", ...begin, ...waits);
    journal.tell("n", { type: "RUN_STARTED", runId: "n", parentRunId: "r", input: { messages: [] }, metadata: { message: "o" } }, result({ status: "success", outcome: "success" }));
    expect(journal.transcript.interrupts).toEqual([]);
    expect(journal.transcript.activeRun).toMatchObject({ run: "n", status: "running", message: "o" });
    expect(journal.transcript.continued.get("r")).toBe("n");
    expect(journal.action()?.status).toBe("success");
    journal.tell("n", { type: "RUN_FINISHED", runId: "n", outcome: { type: "cancelled" }, metadata: { cancel: { took_ms: 80 } } });
    expect(journal.transcript.activeRun).toBeNull();
    expect(journal.transcript.stopped.get("n")).toEqual({ took_ms: 80 });
  });
});

describe("a message in parts", () => {
  const at = (id: string, offset: number | null, position: number) => ({ ...({} as Action), id, offset, position });
  const shown = (content: string, ...actions: Action[]) => parts(content, actions).map((part) => ("text" in part ? part.text : `<${part.action.id}>`));

  it("has each action where it was begun, counted in characters", () => {
    expect(shown("😀 before. After.", at("a", 9, 0))).toEqual(["😀 before.", "<a>", " After."]);
  });

  it("keeps the order of actions at one place", () => {
    expect(shown("ab", at("y", 1, 1), at("x", 1, 0))).toEqual(["a", "<x>", "<y>", "b"]);
  });

  it("bears places that are not there", () => {
    expect(shown("ab", at("x", 99, 0), at("y", null, 1))).toEqual(["ab", "<x>", "<y>"]);
    expect(shown("", at("x", 0, 0))).toEqual(["<x>"]);
    expect(shown("")).toEqual([""]);
  });

  it("gives a text the same key while more comes", () => {
    const keys = (...actions: Action[]) => parts("ab cd ef", actions).flatMap((part) => ("key" in part ? [part.key] : []));
    expect(keys(at("x", 2, 0))).toEqual([0, 1]);
    expect(keys(at("x", 2, 0), at("y", 5, 1))).toEqual([0, 1, 2]);
  });
});
