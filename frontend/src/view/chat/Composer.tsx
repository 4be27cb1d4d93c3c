import { type KeyboardEvent, useEffect, useRef } from "react";
import { chat } from "../browser";

interface Props {
  draft: string;
  onDraft: (text: string) => void;
  onSend: () => void;
  busy: boolean;
  stopping: boolean;
}

const TALLEST = 240;

export function Composer({ draft, onDraft, onSend, busy, stopping }: Props) {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    const one = field.current;
    if (!one) return;
    one.style.height = "auto";
    one.style.height = `${Math.min(one.scrollHeight, TALLEST)}px`;
  }, [draft]);
  useEffect(() => field.current?.focus(), []);
  const empty = draft.trim() === "";
  const onKey = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    if (!empty) onSend();
  };
  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        if (!empty) onSend();
      }}
    >
      <textarea
        ref={field}
        aria-label="Message"
        placeholder={busy ? "Write the next message; it waits its turn" : "Write a message"}
        rows={1}
        value={draft}
        onChange={(event) => onDraft(event.target.value)}
        onKeyDown={onKey}
      />
      {busy && (
        <button type="button" className="stop" onClick={() => void chat.cancel()} disabled={stopping} title="Esc">
          {stopping ? "Stopping…" : "Stop"}
        </button>
      )}
      <button type="submit" className="primary" disabled={empty}>
        {busy ? "Queue" : "Send"}
      </button>
    </form>
  );
}
