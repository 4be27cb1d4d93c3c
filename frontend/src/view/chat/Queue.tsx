import { type KeyboardEvent, useRef, useState } from "react";
import type { QueueItem } from "../../core/frames";
import { chat } from "../browser";

/** What waits while a run goes: in order, and changed from any tab. */
export function Queue({ items }: { items: QueueItem[] }) {
  const [dragged, setDragged] = useState<QueueItem | null>(null);
  return (
    <section className="queue" aria-label="Queue" data-testid="queue">
      <h2>Waiting: {items.length}</h2>
      <ol>
        {items.map((item) => (
          <Item key={item.task} item={item} isLast={item.position === items.length} dragged={dragged} onDrag={setDragged} />
        ))}
      </ol>
    </section>
  );
}

interface ItemProps {
  item: QueueItem;
  isLast: boolean;
  /** What is being dragged to another place. */
  dragged: QueueItem | null;
  onDrag: (item: QueueItem | null) => void;
}

function Item({ item, isLast, dragged, onDrag }: ItemProps) {
  const [isEditing, setEditing] = useState(false);
  const [isOver, setOver] = useState(false);
  const isTarget = dragged !== null && dragged.task !== item.task;
  const words = item.content || "(continue)";
  const canMove = (by: number) => item.position + by >= 1 && !(isLast && by > 0);
  const move = (by: number) => void chat.changeQueue("move", item, { position: item.position + by });
  const onKey = (event: KeyboardEvent) => {
    if (!event.altKey || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
    event.preventDefault();
    const by = event.key === "ArrowUp" ? -1 : 1;
    if (canMove(by)) move(by);
  };
  const done = (text: string) => {
    setEditing(false);
    if (text.trim() && text !== item.content) void chat.changeQueue("edit", item, { content: text });
  };
  return (
    <li
      className={isTarget && isOver ? "over" : ""}
      data-testid="queued"
      data-position={item.position}
      draggable={!isEditing}
      onDragStart={(event) => {
        event.dataTransfer.effectAllowed = "move";
        onDrag(item);
      }}
      onDragEnd={() => onDrag(null)}
      onDragOver={(event) => {
        if (!isTarget) return;
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        if (isTarget) void chat.changeQueue("move", dragged, { position: item.position });
      }}
      onKeyDown={onKey}
    >
      <span className="position">{item.position}</span>
      {isEditing ? (
        <Editor text={item.content} onDone={done} onLeave={() => setEditing(false)} />
      ) : (
        <span className="text" title={words.slice(0, 500)}>{words.slice(0, 500)}</span>
      )}
      <span className="tools">
        <button type="button" aria-label="Move up" title="Move up (Alt ↑)" disabled={!canMove(-1)} onClick={() => move(-1)}>
          ↑
        </button>
        <button type="button" aria-label="Move down" title="Move down (Alt ↓)" disabled={!canMove(1)} onClick={() => move(1)}>
          ↓
        </button>
        <button type="button" onClick={() => setEditing(true)} disabled={!item.content}>
          Edit
        </button>
        <button type="button" title="Stop what goes on, and say this" onClick={() => void chat.sendNow(item)}>
          Send now
        </button>
        <button type="button" aria-label="Remove" title="Remove" onClick={() => void chat.changeQueue("remove", item)}>
          ✕
        </button>
      </span>
    </li>
  );
}

function Editor({ text, onDone, onLeave }: { text: string; onDone: (text: string) => void; onLeave: () => void }) {
  const isLeft = useRef(false);
  return (
    <textarea
      aria-label="Waiting text"
      defaultValue={text}
      rows={Math.min(6, text.split("\n").length)}
      ref={(field) => field?.focus()}
      onBlur={(event) => !isLeft.current && onDone(event.target.value)}
      onKeyDown={(event) => {
        if (event.key === "Enter" && !event.shiftKey) {
          event.preventDefault();
          event.currentTarget.blur();
        }
        if (event.key !== "Escape") return;
        event.stopPropagation();
        isLeft.current = true;
        onLeave();
      }}
    />
  );
}
