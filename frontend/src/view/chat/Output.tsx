import { memo, type ReactNode, useMemo, useState } from "react";
import { pieces } from "../../core/markdown";
import { excerpt, LONGEST_SHOWN } from "../../core/output";

const FOLDED_LINES = 12;
const PIECE = 4_000;

interface Props {
  text: string;
  label: string;
  /** Which end is shown of a long text. */
  from: "start" | "end";
  /** Every character matters: lines are broken, and the whole text shows nothing short of it. */
  isExact?: boolean;
}

/** Text as it is, never Markdown; a long one is folded. */
export const Output = memo(function Output({ text, label, from, isExact = false }: Props) {
  const [isWhole, setWhole] = useState(false);
  const lines = isWhole ? Number.POSITIVE_INFINITY : FOLDED_LINES;
  const longest = isExact && isWhole ? Number.POSITIVE_INFINITY : undefined;
  const { text: shown, hiddenLines, isCut } = useMemo(() => excerpt(text, lines, from, longest), [text, lines, from, longest]);
  const isMore = hiddenLines > 0 || (isExact && isCut && !isWhole);
  return (
    <Folded isWhole={isWhole} isMore={isMore} hidden={hiddenLines} from={from} onTurn={() => setWhole(!isWhole)}>
      <pre className={isExact ? "output exact" : "output"} tabIndex={0} aria-label={label} data-testid="output">
        {shown.length <= PIECE ? shown : pieces(shown, PIECE, "\n").map((piece, place) => <Piece key={place} text={piece} />)}
      </pre>
      {isWhole && text.length > LONGEST_SHOWN && <p className="note">Only the {from === "end" ? "last" : "first"} {LONGEST_SHOWN.toLocaleString("en")} characters are shown.</p>}
    </Folded>
  );
});

const Piece = memo(function Piece({ text }: { text: string }) {
  return <span className="piece">{text}</span>;
});

interface FoldedProps {
  isWhole: boolean;
  isMore: boolean;
  hidden: number;
  from: "start" | "end";
  onTurn: () => void;
  children: ReactNode;
}

/** What is folded, with the button that unfolds it on the side where something is missing. */
export function Folded({ isWhole, isMore, hidden, from, onTurn, children }: FoldedProps) {
  const words = isWhole ? "Show less" : hidden > 0 ? `Show ${hidden.toLocaleString("en")} more ${hidden === 1 ? "line" : "lines"}` : "Show all";
  const button = (isMore || isWhole) && (
    <button type="button" className="quiet" aria-expanded={isWhole} onClick={onTurn}>
      {words}
    </button>
  );
  return (
    <div className={isWhole ? "folded whole" : "folded"}>
      {from === "end" && button}
      {children}
      {from === "start" && button}
    </div>
  );
}
