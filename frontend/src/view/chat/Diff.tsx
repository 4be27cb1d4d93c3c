import { useMemo, useState } from "react";
import { type DiffLine, diffLines } from "../../core/diff";
import { LONGEST_LINE } from "../../core/output";
import { Folded } from "./Output";

const FOLDED_LINES = 16;
const MOST_LINES = 3_000;

/** What was changed in a file; a long change is folded. */
export function Diff({ diff, label }: { diff: string; label: string }) {
  const [isWhole, setWhole] = useState(false);
  const lines = useMemo(() => diffLines(diff), [diff]);
  const shown = lines.slice(0, isWhole ? MOST_LINES : FOLDED_LINES);
  const hidden = lines.length - shown.length;
  return (
    <Folded isWhole={isWhole} isMore={hidden > 0} hidden={hidden} from="start" onTurn={() => setWhole(!isWhole)}>
      <pre className="output diff" tabIndex={0} aria-label={label} data-testid="diff">
        {shown.map((line, place) => (
          <Line key={place} line={line} />
        ))}
      </pre>
      {isWhole && hidden > 0 && <p className="note">{hidden.toLocaleString("en")} more lines are not shown.</p>}
    </Folded>
  );
}

function Line({ line: { kind, text } }: { line: DiffLine }) {
  return <span className={`piece ${kind}`}>{text.slice(0, LONGEST_LINE) || " "}</span>;
}
