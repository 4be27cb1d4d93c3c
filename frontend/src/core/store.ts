/** What the page knows: the connection, the open session's transcript, and what is not answered yet. */

import { createStore } from "zustand/vanilla";
import { serverClock } from "./clock";
import type { AgUiEvent, Command, Cursor, Decision, Interrupt, Message, QueueItem, Recorded, ServerFrame } from "./frames";
import { type Memory, Outbox, type Pending } from "./outbox";
import { type Connection, HoldfastSocket, type Surroundings } from "./socket";
import { Transcript } from "./transcript";

export interface ChatState {
  connection: Connection;
  retryAt: number | null;
  session: string | null;
  transcript: Transcript | null;
  /** Changes with every change of the transcript. */
  revision: number;
  /** The transcript lacks its beginning, which is had over HTTP. */
  earlier: boolean;
  caughtUp: boolean;
  /** The server has no such session for this user. */
  missing: boolean;
  /** The run whose stop was asked for and not confirmed yet, or "" for all that waits. */
  stopping: string | null;
  /** The run of this session that ended last while the page looked on. */
  finished: string | null;
  /** Interrupts about which this page has sent a decision that is not seen yet. */
  deciding: ReadonlySet<string>;
  pending: Pending[];
  problem: string | null;
}

/** What goes over HTTP: messages too long for a frame, and history too long for a snapshot. */
export interface Http {
  send(message: Pending): Promise<ServerFrame | null>;
  messagesBefore(session: string, id: string): Promise<Message[]>;
}

/** `asked` when a run begins to wait for a person. */
export type Listener = (what: "changed" | "ended" | "asked", session: string) => void;

interface Known {
  epoch: string;
  earlier: boolean;
  transcript: Transcript;
}

/** Room for a frame's other fields. */
const FRAME_MARGIN = 1_024;
const NONE: ReadonlySet<string> = new Set();
const FASTER = "Somebody was faster: this was decided already.";
const DECIDED: Record<string, string> = { conflict: FASTER, already_resolved: FASTER, no_open_interrupt: "This question is not open any more." };
const QUEUED: Record<string, string> = { conflict: "Somebody was faster: the queue has changed." };

export class Chat {
  readonly store = createStore<ChatState>(() => ({
    connection: "connecting",
    retryAt: null,
    session: null,
    transcript: null,
    revision: 0,
    earlier: false,
    caughtUp: false,
    missing: false,
    stopping: null,
    finished: null,
    deciding: NONE,
    pending: [],
    problem: null,
  }));
  readonly socket: HoldfastSocket;
  readonly outbox: Outbox;
  private readonly known = new Map<string, Known>();
  private frames: ServerFrame[] = [];
  private scheduled = false;
  private listener: Listener = () => undefined;

  constructor(
    private readonly around: Surroundings,
    memory: Memory,
    private readonly http: Http,
    private readonly nextFrame: (work: () => void) => void,
  ) {
    this.socket = new HoldfastSocket(around, {
      connection: (connection, retryAt) => this.store.setState({ connection, retryAt }),
      frame: (frame) => this.take(frame),
      online: () => this.resume(),
    });
    this.outbox = new Outbox(memory, {
      isOnline: () => this.socket.isOnline,
      carry: (message) => this.carry(message),
      later: (work, ms) => void around.later(work, ms),
      changed: (pending) => {
        this.store.setState({ pending });
        this.settle();
      },
    });
    this.store.setState({ pending: this.outbox.pending });
  }

  onChange(listener: Listener): void {
    this.listener = listener;
  }

  /** Follow a session, or none. */
  open(session: string | null): void {
    const before = this.store.getState().session;
    if (before === session) return;
    if (before) void this.socket.ask({ type: "unsubscribe", session: before });
    const known = session ? this.known.get(session) : undefined;
    this.store.setState({
      session,
      transcript: known?.transcript ?? null,
      earlier: known?.earlier ?? false,
      caughtUp: false,
      missing: false,
      stopping: null,
      finished: null,
      deciding: NONE,
      problem: null,
    });
    if (session) this.subscribe(session);
  }

  /** Say something. It is kept until the server has it, through drops and reloads. */
  send(session: string, content: string, key: string): void {
    this.outbox.add({ key, session, content, ifBusy: "queue" }, Date.now());
  }

  /** Stop what goes on; without a connection, as soon as there is one. */
  cancel(): void {
    const { session, transcript, stopping } = this.store.getState();
    const run = transcript?.activeRun?.run ?? "";
    if (!session || stopping === run) return;
    this.store.setState({ stopping: run });
    void this.askToStop(session, run);
  }

  /** Decide about an action that waits. What comes of it is what the server's events tell. */
  async decide({ id, run }: Interrupt, decision: Decision, key: string): Promise<void> {
    const { session, deciding } = this.store.getState();
    if (!session || deciding.has(id)) return;
    const command: Command = { type: "approve", session, run, key, decisions: [{ interruptId: id, ...decision }] };
    if (bytesOf(command) + FRAME_MARGIN > this.socket.limits.frameBytes) {
      this.store.setState({ problem: "These arguments are too long to be sent." });
      return;
    }
    this.store.setState({ deciding: new Set([...deciding, id]), problem: null });
    const answer = await this.socket.ask(command);
    if (answer?.type === "ack" || this.store.getState().session !== session) return;
    this.store.setState((state) => ({ deciding: without(state.deciding, (one) => one === id) }));
    this.told(answer, DECIDED);
  }

  async changeQueue(op: "move" | "edit" | "remove", item: QueueItem, more: { position?: number; content?: string } = {}): Promise<boolean> {
    const { session } = this.store.getState();
    if (!session) return false;
    const answer = await this.socket.ask({ type: "queue", session, op, task: item.task, version: item.version, ...more });
    this.told(answer, QUEUED);
    return answer?.type === "ack";
  }

  /** Put a waiting message first and stop what goes on. The message never leaves the server's queue. */
  async sendNow(item: QueueItem): Promise<void> {
    const isFirst = item.position === 1 || (await this.changeQueue("move", item, { position: 1 }));
    if (isFirst && this.store.getState().transcript?.activeRun) this.cancel();
  }

  async loadEarlier(): Promise<void> {
    const { session, transcript } = this.store.getState();
    const first = transcript?.messages[0];
    const known = session ? this.known.get(session) : undefined;
    if (!session || !first || !known) return;
    try {
      known.transcript.prepend(await this.http.messagesBefore(session, first.id));
      known.earlier = false;
      this.publish();
    } catch {
      this.store.setState({ problem: "The earlier messages could not be loaded." });
    }
  }

  forget(session: string): void {
    this.known.delete(session);
    for (const item of this.outbox.pending) if (item.session === session) this.outbox.discard(item.key);
  }

  dismiss(): void {
    this.store.setState({ problem: null });
  }

  /** Tell what went wrong, in the words for its code where there are some. */
  private told(answer: ServerFrame | null, words: Record<string, string> = {}): void {
    if (answer === null) this.store.setState({ problem: "The connection was lost; it is not sure that this was done." });
    if (answer?.type === "error") this.store.setState({ problem: words[answer.code] ?? answer.message });
  }

  private async carry(message: Pending): Promise<ServerFrame | null> {
    const { key, session, content, ifBusy } = message;
    if (bytesOf(content) + FRAME_MARGIN > this.socket.limits.frameBytes) return this.http.send(message);
    return this.socket.ask({ type: "send", session, content, key, ifBusy });
  }

  private async askToStop(session: string, run: string): Promise<void> {
    const answer = await this.socket.ask({ type: "cancel", session, ...(run ? { run } : {}) });
    if (answer === null) return;
    if (answer.type === "error") this.told(answer);
    const isRequested = answer.type === "ack" && answer.result.effect === "requested";
    if (!isRequested || run === "") this.store.setState({ stopping: null });
  }

  private resume(): void {
    const { session, stopping } = this.store.getState();
    this.store.setState({ deciding: NONE });
    if (session) this.subscribe(session);
    if (session && stopping !== null) void this.askToStop(session, stopping);
    void this.outbox.deliver();
  }

  private subscribe(session: string): void {
    const known = this.known.get(session);
    const cursor = known ? { epoch: known.epoch, seq: known.transcript.seq } : null;
    void this.socket.ask({ type: "subscribe", session, cursor }).then((answer) => {
      if (answer?.type !== "error" || this.store.getState().session !== session) return;
      if (answer.retryable) this.around.later(() => this.store.getState().session === session && this.subscribe(session), answer.retryAfterMs ?? 1_000);
      else this.store.setState({ missing: true, transcript: null });
    });
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
      for (const one of frames) this.apply(one);
      this.publish();
      this.settle();
    });
  }

  private apply(frame: ServerFrame): void {
    if (frame.type === "snapshot") {
      const transcript = Transcript.from(frame.session, frame.seq, frame);
      this.known.set(frame.session, { epoch: frame.epoch, earlier: frame.earlier ?? false, transcript });
    } else if (frame.type === "events") {
      this.applyEvents(frame.session, frame.epoch, frame.events);
    } else if (frame.type === "caught_up" && frame.session === this.store.getState().session) {
      this.store.setState({ caughtUp: true });
    }
  }

  private applyEvents(session: string, epoch: string, records: Recorded[]): void {
    const known = this.known.get(session) ?? { epoch, earlier: false, transcript: new Transcript(session) };
    const fresh = records.filter((record) => record.seq > known.transcript.seq);
    const first = fresh[0];
    if (!first) return;
    const isGap = first.seq !== known.transcript.seq + 1 || known.epoch !== epoch;
    if (isGap) {
      if (session === this.store.getState().session) this.subscribe(session);
      return;
    }
    this.known.set(session, known);
    known.transcript.applyAll(fresh);
    serverClock.heard(fresh.at(-1)?.ts ?? "");
    for (const { event, run } of fresh) this.noteRun(event, session, run);
  }

  private noteRun(event: AgUiEvent, session: string, run: string | null): void {
    const { type } = event;
    if (type === "RUN_STARTED" || (type === "CUSTOM" && event.name !== "action.output")) this.listener("changed", session);
    if (type !== "RUN_FINISHED" && type !== "RUN_ERROR") return;
    if (session === this.store.getState().session) this.store.setState({ finished: run });
    const isAsking = (event.outcome as { type?: string } | undefined)?.type === "interrupt";
    this.listener(isAsking ? "asked" : "ended", session);
  }

  private publish(): void {
    this.store.setState(({ session, stopping, deciding, revision }) => {
      const known = session ? this.known.get(session) : undefined;
      const run = known?.transcript.activeRun ?? null;
      const isStopSeen = stopping !== null && stopping !== "" && (run?.run !== stopping || run.cancelRequested);
      const asked = known?.transcript.interrupts ?? [];
      return {
        transcript: known?.transcript ?? null,
        earlier: known?.earlier ?? false,
        deciding: without(deciding, (id) => !asked.some((one) => one.id === id)),
        stopping: isStopSeen ? null : stopping,
        revision: revision + 1,
      };
    });
  }

  private settle(): void {
    this.outbox.settle((session: string, place: Cursor) => {
      const known = this.known.get(session);
      if (session !== this.store.getState().session) return true;
      if (!known) return false;
      return known.epoch !== place.epoch || known.transcript.seq >= place.seq;
    });
  }
}

function bytesOf(value: unknown): number {
  return new TextEncoder().encode(JSON.stringify(value)).length;
}

/** The set without some; the same set when none of them is in it. */
function without(all: ReadonlySet<string>, isGone: (id: string) => boolean): ReadonlySet<string> {
  const left = [...all].filter((id) => !isGone(id));
  return left.length === all.size ? all : new Set(left);
}
