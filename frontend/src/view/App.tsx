import { lazy, Suspense, useEffect, useState } from "react";
import { api } from "../core/api";
import { Banner } from "./Banner";
import { chat, newKey } from "./browser";
import { Boundary } from "./chat/Boundary";
import { ChatPage } from "./chat/ChatPage";
import { useChat, usePageTitle, useMe, useRoute, useSessions, useTheme, useUnread, type User } from "./hooks";
import { Keys } from "./Keys";
import { Login } from "./Login";
import { Sidebar } from "./Sidebar";

const JobsPage = lazy(() => import("./jobs/JobsPage"));
const FilesDialog = lazy(() => import("./FilesDialog"));

export function App() {
  const [me, again] = useMe();
  if (me === "login") return <Login onDone={again} />;
  if (me === null) return <main className="splash" aria-busy="true" aria-label="Loading" />;
  return <Workspace me={me} />;
}

function Workspace({ me }: { me: User }) {
  const [route, go] = useRoute();
  const session = route.page === "chat" ? route.session : null;
  const goTo = (to: string | null) => go({ page: "chat", session: to });
  const [q, setQ] = useState("");
  const { sessions, loading, refresh, more } = useSessions(q);
  const unread = useUnread(sessions, session);
  const [isDark, turn] = useTheme();
  const [keys, setKeys] = useState(false);
  const [open, setOpen] = useState(false);
  const title = route.page === "jobs" ? "Jobs" : (sessions.find((one) => one.id === session)?.title ?? "");

  useEffect(() => {
    chat.socket.start();
    return () => chat.socket.stop();
  }, []);
  useEffect(() => {
    chat.open(session);
    setOpen(false);
  }, [session]);
  usePageTitle(title, refresh);
  useGlobalKeys({ onKeys: () => setKeys(true), onNew: () => goTo(null), onLeave: () => setOpen(false) });

  /** Say something; a first message makes its session. */
  const say = async (content: string) => {
    const target = session ?? (await api.create()).id;
    chat.open(target);
    chat.send(target, content, newKey());
    goTo(target);
    refresh();
  };

  return (
    <div className={open ? "app open" : "app"}>
      <Sidebar
        sessions={sessions}
        loading={loading}
        unread={unread}
        current={session}
        q={q}
        onSearch={setQ}
        onOpen={(to) => {
          goTo(to);
          setOpen(false);
        }}
        isJobs={route.page === "jobs"}
        onJobs={() => {
          go({ page: "jobs", job: null });
          setOpen(false);
        }}
        onChange={refresh}
        onMore={more}
        isDark={isDark}
        onTheme={turn}
        onKeys={() => setKeys(true)}
        me={me}
      />
      {open && <div className="backdrop" onClick={() => setOpen(false)} />}
      <main className="main">
        <header className="top">
          <button type="button" className="menu" aria-label="Conversations" aria-expanded={open} onClick={() => setOpen(!open)}>
            ☰
          </button>
          <h1 className="page-title">{session ? title || "Conversation" : title || "New chat"}</h1>
          {session && <FilesButton key={session} session={session} />}
        </header>
        <Banner />
        {route.page === "chat" ? (
          <ChatPage key={session ?? "new"} session={session} onSay={say} />
        ) : (
          <Boundary text="This page is out of date. Reload it.">
            <Suspense>
              <JobsPage job={route.job} onOpen={(job) => go({ page: "jobs", job })} />
            </Suspense>
          </Boundary>
        )}
      </main>
      {keys && <Keys onClose={() => setKeys(false)} />}
    </div>
  );
}

/** The working folder; a session in which nothing was done has none. */
function FilesButton({ session }: { session: string }) {
  const [isOpen, setOpen] = useState(false);
  useChat((state) => state.revision);
  const hasActed = useChat((state) => state.session === session && state.transcript?.messages.some((m) => m.actions.length > 0));
  if (!hasActed) return null;
  return (
    <>
      <button type="button" className="head-button" aria-haspopup="dialog" onClick={() => setOpen(true)}>
        Files
      </button>
      {isOpen && (
        <Boundary text="This page is out of date. Reload it.">
          <Suspense>
            <FilesDialog session={session} onClose={() => setOpen(false)} />
          </Suspense>
        </Boundary>
      )}
    </>
  );
}

interface KeyHandlers {
  onKeys: () => void;
  onNew: () => void;
  onLeave: () => void;
}

function useGlobalKeys({ onKeys, onNew, onLeave }: KeyHandlers): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const isWriting = event.target instanceof HTMLTextAreaElement || event.target instanceof HTMLInputElement;
      if (event.key === "?" && !isWriting) onKeys();
      if (event.key === "Escape") onLeave();
      if (event.altKey && event.code === "KeyN") {
        event.preventDefault();
        onNew();
      }
      if (event.key === "/" && !isWriting) {
        event.preventDefault();
        document.querySelector<HTMLInputElement>("input[type=search]")?.focus();
      }
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  });
}
