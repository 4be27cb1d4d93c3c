/** The fold: the twin of `domain/transcript.py`, held to it by the golden files in tests/golden. */

import type { Action, ActiveRun, AgUiEvent, Cancel, Message, Metadata, QueueItem, Recorded, State } from "./frames";

const FLAGS: Metadata = { streaming: false, cancelled: false, has_error: false, interrupted: false };

type QueueChange = {
  items?: Omit<QueueItem, "position">[];
  removed?: string[];
  order?: { task: string; version: number }[];
};

/** A session's state through event `seq`. Messages that change are replaced, so that a view can compare. */
export class Transcript {
  messages: Message[] = [];
  activeRun: ActiveRun | null = null;
  queue: QueueItem[] = [];
  interrupts: unknown[] = [];
  /** How the runs ended that were seen to be cancelled. */
  stopped = new Map<string, Cancel>();
  seq = 0;
  private readonly arguments = new Map<string, string>();

  constructor(readonly session: string) {}

  static from(session: string, seq: number, state: State): Transcript {
    const transcript = new Transcript(session);
    transcript.seq = seq;
    transcript.messages = state.messages.map((message) => ({ ...message, actions: [...message.actions] }));
    transcript.activeRun = state.activeRun ? { ...state.activeRun } : null;
    transcript.queue = state.queue.map((item) => ({ ...item }));
    transcript.interrupts = state.interrupts;
    return transcript;
  }

  /** Apply the next events. Deltas of one message are joined before they are appended. */
  applyAll(records: Recorded[]): void {
    let run: string | null = null;
    let id = "";
    let deltas: string[] = [];
    const flush = () => {
      if (deltas.length > 0) this.appendContent(id, deltas.join(""));
      deltas = [];
    };
    for (const record of records) {
      if (record.event.type === "TEXT_MESSAGE_CONTENT" && typeof record.event.delta === "string") {
        const next = String(record.event.messageId);
        if (next !== id || record.run !== run) flush();
        run = record.run;
        id = next;
        deltas.push(record.event.delta);
        this.seq = record.seq;
      } else {
        flush();
        this.apply(record);
      }
    }
    flush();
  }

  apply({ seq, run, ts, event }: Recorded): void {
    this.seq = seq;
    switch (event.type) {
      case "TEXT_MESSAGE_CONTENT":
        return this.appendContent(String(event.messageId), String(event.delta));
      case "TEXT_MESSAGE_START":
        return this.startMessage(event, run, ts);
      case "TEXT_MESSAGE_END":
        return this.change(String(event.messageId), (message) => ({
          ...message,
          metadata: (event.metadata as Metadata | undefined) ?? message.metadata,
        }));
      case "REASONING_MESSAGE_START":
        return this.reason(run, (known) => (known ? "\n\n" : ""));
      case "REASONING_MESSAGE_CONTENT":
        return this.reason(run, () => String(event.delta));
      case "RUN_STARTED":
        return this.startRun(event, ts);
      case "RUN_FINISHED":
      case "RUN_ERROR":
        return this.endRun(event, run);
      case "TOOL_CALL_START":
      case "TOOL_CALL_ARGS":
      case "TOOL_CALL_END":
      case "TOOL_CALL_RESULT":
        return this.applyAction(event, ts);
      case "CUSTOM":
        return this.applyCustom(String(event.name), (event.value ?? {}) as Record<string, unknown>);
    }
  }

  /** Put messages before the ones that are known, as when a snapshot held only the newest. */
  prepend(earlier: Message[]): void {
    const known = new Set(this.messages.map((message) => message.id));
    this.messages = [...earlier.filter((message) => !known.has(message.id)), ...this.messages];
  }

  state(): State {
    return {
      messages: this.messages,
      activeRun: this.activeRun,
      queue: this.queue,
      interrupts: this.interrupts,
      open: {
        messages: this.messages.filter((message) => message.metadata.streaming).map((message) => message.id),
        actions: this.messages
          .flatMap((message) => message.actions)
          .filter((action) => action.status === "pending")
          .map((action) => action.id),
      },
    };
  }

  private change(id: string, edit: (message: Message) => Message): void {
    const place = this.messages.findLastIndex((message) => message.id === id);
    const found = this.messages[place];
    if (found) this.messages = this.messages.with(place, edit(found));
  }

  private appendContent(id: string, text: string): void {
    this.change(id, (message) => ({ ...message, content: message.content + text }));
  }

  private startMessage(event: AgUiEvent, run: string | null, ts: string): void {
    const id = String(event.messageId);
    if (this.messages.some((message) => message.id === id)) return;
    const metadata = (event.metadata as Metadata | undefined) ?? { ...FLAGS, streaming: true };
    const role = String(event.role);
    this.messages = [
      ...this.messages,
      { id, session: this.session, role, content: "", metadata, created_at: ts, run, actions: [] },
    ];
  }

  private reason(run: string | null, delta: (known: boolean) => string): void {
    const message = this.messages.findLast((one) => one.run === run && one.role === "assistant");
    if (!message || run === null) return;
    const before = message.metadata.reasoning ?? "";
    const more = delta(before !== "");
    if (more === "") return;
    this.change(message.id, (one) => ({ ...one, metadata: { ...one.metadata, reasoning: before + more } }));
  }

  private startRun(event: AgUiEvent, ts: string): void {
    const run = String(event.runId);
    const input = event.input as { messages?: { id: string; content: string }[] };
    for (const said of input.messages ?? []) {
      if (this.messages.some((message) => message.id === said.id)) continue;
      const shared = { session: this.session, role: "user", metadata: { ...FLAGS }, created_at: ts };
      this.messages = [...this.messages, { id: said.id, content: said.content, run, actions: [], ...shared }];
    }
    this.queue = numbered(this.queue.filter((item) => item.task !== run));
    const message = String((event.metadata as { message?: string } | undefined)?.message ?? "");
    this.activeRun = { run, status: "running", message, cancelRequested: false };
  }

  private endRun(event: AgUiEvent, run: string | null): void {
    const cancel = (event.metadata as { cancel?: Cancel } | undefined)?.cancel;
    if (cancel && run) this.stopped.set(run, cancel);
    this.activeRun = null;
  }

  private applyAction(event: AgUiEvent, ts: string): void {
    const id = String(event.toolCallId);
    if (event.type === "TOOL_CALL_START") {
      this.change(String(event.parentMessageId ?? ""), (message) => {
        const blank = { input: {}, output: null, status: "pending", outcome: null, started_at: ts, ended_at: null };
        const action: Action = { id, type: String(event.toolCallName), position: message.actions.length, ...blank };
        return { ...message, actions: [...message.actions, action] };
      });
      return;
    }
    const owner = this.messages.findLast((message) => message.actions.some((action) => action.id === id));
    if (!owner) return;
    if (event.type === "TOOL_CALL_ARGS") {
      this.arguments.set(id, (this.arguments.get(id) ?? "") + String(event.delta));
      return;
    }
    const edit = (action: Action): Action => {
      if (event.type === "TOOL_CALL_END") return { ...action, input: parsed(this.arguments.get(id) ?? "") };
      const told = (event.metadata as { action?: { status?: string; outcome?: string } } | undefined)?.action;
      const status = told?.status ?? "success";
      return { ...action, output: event.content, ended_at: ts, status, outcome: told?.outcome ?? "success" };
    };
    const actions = owner.actions.map((action) => (action.id === id ? edit(action) : action));
    this.change(owner.id, (message) => ({ ...message, actions }));
  }

  private applyCustom(name: string, value: Record<string, unknown>): void {
    if (name === "queue.changed") return this.changeQueue(value as QueueChange);
    if (!this.activeRun) return;
    if (name === "run.cancel_requested") this.activeRun = { ...this.activeRun, cancelRequested: true };
    if (name === "run.requeued") this.activeRun = { ...this.activeRun, status: "queued" };
    if (name === "run.resumed") this.activeRun = { ...this.activeRun, status: "running" };
  }

  private changeQueue({ items = [], removed = [], order = [] }: QueueChange): void {
    const known = new Map(this.queue.map((item) => [item.task, item]));
    for (const task of removed) known.delete(task);
    for (const item of items) known.set(item.task, { ...item, position: 0 });
    const line = order.flatMap(({ task, version }) => {
      const item = known.get(task);
      return item ? [{ ...item, version }] : [];
    });
    this.queue = numbered(line);
  }
}

function numbered(line: QueueItem[]): QueueItem[] {
  return line.map((item, place) => ({ ...item, position: place + 1 }));
}

function parsed(text: string): Record<string, unknown> {
  try {
    const value: unknown = text === "" ? {} : JSON.parse(text);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : { arguments: value };
  } catch {
    return { arguments: text };
  }
}
