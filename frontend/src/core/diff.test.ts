import { expect, it } from "vitest";
import { changes, diffLines } from "./diff";

const DIFF = "--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n same\n--- was a rule\n+new\n+++ more\n\\ No newline at end of file\n";

it("tells added, removed and unchanged lines apart", () => {
  const lines = diffLines(DIFF);
  expect(lines.map((line) => line.kind)).toEqual(["place", "same", "removed", "added", "added", "note"]);
  expect(changes(lines)).toEqual({ added: 2, removed: 1 });
});
