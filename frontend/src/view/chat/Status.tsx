import { useChat } from "../hooks";
import type { Metadata } from "../../core/frames";
import type { Transcript } from "../../core/transcript";

/** Says in words, for those who do not see it, what is going on. */
export function Status({ transcript, isStopping }: { transcript: Transcript | null; isStopping: boolean }) {
  const run = transcript?.activeRun;
  const last = transcript?.messages.at(-1);
  let words = "";
  if (run) words = isStopping ? "Stopping…" : run.status === "queued" ? "Waiting to go on…" : "Generating…";
  else if (last?.role === "assistant") words = outcome(last.metadata);
  return (
    <p role="status" className={run ? "status busy" : "status"} data-testid="status">
      {words}
    </p>
  );
}

function outcome(metadata: Metadata): string {
  if (metadata.cancelled) return "Stopped";
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
