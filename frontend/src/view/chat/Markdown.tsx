import { memo, useEffect, useMemo, useRef, useState } from "react";
import { type Block, MarkdownStream, pieces } from "../../core/markdown";
import { CopyButton } from "./CopyButton";
import { sanitized } from "./sanitize";

/** Markdown that streams; only blocks that changed are rendered again. */
export const Markdown = memo(function Markdown({ text, streaming }: { text: string; streaming: boolean }) {
  const stream = useMemo(() => new MarkdownStream(), []);
  const blocks = stream.update(text, streaming);
  const wasStreaming = useRef(streaming);
  const groups: Block[][] = [];
  for (let start = 0; start < blocks.length; start += GROUP) groups.push(blocks.slice(start, start + GROUP));
  return (
    <div className={wasStreaming.current ? "markdown grown" : "markdown"} data-testid="markdown">
      {groups.map((group, place) => (
        <Group key={place} blocks={group} />
      ))}
    </div>
  );
});

/** So many blocks are compared at once, so that a long text costs little to look through. */
const GROUP = 40;

const Group = memo(
  function Group({ blocks }: { blocks: Block[] }) {
    return (
      <div className="group">
        {blocks.map((block) => (
          <BlockView key={block.key} block={block} />
        ))}
      </div>
    );
  },
  (before, after) => before.blocks.length === after.blocks.length && before.blocks.every((block, place) => block === after.blocks[place]),
);

const BlockView = memo(
  function BlockView({ block }: { block: Block }) {
    if (block.kind === "plain") return <div className="plain">{block.text}</div>;
    if (block.kind === "code") return <Code block={block} />;
    return <Html html={block.html} />;
  },
  (before, after) => same(before.block, after.block),
);

function Html({ html }: { html: string }) {
  const clean = useMemo(() => sanitized(html), [html]);
  return <div className="block" dangerouslySetInnerHTML={{ __html: clean }} />;
}

function same(a: Block, b: Block): boolean {
  if (a === b) return true;
  if (a.kind === "code" && b.kind === "code") return a.open === b.open && a.code === b.code && a.language === b.language;
  if (a.kind === "html" && b.kind === "html") return a.html === b.html;
  return a.kind === "plain" && b.kind === "plain" && a.text === b.text;
}

function Code({ block }: { block: Extract<Block, { kind: "code" }> }) {
  const { open, language, code } = block;
  const html = useHighlighted(code, language, open);
  return (
    <div className="code" data-testid="code" data-open={open} data-highlighted={html !== null}>
      <header>
        <span>{language || "text"}</span>
        <CopyButton text={code} label="Copy code" />
      </header>
      <pre tabIndex={0} aria-label={language ? `Code, ${language}` : "Code"}>
        {html === null ? <PlainCode code={code} /> : <code dangerouslySetInnerHTML={{ __html: html }} />}
      </pre>
    </div>
  );
}

const LONGEST_HIGHLIGHTED = 20_000;

/** Highlighted code once the fence is closed. The highlighter escapes all that it does not write itself. */
function useHighlighted(code: string, language: string, open: boolean): string | null {
  const [html, setHtml] = useState<string | null>(null);
  useEffect(() => {
    setHtml(null);
    if (open || !language || code.length > LONGEST_HIGHLIGHTED) return;
    const abort = new AbortController();
    void import("./highlight").then(({ highlight }) => highlight(code, language, abort.signal, setHtml));
    return () => abort.abort();
  }, [open, language, code]);
  return html;
}

const CODE_PIECE = 4_000;

/** Code in blocks of some lines, so that what is added has only the last block laid out again. */
function PlainCode({ code }: { code: string }) {
  if (code.length <= CODE_PIECE) return <code>{code}</code>;
  return (
    <code>
      {pieces(code, CODE_PIECE, "\n").map((piece, place) => (
        <Piece key={place} text={piece} />
      ))}
    </code>
  );
}

const Piece = memo(function Piece({ text }: { text: string }) {
  return <span className="piece">{text}</span>;
});
