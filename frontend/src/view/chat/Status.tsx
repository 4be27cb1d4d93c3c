import { useChat } from "../hooks";
import { wasStopped } from "../../core/actions";
import type { ActiveRun, Interrupt, Message } from "../../core/frames";
import type { Transcript } from "../../core/transcript";

/** Says in words, for those who do not see it, what is going on. */
export function Status({ transcript, isStopping }: { transcript: Transcript | null; isStopping: boolean }) {
  const run = transcript?.activeRun;
  const last = transcript?.messages.at(-1);
  let words = "";
  if (run) words = isStopping ? "Stopping…" : going(run, transcript.interrupts);
  else if (last?.role === "assistant") words = outcome(last);
  const look = run?.status === "waiting" ? "status asking" : run ? "status busy" : "status";
  return (
    <p role="status" className={look} data-testid="status">
      {words}
    </p>
  );
}

function going(run: ActiveRun, asked: Interrupt[]): string {
  if (run.status === "queued") return "Waiting to go on…";
  if (run.status !== "waiting") return "Generating…";
  const tools = [...new Set(asked.map((one) => one.tool))].join(", ");
  if (asked.length === 0) return "Your answer is taken; it goes on soon…";
  return asked.length === 1 ? `Waiting for your approval: ${tools}` : `Waiting for your approval of ${asked.length} actions: ${tools}`;
}

function outcome(message: Message): string {
  const { metadata } = message;
  if (wasStopped(message)) return "Stopped";
  if (metadata.has_error) return "Failed";
  return metadata.interrupted ? "Interrupted" : "Complete";
}

const LONGEST_READ = 4_000;

/** Has a finished answer read once; nothing is read while it streams. */
export function Announcer({ transcript }: { transcript: Transcript | null }) {
  const finished = useChat((state) => state.finished);
  const message = finished ? transcript?.messages.findLast((one) => one.run === finished && one.role === "assistant") : undefined;
  return (
    <div className="visually-hidden" aria-live="polite" data-testid="announcer">
      {message && !message.metadata.streaming ? message.content.slice(0, LONGEST_READ) : ""}
    </div>
  );
}
