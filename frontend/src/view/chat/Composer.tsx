import { type KeyboardEvent, useEffect, useRef } from "react";
import { chat } from "../browser";

interface Props {
  draft: string;
  onDraft: (text: string) => void;
  onSend: () => void;
  isBusy: boolean;
  isStopping: boolean;
}

const TALLEST = 240;
/** A text longer than this is as tall as can be; measuring it would take long. */
const LONGEST_MEASURED = 20_000;

export function Composer({ draft, onDraft, onSend, isBusy, isStopping }: Props) {
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    const one = field.current;
    if (!one) return;
    one.style.height = "auto";
    one.style.height = `${draft.length > LONGEST_MEASURED ? TALLEST : Math.min(one.scrollHeight, TALLEST)}px`;
  }, [draft]);
  useEffect(() => field.current?.focus(), []);
  const isEmpty = draft.trim() === "";
  const onKey = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    if (!isEmpty) onSend();
  };
  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        if (!isEmpty) onSend();
        field.current?.focus();
      }}
    >
      <textarea
        ref={field}
        aria-label="Message"
        placeholder={isBusy ? "Write the next message; it waits its turn" : "Write a message"}
        rows={1}
        value={draft}
        onChange={(event) => onDraft(event.target.value)}
        onKeyDown={onKey}
      />
      {isBusy && (
        <button type="button" className="stop" onClick={() => chat.cancel()} disabled={isStopping} title="Esc">
          {isStopping ? "Stopping…" : "Stop"}
        </button>
      )}
      <button type="submit" className="primary" disabled={isEmpty}>
        {isBusy ? "Queue" : "Send"}
      </button>
    </form>
  );
}
