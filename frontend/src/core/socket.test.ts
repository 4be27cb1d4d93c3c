import { describe, expect, it } from "vitest";
import type { ServerFrame } from "./frames";
import { type Connection, HoldfastSocket } from "./socket";

class World {
  time = 0;
  wires: FakeWire[] = [];
  timers = new Map<number, { at: number; work: () => void }>();
  states: Connection[] = [];
  greetings = 0;
  private next = 1;

  socket = new HoldfastSocket(
    {
      open: () => {
        const wire = new FakeWire();
        this.wires.push(wire);
        return wire;
      },
      now: () => this.time,
      random: () => 1,
      later: (work, ms) => {
        this.timers.set(this.next, { at: this.time + ms, work });
        return this.next++;
      },
      never: (timer) => void this.timers.delete(timer),
    },
    { connection: (state) => this.states.push(state), frame: () => undefined, online: () => void (this.greetings += 1) },
  );

  get wire(): FakeWire {
    return this.wires.at(-1)!;
  }

  greet(): void {
    this.wire.onopen?.();
    this.wire.hear({ type: "welcome", re: "hello", heartbeatMs: 25_000 });
  }

  pass(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.timers].filter(([, timer]) => timer.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = due[1].at;
      due[1].work();
    }
    this.time = end;
  }
}

class FakeWire {
  sent: string[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number }) => void) | null = null;
  send(text: string): void {
    this.sent.push(text);
  }
  close(): void {}
  hear(frame: ServerFrame): void {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }
}

describe("the socket", () => {
  it("says hello first and is online after the welcome", () => {
    const world = new World();
    world.socket.start();
    world.greet();
    expect(JSON.parse(world.wire.sent[0]!)).toMatchObject({ type: "hello", protocol: "1.0" });
    expect(world.states).toEqual(["connecting", "online"]);
    expect(world.greetings).toBe(1);
  });

  it.each([1000, 1006, 1011, 1012, 4408, 4429])("comes back after %i", (code) => {
    const world = new World();
    world.socket.start();
    world.greet();
    world.wire.onclose?.({ code });
    world.pass(500);
    expect(world.wires.length).toBe(2);
  });

  it.each([4400, 4401, 4403, 4406])("stays away after %i", (code) => {
    const world = new World();
    world.socket.start();
    world.wire.onclose?.({ code });
    world.pass(120_000);
    expect(world.wires.length).toBe(1);
  });

  it("waits longer each time, at most 30 s", () => {
    const world = new World();
    world.socket.start();
    const pauses: number[] = [];
    for (let round = 0; round < 9; round += 1) {
      const before = world.time;
      const count = world.wires.length;
      world.wire.onclose?.({ code: 1006 });
      while (world.wires.length === count) world.pass(100);
      pauses.push(world.time - before);
    }
    expect(pauses.slice(0, 3)).toEqual([500, 1000, 2000]);
    expect(Math.max(...pauses)).toBe(30_000);
  });

  it("gives up on a silent server after twice the heartbeat", () => {
    const world = new World();
    world.socket.start();
    world.greet();
    world.pass(76_000);
    expect(world.wires.length).toBeGreaterThan(1);
  });

  it("answers null for what was asked when the connection is lost", async () => {
    const world = new World();
    world.socket.start();
    world.greet();
    const answer = world.socket.ask({ type: "unsubscribe", session: "s" });
    world.wire.onclose?.({ code: 1006 });
    expect(await answer).toBeNull();
  });
});
