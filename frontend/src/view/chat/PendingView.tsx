import type { Pending } from "../../core/outbox";
import { chat } from "../browser";
import { UserText } from "./MessageView";

/** A message that has not reached the conversation: on its way, waiting to begin, or refused. */
export function PendingView({ item }: { item: Pending & { isTaken?: boolean } }) {
  return (
    <article className="message user pending" data-testid="pending" aria-label="You, not sent yet">
      <UserText text={item.content} />
      {item.problem === undefined ? (
        <footer>{item.isTaken ? "starting…" : "sending…"}</footer>
      ) : (
        <div className="cut bad" role="alert">
          <span>Not sent: {item.problem}</span>
          <button type="button" onClick={() => chat.outbox.retry(item.key)}>
            Try again
          </button>
          <button type="button" onClick={() => chat.outbox.discard(item.key)}>
            Discard
          </button>
        </div>
      )}
    </article>
  );
}
