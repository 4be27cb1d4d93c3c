import { type KeyboardEvent, useState } from "react";
import type { QueueItem } from "../../core/frames";
import { chat, newKey } from "../browser";

/** What waits while a run goes: in order, and changed from any tab. */
export function Queue({ items }: { items: QueueItem[] }) {
  return (
    <section className="queue" aria-label="Waiting messages">
      <h2>Waiting ({items.length})</h2>
      <ol>
        {items.map((item) => (
          <Item key={item.task} item={item} last={item.position === items.length} />
        ))}
      </ol>
    </section>
  );
}

function Item({ item, last }: { item: QueueItem; last: boolean }) {
  const [editing, setEditing] = useState(false);
  const move = (by: number) => void chat.changeQueue("move", item, { position: item.position + by });
  const onKey = (event: KeyboardEvent) => {
    if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
    event.preventDefault();
    const by = event.key === "ArrowUp" ? -1 : 1;
    if (item.position + by >= 1 && !(last && by > 0)) move(by);
  };
  const done = (text: string) => {
    setEditing(false);
    if (text.trim() && text !== item.content) void chat.changeQueue("edit", item, { content: text });
  };
  return (
    <li data-testid="queued" onKeyDown={onKey}>
      {editing ? (
        <textarea
          aria-label="Waiting message"
          defaultValue={item.content}
          ref={(field) => field?.focus()}
          onBlur={(event) => done(event.target.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter" && !event.shiftKey) done(event.currentTarget.value);
            if (event.key === "Escape") {
              event.stopPropagation();
              setEditing(false);
            }
          }}
        />
      ) : (
        <span className="text">{item.content || "(continue)"}</span>
      )}
      <span className="tools">
        <button type="button" aria-label="Move up" disabled={item.position === 1} onClick={() => move(-1)}>
          ↑
        </button>
        <button type="button" aria-label="Move down" disabled={last} onClick={() => move(1)}>
          ↓
        </button>
        <button type="button" aria-label="Edit" onClick={() => setEditing(true)}>
          ✎
        </button>
        <button type="button" onClick={() => void chat.sendNow(item, newKey())}>
          Send now
        </button>
        <button type="button" aria-label="Remove" onClick={() => void chat.changeQueue("remove", item)}>
          ×
        </button>
      </span>
    </li>
  );
}
