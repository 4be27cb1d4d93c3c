import { describe, expect, it } from "vitest";
import type { ServerFrame } from "./frames";
import { type Memory, Outbox, type Pending } from "./outbox";

class Storage implements Memory {
  entries = new Map<string, string>();
  keys = () => [...this.entries.keys()];
  read = (key: string) => this.entries.get(key) ?? null;
  write = (key: string, value: string | null) => void (value === null ? this.entries.delete(key) : this.entries.set(key, value));
}

class World {
  online = true;
  carried: string[] = [];
  timers: (() => void)[] = [];
  answers: (ServerFrame | null)[] = [];
  outbox: Outbox;

  constructor(readonly storage = new Storage()) {
    this.outbox = new Outbox(storage, {
      isOnline: () => this.online,
      carry: (message) => {
        this.carried.push(message.key);
        return Promise.resolve(this.answers.shift() ?? null);
      },
      later: (work) => void this.timers.push(work),
      changed: () => undefined,
    });
  }
}

const message = (key: string): Pending => ({ key, session: "s", content: key, ifBusy: "queue" });
const ack = (seq: number): ServerFrame => ({ type: "ack", re: "1", dup: false, result: {}, at: { epoch: "e", seq } });
const refused: ServerFrame = { type: "error", re: "1", code: "too_large", message: "too long", retryable: false };
const limited: ServerFrame = { ...refused, code: "rate_limited", retryable: true, retryAfterMs: 50 };

describe("the outbox", () => {
  it("keeps a message until the transcript has come to it", async () => {
    const world = new World();
    world.answers = [ack(7)];
    world.outbox.add(message("a"), 1);
    await Promise.resolve();
    await world.outbox.deliver();
    expect(world.outbox.pending).toMatchObject([{ key: "a", landsAt: { seq: 7 } }]);
    expect(world.storage.entries.size).toBe(0);
    world.outbox.settle((_, { seq }) => seq <= 6);
    expect(world.outbox.pending.length).toBe(1);
    world.outbox.settle((_, { seq }) => seq <= 7);
    expect(world.outbox.pending).toEqual([]);
  });

  it("sends again, with the same key and in order, what was not answered", async () => {
    const world = new World();
    world.online = false;
    world.outbox.add(message("a"), 1);
    world.outbox.add(message("b"), 2);
    world.online = true;
    world.answers = [null];
    await world.outbox.deliver();
    expect(world.carried).toEqual(["a"]);
    world.answers = [ack(1), ack(2)];
    await world.outbox.deliver();
    expect(world.carried).toEqual(["a", "a", "b"]);
  });

  it("has after a reload what was not acknowledged, of every tab", async () => {
    const storage = new Storage();
    const [one, other] = [new World(storage), new World(storage)];
    one.online = other.online = false;
    one.outbox.add(message("a"), 1);
    other.outbox.add(message("b"), 2);
    expect(new World(storage).outbox.pending.map((item) => item.key)).toEqual(["a", "b"]);
  });

  it("waits as long as it is told to, and lets nothing overtake", async () => {
    const world = new World();
    world.online = false;
    world.outbox.add(message("a"), 1);
    world.outbox.add(message("b"), 2);
    world.online = true;
    world.answers = [limited];
    await world.outbox.deliver();
    expect(world.carried).toEqual(["a"]);
    expect(world.timers.length).toBe(1);
  });

  it("keeps what is refused, for a person to see", async () => {
    const world = new World();
    world.online = false;
    world.outbox.add(message("a"), 1);
    world.outbox.add(message("b"), 2);
    world.online = true;
    world.answers = [refused, ack(1)];
    await world.outbox.deliver();
    expect(world.outbox.pending).toMatchObject([{ key: "a", problem: "too long" }, { key: "b", landsAt: { seq: 1 } }]);
    expect(world.storage.entries.size).toBe(1);
    world.answers = [ack(2)];
    world.outbox.retry("a");
    await Promise.resolve();
    expect(world.carried).toEqual(["a", "b", "a"]);
    world.outbox.discard("a");
    expect(world.storage.entries.size).toBe(0);
  });
});
