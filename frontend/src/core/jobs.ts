/** Jobs: what they are, in words, and their output as it comes. */

import { elapsed, size, took } from "./words";

export type JobStatus = "queued" | "running" | "completed" | "failed" | "cancelled";

export interface Job {
  job_id: string;
  name: string;
  command: string | string[];
  cwd: string | null;
  sandbox: "on" | "off";
  on_restart: "end" | "keep";
  status: JobStatus;
  queue: string;
  position: number | null;
  priority: number;
  exit_code: number | null;
  signal: number | null;
  error: string | null;
  cpu_s: number | null;
  max_rss_bytes: number | null;
  kill_failures: number;
  attempt: number;
  retries: number;
  failures: number;
  version: number;
  cancellation_status: "Requested" | "Cancelled" | null;
  created_at: string;
  run_at: string | null;
  started_at: string | null;
  completed_at: string | null;
  metadata: Record<string, unknown>;
}

export interface JobQueue {
  queue: string;
  running: number;
  queued: number;
  max_running: number;
  jobs: Job[];
}

export interface QueueState {
  name: string;
  running: number;
  queued: number;
  max_running: number;
}

/** What a person asks for; the rest is as the server has it. */
export interface NewJob {
  command: string | string[];
  name?: string;
  queue?: string;
  priority?: number;
  timeout?: number;
  retries?: number;
  on_restart?: "end" | "keep";
  sandbox?: "on" | "off";
  cwd?: string;
  metadata?: Record<string, unknown>;
}

const SIGNS: Record<JobStatus, string> = { queued: "…", running: "▸", completed: "✓", failed: "✗", cancelled: "■" };

export function signOf(job: Job): string {
  return SIGNS[job.status];
}

/** Where a job stands: its place, how long it runs, how it ended. */
export function standing(job: Job, now: number): string {
  if (job.status === "queued") {
    const due = job.run_at ? Date.parse(job.run_at) : 0;
    const wait = due > now ? `, starts in ${elapsed(due - now)}` : "";
    return `${job.failures > 0 ? `try ${job.failures + 1}, ` : ""}position ${job.position ?? "?"}${wait}`;
  }
  const began = Date.parse(job.started_at ?? job.created_at);
  if (job.status === "running") return `${job.cancellation_status ? "stopping… " : ""}${elapsed(now - began)}`;
  if (job.started_at === null) return job.status;
  return `${job.status} in ${took(Date.parse(job.completed_at ?? job.started_at) - began)}`;
}

/** What else is known of a job, a pair of words each. */
export function facts(job: Job): [string, string][] {
  const found: [string, string][] = [];
  if (job.exit_code !== null) found.push(["exit", String(job.exit_code)]);
  if (job.signal !== null) found.push(["signal", String(job.signal)]);
  if (job.cpu_s !== null) found.push(["CPU", took(job.cpu_s * 1000)]);
  if (job.max_rss_bytes !== null) found.push(["memory", size(job.max_rss_bytes)]);
  if (job.priority !== 0) found.push(["priority", String(job.priority)]);
  if (job.retries > 0) found.push(["failed tries", `${job.failures} of ${job.retries + 1}`]);
  if (job.kill_failures > 0) found.push(["kills without effect", String(job.kill_failures)]);
  if (job.on_restart === "keep") found.push(["restart", "goes on"]);
  if (job.sandbox === "off") found.push(["sandbox", "none"]);
  return found;
}

/** A command as a person would type it. */
export function commandText(command: string | string[]): string {
  if (typeof command === "string") return command;
  return command.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ");
}

/** The same job again. What its variables were is not told, so it gets none. */
export function again(job: Job): NewJob {
  const { command, name, queue, priority, retries, on_restart, sandbox, cwd, metadata } = job;
  return { command, name, queue, priority, retries, on_restart, sandbox, metadata, ...(cwd === null ? {} : { cwd }) };
}

export interface Piece {
  stream: "stdout" | "stderr";
  text: string;
}

/** More of an output than this is not kept in the page. */
export const LONGEST_OUTPUT = 200_000;

/** Output with one more piece: pieces of one stream grow together, and what is too much goes from the front. */
export function grown(before: Piece[], more: Piece): Piece[] {
  const last = before.at(-1);
  const isSame = last !== undefined && last.stream === more.stream && last.text.length < LONGEST_OUTPUT / 4;
  const all = isSame ? [...before.slice(0, -1), { stream: last.stream, text: last.text + more.text }] : [...before, more];
  let over = all.reduce((sum, piece) => sum + piece.text.length, 0) - LONGEST_OUTPUT;
  while (over > 0) {
    const first = all[0] as Piece;
    if (first.text.length <= over) all.shift();
    else all[0] = { ...first, text: first.text.slice(over) };
    over -= first.text.length;
  }
  return all;
}
