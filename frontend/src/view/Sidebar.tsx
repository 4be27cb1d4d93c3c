import { useState } from "react";
import { api, type Session } from "../core/api";
import { inWords } from "./browser";
import { type User, useNotifications } from "./hooks";
import { SessionRow } from "./SessionRow";

interface Props {
  sessions: Session[];
  loading: boolean;
  unread: ReadonlySet<string>;
  current: string | null;
  q: string;
  onSearch: (q: string) => void;
  onOpen: (session: string | null) => void;
  isJobs: boolean;
  onJobs: () => void;
  onChange: () => void;
  onMore: (() => void) | null;
  isDark: boolean;
  onTheme: () => void;
  onKeys: () => void;
  me: User;
}

export function Sidebar(props: Props) {
  const { sessions, q } = props;
  const [problem, setProblem] = useState("");
  const attempt = (work: Promise<unknown>) => {
    setProblem("");
    work.catch((error: unknown) => setProblem(inWords(error))).finally(props.onChange);
  };
  return (
    <nav className="sidebar" aria-label="Conversations">
      <header>
        <strong className="brand">Holdfast</strong>
        <button type="button" onClick={() => props.onOpen(null)} className="primary" title="Alt N">
          New chat
        </button>
      </header>
      <button type="button" className="page-link" aria-current={props.isJobs ? "page" : undefined} onClick={props.onJobs}>
        Jobs
      </button>
      <input
        type="search"
        aria-label="Search conversations"
        placeholder="Search"
        value={q}
        maxLength={200}
        onChange={(event) => props.onSearch(event.target.value)}
        onKeyDown={(event) => event.key === "Escape" && event.stopPropagation()}
      />
      {problem && <p role="alert" className="problem">{problem}</p>}
      <ul className="sessions">
        {sessions.map((session) => (
          <SessionRow
            key={session.id}
            session={session}
            isCurrent={session.id === props.current}
            isUnread={props.unread.has(session.id)}
            onOpen={props.onOpen}
            attempt={attempt}
          />
        ))}
        {props.onMore && (
          <li>
            <button type="button" className="quiet more" onClick={props.onMore}>
              Show more
            </button>
          </li>
        )}
      </ul>
      {sessions.length === 0 && !props.loading && <p className="hint">{q ? "Nothing found." : "No conversations yet."}</p>}
      <SidebarFooter {...props} attempt={attempt} />
    </nav>
  );
}

function SidebarFooter({ isDark, onTheme, onKeys, me, attempt }: Props & { attempt: (work: Promise<unknown>) => void }) {
  const theme = isDark ? "light" : "dark";
  const ask = useNotifications();
  return (
    <footer>
      <span className="who" title={me.role}>
        {me.name}
      </span>
      {me.name !== "local" && (
        <button type="button" className="quiet" onClick={() => attempt(api.logout().then(() => location.reload()))}>
          Sign out
        </button>
      )}
      {ask && (
        <button type="button" className="quiet" onClick={ask} aria-label="Notify me when an answer is complete" title="Notify me when an answer is complete">
          ◔
        </button>
      )}
      <button type="button" className="quiet" onClick={onTheme} aria-label={`Switch to ${theme} theme`} title={`Switch to ${theme} theme`}>
        {isDark ? "☀" : "☾"}
      </button>
      <button type="button" className="quiet" onClick={onKeys} aria-label="List of keys" title="List of keys">
        ?
      </button>
    </footer>
  );
}
