import { useEffect, useState } from "react";
import { chat } from "./browser";
import { useChat } from "./hooks";

const WORDS = {
  connecting: "Connecting…",
  offline: "Offline. What you write is kept and sent when the connection is back.",
  restarting: "The server is restarting. Nothing is lost.",
  auth_failed: "Signed out: the server does not accept the credentials.",
  refused: "This page is out of date. Reload it.",
};

/** Tells the state of the connection, when it is not simply there. */
export function Banner() {
  const connection = useChat((state) => state.connection);
  const retryAt = useChat((state) => state.retryAt);
  const [shown, setShown] = useState(false);
  useEffect(() => {
    setShown(false);
    const timer = setTimeout(() => setShown(true), connection === "connecting" ? 800 : 0);
    return () => clearTimeout(timer);
  }, [connection]);
  if (connection === "online" || !shown) return null;
  const final = connection === "auth_failed" || connection === "refused";
  return (
    <div className={`banner ${connection}`} role={final ? "alert" : "status"} data-testid="banner" data-state={connection}>
      <span>{WORDS[connection]}</span>
      {retryAt !== null && (
        <button type="button" onClick={() => chat.socket.hurry()}>
          Try now
        </button>
      )}
      {final && (
        <button type="button" onClick={() => location.reload()}>
          {connection === "auth_failed" ? "Sign in" : "Reload"}
        </button>
      )}
    </div>
  );
}
