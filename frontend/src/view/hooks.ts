import { keepPreviousData, useInfiniteQuery, useQueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useStore } from "zustand";
import { api, Problem, type Session } from "../core/api";
import { serverClock } from "../core/clock";
import type { ChatState } from "../core/store";
import { chat, remember } from "./browser";

export function useChat<T>(pick: (state: ChatState) => T): T {
  return useStore(chat.store, pick);
}

const TICK_MS = 1_000;

/** The server's time in ms, told anew each second while something is measured against it. */
export function useServerTime(isTicking: boolean): number {
  const [now, setNow] = useState(() => serverClock.now());
  useEffect(() => {
    if (!isTicking) return;
    const timer = setInterval(() => setNow(serverClock.now()), TICK_MS);
    return () => clearInterval(timer);
  }, [isTicking]);
  return now;
}

const POLL_MS = 3_000;
const SEARCH_PAUSE_MS = 150;
const REFRESH_PAUSE_MS = 150;

export interface Sessions {
  sessions: Session[];
  loading: boolean;
  refresh: () => void;
  more: (() => void) | null;
}

/** The sidebar's sessions, kept fresh while the page is visible and when a run starts or ends. */
export function useSessions(q: string): Sessions {
  const search = useSettled(q, SEARCH_PAUSE_MS);
  const client = useQueryClient();
  const { data, isPending, hasNextPage, fetchNextPage } = useInfiniteQuery({
    queryKey: ["sessions", search],
    queryFn: ({ pageParam }) => api.sessions(search, pageParam),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next ?? undefined,
    refetchInterval: POLL_MS,
    placeholderData: keepPreviousData,
  });
  const timer = useRef(0);
  const refresh = useCallback(() => {
    window.clearTimeout(timer.current);
    timer.current = window.setTimeout(() => void client.invalidateQueries({ queryKey: ["sessions"] }), REFRESH_PAUSE_MS);
  }, [client]);
  const sessions = useMemo(() => unique(data?.pages.flatMap((page) => page.items) ?? []), [data]);
  return { sessions, loading: isPending, refresh, more: hasNextPage ? () => void fetchNextPage() : null };
}

/** A session that moves to the front while pages are read is on two of them. */
function unique(sessions: Session[]): Session[] {
  return [...new Map(sessions.map((session) => [session.id, session])).values()];
}

function useSettled<T>(value: T, ms: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return settled;
}

/** Sessions whose run ended while nobody looked at them. */
export function useUnread(sessions: Session[], current: string | null): ReadonlySet<string> {
  const [unread, setUnread] = useState<ReadonlySet<string>>(new Set());
  const before = useRef(new Map<string, string>());
  useEffect(() => {
    const ended = sessions.filter((one) => before.current.get(one.id) === "InProgress" && one.ui_status !== "InProgress");
    before.current = new Map(sessions.map((one) => [one.id, one.ui_status]));
    setUnread((known) => {
      const next = new Set([...known, ...ended.map((one) => one.id)]);
      if (current) next.delete(current);
      return next.size === known.size ? known : next;
    });
  }, [sessions, current]);
  return unread;
}

function notify(title: string, body: string): void {
  if (!("Notification" in window) || Notification.permission !== "granted") return;
  const notification = new Notification(title || "Holdfast", { body, tag: location.pathname });
  notification.onclick = () => window.focus();
}

/** Asks for the right to notify; null where there is nothing to ask. */
export function useNotifications(): (() => void) | null {
  const [permission, setPermission] = useState(() => ("Notification" in window ? Notification.permission : "denied"));
  if (permission !== "default") return null;
  return () => void Notification.requestPermission().then(setPermission);
}

const UNSEEN = { ended: "● Finished · ", asked: "● Waits for you · " };

/** The session's title in the tab; a sign there, and a notification, when a run ended or asks while the tab was hidden. */
export function usePageTitle(title: string, onChange: () => void): void {
  const [unseen, setUnseen] = useState("");
  const shown = useRef(title);
  shown.current = title;
  useEffect(() => {
    chat.onChange((what) => {
      onChange();
      if (what === "changed" || !document.hidden) return;
      setUnseen(UNSEEN[what]);
      notify(shown.current, what === "asked" ? "It waits for your approval." : "The answer is complete.");
    });
    const seen = () => !document.hidden && setUnseen("");
    document.addEventListener("visibilitychange", seen);
    return () => document.removeEventListener("visibilitychange", seen);
  }, [onChange]);
  useEffect(() => {
    document.title = `${unseen}${title ? `${title} · ` : ""}Holdfast`;
  }, [title, unseen]);
}

/** What the page shows: a conversation (null: a new one), or the jobs, perhaps with one of them. */
export type Route = { page: "chat"; session: string | null } | { page: "jobs"; job: string | null };

/** What the address names, and how to go elsewhere. */
export function useRoute(): [Route, (to: Route) => void] {
  const [route, setRoute] = useState(fromAddress);
  useEffect(() => {
    const back = () => setRoute(fromAddress());
    window.addEventListener("popstate", back);
    return () => window.removeEventListener("popstate", back);
  }, []);
  const go = useCallback((to: Route) => {
    const address = addressOf(to);
    if (address !== location.pathname) history.pushState(null, "", address);
    setRoute(to);
  }, []);
  return [route, go];
}

function addressOf(route: Route): string {
  if (route.page === "jobs") return route.job ? `/jobs/${route.job}` : "/jobs";
  return route.session ? `/s/${route.session}` : "/";
}

function fromAddress(): Route {
  const jobs = /^\/jobs(?:\/([0-9a-f-]{36}))?$/.exec(location.pathname);
  if (jobs) return { page: "jobs", job: jobs[1] ?? null };
  return { page: "chat", session: /^\/s\/([0-9a-f-]{36})$/.exec(location.pathname)?.[1] ?? null };
}

/** A text that survives a reload. The component that uses it lives as long as its session is shown. */
export function useDraft(session: string | null): [string, (text: string) => void] {
  const key = `holdfast.draft.${session ?? "new"}`;
  const [draft, setDraft] = useState(() => localStorage.getItem(key) ?? "");
  const keep = useCallback(
    (text: string) => {
      setDraft(text);
      remember(key, text || null);
    },
    [key],
  );
  return [draft, keep];
}

export interface User {
  id: string;
  name: string;
  role: string;
}

const AGAIN_MS = 1_000;

/** Who is signed in; "login" when nobody is; null while that is not known. */
export function useMe(): [User | "login" | null, () => void] {
  const [me, setMe] = useState<User | "login" | null>(null);
  const load = useCallback(() => {
    api.me().then(setMe, (error) => {
      if (error instanceof Problem && (error.status === 401 || error.status === 403)) setMe("login");
      else setTimeout(load, AGAIN_MS);
    });
  }, []);
  useEffect(load, [load]);
  return [me, load];
}

export type Theme = "system" | "light" | "dark";

const THEME = "holdfast.theme";

export function applyTheme(): Theme {
  const kept = localStorage.getItem(THEME);
  const theme = kept === "light" || kept === "dark" ? kept : "system";
  document.documentElement.dataset.theme = theme;
  return theme;
}

/** Whether the page is dark, and how to turn it. */
export function useTheme(): [boolean, () => void] {
  const [theme, setTheme] = useState<Theme>(applyTheme);
  const [systemDark, setSystemDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const media = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setSystemDark(media.matches);
    media.addEventListener("change", changed);
    return () => media.removeEventListener("change", changed);
  }, []);
  const isDark = theme === "dark" || (theme === "system" && systemDark);
  const turn = () => {
    remember(THEME, isDark ? "light" : "dark");
    setTheme(applyTheme());
  };
  return [isDark, turn];
}
