/** The browser's side of `core`: sockets, timers, storage, and the one chat of this page. */

import { api, Problem } from "../core/api";
import type { Message, ServerFrame } from "../core/frames";
import { Chat } from "../core/store";

const around = {
  open: () => {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    return new WebSocket(`${scheme}://${location.host}/ws`, "holdfast.v1") as never;
  },
  now: () => performance.now(),
  random: () => Math.random(),
  later: (work: () => void, ms: number) => window.setTimeout(work, ms),
  never: (timer: number) => window.clearTimeout(timer),
};

const memory = {
  keys: () => Object.keys(localStorage),
  read: (key: string) => localStorage.getItem(key),
  write: remember,
};

const http = {
  send: async ({ session, content, key, ifBusy }: { session: string; content: string; key: string; ifBusy: string }): Promise<ServerFrame | null> => {
    try {
      const result = await api.send(session, { content, key, ifBusy });
      return { type: "ack", re: key, dup: false, result, at: null };
    } catch (error) {
      if (!(error instanceof Problem)) return null;
      const retryable = error.status >= 500 || error.status === 429;
      return { type: "error", re: key, code: error.code, message: error.message, retryable };
    }
  },
  messagesBefore: async (session: string, id: string): Promise<Message[]> => {
    const found: Message[] = [];
    for (let cursor: string | null = null; ; ) {
      const page: { items: Message[]; next: string | null } = await api.messages(session, cursor);
      const place = page.items.findIndex((message) => message.id === id);
      found.push(...(place < 0 ? page.items : page.items.slice(0, place)));
      if (place >= 0 || page.next === null) return found;
      cursor = page.next;
    }
  },
};

/** A page that is hidden gets no frames; a timer sees to it that work is done all the same. */
const HIDDEN_MS = 200;

function nextFrame(work: () => void): void {
  let frame = 0;
  const once = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    work();
  };
  const timer = window.setTimeout(once, HIDDEN_MS);
  frame = requestAnimationFrame(once);
}

export const chat = new Chat(around, memory, http, nextFrame);

window.addEventListener("online", () => chat.socket.hurry());
window.addEventListener("offline", () => chat.socket.drop());
document.addEventListener("visibilitychange", () => !document.hidden && chat.socket.hurry());

/** Keep a text in this browser; one that is full or forbidden keeps nothing, and that is no fault. */
export function remember(key: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // The page works without.
  }
}

/** An idempotency key; `crypto.randomUUID` is missing on plain HTTP. */
export function newKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What to tell a person about a failed request. */
export function inWords(error: unknown): string {
  return error instanceof Problem ? error.message : "The server cannot be reached.";
}
