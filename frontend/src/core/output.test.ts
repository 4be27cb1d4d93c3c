import { describe, expect, it } from "vitest";
import { argumentsText, editedArguments, excerpt, gist, isMoreThanGist, LONGEST_SHOWN, ownLink, readable, textOf, visible } from "./output";

const lines = (count: number) => Array.from({ length: count }, (_, place) => `line ${place}`).join("\n");

describe("an excerpt", () => {
  it("has the last lines, or the first", () => {
    expect(excerpt(`${lines(20)}\n`, 3, "end")).toEqual({ text: "line 17\nline 18\nline 19", hiddenLines: 17, isCut: false });
    expect(excerpt(lines(20), 2, "start")).toEqual({ text: "line 0\nline 1", hiddenLines: 18, isCut: false });
    expect(excerpt("a\n\n", 9, "end")).toEqual({ text: "a\n", hiddenLines: 0, isCut: false });
  });

  it("is short, however long a line is", () => {
    const { text, isCut } = excerpt("x".repeat(1_000_000), 12, "end");
    expect(text.length).toBeLessThan(3_000);
    expect(text).toContain("more characters");
    expect(isCut).toBe(true);
  });

  it("never has more than can be shown", () => {
    const { text, isCut } = excerpt("ab\n".repeat(1_000_000), Number.POSITIVE_INFINITY, "end", Number.POSITIVE_INFINITY);
    expect(text.length).toBeLessThanOrEqual(LONGEST_SHOWN);
    expect(isCut).toBe(true);
  });
});

describe("what a program wrote", () => {
  it("has no colours and no lines written over", () => {
    expect(readable("\u001b[1;31mred\u001b[0m \u001b]0;title\u0007\r\n10%\r50%\r100%\ndone\r")).toBe("red \n100%\ndone\r");
  });
});

describe("what a model asks for", () => {
  it("hides nothing", () => {
    expect(visible("ls \u202e\u200b\tx\n\u0007😀 é")).toBe("ls \\u{202e}\\u{200b}\tx\n\\u{7}😀 é");
    expect(gist({ command: "a\u202eb" })).toBe("a\\u{202e}b");
  });

  it("is told in short", () => {
    expect(gist({ path: "a.txt", content: "x\ny" })).toBe("a.txt");
    expect(gist({ timeout_s: 3, command: "make\nmake test" })).toBe("make …");
    expect(gist({ n: 3 })).toBe('{"n":3}');
    expect(gist({})).toBe("");
    expect(isMoreThanGist({ command: "ls" })).toBe(false);
    expect(isMoreThanGist({ command: "ls\npwd" })).toBe(true);
    expect(isMoreThanGist({ command: "a\u202eb" })).toBe(true);
  });

  it("is edited as it is, with nothing hidden", () => {
    const args = { command: "a\u202eb\n\t😀\u{e0041}" };
    expect(argumentsText(args)).toContain("a\\u202eb\\n\\t😀\\udb40\\udc41");
    expect(editedArguments(argumentsText(args))).toEqual({ args });
  });

  it("is checked when it was edited", () => {
    expect(editedArguments('{"a": 1}')).toEqual({ args: { a: 1 } });
    expect(editedArguments("[1]")).toHaveProperty("fault");
    expect(editedArguments("null")).toHaveProperty("fault");
    expect(editedArguments("{")).toHaveProperty("fault");
  });
});

describe("a file and a link", () => {
  it("is text, or not", () => {
    expect(textOf(new TextEncoder().encode("é"))).toBe("é");
    expect(textOf(new Uint8Array([65, 0xc3]))).toBe("A");
    expect(textOf(new Uint8Array([65, 0, 66]))).toBeNull();
  });

  it.each(["//evil.example", "https://evil.example", "javascript:x", "/\\evil.example", "", null])("leads nowhere else: %s", (link) => {
    expect(ownLink(link)).toBeNull();
    expect(ownLink("/api/x")).toBe("/api/x");
  });
});
