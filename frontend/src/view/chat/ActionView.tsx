import { memo, useMemo, useState } from "react";
import { links } from "../../core/api";
import { changes, diffLines } from "../../core/diff";
import type { Action, Interrupt } from "../../core/frames";
import { gist, isMoreThanGist, LONGEST_SHOWN, outputText, ownLink, readable } from "../../core/output";
import { elapsed, took } from "../../core/words";
import { useServerTime } from "../hooks";
import { Approval } from "./Approval";
import { Arguments } from "./Arguments";
import { Diff } from "./Diff";
import { Output } from "./Output";

export interface ActionProps {
  session: string;
  action: Action;
  /** The question that a person has to answer before it is done. */
  asked: Interrupt | undefined;
  /** What a person decided about it while the page looked on. */
  decided: { approved: boolean; at: string } | undefined;
  /** The run waits for answers; nothing is done until all are there. */
  isHeld: boolean;
  /** It writes more than is told live. */
  isCut: boolean;
}

type Kind = "asking" | "held" | "running" | "success" | "failed" | "denied" | "cancelled" | "interrupted";

const SIGNS: Record<Kind, [sign: string, words: string]> = {
  asking: ["?", "waits for your approval"],
  held: ["…", "waits for the other answers"],
  running: ["●", "running"],
  success: ["✓", "done"],
  failed: ["✕", "failed"],
  denied: ["⊘", "denied"],
  cancelled: ["■", "stopped"],
  interrupted: ["!", "interrupted"],
};

function kindOf({ action, asked, isHeld }: ActionProps): Kind {
  if (action.status === "pending") return asked ? "asking" : isHeld ? "held" : "running";
  return action.outcome !== null && action.outcome in SIGNS ? (action.outcome as Kind) : action.status === "success" ? "success" : "failed";
}

/** One thing that the agent does: what, how it goes, and what came of it. */
export const ActionView = memo(function ActionView(props: ActionProps) {
  const { action, asked } = props;
  const [isOpen, setOpen] = useState(true);
  const kind = kindOf(props);
  return (
    <div className={`action ${kind}`} data-testid="action" data-id={action.id} data-type={action.type} data-state={kind}>
      <details open={isOpen}>
        <summary
          onClick={(event) => {
            event.preventDefault();
            setOpen(!isOpen);
          }}
        >
          <Head {...props} kind={kind} />
        </summary>
        {isOpen && <Body {...props} />}
      </details>
      {asked && <Approval asked={asked} />}
    </div>
  );
});

function Head({ action, decided, kind }: ActionProps & { kind: Kind }) {
  const [sign, words] = SIGNS[kind];
  const counts = useMemo(() => (action.diff === null ? null : changes(diffLines(action.diff))), [action.diff]);
  const begun = decided?.at ?? action.started_at;
  return (
    <>
      <span className="sign" aria-hidden="true">{sign}</span>
      <span className="type">{action.type}</span>
      <code className="gist">{gist(action.input)}</code>
      <span className="facts">
        {counts && <span><span className="added">+{counts.added}</span> <span className="removed">−{counts.removed}</span></span>}
        {action.exit_code !== null && <span data-testid="exit">exit {action.exit_code}</span>}
        <span data-testid="action-status">{words}</span>
        {begun !== null && kind !== "asking" && kind !== "held" && <Time from={begun} to={action.ended_at} />}
      </span>
    </>
  );
}

function Time({ from, to }: { from: string; to: string | null }) {
  const now = useServerTime(to === null);
  const start = Date.parse(from);
  return <span className="time" data-testid="elapsed">{to === null ? elapsed(now - start) : took(Date.parse(to) - start)}</span>;
}

function Body({ session, action, asked, isCut }: ActionProps) {
  const isPending = action.status === "pending";
  const result = outputText(action.output);
  const text = useMemo(() => readable(isPending || result === "" ? action.live : result), [isPending, result, action.live]);
  const link = ownLink(action.link) ?? (text.length > LONGEST_SHOWN && !isPending ? links.output(session, action.id) : null);
  return (
    <div className="body">
      {!asked && isMoreThanGist(action.input) && <Input action={action} />}
      {text !== "" && <Output text={text} label={`Output of ${action.type}`} from={action.live === "" ? "start" : "end"} />}
      {isPending && isCut && <p className="note">It writes more than is shown live. All of it is kept.</p>}
      {action.diff !== null && <Diff diff={action.diff} label={`Change by ${action.type}`} />}
      {link && <p className="note"><a href={link} target="_blank" rel="noreferrer">Whole output</a></p>}
    </div>
  );
}

function Input({ action }: { action: Action }) {
  const [isOpen, setOpen] = useState(false);
  return (
    <details className="input" open={isOpen} onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Input</summary>
      {isOpen && <Arguments args={action.input} />}
    </details>
  );
}
