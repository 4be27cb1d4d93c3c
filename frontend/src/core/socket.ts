/** One WebSocket that comes back: hello, heartbeats, full-jitter back-off, commands that outlive a drop. */

import type { Command, Limits, ServerFrame } from "./frames";

export type Connection = "connecting" | "online" | "offline" | "restarting" | "auth_failed" | "refused";

export interface Handlers {
  connection(state: Connection, retryAt: number | null): void;
  frame(frame: ServerFrame): void;
  /** The socket is greeted: subscribe again, send again what was not answered. */
  online(): void;
}

interface Wire {
  send(text: string): void;
  close(code?: number): void;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number }) => void) | null;
}

export interface Surroundings {
  open(): Wire;
  now(): number;
  random(): number;
  later(work: () => void, ms: number): number;
  never(timer: number): void;
}

const FIRST_MS = 500;
const LONGEST_MS = 30_000;
const FINAL = new Map<number, Connection>([
  [4400, "refused"],
  [4401, "auth_failed"],
  [4403, "auth_failed"],
  [4406, "refused"],
]);

export class HoldfastSocket {
  private wire: Wire | null = null;
  private greeted = false;
  private tries = 0;
  private nextId = 1;
  private timer: number | null = null;
  private heartbeat: number | null = null;
  private heardAt = 0;
  private heartbeatMs = 25_000;
  private wait: number | null = null;
  private restarting = false;
  private stopped = false;
  limits: Limits = { frameBytes: 256 * 1024, contentBytes: 1024 * 1024 };
  private readonly answers = new Map<string, (frame: ServerFrame | null) => void>();

  constructor(
    private readonly around: Surroundings,
    private readonly handlers: Handlers,
  ) {}

  start(): void {
    this.stopped = false;
    this.connect();
  }

  stop(): void {
    this.stopped = true;
    this.clear();
    this.wire?.close(1000);
    this.wire = null;
  }

  /** Try at once, as when the browser says that it is online again. */
  hurry(): void {
    if (this.wire || this.stopped) return;
    this.tries = 0;
    this.connect();
  }

  /** The network is gone, as the browser says: do not wait for a time-out to notice. */
  drop(): void {
    const wire = this.wire;
    if (!wire) return;
    wire.onclose = null;
    wire.close();
    this.closed(1006);
  }

  get isOnline(): boolean {
    return this.greeted;
  }

  /** Send a command; its answer, or null when the connection was lost before it came. */
  ask(command: Command): Promise<ServerFrame | null> {
    if (!this.greeted || !this.wire) return Promise.resolve(null);
    const id = String(this.nextId++);
    this.wire.send(JSON.stringify({ ...command, id }));
    return new Promise((resolve) => this.answers.set(id, resolve));
  }

  private connect(): void {
    this.clear();
    this.handlers.connection(this.restarting ? "restarting" : "connecting", null);
    const wire = this.around.open();
    this.wire = wire;
    wire.onopen = () => {
      wire.send(JSON.stringify({ type: "hello", id: "hello", protocol: "1.0", client: { name: "holdfast-ui", version: "1" } }));
    };
    wire.onmessage = ({ data }) => {
      if (this.wire === wire) this.received(JSON.parse(String(data)) as ServerFrame);
    };
    wire.onclose = ({ code }) => {
      if (this.wire === wire) this.closed(code);
    };
    this.watch();
  }

  private received(frame: ServerFrame): void {
    this.heardAt = this.around.now();
    if (frame.type === "welcome") {
      this.heartbeatMs = frame.heartbeatMs;
      if (frame.limits) this.limits = frame.limits;
      this.greeted = true;
      this.tries = 0;
      this.restarting = false;
      this.handlers.connection("online", null);
      this.handlers.online();
      return;
    }
    if (frame.type === "goaway") {
      this.restarting = true;
      this.wait = frame.reconnectAfterMs;
    }
    if (frame.type === "ack" || (frame.type === "error" && frame.re !== null)) {
      const id = frame.re ?? "";
      this.answers.get(id)?.(frame);
      this.answers.delete(id);
    }
    this.handlers.frame(frame);
  }

  private closed(code: number): void {
    this.wire = null;
    this.greeted = false;
    this.clear();
    for (const answer of this.answers.values()) answer(null);
    this.answers.clear();
    if (this.stopped) return;
    const final = FINAL.get(code);
    if (final) {
      this.handlers.connection(final, null);
      return;
    }
    if (code === 1012) this.restarting = true;
    const limit = Math.min(LONGEST_MS, FIRST_MS * 2 ** this.tries);
    const pause = (this.wait ?? 0) + this.around.random() * limit;
    this.wait = null;
    this.tries += 1;
    this.handlers.connection(this.restarting ? "restarting" : "offline", this.around.now() + pause);
    this.timer = this.around.later(() => this.connect(), pause);
  }

  /** Ping, and give up on a server that is silent for twice the heartbeat. */
  private watch(): void {
    this.heardAt = this.around.now();
    const beat = () => {
      if (this.around.now() - this.heardAt >= this.heartbeatMs * 2) return this.drop();
      if (this.greeted) this.wire?.send(JSON.stringify({ type: "ping", id: `p${this.nextId++}` }));
      this.heartbeat = this.around.later(beat, this.heartbeatMs);
    };
    this.heartbeat = this.around.later(beat, this.heartbeatMs);
  }

  private clear(): void {
    for (const timer of [this.timer, this.heartbeat]) if (timer !== null) this.around.never(timer);
    this.timer = null;
    this.heartbeat = null;
  }
}
