import { memo, useState } from "react";
import type { Message } from "../../core/frames";
import { Markdown } from "./Markdown";

interface Props {
  message: Message;
  tookMs: number | undefined;
  onContinue: ((run: string) => void) | undefined;
}

export const MessageView = memo(function MessageView({ message, tookMs, onContinue }: Props) {
  if (message.role === "user") {
    return (
      <article className="message user" data-testid="message" data-role="user" aria-label="You">
        <div className="said">{message.content}</div>
      </article>
    );
  }
  const { metadata } = message;
  const cut = metadata.cancelled || metadata.has_error || metadata.interrupted;
  return (
    <article className="message assistant" data-testid="message" data-role="assistant" data-streaming={metadata.streaming} aria-label="Assistant" aria-busy={metadata.streaming}>
      {metadata.reasoning && <Reasoning text={metadata.reasoning} open={metadata.streaming && message.content === ""} />}
      <Markdown text={message.content} streaming={metadata.streaming} />
      {metadata.streaming && message.content === "" && !metadata.reasoning && <span className="waiting" aria-hidden="true" />}
      {cut && <Cut message={message} tookMs={tookMs} onContinue={onContinue} />}
      {!metadata.streaming && <Footer message={message} />}
    </article>
  );
});

function Reasoning({ text, open }: { text: string; open: boolean }) {
  const [chosen, setChosen] = useState<boolean | null>(null);
  return (
    <details className="reasoning" open={chosen ?? open} data-testid="reasoning">
      <summary onClick={(event) => { event.preventDefault(); setChosen(!(chosen ?? open)); }}>Reasoning</summary>
      <p>{text}</p>
    </details>
  );
}

function Cut({ message, tookMs, onContinue }: Props) {
  const { metadata, run } = message;
  let words = "The server stopped while it answered. What it had said is kept.";
  if (metadata.cancelled) words = tookMs === undefined ? "Stopped." : `Stopped in ${tookMs} ms.`;
  if (metadata.has_error) words = `The answer failed (${metadata.error?.code ?? "error"}, ${metadata.error?.id ?? ""}). What came is kept.`;
  return (
    <p className="cut" role={metadata.has_error ? "alert" : undefined} data-testid="cut">
      {words}{" "}
      {onContinue && run && (
        <button type="button" onClick={() => onContinue(run)}>
          Continue
        </button>
      )}
    </p>
  );
}

function Footer({ message }: { message: Message }) {
  const { usage, model, first_token_ms: first, duration_ms: total } = message.metadata;
  const facts = [
    model,
    usage && `${usage.input_tokens} → ${usage.output_tokens} tokens`,
    total !== undefined && `${(total / 1000).toFixed(1)} s`,
    first !== undefined && `first after ${first} ms`,
  ].filter(Boolean);
  return (
    <footer>
      <CopyButton text={message.content} label="Copy" />
      <span>{facts.join(" · ")}</span>
    </footer>
  );
}

export function CopyButton({ text, label }: { text: string; label: string }) {
  const [done, setDone] = useState(false);
  const copy = () => {
    void navigator.clipboard.writeText(text).then(() => {
      setDone(true);
      setTimeout(() => setDone(false), 1_500);
    });
  };
  return (
    <button type="button" className="quiet" onClick={copy}>
      {done ? "Copied" : label}
    </button>
  );
}
