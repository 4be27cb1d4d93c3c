/**
 * Markdown that grows: blocks that are complete are frozen, only the last one is parsed again.
 *
 * An open code fence only gets longer, and text without any break is shown plain until it ends, so the
 * cost of a delta does not depend on what was said before. `finish` parses everything once more: what
 * is shown in the end is what a fresh parse gives.
 */

import { type Token, type Tokens, marked } from "marked";

export type Block =
  | { kind: "html"; key: number; html: string }
  | { kind: "code"; key: number; language: string; code: string; open: boolean }
  | { kind: "plain"; key: number; text: string };

/** Longer than this without a break, and a block is shown as it is written. */
export const LONGEST_PARSED = 8_000;
const PLAIN_PIECE = 4_000;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n`]*)\n/;

/** A block without its place. */
type Parsed =
  | { kind: "html"; html: string }
  | { kind: "code"; language: string; code: string; open: boolean }
  | { kind: "plain"; text: string };

export class MarkdownStream {
  private frozen: Block[] = [];
  private frozenLength = 0;
  private text = "";
  private last: Block[] = [];
  private done = false;

  get blocks(): Block[] {
    return [...this.frozen, ...this.last];
  }

  /** Show `text`, which begins with what was shown before; else start anew. */
  update(text: string, streaming: boolean): Block[] {
    if (!text.startsWith(this.text) || (this.done && text !== this.text)) this.reset();
    if (this.done) return this.blocks;
    this.text = text;
    if (streaming) this.grow();
    else this.finish();
    return this.blocks;
  }

  private reset(): void {
    this.frozen = [];
    this.frozenLength = 0;
    this.text = "";
    this.last = [];
    this.done = false;
  }

  private finish(): void {
    this.done = true;
    this.frozen = keyed(parse(this.text), 0);
    this.last = [];
  }

  private grow(): void {
    const tail = this.text.slice(this.frozenLength);
    const fence = openFence(tail);
    if (fence) {
      this.last = keyed([fence], this.frozen.length);
      return;
    }
    if (tail.length > LONGEST_PARSED && !tail.includes("\n\n")) {
      this.last = keyed(plain(tail), this.frozen.length);
      return;
    }
    const tokens = marked.lexer(tail);
    const complete = completeTokens(tokens);
    const raw = complete.map((token) => token.raw).join("");
    const added = keyed(complete.flatMap(block), this.frozen.length);
    if (added.length > 0) this.frozen = [...this.frozen, ...added];
    this.frozenLength += raw.length;
    const rest = tokens.slice(complete.length);
    const restFence = openFence(rest.map((token) => token.raw).join(""));
    this.last = keyed(restFence ? [restFence] : rest.flatMap(block), this.frozen.length);
  }
}

/** The blocks of a whole text. */
export function parse(text: string): Parsed[] {
  return marked.lexer(text).flatMap(block);
}

/** Tokens that no later text can change: all before the last one that is not mere space. */
function completeTokens(tokens: Token[]): Token[] {
  let last = tokens.length - 1;
  while (last >= 0 && tokens[last]?.type === "space") last -= 1;
  if (last <= 0) return [];
  // A list, or a paragraph below it, may still become part of what stands before it.
  const before = tokens[last - 1];
  if (before && before.type !== "space" && before.type !== "code" && before.type !== "heading") return tokens.slice(0, Math.max(0, last - 1));
  return tokens.slice(0, last);
}

function block(token: Token): Parsed[] {
  if (token.type === "space" || token.type === "def") return [];
  if (token.type === "code") {
    const code = token as Tokens.Code;
    return [{ kind: "code", language: code.lang ?? "", code: code.text, open: false }];
  }
  if (token.raw.length > LONGEST_PARSED && !token.raw.includes("\n")) return plain(token.raw);
  return [{ kind: "html", html: marked.parser([token]) }];
}

function openFence(text: string): Parsed | null {
  const start = FENCE.exec(text);
  if (!start) return null;
  const marker = start[2] ?? "```";
  const code = text.slice(start[0].length);
  const close = new RegExp(`^ {0,3}${marker[0]}{${marker.length},}[ \\t]*$`, "m");
  if (close.test(code)) return null;
  return { kind: "code", language: (start[3] ?? "").trim(), code, open: true };
}

/** A long text in pieces, so that a browser lays out only the last one again. */
function plain(text: string): Parsed[] {
  const pieces: Parsed[] = [];
  for (let start = 0; start < text.length; ) {
    let stop = Math.min(start + PLAIN_PIECE, text.length);
    const space = text.lastIndexOf(" ", stop);
    if (stop < text.length && space > start) stop = space + 1;
    pieces.push({ kind: "plain", text: text.slice(start, stop) });
    start = stop;
  }
  return pieces;
}

function keyed(blocks: Parsed[], from: number): Block[] {
  return blocks.map((one, place) => ({ ...one, key: from + place }));
}
