/** Durations, sizes and ends in words. */

import type { Cancel } from "./frames";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** How long something took. */
export function took(ms: number): string {
  const rest = Math.max(0, ms);
  if (rest < SECOND) return `${Math.round(rest)} ms`;
  return rest < 10 * SECOND ? `${(Math.floor(rest / 100) / 10).toFixed(1)} s` : elapsed(rest);
}

/** How long something has been going on, or will: whole seconds. */
export function elapsed(ms: number): string {
  const rest = Math.max(0, ms);
  const two = (value: number) => String(Math.floor(value)).padStart(2, "0");
  if (rest < MINUTE) return `${Math.floor(rest / SECOND)} s`;
  if (rest < HOUR) return `${Math.floor(rest / MINUTE)} min ${two((rest % MINUTE) / SECOND)} s`;
  return `${Math.floor(rest / HOUR)} h ${two((rest % HOUR) / MINUTE)} min`;
}

const UNITS = ["KiB", "MiB", "GiB", "TiB"];

export function size(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const power = Math.min(UNITS.length, Math.floor(Math.log2(bytes) / 10));
  const value = bytes / 1024 ** power;
  return `${value < 10 ? value.toFixed(1) : Math.floor(value)} ${UNITS[power - 1]}`;
}

/** How fast a run was stopped, and what was ended for it. */
export function stopWords(cancel: Cancel | undefined): string {
  if (!cancel) return "Stopped.";
  const all = cancel.processes ?? [];
  const killed = all.filter((one) => one.how === "killed").length;
  const ended = `${all.length} ${all.length === 1 ? "process" : "processes"} ended${killed > 0 ? ` (${killed} killed)` : ""}`;
  const reason = cancel.reason ? ` Reason: ${cancel.reason}` : "";
  return `Stopped in ${took(cancel.took_ms)}${all.length > 0 ? ` · ${ended}` : ""}.${reason}`;
}
