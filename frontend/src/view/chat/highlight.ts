/** Loaded when the first code block closes. One block at a time, when the browser has nothing better to do. */

import hljs from "highlight.js/lib/common";

interface Job {
  code: string;
  language: string;
  signal: AbortSignal;
  done: (html: string) => void;
}

const jobs: Job[] = [];
let running = false;

export function highlight(code: string, language: string, signal: AbortSignal, done: (html: string) => void): void {
  const name = language.split(/\s/)[0] ?? "";
  if (signal.aborted || !hljs.getLanguage(name)) return;
  jobs.push({ code, language: name, signal, done });
  if (running) return;
  running = true;
  whenIdle(work);
}

function work(): void {
  let job = jobs.shift();
  while (job?.signal.aborted) job = jobs.shift();
  if (job) job.done(hljs.highlight(job.code, { language: job.language, ignoreIllegals: true }).value);
  running = jobs.length > 0;
  if (running) whenIdle(work);
}

function whenIdle(task: () => void): void {
  if ("requestIdleCallback" in window) requestIdleCallback(task, { timeout: 500 });
  else setTimeout(task, 16);
}
