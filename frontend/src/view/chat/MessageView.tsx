import { memo, useState } from "react";
import type { Cancel, Message } from "../../core/frames";
import { pieces } from "../../core/markdown";
import { CopyButton } from "./CopyButton";
import { Markdown } from "./Markdown";

interface Props {
  message: Message;
  isLast: boolean;
  /** How the message's run was stopped, when that was seen. */
  cancel: Cancel | undefined;
  /** The message's run ended before there was an answer. */
  isUnanswered: boolean;
  onContinue: ((run: string) => Promise<void>) | undefined;
}

export const MessageView = memo(function MessageView(props: Props) {
  const { message } = props;
  if (message.role === "user") return <Said message={message} isUnanswered={props.isUnanswered} />;
  const { metadata } = message;
  const isCut = metadata.cancelled || metadata.has_error || metadata.interrupted;
  return (
    <article
      className="message assistant"
      data-testid="message"
      data-role="assistant"
      data-id={message.id}
      data-streaming={metadata.streaming}
      aria-label="Assistant"
      aria-busy={metadata.streaming}
    >
      {metadata.reasoning && <Reasoning text={metadata.reasoning} isOpen={metadata.streaming && message.content === ""} />}
      <Markdown text={message.content} streaming={metadata.streaming} />
      {metadata.streaming && message.content === "" && <span className="waiting" aria-hidden="true" />}
      {isCut && <Cut {...props} />}
      {!metadata.streaming && <Footer message={message} />}
    </article>
  );
});

function Said({ message, isUnanswered }: { message: Message; isUnanswered: boolean }) {
  return (
    <article className="message user" data-testid="message" data-role="user" data-id={message.id} aria-label="You">
      <UserText text={message.content} />
      {isUnanswered && <p className="unanswered" data-testid="unanswered">Stopped before it was answered</p>}
      <footer>
        <CopyButton text={message.content} label="Copy" />
        <Clock at={message.created_at} />
      </footer>
    </article>
  );
}

const LONGEST_SAID = 6_000;
const SAID_PIECE = 4_000;

/** What a person wrote, as it was written; a very long text is folded. */
export function UserText({ text }: { text: string }) {
  const [isWhole, setWhole] = useState(false);
  const isLong = text.length > LONGEST_SAID;
  const shown = isLong && !isWhole ? text.slice(0, LONGEST_SAID) : text;
  return (
    <div className="said">
      {shown.length <= SAID_PIECE ? shown : pieces(shown, SAID_PIECE, "\n").map((piece, place) => <div key={place} className="plain">{piece}</div>)}
      {isLong && (
        <button type="button" className="quiet" onClick={() => setWhole(!isWhole)}>
          {isWhole ? "Show less" : `Show all ${text.length.toLocaleString("en")} characters`}
        </button>
      )}
    </div>
  );
}

function Reasoning({ text, isOpen }: { text: string; isOpen: boolean }) {
  const [chosen, setChosen] = useState<boolean | null>(null);
  const isShown = chosen ?? isOpen;
  return (
    <details className="reasoning" open={isShown} data-testid="reasoning">
      <summary
        onClick={(event) => {
          event.preventDefault();
          setChosen(!isShown);
        }}
      >
        {isOpen ? "Thinking…" : "Reasoning"}
      </summary>
      {isShown && pieces(text, SAID_PIECE, " ").map((piece, place) => <div key={place} className="plain">{piece}</div>)}
    </details>
  );
}

function Cut({ message, isLast, cancel, onContinue }: Props) {
  const [isAsked, setAsked] = useState(false);
  const { metadata, run } = message;
  const goOn = async () => {
    setAsked(true);
    if (run) await onContinue?.(run);
    setAsked(false);
  };
  return (
    <div className={metadata.has_error ? "cut bad" : "cut"} role={metadata.has_error && isLast ? "alert" : undefined} data-testid="cut">
      <span>{cutWords(message, cancel)}</span>
      {onContinue && run && (
        <button type="button" disabled={isAsked} onClick={() => void goOn()}>
          Continue
        </button>
      )}
    </div>
  );
}

function cutWords({ metadata }: Message, cancel: Cancel | undefined): string {
  if (metadata.has_error) {
    const { code, id } = metadata.error ?? { code: "error", id: "" };
    return `The answer failed: ${code.replaceAll("_", " ")}. What came is kept.${id ? ` In the server's log: ${id}` : ""}`;
  }
  if (!metadata.cancelled) return "The server stopped while it answered. What it had said is kept.";
  if (!cancel) return "Stopped.";
  const ended = cancel.processes?.length ?? 0;
  const processes = ended === 0 ? "" : `, with ${ended} ${ended === 1 ? "process" : "processes"}`;
  return `Stopped in ${cancel.took_ms} ms${processes}.${cancel.reason ? ` Reason: ${cancel.reason}` : ""}`;
}

function Footer({ message }: { message: Message }) {
  const { usage, model, first_token_ms: first, duration_ms: total } = message.metadata;
  const facts = [
    model,
    usage && `${usage.input_tokens.toLocaleString("en")} → ${usage.output_tokens.toLocaleString("en")} tokens`,
    total !== undefined && (total < 1_000 ? `${total} ms` : `${(total / 1_000).toFixed(1)} s`),
    first !== undefined && `first word after ${first} ms`,
  ].filter(Boolean);
  return (
    <footer>
      <CopyButton text={message.content} label="Copy" />
      <Clock at={message.created_at} />
      <span data-testid="usage">{facts.join(" · ")}</span>
    </footer>
  );
}

function Clock({ at }: { at: string }) {
  const time = new Date(at);
  return (
    <time dateTime={at} title={time.toLocaleString()}>
      {time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}
    </time>
  );
}
