/** A unified diff, line by line. */

export interface DiffLine {
  kind: "added" | "removed" | "place" | "same" | "note";
  text: string;
}

/** The lines of a diff without the names of its files, which stand beside it. */
export function diffLines(diff: string): DiffLine[] {
  const lines = diff.endsWith("\n") ? diff.slice(0, -1).split("\n") : diff.split("\n");
  const start = lines.findIndex((line) => line.startsWith("@@"));
  return lines.slice(Math.max(0, start)).map((text) => ({ kind: kindOf(text), text }));
}

export function changes(lines: DiffLine[]): { added: number; removed: number } {
  const count = (kind: DiffLine["kind"]) => lines.filter((line) => line.kind === kind).length;
  return { added: count("added"), removed: count("removed") };
}

function kindOf(line: string): DiffLine["kind"] {
  switch (line[0]) {
    case "+":
      return "added";
    case "-":
      return "removed";
    case "@":
      return "place";
    case " ":
    case undefined:
      return "same";
    default:
      return "note";
  }
}
