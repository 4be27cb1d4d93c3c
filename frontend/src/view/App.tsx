import { useEffect, useState } from "react";
import { api } from "../core/api";
import { chat, newKey } from "./browser";
import { Banner } from "./Banner";
import { ChatPage } from "./chat/ChatPage";
import { useMe, useRoute, useSessions, useTheme } from "./hooks";
import { Keys } from "./Keys";
import { Login } from "./Login";
import { Sidebar } from "./Sidebar";

export function App() {
  const [me, again] = useMe();
  if (me === "login") return <Login onDone={again} />;
  if (me === null) return <main className="splash" aria-busy="true" />;
  return <Workspace />;
}

function Workspace() {
  const [session, go] = useRoute();
  const [q, setQ] = useState("");
  const { sessions, refresh, more } = useSessions(q);
  const [theme, turn] = useTheme();
  const [keys, setKeys] = useState(false);
  const [open, setOpen] = useState(false);
  const [draftKey, setDraftKey] = useState(0);

  useEffect(() => {
    chat.socket.start();
    return () => chat.socket.stop();
  }, []);
  useEffect(() => {
    chat.open(session);
    setOpen(false);
  }, [session]);
  useEffect(() => {
    const title = sessions.find((one) => one.id === session)?.title;
    document.title = title ? `${title} · Holdfast` : "Holdfast";
    chat.onRunEnded(() => {
      refresh();
      if (document.hidden) document.title = "● finished · Holdfast";
    });
    const seen = () => !document.hidden && (document.title = title ? `${title} · Holdfast` : "Holdfast");
    document.addEventListener("visibilitychange", seen);
    return () => document.removeEventListener("visibilitychange", seen);
  }, [sessions, session, refresh]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      const writing = event.target instanceof HTMLTextAreaElement || event.target instanceof HTMLInputElement;
      if (event.key === "?" && !writing) setKeys(true);
      if (event.altKey && event.key === "n") go(null);
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [go]);

  /** Say something; a first message makes its session. */
  const say = async (content: string) => {
    let target = session;
    if (!target) {
      target = (await api.create()).id;
      go(target);
    }
    chat.send(target, content, newKey());
    setDraftKey((key) => key + 1);
    setTimeout(refresh, 200);
  };

  return (
    <div className={open ? "app open" : "app"}>
      <Sidebar
        sessions={sessions}
        current={session}
        q={q}
        onSearch={setQ}
        onOpen={go}
        onChange={refresh}
        onMore={more}
        theme={theme}
        onTheme={turn}
        onKeys={() => setKeys(true)}
      />
      <main className="main">
        <button type="button" className="menu" aria-label="Conversations" aria-expanded={open} onClick={() => setOpen(!open)}>
          ☰
        </button>
        <Banner />
        <ChatPage key={session ?? "new"} session={session} onSay={say} generation={draftKey} />
      </main>
      {keys && <Keys onClose={() => setKeys(false)} />}
    </div>
  );
}
