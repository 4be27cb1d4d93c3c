import { useEffect, useRef, useState } from "react";
import { api } from "../../core/api";
import type { Transcript } from "../../core/transcript";
import { chat, inWords, newKey } from "../browser";
import { useChat, useDraft } from "../hooks";
import { Approval } from "./Approval";
import { Composer } from "./Composer";
import { Queue } from "./Queue";
import { Announcer, Status } from "./Status";
import { TranscriptView, type View } from "./TranscriptView";

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
  const view = useRef<View>(null);
  const asked = run?.status === "waiting" ? (transcript?.interrupts ?? []) : [];
  const first = asked[0];
  const review = first ? () => view.current?.show(first.action) : undefined;
  useStopKey(isBusy);
  useReviewKey(review);

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
    await api.continue(transcript?.lastOf(last) ?? last, newKey()).catch((error: unknown) => setFailed(inWords(error)));
  };
  const words = problem ?? failed;
  if (isMissing) return <Missing />;
  return (
    <>
      <TranscriptView view={view} session={session} transcript={transcript} pending={pending} onContinue={goOn} />
      <div className="dock">
        <div className="status-row">
          <Status transcript={transcript} isStopping={isStopping} />
          {review && (
            <button type="button" className="review" title="Alt A" onClick={review} data-testid="review">
              Review
            </button>
          )}
        </div>
        <Announcer transcript={transcript} />
        {words && (
          <p role="alert" className="problem">
            {words}
            <button type="button" className="quiet" onClick={() => { setFailed(""); chat.dismiss(); }}>
              Dismiss
            </button>
          </p>
        )}
        {transcript && asked.filter((one) => !isShown(transcript, one.action)).map((one) => <Approval key={one.id} asked={one} />)}
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

/** Alt A goes to what waits for approval. */
function useReviewKey(review: (() => void) | undefined): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (!review || !event.altKey || event.code !== "KeyA") return;
      event.preventDefault();
      review();
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [review]);
}

/** Whether the conversation has the action; one of long ago may not be loaded. */
function isShown(transcript: Transcript, action: string): boolean {
  return transcript.messages.some((message) => message.actions.some((one) => one.id === action));
}

function Missing() {
  return (
    <div className="welcome" role="alert" data-testid="missing">
      <h2>This conversation is not here</h2>
      <p>It was deleted, or it belongs to somebody else.</p>
    </div>
  );
}
