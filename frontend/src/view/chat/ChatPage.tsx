import { useEffect, useState } from "react";
import { api } from "../../core/api";
import { chat, inWords, newKey } from "../browser";
import { useChat, useDraft } from "../hooks";
import { Composer } from "./Composer";
import { Queue } from "./Queue";
import { Announcer, Status } from "./Status";
import { TranscriptView } from "./TranscriptView";

interface Props {
  session: string | null;
  onSay: (content: string) => Promise<void>;
}

export function ChatPage({ session, onSay }: Props) {
  useChat((state) => state.revision);
  const shown = useChat((state) => state.session);
  const transcript = useChat((state) => (state.session === session ? state.transcript : null));
  const pending = useChat((state) => state.pending).filter((one) => one.session === session);
  const isMissing = useChat((state) => state.missing) && shown === session;
  const problem = useChat((state) => state.problem);
  const stopping = useChat((state) => state.stopping);
  const [draft, setDraft] = useDraft(session);
  const [failed, setFailed] = useState("");
  const run = transcript?.activeRun ?? null;
  const isBusy = run !== null || pending.some((one) => one.problem === undefined) || (transcript?.queue.length ?? 0) > 0;
  const isStopping = stopping !== null || (run?.cancelRequested ?? false);
  useStopKey(isBusy);

  const say = () => {
    const content = draft;
    setDraft("");
    setFailed("");
    onSay(content).catch((error: unknown) => {
      setDraft(content);
      setFailed(`${inWords(error)} Your text is kept.`);
    });
  };
  const goOn = async (last: string) => {
    setFailed("");
    await api.continue(last, newKey()).catch((error: unknown) => setFailed(inWords(error)));
  };
  const words = problem ?? failed;
  if (isMissing) return <Missing />;
  return (
    <>
      <TranscriptView session={session} transcript={transcript} pending={pending} onContinue={goOn} />
      <div className="dock">
        <Status transcript={transcript} isStopping={isStopping} />
        <Announcer transcript={transcript} />
        {words && (
          <p role="alert" className="problem">
            {words}
            <button type="button" className="quiet" onClick={() => { setFailed(""); chat.dismiss(); }}>
              Dismiss
            </button>
          </p>
        )}
        {transcript && transcript.queue.length > 0 && run && <Queue items={transcript.queue} />}
        <Composer draft={draft} onDraft={setDraft} onSend={say} isBusy={isBusy} isStopping={isStopping} />
      </div>
    </>
  );
}

/** Esc stops the run, wherever the focus is; menus, dialogs and fields that use Esc keep it to themselves. */
function useStopKey(isBusy: boolean): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape" && isBusy && !event.isComposing) chat.cancel();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [isBusy]);
}

function Missing() {
  return (
    <div className="welcome" role="alert" data-testid="missing">
      <h2>This conversation is not here</h2>
      <p>It was deleted, or it belongs to somebody else.</p>
    </div>
  );
}
