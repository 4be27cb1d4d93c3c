import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "react";
import type { Pending } from "../../core/store";
import type { Transcript } from "../../core/transcript";
import { MessageView } from "./MessageView";

const FIRST_SHOWN = 40;
const MORE_SHOWN = 80;
const NEAR_END = 48;

interface Props {
  session: string | null;
  transcript: Transcript | null;
  pending: Pending[];
  onContinue: (run: string) => void;
}

/**
 * The conversation. Only the newest messages are in the page; earlier ones are added when they are
 * scrolled to, so that ten thousand open as fast as ten. It follows its end until somebody scrolls up.
 */
export function TranscriptView({ session, transcript, pending, onContinue }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const [shown, setShown] = useState(FIRST_SHOWN);
  const [following, setFollowing] = useState(true);
  const follow = useRef(true);
  const messages = transcript?.messages ?? [];
  const visible = messages.slice(-shown);
  const last = messages.at(-1);
  const run = transcript?.activeRun ?? null;

  const toEnd = useCallback(() => {
    const one = box.current;
    if (one) one.scrollTop = one.scrollHeight;
  }, []);
  useLayoutEffect(() => {
    const inner = content.current;
    if (!inner) return;
    const watcher = new ResizeObserver(() => follow.current && toEnd());
    watcher.observe(inner);
    return () => watcher.disconnect();
  }, [toEnd]);
  useEffect(() => {
    if (pending.length > 0) {
      follow.current = true;
      setFollowing(true);
      toEnd();
    }
  }, [pending.length, toEnd]);

  const lastTop = useRef(0);
  const onScroll = () => {
    const one = box.current;
    if (!one) return;
    const atEnd = one.scrollHeight - one.scrollTop - one.clientHeight < NEAR_END;
    if (atEnd) follow.current = true;
    else if (one.scrollTop < lastTop.current) follow.current = false;
    lastTop.current = one.scrollTop;
    setFollowing(follow.current);
    if (one.scrollTop < 200 && shown < messages.length) setShown((count) => count + MORE_SHOWN);
  };
  const waitingFirst = run ? [] : (transcript?.queue ?? []);
  return (
    <div className="scroll" ref={box} onScroll={onScroll}>
      <div className="transcript" ref={content} role="log" aria-live="off" aria-label="Conversation" aria-busy={run !== null} data-testid="transcript" data-count={messages.length}>
        {session && !transcript && <p className="hint">Loading…</p>}
        {!session && pending.length === 0 && <Welcome />}
        {shown < messages.length && <p className="hint">Earlier messages appear as you scroll.</p>}
        {visible.map((message) => (
          <MessageView
            key={message.id}
            message={message}
            tookMs={message.run ? transcript?.stopped.get(message.run) : undefined}
            onContinue={message === last && !run && pending.length === 0 ? onContinue : undefined}
          />
        ))}
        {[...waitingFirst.map((item) => ({ key: item.task, content: item.content, words: "starting…" })), ...pending.map((one) => ({ key: one.key, content: one.content, words: "sending…" }))].map((one) => (
          <article key={one.key} className="message user pending" data-testid="pending">
            <div className="said">{one.content}</div>
            <footer>{one.words}</footer>
          </article>
        ))}
      </div>
      {!following && (
        <button
          type="button"
          className="jump"
          onClick={() => {
            follow.current = true;
            setFollowing(true);
            toEnd();
          }}
        >
          ↓ Newest
        </button>
      )}
    </div>
  );
}

function Welcome() {
  return (
    <div className="welcome">
      <h1>What shall we work on?</h1>
      <p>Everything is saved before you see it. Close the laptop, open another tab, pull the plug: it goes on.</p>
    </div>
  );
}
