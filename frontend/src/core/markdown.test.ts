import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Block, LONGEST_LINE, MarkdownStream, parse } from "./markdown";

const PIECES = [
  "# Title\n\n", "#### Deep\n", "Some *text* with `code`.\n", "\n\n", "- one\n- two\n", "  - nested\n", "1. first\n", "```python\n", "x = 1\n",
  "```\n", "~~~\n", "> quote\n", "| a | b |\n|---|---|\n| 1 | 2 |\n", "[link][ref]\n", "[ref]: http://example.invalid\n", "***\n",
  "<b>html</b>\n", "text without an end ", "\\", "**bold", "**", "    indented\n", "Setext\n===\n",
];
/** Marks in any order, which make what no person writes. */
const marks = fc.array(fc.constantFrom("#", " ", "  ", "    ", "\n", "\n\n", "a", "b c", "- ", "1. ", "* ", "> ", "`", "```", "~~~", "|", "---", "===", "_", "**", "[", "](", ")", "<", ">", "<div>", "</div>", "<!--", "-->", "<p>", "\\", "\t", "&amp;", "!"), { maxLength: 60 });
const text = fc.array(fc.constantFrom(...PIECES), { maxLength: 40 }).map((pieces) => pieces.join(""));

function bare(blocks: Block[]) {
  return blocks.map(({ key: _key, ...block }) => block);
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

  it("ends as a fresh parse, whatever it is", () => {
    fc.assert(
      fc.property(marks, fc.array(fc.nat(200), { maxLength: 20 }), (pieces, cuts) => {
        const whole = pieces.join("");
        const stream = new MarkdownStream();
        for (const cut of cuts.map((one) => one % (whole.length + 1)).sort((a, b) => a - b)) stream.update(whole.slice(0, cut), true);
        expect(bare(stream.update(whole, false))).toEqual(parse(whole));
      }),
      { numRuns: Number(process.env.RUNS ?? 500) },
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

  it("shows complete blocks as they will be in the end, when nothing is defined later", () => {
    const undefinedLater = text.filter((whole) => !whole.includes("]: "));
    fc.assert(
      fc.property(undefinedLater, fc.array(fc.nat(400), { maxLength: 12 }), (whole, cuts) => {
        const stream = new MarkdownStream();
        for (const cut of cuts.map((one) => one % (whole.length + 1)).sort((a, b) => a - b)) stream.update(whole.slice(0, cut), true);
        const grown = stream.update(whole, true);
        expect(bare(grown).map((one) => (one.kind === "code" ? { ...one, open: false, code: one.code.trimEnd() } : one))).toEqual(
          parse(whole).map((one) => (one.kind === "code" ? { ...one, code: one.code.trimEnd() } : one)),
        );
      }),
    );
  });

  it("skips no level of headings, and leaves the first to the page", () => {
    const levels = parse("# A\n\n#### B\n\n> ## C\n\n###### D\n").map((one) => (one.kind === "html" ? /<h(\d)/.exec(one.html)?.[1] : ""));
    expect(levels).toEqual(["2", "3", "3", "4"]);
  });

  it("cuts a very long list and table, and loses nothing", () => {
    const items = Array.from({ length: 250 }, (_, place) => place + 1);
    const list = parse(items.map((item) => `${item}. item ${item}.\n`).join(""));
    expect(list.map((one) => (one.kind === "html" ? (/<ol(?: start="(\d+)")?>/.exec(one.html)?.[1] ?? "1") : ""))).toEqual(["1", "101", "201"]);
    const table = parse(`| a |\n|---|\n${items.map((item) => `| row ${item}. |\n`).join("")}`);
    const html = [...list, ...table].map((one) => (one.kind === "html" ? one.html : "")).join("");
    for (const item of items) expect(html.includes(`item ${item}.`) && html.includes(`row ${item}.`)).toBe(true);
  });

  it("keeps a very long line in its fence, and plain outside of one", () => {
    const long = "x".repeat(LONGEST_LINE + 10);
    expect(parse(`\`\`\`\n${long}\n\`\`\`\n`)).toEqual([{ kind: "code", language: "", code: long, open: false }]);
    const kinds = parse(`# Title\n\n${long}\n\n**bold**\n`).map((one) => one.kind);
    expect(kinds[0]).toBe("html");
    expect(kinds.at(-1)).toBe("html");
    expect(kinds.slice(1, -1).every((kind) => kind === "plain")).toBe(true);
  });

  it.each(["*", "[", "> ", "- ", "_a", "`", "<", "![", "|", "\\", "a@"])("takes no long time for a flood of %j", (piece) => {
    for (const end of ["", "\n"]) {
      const flood = (piece + end).repeat(Math.floor(15_000 / (piece.length + end.length)));
      const start = performance.now();
      new MarkdownStream().update(flood, true);
      parse(flood);
      expect(performance.now() - start).toBeLessThan(2_000);
    }
  });
});
