/** What was said and is not in the transcript yet: kept through drops and reloads, and sent until it is acknowledged. */

import type { Cursor, ServerFrame } from "./frames";

export interface Pending {
  key: string;
  session: string;
  content: string;
  ifBusy: "queue" | "interrupt";
  /** Acknowledged; it is shown until the transcript has come this far. */
  landsAt?: Cursor;
  /** Why the server does not take it; it waits for a person. */
  problem?: string;
}

export interface Memory {
  keys(): string[];
  read(key: string): string | null;
  write(key: string, value: string | null): void;
}

export interface Carrier {
  isOnline(): boolean;
  /** The answer, or null when it is not known whether the message has arrived. */
  carry(message: Pending): Promise<ServerFrame | null>;
  later(work: () => void, ms: number): void;
  changed(pending: Pending[]): void;
}

/** One entry a message, so that two tabs never overwrite each other's. */
const PREFIX = "holdfast.pending.";
const AGAIN_MS = 2_000;

export class Outbox {
  private items: Pending[];
  private delivering = false;

  constructor(
    private readonly memory: Memory,
    private readonly carrier: Carrier,
  ) {
    this.items = memory
      .keys()
      .filter((key) => key.startsWith(PREFIX))
      .map((key) => parsed(memory.read(key)))
      .filter((item) => item !== null)
      .sort((one, other) => one.at - other.at)
      .map(({ at: _at, ...item }) => item);
  }

  get pending(): Pending[] {
    return this.items;
  }

  add(item: Pending, at: number): void {
    this.memory.write(PREFIX + item.key, JSON.stringify({ ...item, at }));
    this.set([...this.items, item]);
    void this.deliver();
  }

  discard(key: string): void {
    this.memory.write(PREFIX + key, null);
    this.set(this.items.filter((item) => item.key !== key));
  }

  retry(key: string): void {
    this.edit(key, ({ problem: _problem, ...item }) => item);
    void this.deliver();
  }

  /** Forget what the transcript shows by now. */
  settle(hasReached: (session: string, place: Cursor) => boolean): void {
    const left = this.items.filter((item) => !item.landsAt || !hasReached(item.session, item.landsAt));
    if (left.length < this.items.length) this.set(left);
  }

  /** One after the other, so that messages arrive in the order in which they were written. */
  async deliver(): Promise<void> {
    if (this.delivering) return;
    this.delivering = true;
    try {
      for (let item = this.next(); item && this.carrier.isOnline(); item = this.next()) {
        const pause = this.take(item, await this.carrier.carry(item));
        if (pause === null) continue;
        this.carrier.later(() => void this.deliver(), pause);
        return;
      }
    } finally {
      this.delivering = false;
    }
  }

  private next(): Pending | undefined {
    return this.items.find((item) => !item.landsAt && item.problem === undefined);
  }

  /** What an answer means for a message; ms to wait when it is to be sent again. */
  private take(item: Pending, answer: ServerFrame | null): number | null {
    if (answer === null) return AGAIN_MS;
    if (answer.type === "error" && answer.retryable) return answer.retryAfterMs ?? AGAIN_MS;
    if (answer.type === "ack") {
      this.memory.write(PREFIX + item.key, null);
      const { at } = answer;
      if (at) this.edit(item.key, (one) => ({ ...one, landsAt: at }));
      else this.set(this.items.filter((one) => one.key !== item.key));
    } else if (answer.type === "error") {
      this.edit(item.key, (one) => ({ ...one, problem: answer.message }));
    }
    return null;
  }

  private edit(key: string, change: (item: Pending) => Pending): void {
    this.set(this.items.map((item) => (item.key === key ? change(item) : item)));
  }

  private set(items: Pending[]): void {
    this.items = items;
    this.carrier.changed(items);
  }
}

function parsed(text: string | null): (Pending & { at: number }) | null {
  try {
    return text === null ? null : (JSON.parse(text) as Pending & { at: number });
  } catch {
    return null;
  }
}
