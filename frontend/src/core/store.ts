/** What the page knows: the connection, the open session's transcript, and what is not answered yet. */

import { createStore } from "zustand/vanilla";
import type { QueueItem, ServerFrame } from "./frames";
import { type Connection, HoldfastSocket, type Surroundings } from "./socket";
import { Transcript } from "./transcript";

/** A message that the server has not acknowledged; it is sent again, with its key, until it has. */
export interface Pending {
  key: string;
  session: string;
  content: string;
  ifBusy: "queue" | "interrupt";
}

export interface ChatState {
  connection: Connection;
  retryAt: number | null;
  session: string | null;
  transcript: Transcript | null;
  /** Changes with every change of the transcript. */
  revision: number;
  caughtUp: boolean;
  pending: Pending[];
  problem: string | null;
}

export interface Memory {
  read(key: string): string | null;
  write(key: string, value: string | null): void;
}

const PENDING = "holdfast.pending";

export class Chat {
  readonly store = createStore<ChatState>(() => ({
    connection: "connecting",
    retryAt: null,
    session: null,
    transcript: null,
    revision: 0,
    caughtUp: false,
    pending: [],
    problem: null,
  }));
  readonly socket: HoldfastSocket;
  private readonly known = new Map<string, { epoch: string; transcript: Transcript }>();
  private readonly asked = new Set<string>();
  private frames: ServerFrame[] = [];
  private scheduled = false;
  private runEnded: (session: string) => void = () => undefined;

  constructor(
    private readonly around: Surroundings,
    private readonly memory: Memory,
    private readonly nextFrame: (work: () => void) => void,
  ) {
    this.store.setState({ pending: JSON.parse(memory.read(PENDING) ?? "[]") as Pending[] });
    this.socket = new HoldfastSocket(around, {
      connection: (connection, retryAt) => {
        if (connection !== "online") this.asked.clear();
        this.store.setState({ connection, retryAt });
      },
      frame: (frame) => this.take(frame),
      online: () => this.resume(),
    });
  }

  onRunEnded(listener: (session: string) => void): void {
    this.runEnded = listener;
  }

  /** Follow a session, or none. */
  open(session: string | null): void {
    const before = this.store.getState().session;
    if (before === session) return;
    if (before) void this.socket.ask({ type: "unsubscribe", session: before });
    const known = session ? this.known.get(session) : undefined;
    this.store.setState({ session, transcript: known?.transcript ?? null, caughtUp: false, problem: null });
    if (session) this.subscribe(session);
  }

  /** Say something. It is kept until the server has it, through drops and reloads. */
  send(session: string, content: string, key: string, ifBusy: "queue" | "interrupt" = "queue"): void {
    this.setPending([...this.store.getState().pending, { key, session, content, ifBusy }]);
    void this.deliver();
  }

  async cancel(): Promise<void> {
    const { session, transcript } = this.store.getState();
    if (!session) return;
    const run = transcript?.activeRun?.run;
    this.told(await this.socket.ask({ type: "cancel", session, ...(run ? { run } : {}) }));
  }

  async changeQueue(op: "move" | "edit" | "remove", item: QueueItem, more: { position?: number; content?: string } = {}) {
    const { session } = this.store.getState();
    if (!session) return;
    this.told(await this.socket.ask({ type: "queue", session, op, task: item.task, version: item.version, ...more }));
  }

  /** Take a waiting message out of the queue and say it now, instead of what goes on. */
  async sendNow(item: QueueItem, key: string): Promise<void> {
    const { session } = this.store.getState();
    if (!session) return;
    const answer = await this.socket.ask({ type: "queue", session, op: "remove", task: item.task, version: item.version });
    this.told(answer);
    if (answer?.type === "ack") this.send(session, item.content, key, "interrupt");
  }

  dismiss(): void {
    this.store.setState({ problem: null });
  }

  private told(answer: ServerFrame | null): void {
    if (answer?.type === "error") {
      const words = answer.code === "conflict" ? "Somebody was faster: the queue has changed." : answer.message;
      this.store.setState({ problem: words });
    }
  }

  private resume(): void {
    const { session } = this.store.getState();
    if (session) this.subscribe(session);
    void this.deliver();
  }

  private subscribe(session: string): void {
    const known = this.known.get(session);
    const cursor = known ? { epoch: known.epoch, seq: known.transcript.seq } : null;
    void this.socket.ask({ type: "subscribe", session, cursor }).then((answer) => this.told(answer));
  }

  private async deliver(): Promise<void> {
    for (const one of this.store.getState().pending) {
      if (this.asked.has(one.key) || !this.socket.isOnline) continue;
      this.asked.add(one.key);
      const answer = await this.socket.ask({ type: "send", ...one });
      this.asked.delete(one.key);
      if (answer === null) return;
      if (answer.type === "error" && answer.retryable) {
        this.around.later(() => void this.deliver(), answer.retryAfterMs ?? 1_000);
        return;
      }
      this.told(answer);
      this.setPending(this.store.getState().pending.filter((other) => other.key !== one.key));
    }
  }

  private setPending(pending: Pending[]): void {
    this.memory.write(PENDING, pending.length > 0 ? JSON.stringify(pending) : null);
    this.store.setState({ pending });
  }

  /** Frames of one animation frame are applied together. */
  private take(frame: ServerFrame): void {
    if (frame.type !== "events" && frame.type !== "snapshot" && frame.type !== "caught_up") return;
    this.frames.push(frame);
    if (this.scheduled) return;
    this.scheduled = true;
    this.nextFrame(() => {
      this.scheduled = false;
      const frames = this.frames;
      this.frames = [];
      this.apply(frames);
    });
  }

  private apply(frames: ServerFrame[]): void {
    const ended = new Set<string>();
    let caughtUp = this.store.getState().caughtUp;
    const current = this.store.getState().session;
    for (const frame of frames) {
      if (frame.type === "snapshot") {
        const transcript = Transcript.from(frame.session, frame.seq, frame);
        this.known.set(frame.session, { epoch: frame.epoch, transcript });
      } else if (frame.type === "events") {
        const known = this.known.get(frame.session) ?? { epoch: frame.epoch, transcript: new Transcript(frame.session) };
        this.known.set(frame.session, known);
        const before = known.transcript.activeRun;
        known.transcript.applyAll(frame.events.filter((record) => record.seq > known.transcript.seq));
        if (before && !known.transcript.activeRun) ended.add(frame.session);
      } else if (frame.type === "caught_up" && frame.session === current) {
        caughtUp = true;
      }
    }
    const transcript = current ? (this.known.get(current)?.transcript ?? null) : null;
    this.store.setState((state) => ({ transcript, caughtUp, revision: state.revision + 1 }));
    for (const session of ended) this.runEnded(session);
  }
}
