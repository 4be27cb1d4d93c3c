import { describe, expect, it } from "vitest";
import type { Recorded, ServerFrame, State } from "./frames";
import { Chat } from "./store";

const EMPTY: State = { messages: [], activeRun: null, queue: [], interrupts: [], open: { messages: [], actions: [] } };
const started: Recorded = {
  seq: 1,
  run: "r",
  ts: "2026-01-01T00:00:00Z",
  event: { type: "RUN_STARTED", runId: "r", input: { messages: [{ id: "m", role: "user", content: "hello" }] }, metadata: { message: "a" } },
};
const ended: Recorded = { ...started, seq: 2, event: { type: "RUN_FINISHED", runId: "r", outcome: { type: "success" } } };

class World {
  sent: Record<string, unknown>[] = [];
  wire = { send: (text: string) => void this.sent.push(JSON.parse(text) as Record<string, unknown>), close: () => undefined } as never as {
    onopen: () => void;
    onmessage: (event: { data: string }) => void;
    onclose: (event: { code: number }) => void;
  };
  entries = new Map<string, string>();
  heard: string[] = [];
  chat = new Chat(
    { open: () => this.wire as never, now: () => 0, random: () => 0, later: () => 0, never: () => undefined },
    { keys: () => [...this.entries.keys()], read: (key) => this.entries.get(key) ?? null, write: (key, value) => void (value === null ? this.entries.delete(key) : this.entries.set(key, value)) },
    { send: () => Promise.resolve(null), messagesBefore: () => Promise.resolve([]) },
    (work) => work(),
  );

  constructor() {
    this.chat.onChange((what) => this.heard.push(what));
    this.chat.open("s");
    this.chat.socket.start();
    this.greet();
  }

  greet(): void {
    this.wire.onopen();
    this.hear({ type: "welcome", re: "hello", heartbeatMs: 25_000 });
  }

  hear(frame: ServerFrame): void {
    this.wire.onmessage({ data: JSON.stringify(frame) });
  }

  snapshot(seq = 0, state: Partial<State> = {}): void {
    this.hear({ type: "snapshot", session: "s", epoch: "e", seq, reason: "initial", ...EMPTY, ...state });
  }

  events(...events: Recorded[]): void {
    this.hear({ type: "events", session: "s", epoch: "e", events });
  }

  last(type: string): Record<string, unknown> | undefined {
    return this.sent.findLast((frame) => frame.type === type);
  }

  get state() {
    return this.chat.store.getState();
  }
}

describe("the chat", () => {
  it("subscribes again at its cursor after a drop", () => {
    const world = new World();
    expect(world.last("subscribe")).toMatchObject({ session: "s", cursor: null });
    world.snapshot();
    world.events(started);
    world.wire.onclose({ code: 1006 });
    world.chat.socket.hurry();
    world.greet();
    expect(world.last("subscribe")).toMatchObject({ cursor: { epoch: "e", seq: 1 } });
  });

  it("applies no event twice", () => {
    const world = new World();
    world.snapshot();
    world.events(started);
    world.events(started, ended);
    expect(world.state.transcript?.messages.length).toBe(1);
    expect(world.state.transcript?.seq).toBe(2);
    expect(world.heard).toEqual(["changed", "ended"]);
  });

  it("subscribes again instead of applying events behind a gap", () => {
    const world = new World();
    world.snapshot();
    const before = world.sent.length;
    world.events(ended);
    expect(world.state.transcript?.seq).toBe(0);
    expect(world.sent.slice(before)).toMatchObject([{ type: "subscribe", cursor: { seq: 0 } }]);
  });

  it("stops, when it is connected again, what was to be stopped without a connection", () => {
    const world = new World();
    world.snapshot();
    world.events(started);
    world.wire.onclose({ code: 1006 });
    world.chat.cancel();
    expect(world.state.stopping).toBe("r");
    world.chat.socket.hurry();
    world.greet();
    expect(world.last("cancel")).toMatchObject({ session: "s", run: "r" });
    world.events(ended);
    expect(world.state.stopping).toBeNull();
  });

  it("tells of a session that is not there", async () => {
    const world = new World();
    const re = String(world.last("subscribe")?.id);
    world.hear({ type: "error", re, code: "session_not_found", message: "no", retryable: false });
    await Promise.resolve();
    expect(world.state.missing).toBe(true);
  });

  it("sends now without taking a message out of the queue", async () => {
    const world = new World();
    const item = { task: "t", version: 3, content: "c", by: "u", created_at: "", position: 2 };
    world.snapshot(0, { queue: [item], activeRun: { run: "r", status: "running", message: "a", cancelRequested: false } });
    const done = world.chat.sendNow(item);
    expect(world.last("queue")).toMatchObject({ op: "move", task: "t", version: 3, position: 1 });
    world.hear({ type: "ack", re: String(world.last("queue")?.id), dup: false, result: {}, at: null });
    await done;
    expect(world.last("cancel")).toMatchObject({ run: "r" });
  });

  describe("with an action that waits", () => {
    const asked = (id: string) => ({ id, run: "r", action: "c", tool: "bash", args: {}, reason: "", expires_at: null });
    const waiting = () => {
      const world = new World();
      world.snapshot(0, { activeRun: { run: "r", status: "waiting", message: "a", cancelRequested: false }, interrupts: [asked("i"), asked("j")] });
      return world;
    };
    const answer = async (world: World, frame: Partial<ServerFrame>) => {
      world.hear({ re: String(world.last("approve")?.id), ...frame } as ServerFrame);
      await Promise.resolve();
      await Promise.resolve();
    };

    it("sends a decision once, and waits until the transcript shows it", async () => {
      const world = waiting();
      void world.chat.decide(asked("i"), { approved: true, always: true }, "k");
      void world.chat.decide(asked("i"), { approved: false }, "l");
      expect(world.sent.filter((frame) => frame.type === "approve")).toMatchObject([
        { session: "s", run: "r", key: "k", decisions: [{ interruptId: "i", approved: true, always: true }] },
      ]);
      await answer(world, { type: "ack", dup: false, result: { run: null }, at: null });
      expect([...world.state.deciding]).toEqual(["i"]);
      world.events({ ...started, event: { type: "CUSTOM", name: "interrupt.resolved", value: { id: "i", approved: true } } });
      expect(world.state.deciding.size).toBe(0);
      expect(world.state.transcript?.interrupts).toEqual([asked("j")]);
    });

    it.each(["already_resolved", "conflict", "no_open_interrupt"])("tells why a decision does not count: %s", async (code) => {
      const world = waiting();
      void world.chat.decide(asked("i"), { approved: true }, "k");
      await answer(world, { type: "error", code, message: "raw words", retryable: false });
      expect(world.state.problem).toBeTruthy();
      expect(world.state.problem).not.toContain("raw");
      expect(world.state.deciding.size).toBe(0);
    });

    it("can be decided again when the connection was lost", () => {
      const world = waiting();
      void world.chat.decide(asked("i"), { approved: true }, "k");
      world.wire.onclose({ code: 1006 });
      world.chat.socket.hurry();
      world.greet();
      expect(world.state.deciding.size).toBe(0);
    });

    it("does not send arguments that are longer than a frame", () => {
      const world = waiting();
      void world.chat.decide(asked("i"), { approved: true, editedArgs: { text: "x".repeat(300_000) } }, "k");
      expect(world.last("approve")).toBeUndefined();
      expect(world.state.problem).toContain("too long");
    });

    it("is stopped as a run is", () => {
      const world = waiting();
      world.chat.cancel();
      expect(world.last("cancel")).toMatchObject({ run: "r" });
    });

    it("tells that it asks, which is no end", () => {
      const world = new World();
      world.snapshot();
      world.events(started, { ...ended, event: { type: "RUN_FINISHED", runId: "r", outcome: { type: "interrupt", interrupts: [] } } });
      expect(world.heard).toEqual(["changed", "asked"]);
    });
  });
});
