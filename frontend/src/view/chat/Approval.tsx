import { useQuery } from "@tanstack/react-query";
import { type FormEvent, type KeyboardEvent, useId, useState } from "react";
import { api } from "../../core/api";
import type { Decision, Interrupt } from "../../core/frames";
import { argumentsText, editedArguments } from "../../core/output";
import { elapsed } from "../../core/words";
import { chat, newKey } from "../browser";
import { useChat, useServerTime } from "../hooks";
import { Arguments } from "./Arguments";

/** Where the card of an action's approval is in the page. */
export function approvalId(action: string): string {
  return `approval-${action}`;
}

/** Asks a person whether an action may be done. */
export function Approval({ asked }: { asked: Interrupt }) {
  const [isEditing, setEditing] = useState(false);
  const isSent = useChat((state) => state.deciding.has(asked.id));
  const isOnline = useChat((state) => state.connection === "online");
  const heading = useId();
  const tools = useQuery({ queryKey: ["tools"], queryFn: api.tools, staleTime: Number.POSITIVE_INFINITY });
  /** Nothing holds a command that is allowed here; each one is asked about. */
  const isUnconfined = "command" in asked.args && tools.data?.sandbox.confined === false;
  const isFixed = isSent || !isOnline;
  const decide = (decision: Decision) => void chat.decide(asked, decision, newKey());
  return (
    <section className="approval" id={approvalId(asked.action)} tabIndex={-1} aria-labelledby={heading} data-testid="approval" data-interrupt={asked.id}>
      <h2 id={heading}>
        May <code>{asked.tool}</code> be run?
        {asked.expires_at && <Countdown to={asked.expires_at} />}
      </h2>
      {asked.reason && <p>{asked.reason}</p>}
      {isUnconfined && <p className="warning">Commands are not confined on this server{tools.data?.sandbox.reason ? `: ${tools.data.sandbox.reason}` : "."}</p>}
      {isEditing ? (
        <Editor args={asked.args} isFixed={isFixed} onDone={(editedArgs) => decide({ approved: true, editedArgs })} onLeave={() => setEditing(false)} />
      ) : (
        <>
          <Arguments args={asked.args} />
          <div className="decisions">
            <button type="button" className="primary" disabled={isFixed} onClick={() => decide({ approved: true })}>Allow once</button>
            {!isUnconfined && <button type="button" disabled={isFixed} onClick={() => decide({ approved: true, always: true })}>Always allow {asked.tool} in this session</button>}
            <button type="button" disabled={isFixed} onClick={() => setEditing(true)}>Edit arguments</button>
          </div>
          <Denial isFixed={isFixed} onDeny={(reason) => decide({ approved: false, ...(reason && { reason }) })} />
        </>
      )}
    </section>
  );
}

/** Esc in a field leaves the field, and stops nothing. */
function kept(event: KeyboardEvent, leave: () => void): void {
  if (event.key !== "Escape") return;
  event.stopPropagation();
  leave();
}

function Denial({ isFixed, onDeny }: { isFixed: boolean; onDeny: (reason: string) => void }) {
  const [reason, setReason] = useState("");
  const deny = (event: FormEvent) => {
    event.preventDefault();
    onDeny(reason.trim());
  };
  return (
    <form className="decisions" onSubmit={deny}>
      <input
        aria-label="Why not (optional)"
        placeholder="Why not (optional)"
        maxLength={2_000}
        value={reason}
        disabled={isFixed}
        onChange={(event) => setReason(event.target.value)}
        onKeyDown={(event) => kept(event, () => event.currentTarget.blur())}
      />
      <button type="submit" className="deny" disabled={isFixed}>Deny</button>
    </form>
  );
}

interface EditorProps {
  args: Record<string, unknown>;
  isFixed: boolean;
  onDone: (args: Record<string, unknown>) => void;
  onLeave: () => void;
}

const TALLEST_ROWS = 16;

function Editor({ args, isFixed, onDone, onLeave }: EditorProps) {
  const [text, setText] = useState(() => argumentsText(args));
  const checked = editedArguments(text);
  const fault = "fault" in checked ? checked.fault : "";
  const problem = useId();
  const done = (event: FormEvent) => {
    event.preventDefault();
    if ("args" in checked) onDone(checked.args);
  };
  return (
    <form onSubmit={done}>
      <textarea
        aria-label="Arguments as JSON"
        aria-invalid={fault !== ""}
        aria-describedby={fault ? problem : undefined}
        spellCheck={false}
        autoComplete="off"
        rows={Math.min(TALLEST_ROWS, text.split("\n").length + 1)}
        value={text}
        ref={(field) => field?.focus()}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={(event) => kept(event, onLeave)}
      />
      {fault && <p role="alert" id={problem} className="problem">{fault}</p>}
      <div className="decisions">
        <button type="submit" className="primary" disabled={isFixed || fault !== ""}>Allow with these arguments</button>
        <button type="button" onClick={onLeave}>Back</button>
      </div>
    </form>
  );
}

function Countdown({ to }: { to: string }) {
  const left = Date.parse(to) - useServerTime(true);
  return <span className="countdown" data-testid="countdown">{left > 0 ? `${elapsed(left)} left` : "time is up"}</span>;
}
