import { useCallback, useEffect, useState } from "react";
import { useStore } from "zustand";
import { api, Problem, type Session } from "../core/api";
import type { ChatState } from "../core/store";
import { chat } from "./browser";

export function useChat<T>(pick: (state: ChatState) => T): T {
  return useStore(chat.store, pick);
}

const POLL_MS = 3_000;

/** The sidebar's sessions, kept fresh while the page is visible. */
export function useSessions(q: string): { sessions: Session[]; refresh: () => void; more: (() => void) | null } {
  const [sessions, setSessions] = useState<Session[]>([]);
  const [next, setNext] = useState<string | null>(null);
  const [pages, setPages] = useState(1);
  const load = useCallback(async () => {
    let found: Session[] = [];
    let cursor: string | undefined;
    for (let page = 0; page < pages; page += 1) {
      const answer = await api.sessions(q, cursor);
      found = [...found, ...answer.items];
      cursor = answer.next ?? undefined;
      if (!cursor) break;
    }
    setSessions(found);
    setNext(cursor ?? null);
  }, [q, pages]);
  const refresh = useCallback(() => void load().catch(() => undefined), [load]);
  useEffect(() => {
    refresh();
    const timer = setInterval(() => !document.hidden && refresh(), POLL_MS);
    return () => clearInterval(timer);
  }, [refresh]);
  return { sessions, refresh, more: next ? () => setPages((count) => count + 1) : null };
}

/** The session that the address names, and how to go to another. */
export function useRoute(): [string | null, (session: string | null) => void] {
  const [session, setSession] = useState(fromAddress);
  useEffect(() => {
    const back = () => setSession(fromAddress());
    window.addEventListener("popstate", back);
    return () => window.removeEventListener("popstate", back);
  }, []);
  const go = useCallback((to: string | null) => {
    history.pushState(null, "", to ? `/s/${to}` : "/");
    setSession(to);
  }, []);
  return [session, go];
}

function fromAddress(): string | null {
  return /^\/s\/([0-9a-f-]{36})$/.exec(location.pathname)?.[1] ?? null;
}

/** A text that survives a reload. */
export function useDraft(session: string | null): [string, (text: string) => void] {
  const key = `holdfast.draft.${session ?? "new"}`;
  const [draft, setDraft] = useState("");
  useEffect(() => setDraft(localStorage.getItem(key) ?? ""), [key]);
  const keep = useCallback(
    (text: string) => {
      setDraft(text);
      if (text) localStorage.setItem(key, text);
      else localStorage.removeItem(key);
    },
    [key],
  );
  return [draft, keep];
}

export type Me = { id: string; name: string; role: string } | "login" | null;

export function useMe(): [Me, () => void] {
  const [me, setMe] = useState<Me>(null);
  const load = useCallback(() => {
    api.me().then(setMe, (error) => {
      if (error instanceof Problem && (error.status === 401 || error.status === 403)) setMe("login");
      else setTimeout(load, 1_000);
    });
  }, []);
  useEffect(load, [load]);
  return [me, load];
}

export type Theme = "system" | "light" | "dark";

export function useTheme(): [Theme, () => void] {
  const [theme, setTheme] = useState<Theme>(() => (localStorage.getItem("holdfast.theme") as Theme | null) ?? "system");
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("holdfast.theme", theme);
  }, [theme]);
  const dark = theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  return [theme, () => setTheme(dark ? "light" : "dark")];
}
