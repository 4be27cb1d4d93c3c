/** The HTTP API, as far as the page needs it. */

import { serverClock } from "./clock";
import type { Message } from "./frames";
import type { Job, JobQueue, NewJob, QueueState } from "./jobs";

export interface Session {
  id: string;
  title: string;
  ui_status: "Idle" | "InProgress" | "NeedsReview" | "Archived";
  version: number;
  updated_at: string;
  /** An action of it waits for a person's approval. */
  waiting?: boolean;
}

/** What is in a session's working folder. */
export interface Entry {
  name: string;
  kind: "file" | "folder" | "link" | "other";
  bytes: number;
  modified: string;
}

/** What tools there are, and what holds the commands that they run. */
export interface Tools {
  sandbox: { name: string; confined: boolean; reason?: string };
  tools: { name: string; description: string; approval: string }[];
}

export interface Page<T> {
  items: T[];
  next: string | null;
}

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

interface Fault {
  pointer: string;
  detail: string;
}

async function call<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
  const init: RequestInit = { method, headers: { ...headers } };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...headers, "Content-Type": "application/json" };
  }
  const response = await answered(path, init);
  return (response.status === 204 ? undefined : await response.json()) as T;
}

async function answered(path: string, init: RequestInit): Promise<Response> {
  const response = await fetch(path, init);
  serverClock.heard(response.headers.get("Date") ?? "");
  if (response.ok) return response;
  const told = (await response.json().catch(() => ({}))) as { code?: string; detail?: string; message?: string; errors?: Fault[] };
  const faults = (told.errors ?? []).map((fault) => `${fault.pointer.slice(1)}: ${fault.detail}`).join("; ");
  throw new Problem(response.status, told.code ?? "internal", faults || (told.detail ?? told.message ?? response.statusText));
}

export interface Head {
  bytes: Uint8Array;
  isWhole: boolean;
}

/** The first bytes of what is at a path; the rest is not fetched. */
async function head(path: string, longest: number, signal: AbortSignal): Promise<Head> {
  const response = await answered(path, { signal });
  const reader = response.body?.getReader();
  const chunks: Uint8Array[] = [];
  for (let got = 0; reader && got <= longest; ) {
    const { done, value } = await reader.read();
    if (done) return { bytes: together(chunks), isWhole: true };
    chunks.push(value);
    got += value.length;
  }
  await reader?.cancel();
  return { bytes: together(chunks).subarray(0, longest), isWhole: false };
}

function together(chunks: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
}

/** So much of a job's output, from its end, is followed. */
const TAIL_BYTES = 128 * 1024;

export const links = {
  jobOutput: (job: string) => `/api/jobs/${job}/output`,
  jobEvents: (job: string) => `/api/jobs/${job}/output?follow=true&offset=-${TAIL_BYTES}`,
  file: (session: string, path: string) => `/api/sessions/${session}/files/content?path=${encodeURIComponent(path)}`,
  output: (session: string, action: string) => `/api/sessions/${session}/actions/${encodeURIComponent(action)}/output`,
};

export const api = {
  queues: () => call<Page<QueueState>>("GET", "/api/queues"),
  queue: (queue: string) => call<JobQueue>("GET", `/api/jobs/queue?queue=${encodeURIComponent(queue)}`),
  setMaxRunning: (queue: string, many: number) => call<QueueState>("PATCH", `/api/queues/${encodeURIComponent(queue)}`, { max_running: many }),
  jobs: (queue: string) => call<Page<Job>>("GET", `/api/jobs?limit=50&queue=${encodeURIComponent(queue)}`),
  job: (id: string) => call<Job>("GET", `/api/jobs/${id}`),
  submitJob: (job: NewJob) => call<Job>("POST", "/api/jobs", job),
  cancelJob: (id: string) => call<unknown>("POST", `/api/jobs/${id}/cancel`, {}),
  swapJobs: (a: Job, b: Job) =>
    call<JobQueue>("POST", "/api/queue/swap", { a: a.job_id, b: b.job_id, version_a: a.version, version_b: b.version }),
  me: () => call<{ id: string; name: string; role: string }>("GET", "/api/me"),
  login: (token: string) => call<void>("POST", "/api/login", { token }),
  sessions: (q: string, cursor?: string) => {
    const query = new URLSearchParams({ limit: "50" });
    if (q) query.set("q", q);
    if (cursor) query.set("cursor", cursor);
    return call<Page<Session>>("GET", `/api/sessions?${query}`);
  },
  session: (id: string) => call<Session>("GET", `/api/sessions/${id}`),
  create: () => call<Session>("POST", "/api/sessions", {}),
  logout: () => call<void>("POST", "/api/logout"),
  messages: (session: string, cursor: string | null) =>
    call<Page<Message>>("GET", `/api/sessions/${session}/messages?limit=100${cursor ? `&cursor=${encodeURIComponent(cursor)}` : ""}`),
  send: (session: string, body: { content: string; key: string; ifBusy: string }) =>
    call<{ run: string; message: string }>("POST", `/api/sessions/${session}/messages`, body),
  rename: (session: Session, title: string) =>
    call<Session>("PATCH", `/api/sessions/${session.id}`, { title }, { "If-Match": `"${session.version}"` }),
  remove: (id: string) => call<void>("DELETE", `/api/sessions/${id}`),
  tools: () => call<Tools>("GET", "/api/tools"),
  files: (session: string, path: string) =>
    call<{ path: string; entries: Entry[] }>("GET", `/api/sessions/${session}/files?path=${encodeURIComponent(path)}`),
  file: (session: string, path: string, longest: number, signal: AbortSignal) => head(links.file(session, path), longest, signal),
  continue: (run: string, key: string) => call<{ run: string }>("POST", `/api/runs/${run}/continue`, { key }),
};
