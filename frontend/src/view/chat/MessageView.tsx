import { memo, useMemo, useState } from "react";
import { parts, wasStopped } from "../../core/actions";
import type { Cancel, Interrupt, Message } from "../../core/frames";
import { pieces } from "../../core/markdown";
import { stopWords, took } from "../../core/words";
import { ActionView } from "./ActionView";
import { CopyButton } from "./CopyButton";
import { Markdown } from "./Markdown";

/** What is going on with a message's actions besides what the message itself says. */
export interface Doings {
  interrupts: Interrupt[];
  decided: ReadonlyMap<string, { approved: boolean; at: string }>;
  cut: ReadonlySet<string>;
  isHeld: boolean;
}

interface Props {
  message: Message;
  isLast: boolean;
  doings: Doings;
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
  const isStopped = metadata.cancelled || (props.isLast && wasStopped(message));
  /** It only carried out what a person had decided, and had nothing to add. */
  const isSilent = message.content === "" && message.actions.length === 0 && !metadata.reasoning;
  const isCut = isStopped || metadata.has_error || metadata.interrupted;
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
      {metadata.shortened && <p className="note" data-testid="shortened">Older parts of this conversation were left out of what the model sees.</p>}
      {metadata.reasoning && <Reasoning text={metadata.reasoning} isOpen={metadata.streaming && message.content === "" && message.actions.length === 0} />}
      <Content {...props} />
      {isCut && <Cut {...props} isStopped={isStopped} />}
      {!metadata.streaming && !isSilent && <Footer message={message} />}
    </article>
  );
});

/** What the message says and does, in the order in which it came. */
function Content({ message, doings }: Props) {
  const { content, actions, metadata, session } = message;
  const all = useMemo(() => parts(content, actions), [content, actions]);
  const last = all.at(-1);
  const isSilent = last && "action" in last ? last.action.status !== "pending" : content === "";
  return (
    <>
      {all.map((part) =>
        "text" in part ? (
          <Markdown key={part.key} text={part.text} streaming={metadata.streaming && part === last} />
        ) : (
          <ActionView
            key={part.action.id}
            session={session}
            action={part.action}
            asked={doings.interrupts.find((one) => one.action === part.action.id)}
            decided={doings.decided.get(part.action.id)}
            isHeld={doings.isHeld}
            isCut={doings.cut.has(part.action.id)}
          />
        ),
      )}
      {metadata.streaming && isSilent && <span className="waiting" aria-hidden="true" />}
    </>
  );
}

function Said({ message, isUnanswered }: { message: Message; isUnanswered: boolean }) {
  return (
    <article className="message user" data-testid="message" data-role="user" data-id={message.id} aria-label="You">
      <UserText text={message.content} />
      {isUnanswered && <p className="unanswered" data-testid="unanswered">Stopped before it was answered</p>}
      <footer>
        {message.content !== "" && <CopyButton text={message.content} label="Copy" />}
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

function Cut({ message, isLast, cancel, isStopped, onContinue }: Props & { isStopped: boolean }) {
  const [isAsked, setAsked] = useState(false);
  const { metadata, run } = message;
  const goOn = async () => {
    setAsked(true);
    if (run) await onContinue?.(run);
    setAsked(false);
  };
  return (
    <div className={metadata.has_error ? "cut bad" : "cut"} role={metadata.has_error && isLast ? "alert" : undefined} data-testid="cut">
      <span>{isStopped ? stopWords(metadata.cancel ?? cancel) : cutWords(message)}</span>
      {onContinue && run && (
        <button type="button" disabled={isAsked} onClick={() => void goOn()}>
          Continue
        </button>
      )}
    </div>
  );
}

function cutWords({ metadata }: Message): string {
  if (!metadata.has_error) return "The server stopped while it answered. What it had said is kept.";
  const { code, id } = metadata.error ?? { code: "error", id: "" };
  return `The answer failed: ${code.replaceAll("_", " ")}. What came is kept.${id ? ` In the server's log: ${id}` : ""}`;
}

function Footer({ message }: { message: Message }) {
  const { usage, model, first_token_ms: first, duration_ms: total } = message.metadata;
  const facts = [
    model,
    usage && `${usage.input_tokens.toLocaleString("en")} → ${usage.output_tokens.toLocaleString("en")} tokens`,
    total !== undefined && took(total),
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
