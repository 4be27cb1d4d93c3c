import { useVirtualizer } from "@tanstack/react-virtual";
import { type Ref, useCallback, useImperativeHandle, useMemo, useRef, useState } from "react";
import type { Message } from "../../core/frames";
import type { Pending } from "../../core/outbox";
import type { Transcript } from "../../core/transcript";
import { chat } from "../browser";
import { approvalId } from "./Approval";
import { Boundary } from "./Boundary";
import { type Doings, MessageView } from "./MessageView";
import { PendingView } from "./PendingView";
import { useFollowing } from "./following";

/** What can be asked of the conversation from beside it. */
export interface View {
  /** Bring an action's approval into sight and give it the focus. */
  show(action: string): void;
}

interface Props {
  view: Ref<View>;
  session: string | null;
  transcript: Transcript | null;
  pending: Pending[];
  onContinue: (run: string) => Promise<void>;
}

/** The conversation: only what is in sight is in the page, and it follows its end until somebody scrolls up. */
export function TranscriptView({ view, session, transcript, pending, onContinue }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const messages = transcript?.messages ?? [];
  const run = transcript?.activeRun ?? null;
  const waiting = useWaiting(transcript, pending);
  const rows = useRows(box, messages, waiting);
  const { isFollowing, onScroll, follow } = useFollowing(box, content, pending.length);
  const canContinue = run === null && waiting.length === 0;
  const doings = useDoings(transcript);
  useImperativeHandle(view, () => ({
    show: (action) => {
      const index = messages.findLastIndex((message) => message.actions.some((one) => one.id === action));
      if (index >= 0 && !document.getElementById(approvalId(action))) rows.scrollToIndex(index, { align: "end" });
      focusSoon(approvalId(action));
    },
  }));

  const row = (index: number) => {
    const message = messages[index];
    if (!message) {
      const item = waiting[index - messages.length];
      return item && <PendingView item={item} />;
    }
    const isLast = index === messages.length - 1;
    const isUnanswered = message.role === "user" && message.run !== run?.run && messages[index + 1]?.run !== message.run;
    return (
      <Boundary text={message.content}>
        <MessageView
          message={message}
          isLast={isLast}
          doings={message.actions.length > 0 ? doings : IDLE}
          cancel={message.run ? transcript?.cancelOf(message.run) : undefined}
          isUnanswered={isUnanswered}
          onContinue={isLast && canContinue ? onContinue : undefined}
        />
      </Boundary>
    );
  };
  const items = rows.getVirtualItems();
  return (
    <div className="viewport">
      <div className="scroll" ref={box} onScroll={onScroll} tabIndex={0} role="group" aria-label="Conversation, scrollable">
        {session && !transcript && <p className="hint">Loading…</p>}
        {!session && <Welcome />}
        <Earlier />
        <div
          className="transcript"
          ref={content}
          role="log"
          aria-live="off"
          aria-label="Conversation"
          aria-busy={run !== null}
          data-testid="transcript"
          data-count={messages.length}
          style={{ height: rows.getTotalSize() }}
        >
          <div className="window" style={{ transform: `translateY(${items[0]?.start ?? 0}px)` }}>
            {items.map(({ index, key }) => (
              <div key={key} className="row" data-index={index} ref={rows.measureElement}>
                {row(index)}
              </div>
            ))}
          </div>
        </div>
      </div>
      {!isFollowing && (
        <button type="button" className="jump" onClick={follow} data-testid="jump">
          ↓ Newest
        </button>
      )}
    </div>
  );
}

const IDLE: Doings = { interrupts: [], decided: new Map(), cut: new Set(), isHeld: false };

/** What goes on with actions; the same object until that changes. Decisions come with interrupts, cuts are counted. */
function useDoings(transcript: Transcript | null): Doings {
  const interrupts = transcript?.interrupts ?? IDLE.interrupts;
  const isHeld = transcript?.activeRun?.status === "waiting";
  const cuts = transcript?.cut.size ?? 0;
  return useMemo(() => ({ interrupts, decided: transcript?.decided ?? IDLE.decided, cut: transcript?.cut ?? IDLE.cut, isHeld }), [transcript, interrupts, isHeld, cuts]);
}

const PATIENCE_FRAMES = 30;

/** Focus an element that is about to be in the page. */
function focusSoon(id: string, frames = PATIENCE_FRAMES): void {
  const element = document.getElementById(id);
  element?.focus({ preventScroll: true });
  element?.scrollIntoView({ block: "nearest" });
  if (!element && frames > 0) requestAnimationFrame(() => focusSoon(id, frames - 1));
}

/** What is said but not begun: what the server has while no run goes on yet, then what it does not have. */
function useWaiting(transcript: Transcript | null, pending: Pending[]): Pending[] {
  if (!transcript || transcript.activeRun) return pending;
  const next = transcript.queue.map(({ task, content }) => ({ key: task, session: transcript.session, content, ifBusy: "queue" as const, isTaken: true }));
  return [...next, ...pending];
}

const OVERSCAN = 6;

function useRows(box: React.RefObject<HTMLDivElement | null>, messages: Message[], waiting: Pending[]) {
  const known = useRef({ messages, waiting });
  known.current = { messages, waiting };
  const key = useCallback((index: number) => {
    const { messages: all, waiting: rest } = known.current;
    return all[index]?.id ?? rest[index - all.length]?.key ?? index;
  }, []);
  const rows = useVirtualizer({
    count: messages.length + waiting.length,
    getScrollElement: () => box.current,
    estimateSize: (index) => estimate(messages[index]),
    getItemKey: key,
    overscan: OVERSCAN,
    initialOffset: () => Number.MAX_SAFE_INTEGER,
  });
  // What grows below the upper edge must not move what is being read.
  rows.shouldAdjustScrollPositionOnItemSizeChange = (item, _delta, one) => item.end <= (one.scrollOffset ?? 0);
  return rows;
}

const LINE_CHARS = 85;
const LINE_PX = 25;
const FRAME_PX = 84;
const ACTION_PX = 120;

function estimate(message: Message | undefined): number {
  const chars = message ? message.content.length : 0;
  const actions = message ? message.actions.length : 0;
  return FRAME_PX + actions * ACTION_PX + Math.ceil(Math.min(chars, 40_000) / LINE_CHARS) * LINE_PX;
}

function Earlier() {
  const [isLoading, setLoading] = useState(false);
  if (!chat.store.getState().earlier) return null;
  const load = () => {
    setLoading(true);
    void chat.loadEarlier().finally(() => setLoading(false));
  };
  return (
    <p className="hint">
      <button type="button" disabled={isLoading} onClick={load}>
        {isLoading ? "Loading…" : "Load earlier messages"}
      </button>
    </p>
  );
}

function Welcome() {
  return (
    <div className="welcome">
      <h2>What shall we work on?</h2>
      <p>Everything is saved before you see it. Close the laptop, open another tab, pull the plug: it goes on.</p>
    </div>
  );
}
