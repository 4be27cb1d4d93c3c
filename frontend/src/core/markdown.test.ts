import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Block, MarkdownStream, parse } from "./markdown";

const PIECES = [
  "# Title\n\n", "Some *text* with `code`.\n", "\n\n", "- one\n- two\n", "  - nested\n", "1. first\n", "```python\n", "x = 1\n",
  "```\n", "~~~\n", "> quote\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "[link][ref]\n", "[ref]: http://example.invalid\n", "***\n",
  "<b>html</b>\n", "text without an end ", "\\", "**bold", "**", "    indented\n", "Setext\n===\n",
];
const text = fc.array(fc.constantFrom(...PIECES), { maxLength: 40 }).map((pieces) => pieces.join(""));

function bare(blocks: Block[]) {
  return blocks.map(({ key: _, ...block }) => block);
}

describe("streaming Markdown", () => {
  it("ends as a fresh parse, wherever it was cut", () => {
    fc.assert(
      fc.property(text, fc.array(fc.nat(400), { maxLength: 12 }), (whole, cuts) => {
        const stream = new MarkdownStream();
        for (const cut of cuts.map((one) => one % (whole.length + 1)).sort((a, b) => a - b)) stream.update(whole.slice(0, cut), true);
        expect(bare(stream.update(whole, false))).toEqual(parse(whole));
      }),
    );
  });

  it("only lengthens an open fence, and closes it", () => {
    const stream = new MarkdownStream();
    stream.update("Look:\n\n```js\nlet a", true);
    expect(stream.blocks.at(-1)).toMatchObject({ kind: "code", language: "js", code: "let a", open: true });
    const frozen = stream.blocks[0];
    stream.update("Look:\n\n```js\nlet a = 1;\n```\n\nDone", true);
    expect(stream.blocks[0]).toBe(frozen);
    expect(stream.blocks[1]).toMatchObject({ kind: "code", code: "let a = 1;", open: false });
  });

  it("freezes blocks that are complete", () => {
    const stream = new MarkdownStream();
    stream.update("one\n\ntwo\n\nthree", true);
    const first = stream.blocks[0];
    for (let more = 0; more < 50; more += 1) stream.update(`one\n\ntwo\n\nthree${"x".repeat(more)}`, true);
    expect(stream.blocks[0]).toBe(first);
  });

  it("shows a very long line plain, in pieces", () => {
    const line = "word ".repeat(20_000);
    const stream = new MarkdownStream();
    stream.update(line, true);
    expect(stream.blocks.every((block) => block.kind === "plain" && block.text.length <= 4_001)).toBe(true);
    expect(stream.blocks.map((block) => (block.kind === "plain" ? block.text : "")).join("")).toBe(line);
  });
});
