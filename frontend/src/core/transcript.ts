/** The fold: the twin of `domain/transcript.py`, held to it by the golden files in tests/golden. */

import { begun, ended, heard, interruptsOf, parsedArguments, whole } from "./actions";
import type { Action, ActiveRun, AgUiEvent, Cancel, Interrupt, Message, Metadata, QueueItem, Recorded, State } from "./frames";

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
  interrupts: Interrupt[] = [];
  /** How the runs ended that were seen to be cancelled. */
  stopped = new Map<string, Cancel>();
  /** By run, the run that went on from it when its approvals were decided. */
  continued = new Map<string, string>();
  /** By action, how and when a person decided about it while the page looked on. */
  decided = new Map<string, { approved: boolean; at: string }>();
  /** Actions that write more than is told live. */
  cut = new Set<string>();
  seq = 0;
  private readonly arguments = new Map<string, string>();

  constructor(readonly session: string) {}

  static from(session: string, seq: number, state: State): Transcript {
    const transcript = new Transcript(session);
    transcript.seq = seq;
    transcript.messages = state.messages.map(whole);
    transcript.activeRun = state.activeRun ? { ...state.activeRun } : null;
    transcript.queue = state.queue.map((item) => ({ ...item }));
    transcript.interrupts = state.interrupts;
    return transcript;
  }

  /** Apply the next events. */
  applyAll(records: Recorded[]): void {
    for (const record of joined(records)) this.apply(record);
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
        return this.applyCustom(String(event.name), (event.value ?? {}) as Record<string, unknown>, run, ts);
    }
  }

  /** Put messages before the ones that are known, as when a snapshot held only the newest. */
  prepend(earlier: Message[]): void {
    const known = new Set(this.messages.map((message) => message.id));
    this.messages = [...earlier.filter((message) => !known.has(message.id)).map(whole), ...this.messages];
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

  /** How a run was stopped, itself or where it went on after its approvals. */
  cancelOf(run: string): Cancel | undefined {
    return this.stopped.get(run) ?? this.stopped.get(this.lastOf(run));
  }

  /** The run in which a run's work went on last. */
  lastOf(run: string): string {
    const next = this.continued.get(run);
    return next === undefined || next === run ? run : this.lastOf(next);
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

  private shorten(run: string | null, shortened: unknown): void {
    const message = this.messages.findLast((one) => one.run === run && one.role === "assistant");
    if (message) this.change(message.id, (one) => ({ ...one, metadata: { ...one.metadata, shortened } as Metadata }));
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
    this.interrupts = [];
    if (event.parentRunId) this.continued.set(String(event.parentRunId), run);
  }

  private endRun(event: AgUiEvent, run: string | null): void {
    const cancel = (event.metadata as { cancel?: Cancel } | undefined)?.cancel;
    if (cancel && run) this.stopped.set(run, cancel);
    const asked = run && event.type === "RUN_FINISHED" ? interruptsOf(event, run) : null;
    this.interrupts = asked ?? this.interrupts;
    this.activeRun = asked && this.activeRun ? { ...this.activeRun, status: "waiting" } : null;
  }

  private applyAction(event: AgUiEvent, ts: string): void {
    const id = String(event.toolCallId);
    switch (event.type) {
      case "TOOL_CALL_START":
        return this.change(String(event.parentMessageId ?? ""), (message) => ({
          ...message,
          actions: [...message.actions, begun(event, message.actions.length, ts)],
        }));
      case "TOOL_CALL_ARGS":
        this.arguments.set(id, (this.arguments.get(id) ?? "") + String(event.delta));
        return;
      case "TOOL_CALL_END":
        return this.changeAction(id, (action) => ({ ...action, input: parsedArguments(this.arguments.get(id) ?? "") }));
      default:
        return this.changeAction(id, (action) => ended(action, event, ts));
    }
  }

  /** Edit an action, of whichever message: an approved one belongs to an earlier run's. */
  private changeAction(id: string, edit: (action: Action) => Action): void {
    const owner = this.messages.findLast((message) => message.actions.some((action) => action.id === id));
    if (!owner) return;
    const actions = owner.actions.map((action) => (action.id === id ? edit(action) : action));
    this.change(owner.id, (message) => ({ ...message, actions }));
  }

  private applyCustom(name: string, value: Record<string, unknown>, run: string | null, ts: string): void {
    switch (name) {
      case "queue.changed":
        return this.changeQueue(value as QueueChange);
      case "action.output":
        if (value.cut === true) this.cut.add(String(value.toolCallId));
        return this.changeAction(String(value.toolCallId), (action) => heard(action, String(value.text ?? "")));
      case "interrupt.resolved":
        return this.resolve(String(value.id), value.approved === true, ts);
      case "history.shortened":
        return this.shorten(run, value);
      default:
        this.changeRun(name);
    }
  }

  private resolve(id: string, approved: boolean, at: string): void {
    const asked = this.interrupts.find((one) => one.id === id);
    if (asked) this.decided.set(asked.action, { approved, at });
    this.interrupts = this.interrupts.filter((one) => one.id !== id);
    if (this.interrupts.length === 0 && this.activeRun?.status === "waiting") this.activeRun = null;
  }

  private changeRun(name: string): void {
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

/** Events with what one message or action got in a row put together, so that each is changed once. */
function joined(records: Recorded[]): Recorded[] {
  const found: Recorded[] = [];
  for (const record of records) {
    const before = found.at(-1);
    const event = before && before.run === record.run ? together(before.event, record.event) : null;
    if (event) found[found.length - 1] = { ...record, event };
    else found.push(record);
  }
  return found;
}

/** Two events as one, when they append to the same text. */
function together(one: AgUiEvent, other: AgUiEvent): AgUiEvent | null {
  if (one.type !== other.type) return null;
  if (one.type === "TEXT_MESSAGE_CONTENT" && one.messageId === other.messageId) return { ...other, delta: `${String(one.delta)}${String(other.delta)}` };
  if (one.type !== "CUSTOM" || one.name !== "action.output" || other.name !== "action.output") return null;
  const [first, second] = [one.value as Output, other.value as Output];
  if (first.toolCallId !== second.toolCallId || first.cut || second.cut) return null;
  return { ...other, value: { ...second, text: first.text + second.text } };
}

interface Output {
  toolCallId: string;
  text: string;
  cut?: boolean;
}
