/**
 * Markdown that grows: blocks that are complete are frozen, only the last one is parsed again.
 *
 * An open code fence only gets longer, and what has no end in sight is shown plain, so the cost of a
 * delta does not depend on what was said before. When the text ends everything is parsed once more: what
 * is shown in the end is what a fresh parse gives.
 */

import { Lexer, marked, type Token, type Tokens } from "marked";

export type Block =
  | { kind: "html"; key: number; html: string }
  | { kind: "code"; key: number; language: string; code: string; open: boolean }
  | { kind: "plain"; key: number; text: string };

/** Inline Markdown longer than this is shown as it is written: parsing it may take quadratic time. */
export const LONGEST_PARSED = 5_000;
/** A line outside of a fence that is longer than this is not Markdown at all. */
export const LONGEST_LINE = 16_000;
const PLAIN_PIECE = 4_000;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^\n`]*)\n/;
const BLANK_LINE = /\n[ \t]*\n/;
const ITEM_BEGUN = /^ {0,3}(\d{1,9}[.)]?|[-+*])?\s*$/;
const FENCE_LINE = /^ {0,3}(`{3,}|~{3,})/;

/** A block without its place. */
type Parsed =
  | { kind: "html"; html: string }
  | { kind: "code"; language: string; code: string; open: boolean }
  | { kind: "plain"; text: string };

/** What carries over from block to block. */
interface Context {
  links: Links;
  /** The level of the heading before; the page itself has the first. */
  level: number;
}

type Links = Record<string, { href: string | null; title: string | null }>;

export class MarkdownStream {
  private frozen: Block[] = [];
  private frozenLength = 0;
  private text = "";
  private last: Block[] = [];
  private done = false;
  private context: Context = fresh();
  /** A block without an end in sight: its first part, parsed, and how long that is. */
  private head: Parsed[] = [];
  private headLength = 0;

  get blocks(): Block[] {
    return this.last.length === 0 ? this.frozen : [...this.frozen, ...this.last];
  }

  /** Show `text`, which begins with what was shown before; else start anew. */
  update(written: string, streaming: boolean): Block[] {
    const text = written.includes("\r") ? written.replace(/\r\n?/g, "\n") : written;
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
    this.context = fresh();
    this.headLength = 0;
  }

  /** What is frozen stands, unless a link was defined: then words before it may have become links. */
  private finish(): void {
    this.done = true;
    this.last = [];
    const tail = this.text.slice(this.frozenLength);
    const context = { links: { ...this.context.links }, level: this.context.level };
    const rest = toParsed(tail, context);
    if (Object.keys(context.links).length > 0) this.frozen = keyed(parse(this.text), 0);
    else this.frozen = [...this.frozen, ...keyed(rest, this.frozen.length)];
  }

  private grow(): void {
    const tail = this.text.slice(this.frozenLength);
    const fence = openFence(tail);
    if (fence) {
      this.show([fence]);
      return;
    }
    if (this.headLength > 0 && tail.length < this.headLength * 2) {
      this.show([...this.head, ...plain(tail.slice(this.headLength))]);
      return;
    }
    const [segment] = segments(tail);
    if (segment && (segment.long || segment.text.length < tail.length)) this.takeSegment(segment, tail);
    else this.lexTail(tail);
  }

  /** The part before a very long line, or that line. */
  private takeSegment(segment: Segment, tail: string): void {
    const blocks = segment.long ? plain(segment.text) : toBlocks(segment.text, this.context);
    const isOpen = segment.long && segment.text.length === tail.length;
    if (isOpen) {
      this.show(blocks);
      return;
    }
    this.freeze(blocks, segment.text.length);
    this.grow();
  }

  private lexTail(tail: string): void {
    const tokens = lex(tail, this.context.links);
    const complete = completeTokens(tokens);
    const raw = complete.map((token) => token.raw).join("");
    const isPrefix = tail.startsWith(raw);
    if (isPrefix && complete.length > 0) this.freeze(rendered(complete, this.context), raw.length);
    const rest = isPrefix ? tokens.slice(complete.length) : tokens;
    const restText = isPrefix ? tail.slice(raw.length) : tail;
    const restFence = openFence(restText);
    const blocks = restFence ? [restFence] : rendered(rest, { ...this.context });
    if (!restFence && restText.length > LONGEST_PARSED) {
      this.head = blocks;
      this.headLength = restText.length;
    }
    this.show(blocks);
  }

  private freeze(blocks: Parsed[], length: number): void {
    if (blocks.length > 0) this.frozen = [...this.frozen, ...keyed(blocks, this.frozen.length)];
    this.frozenLength += length;
    this.headLength = 0;
    this.last = [];
  }

  private show(blocks: Parsed[]): void {
    this.last = keyed(blocks, this.frozen.length);
  }
}

/** The blocks of a whole text. */
export function parse(written: string): Parsed[] {
  const text = written.includes("\r") ? written.replace(/\r\n?/g, "\n") : written;
  return toParsed(text, fresh());
}

function toParsed(text: string, context: Context): Parsed[] {
  return segments(text).flatMap((segment) => (segment.long ? plain(segment.text) : toBlocks(segment.text, context)));
}

interface Segment {
  text: string;
  /** One line, too long to be looked at. */
  long: boolean;
}

/** The text, cut at very long lines that stand outside of fences. */
function segments(text: string): Segment[] {
  if (text.length <= LONGEST_LINE) return [{ text, long: false }];
  const found: Segment[] = [];
  let from = 0;
  let fence = "";
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf("\n", start);
    const stop = end < 0 ? text.length : end + 1;
    const mark = FENCE_LINE.exec(text.slice(start, Math.min(stop, start + 80)))?.[1] ?? "";
    if (fence === "") fence = mark;
    else if (mark.startsWith(fence)) fence = "";
    if (fence === "" && stop - start > LONGEST_LINE) {
      if (start > from) found.push({ text: text.slice(from, start), long: false });
      found.push({ text: text.slice(start, stop), long: true });
      from = stop;
    }
    start = stop;
  }
  if (from < text.length) found.push({ text: text.slice(from), long: false });
  return found;
}

/** Tokens of `text`; link definitions are added to `links`. */
function lex(text: string, links: Links): Token[] {
  const lexer = new Lexer();
  Object.assign(lexer.tokens.links, links);
  try {
    lexer.blockTokens(text, lexer.tokens);
    for (const { src, tokens } of lexer.inlineQueue) {
      if (src.length > LONGEST_PARSED) tokens.push({ type: "text", raw: src, text: src, escaped: false });
      else lexer.inlineTokens(src, tokens);
    }
  } catch {
    // Nesting so deep that the parser's recursion does not bear it.
    return [{ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text, escaped: false }] }];
  }
  Object.assign(links, lexer.tokens.links);
  return lexer.tokens;
}

function toBlocks(text: string, context: Context): Parsed[] {
  return rendered(lex(text, context.links), context);
}

function fresh(): Context {
  return { links: {}, level: 1 };
}

/** Headings are below the page's own and skip no level, whatever the model wrote: a screen reader goes by them. */
function rendered(tokens: Token[], context: Context): Parsed[] {
  marked.walkTokens(tokens, (token) => {
    if (token.type !== "heading") return;
    const heading = token as Tokens.Heading;
    heading.depth = Math.min(heading.depth + 1, context.level + 1, 6);
    context.level = heading.depth;
  });
  return tokens.flatMap(block);
}

/** Tokens that no later text can change: those before the last place where two blocks stand apart for good. */
function completeTokens(tokens: Token[]): Token[] {
  let place = lastBlock(tokens, tokens.length);
  while (place > 0 && !isApart(tokens, place)) place -= 1;
  return tokens.slice(0, Math.max(0, place));
}

/** Whether the token at `place` can never become part of what stands before it. */
function isApart(tokens: Token[], place: number): boolean {
  const before = tokens[place - 1];
  if (before?.type === "code" || before?.type === "heading") return true;
  if (before?.type !== "space" || !BLANK_LINE.test(before.raw)) return false;
  const next = tokens[place];
  return tokens[lastBlock(tokens, place)]?.type !== "list" || (next?.type !== "list" && !ITEM_BEGUN.test(next?.raw ?? ""));
}

/** The place of the last token before `end` that is not mere space, or -1. */
function lastBlock(tokens: Token[], end: number): number {
  return tokens.slice(0, end).findLastIndex((token) => token.type !== "space");
}

function block(token: Token): Parsed[] {
  if (token.type === "space" || token.type === "def") return [];
  if (token.type === "code") {
    const code = token as Tokens.Code;
    return [{ kind: "code", language: code.lang ?? "", code: code.text, open: false }];
  }
  if (token.type === "paragraph" && token.raw.length > LONGEST_PARSED) return plain(token.raw);
  try {
    return parts(token).map((part) => ({ kind: "html", html: marked.parser([part]) }));
  } catch {
    return plain(token.raw);
  }
}

const ROWS = 100;

/** A very long list or table in several, so that what is added changes only the last; a table's head is repeated. */
function parts(token: Token): Token[] {
  if (token.type === "list") {
    const list = token as Tokens.List;
    const start = Number(list.start || 1);
    return chunks(list.items, (items, from) => ({ ...list, items, start: list.ordered ? start + from : list.start }));
  }
  if (token.type === "table") {
    const table = token as Tokens.Table;
    return chunks(table.rows, (rows) => ({ ...table, rows }));
  }
  return [token];
}

function chunks<T>(items: T[], make: (items: T[], from: number) => Token): Token[] {
  const count = Math.max(1, Math.ceil(items.length / ROWS));
  return Array.from({ length: count }, (_, place) => make(items.slice(place * ROWS, (place + 1) * ROWS), place * ROWS));
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
  return pieces(text, PLAIN_PIECE, " ").map((piece) => ({ kind: "plain", text: piece }));
}

/** `text` in pieces of at most `longest`, cut after `mark` where there is one. */
export function pieces(text: string, longest: number, mark: string): string[] {
  const found: string[] = [];
  for (let start = 0; start < text.length; ) {
    let stop = Math.min(start + longest, text.length);
    const place = stop < text.length ? text.lastIndexOf(mark, stop - 1) : -1;
    if (place >= start) stop = place + 1;
    found.push(text.slice(start, stop));
    start = stop;
  }
  return found;
}

function keyed(blocks: Parsed[], from: number): Block[] {
  return blocks.map((one, place) => ({ ...one, key: from + place }));
}
