import * as Menu from "@radix-ui/react-dropdown-menu";
import { useRef, useState } from "react";
import { api, type Session } from "../core/api";
import { chat } from "./browser";
import { Dialog } from "./Dialog";

const STATUS: Record<Session["ui_status"], string> = {
  Idle: "",
  InProgress: "running",
  NeedsReview: "needs review",
  Archived: "archived",
};
const FORMATS = { markdown: "Markdown", json: "JSON", jsonl: "JSON Lines (journal)" };

interface Props {
  session: Session;
  isCurrent: boolean;
  isUnread: boolean;
  onOpen: (session: string | null) => void;
  attempt: (work: Promise<unknown>) => void;
}

export function SessionRow({ session, isCurrent, isUnread, onOpen, attempt }: Props) {
  const [isRenaming, setRenaming] = useState(false);
  const [isDeleting, setDeleting] = useState(false);
  const title = session.title || "Untitled";
  const [kind, words] = mark(session, isUnread);
  const rename = (text: string) => {
    setRenaming(false);
    if (text.trim() && text.trim() !== session.title) attempt(api.rename(session, text.trim()));
  };
  const remove = () => {
    setDeleting(false);
    const gone = api.remove(session.id).then(() => {
      chat.forget(session.id);
      if (isCurrent) onOpen(null);
    });
    attempt(gone);
  };
  if (isRenaming) return <li><TitleField title={session.title} onDone={rename} onLeave={() => setRenaming(false)} /></li>;
  return (
    <li className={isCurrent ? "current" : ""} data-testid="session" data-session={session.id} data-status={session.ui_status} data-unread={isUnread} data-waiting={session.waiting ?? false}>
      <button type="button" className="title" aria-current={isCurrent ? "page" : undefined} onClick={() => onOpen(session.id)} onDoubleClick={() => setRenaming(true)} title={title}>
        <span className="name">{title}</span>
        {words && <span className={`dot ${kind}`} title={words} />}
        {words && <span className="visually-hidden">, {words}</span>}
      </button>
      <RowMenu title={title} session={session.id} onRename={() => setRenaming(true)} onDelete={() => setDeleting(true)} />
      {isDeleting && (
        <Dialog title="Delete this conversation?" onClose={() => setDeleting(false)}>
          <p>“{title}” and all that was said in it will be gone for good.</p>
          <div className="choices">
            <button type="button" onClick={() => setDeleting(false)}>Keep</button>
            <button type="button" className="danger" onClick={remove}>Delete</button>
          </div>
        </Dialog>
      )}
    </li>
  );
}

/** The kind of dot beside a session, and what it means. */
function mark(session: Session, isUnread: boolean): [kind: string, words: string] {
  if (session.waiting) return ["asking", "waits for your approval"];
  if (isUnread && session.ui_status !== "InProgress") return ["unread", STATUS[session.ui_status] || "new answer"];
  return [session.ui_status, STATUS[session.ui_status]];
}

interface MenuProps {
  title: string;
  session: string;
  onRename: () => void;
  onDelete: () => void;
}

function RowMenu({ title, session, onRename, onDelete }: MenuProps) {
  return (
    <Menu.Root modal={false}>
      <Menu.Trigger className="row-menu" aria-label={`Actions for ${title}`}>⋯</Menu.Trigger>
      <Menu.Portal container={document.querySelector<HTMLElement>(".sidebar")}>
        <Menu.Content className="popup" align="end" sideOffset={4} onCloseAutoFocus={(event) => event.preventDefault()} onEscapeKeyDown={(event) => event.stopPropagation()}>
          <Menu.Item className="choice" onSelect={onRename}>Rename</Menu.Item>
          {Object.entries(FORMATS).map(([format, name]) => (
            <Menu.Item key={format} className="choice" asChild>
              <a href={`/api/sessions/${session}/export?format=${format}`} download>Export as {name}</a>
            </Menu.Item>
          ))}
          <Menu.Item className="choice danger" onSelect={onDelete}>Delete</Menu.Item>
        </Menu.Content>
      </Menu.Portal>
    </Menu.Root>
  );
}

function TitleField({ title, onDone, onLeave }: { title: string; onDone: (text: string) => void; onLeave: () => void }) {
  const isLeft = useRef(false);
  return (
    <input
      className="rename"
      aria-label="Title"
      defaultValue={title}
      maxLength={500}
      ref={(input) => {
        // The menu that was just closed would take the focus back.
        const timer = setTimeout(() => input?.select(), 0);
        return () => clearTimeout(timer);
      }}
      onBlur={(event) => !isLeft.current && onDone(event.target.value)}
      onKeyDown={(event) => {
        if (event.key === "Enter") event.currentTarget.blur();
        if (event.key !== "Escape") return;
        event.stopPropagation();
        isLeft.current = true;
        onLeave();
      }}
    />
  );
}
