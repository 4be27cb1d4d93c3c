import { useEffect, useState } from "react";
import { api, Problem } from "../../core/api";
import { chat, newKey } from "../browser";
import { useChat, useDraft } from "../hooks";
import { Composer } from "./Composer";
import { Queue } from "./Queue";
import { TranscriptView } from "./TranscriptView";

interface Props {
  session: string | null;
  onSay: (content: string) => Promise<void>;
  generation: number;
}

export function ChatPage({ session, onSay }: Props) {
  useChat((state) => state.revision);
  const transcript = useChat((state) => state.transcript);
  const pending = useChat((state) => state.pending).filter((one) => one.session === session);
  const problem = useChat((state) => state.problem);
  const [draft, setDraft] = useDraft(session);
  const [failed, setFailed] = useState("");
  const run = session ? (transcript?.activeRun ?? null) : null;
  const busy = run !== null || pending.length > 0 || (transcript?.queue.length ?? 0) > 0;

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape" && busy && !document.querySelector("dialog[open]")) void chat.cancel();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [busy]);

  const say = () => {
    const content = draft;
    setDraft("");
    setFailed("");
    onSay(content).catch((error: unknown) => {
      setDraft(content);
      setFailed(error instanceof Problem ? error.message : "The server cannot be reached; your text is kept.");
    });
  };
  const goOn = (last: string) => {
    api.continue(last, newKey()).catch((error: unknown) => setFailed(error instanceof Problem ? error.message : "The server cannot be reached."));
  };
  const words = problem ?? failed;
  return (
    <>
      <TranscriptView session={session} transcript={session ? transcript : null} pending={pending} onContinue={goOn} />
      <div className="dock">
        <Status />
        {words && (
          <p role="alert" className="problem">
            {words}{" "}
            <button type="button" className="quiet" onClick={() => { setFailed(""); chat.dismiss(); }}>
              Dismiss
            </button>
          </p>
        )}
        {session && transcript && transcript.queue.length > 0 && run && <Queue items={transcript.queue} />}
        <Composer draft={draft} onDraft={setDraft} onSend={say} busy={busy} stopping={run?.cancelRequested ?? false} />
      </div>
    </>
  );
}

/** Says in words, for those who do not see it, what is going on. */
function Status() {
  useChat((state) => state.revision);
  const transcript = useChat((state) => state.transcript);
  const run = transcript?.activeRun;
  const last = transcript?.messages.at(-1);
  let words = "";
  if (run) words = run.cancelRequested ? "Stopping…" : run.status === "queued" ? "Waiting for a node to go on…" : "Generating…";
  else if (last?.role === "assistant") words = last.metadata.cancelled ? "Stopped" : last.metadata.has_error ? "Failed" : "Complete";
  return (
    <p role="status" className={run ? "status busy" : "status"} data-testid="status">
      {words}
    </p>
  );
}
