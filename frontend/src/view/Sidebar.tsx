import { useState } from "react";
import { api, Problem, type Session } from "../core/api";
import type { Theme } from "./hooks";

interface Props {
  sessions: Session[];
  current: string | null;
  q: string;
  onSearch: (q: string) => void;
  onOpen: (session: string | null) => void;
  onChange: () => void;
  onMore: (() => void) | null;
  theme: Theme;
  onTheme: () => void;
  onKeys: () => void;
}

export function Sidebar(props: Props) {
  const [problem, setProblem] = useState("");
  const attempt = (work: Promise<unknown>) => {
    setProblem("");
    work.then(props.onChange, (error: unknown) => {
      setProblem(error instanceof Problem ? error.message : "The server cannot be reached.");
      props.onChange();
    });
  };
  return (
    <nav className="sidebar" aria-label="Conversations">
      <header>
        <strong className="brand">Holdfast</strong>
        <button type="button" onClick={() => props.onOpen(null)} className="primary">
          New chat
        </button>
      </header>
      <input
        type="search"
        aria-label="Search conversations"
        placeholder="Search"
        value={props.q}
        onChange={(event) => props.onSearch(event.target.value)}
      />
      {problem && <p role="alert">{problem}</p>}
      <ul className="sessions">
        {props.sessions.map((session) => (
          <Row key={session.id} session={session} current={session.id === props.current} onOpen={props.onOpen} attempt={attempt} />
        ))}
      </ul>
      {props.sessions.length === 0 && <p className="hint">{props.q ? "Nothing found." : "No conversations yet."}</p>}
      {props.onMore && (
        <button type="button" className="quiet" onClick={props.onMore}>
          Show more
        </button>
      )}
      <footer>
        <button type="button" className="quiet" onClick={props.onTheme}>
          {props.theme === "dark" ? "Light" : "Dark"}
        </button>
        <button type="button" className="quiet" onClick={props.onKeys} aria-label="Keys">
          ?
        </button>
      </footer>
    </nav>
  );
}

const STATUS: Record<Session["ui_status"], string> = {
  Idle: "",
  InProgress: "running",
  NeedsReview: "needs review",
  Archived: "archived",
};

interface RowProps {
  session: Session;
  current: boolean;
  onOpen: (session: string | null) => void;
  attempt: (work: Promise<unknown>) => void;
}

function Row({ session, current, onOpen, attempt }: RowProps) {
  const [renaming, setRenaming] = useState(false);
  const title = session.title || "New chat";
  const status = STATUS[session.ui_status];
  const remove = () => {
    if (!confirm(`Delete “${title}”?`)) return;
    attempt(api.remove(session.id).then(() => current && onOpen(null)));
  };
  if (renaming) {
    const done = (text: string) => {
      setRenaming(false);
      if (text.trim() && text !== session.title) attempt(api.rename(session, text.trim()));
    };
    return (
      <li>
        <input
          aria-label="Title"
          defaultValue={session.title}
          maxLength={500}
          ref={(input) => input?.focus()}
          onBlur={(event) => done(event.target.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") done(event.currentTarget.value);
            if (event.key === "Escape") setRenaming(false);
          }}
        />
      </li>
    );
  }
  return (
    <li className={current ? "current" : ""} data-testid="session" data-status={session.ui_status}>
      <button type="button" className="title" aria-current={current ? "page" : undefined} onClick={() => onOpen(session.id)}>
        {status && <span className={`dot ${session.ui_status}`} title={status} />}
        <span>{title}</span>
        {status && <span className="visually-hidden">, {status}</span>}
      </button>
      <span className="tools">
        <button type="button" aria-label={`Rename ${title}`} onClick={() => setRenaming(true)}>
          ✎
        </button>
        <a aria-label={`Export ${title}`} href={`/api/sessions/${session.id}/export?format=markdown`} download>
          ↓
        </a>
        <button type="button" aria-label={`Delete ${title}`} onClick={remove}>
          ×
        </button>
      </span>
    </li>
  );
}
