import { useEffect, useState } from "react";
import { chat } from "./browser";
import { useChat } from "./hooks";

const WORDS = {
  connecting: "Connecting…",
  offline: "Offline, retrying. What you write is kept and sent when the connection is back.",
  restarting: "The server is restarting. Nothing is lost.",
  auth_failed: "Signed out: the server does not accept the credentials.",
  refused: "This page is out of date. Reload it.",
};

const PATIENCE_MS = 800;

/** Tells the state of the connection, when it is not simply there. */
export function Banner() {
  const connection = useChat((state) => state.connection);
  const retryAt = useChat((state) => state.retryAt);
  const [isShown, setShown] = useState(false);
  const isOnline = connection === "online";
  useEffect(() => {
    if (isOnline) setShown(false);
    else if (connection !== "connecting") setShown(true);
    const timer = setTimeout(() => setShown(!isOnline), PATIENCE_MS);
    return () => clearTimeout(timer);
  }, [connection, isOnline]);
  if (isOnline || !isShown) return null;
  const isFinal = connection === "auth_failed" || connection === "refused";
  return (
    <div className={`banner ${connection}`} role={isFinal ? "alert" : undefined} aria-live="polite" data-testid="banner" data-state={connection}>
      <span>{WORDS[connection]}</span>
      {retryAt !== null && (
        <button type="button" onClick={() => chat.socket.hurry()}>
          Try now
        </button>
      )}
      {isFinal && (
        <button type="button" onClick={() => location.reload()}>
          {connection === "auth_failed" ? "Sign in" : "Reload"}
        </button>
      )}
    </div>
  );
}
