/** The HTTP API, as far as the page needs it. */

import type { Message } from "./frames";

export interface Session {
  id: string;
  title: string;
  ui_status: "Idle" | "InProgress" | "NeedsReview" | "Archived";
  version: number;
  updated_at: string;
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

async function call<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
  const init: RequestInit = { method, headers: { ...headers } };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...headers, "Content-Type": "application/json" };
  }
  const response = await fetch(path, init);
  if (!response.ok) {
    const told = (await response.json().catch(() => ({}))) as { code?: string; detail?: string };
    throw new Problem(response.status, told.code ?? "internal", told.detail ?? response.statusText);
  }
  return (response.status === 204 ? undefined : await response.json()) as T;
}

export const api = {
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
  continue: (run: string, key: string) => call<{ run: string }>("POST", `/api/runs/${run}/continue`, { key }),
};
