/** The browser's side of `core`: sockets, timers, storage, and the one chat of this page. */

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
  read: (key: string) => localStorage.getItem(key),
  write: (key: string, value: string | null) =>
    value === null ? localStorage.removeItem(key) : localStorage.setItem(key, value),
};

/** The next frame; a hidden page gets none, so a timer stands in. */
function nextFrame(work: () => void): void {
  if (document.hidden) window.setTimeout(work, 100);
  else requestAnimationFrame(work);
}

export const chat = new Chat(around, memory, nextFrame);

window.addEventListener("online", () => chat.socket.hurry());
window.addEventListener("offline", () => chat.socket.drop());

/** An idempotency key; `crypto.randomUUID` is missing on plain HTTP. */
export function newKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
