/** The fold of one action: from its events to what a person sees of it. */

import type { Action, AgUiEvent, Interrupt, Message } from "./frames";

/** So much of the live output is kept, in code points; the oldest goes first. */
export const LONGEST_LIVE = 65_536;

/** What an action has before anything of it is known; a server leaves out what it does not know. */
export const FACTS = { offset: null, live: "", link: null, diff: null, exit_code: null };

interface Told {
  status?: string;
  outcome?: string;
  link?: string;
  diff?: string;
  exit_code?: number;
  input?: Record<string, unknown>;
}

/** The action that a TOOL_CALL_START begins, at its `position` among those of its message. */
export function begun(event: AgUiEvent, position: number, ts: string): Action {
  const offset = (event.metadata as { offset?: number } | undefined)?.offset ?? null;
  const blank = { input: {}, output: null, status: "pending", outcome: null, started_at: ts, ended_at: null };
  return { id: String(event.toolCallId), type: String(event.toolCallName), position, ...blank, ...FACTS, offset };
}

/** The action with the result that a TOOL_CALL_RESULT tells. */
export function ended(action: Action, event: AgUiEvent, ts: string): Action {
  const told = (event.metadata as { action?: Told } | undefined)?.action ?? {};
  return {
    ...action,
    input: told.input ?? action.input,
    output: event.content,
    ended_at: ts,
    status: told.status ?? "success",
    outcome: told.outcome ?? "success",
    link: told.link ?? null,
    diff: told.diff ?? null,
    exit_code: told.exit_code ?? null,
  };
}

/** The action with more live output. */
export function heard(action: Action, text: string): Action {
  return { ...action, live: newest(action.live + text) };
}

/** The last `LONGEST_LIVE` code points of a text. */
function newest(text: string): string {
  if (text.length <= LONGEST_LIVE) return text;
  if (!/[\uD800-\uDBFF]/.test(text)) return text.slice(-LONGEST_LIVE);
  let start = text.length;
  for (let left = LONGEST_LIVE; left > 0 && start > 0; left -= 1) start -= isPair(text, start - 2) ? 2 : 1;
  return text.slice(start);
}

function isPair(text: string, place: number): boolean {
  return place >= 0 && (text.codePointAt(place) ?? 0) > 0xffff;
}

/** The arguments of a tool call, as written by the model. */
export function parsedArguments(text: string): Record<string, unknown> {
  try {
    const value: unknown = text === "" ? {} : JSON.parse(text);
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : { arguments: value };
  } catch {
    return { arguments: text };
  }
}

interface Asked {
  id: string;
  message?: string;
  toolCallId?: string;
  expiresAt?: string;
  metadata?: { tool?: string; args?: Record<string, unknown> };
}

/** What a RUN_FINISHED waits for; null when the run has really ended. */
export function interruptsOf(event: AgUiEvent, run: string): Interrupt[] | null {
  const outcome = event.outcome as { type?: string; interrupts?: Asked[] } | undefined;
  if (outcome?.type !== "interrupt") return null;
  return (outcome.interrupts ?? []).map(({ id, message, toolCallId, expiresAt, metadata }) => ({
    id,
    run,
    action: toolCallId ?? "",
    tool: metadata?.tool ?? "",
    args: metadata?.args ?? {},
    reason: message ?? "",
    expires_at: expiresAt ?? null,
  }));
}

/** A message as a server tells it, with all that its actions have. */
export function whole(message: Message): Message {
  return { ...message, actions: message.actions.map((action) => ({ ...FACTS, ...action })) };
}

/** Whether a message is the last word of a run that was stopped; one that waited for approval ends with its actions. */
export function wasStopped({ metadata, actions }: Message): boolean {
  return metadata.cancelled || actions.at(-1)?.outcome === "cancelled";
}

export type Part = { text: string; key: number } | { action: Action };

/** A message's text and actions, each action where it was begun. What has no place comes last. */
export function parts(content: string, actions: Action[]): Part[] {
  const line = actions
    .map((action) => ({ action, at: action.offset ?? Number.POSITIVE_INFINITY }))
    .sort((one, other) => one.at - other.at || one.action.position - other.action.position);
  const found: Part[] = [];
  let from = 0;
  let points = 0;
  for (const [key, { action, at }] of line.entries()) {
    const place = unitsAfter(content, from, at - points);
    points = at;
    if (content.slice(from, place).trim() !== "") found.push({ text: content.slice(from, place), key });
    found.push({ action });
    from = place;
  }
  if (line.length === 0 || from < content.length) found.push({ text: content.slice(from), key: line.length });
  return found;
}

/** The place in `text` that is so many code points after `from`. */
function unitsAfter(text: string, from: number, points: number): number {
  let place = from;
  for (let left = points; left > 0 && place < text.length; left -= 1) place += isPair(text, place) ? 2 : 1;
  return place;
}
