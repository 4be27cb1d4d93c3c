import { memo, useEffect, useMemo, useState } from "react";
import { type Block, MarkdownStream } from "../../core/markdown";
import { CopyButton } from "./MessageView";
import { sanitized } from "./sanitize";

/** Markdown that streams; only blocks that changed are rendered again. */
export function Markdown({ text, streaming }: { text: string; streaming: boolean }) {
  const stream = useMemo(() => new MarkdownStream(), []);
  const blocks = stream.update(text, streaming);
  return (
    <div className="markdown" data-testid="markdown">
      {blocks.map((block) => (
        <BlockView key={block.key} block={block} />
      ))}
    </div>
  );
}

const BlockView = memo(
  function BlockView({ block }: { block: Block }) {
    if (block.kind === "plain") return <div className="plain">{block.text}</div>;
    if (block.kind === "code") return <Code block={block} />;
    return <div dangerouslySetInnerHTML={{ __html: sanitized(block.html) }} />;
  },
  (before, after) => same(before.block, after.block),
);

function same(a: Block, b: Block): boolean {
  if (a === b) return true;
  if (a.kind === "code" && b.kind === "code") return a.open === b.open && a.code === b.code && a.language === b.language;
  if (a.kind === "html" && b.kind === "html") return a.html === b.html;
  return a.kind === "plain" && b.kind === "plain" && a.text === b.text;
}

const LONGEST_HIGHLIGHTED = 30_000;

function Code({ block }: { block: Extract<Block, { kind: "code" }> }) {
  const [html, setHtml] = useState<string | null>(null);
  const { open, language, code } = block;
  useEffect(() => {
    if (open || !language || code.length > LONGEST_HIGHLIGHTED) return setHtml(null);
    let gone = false;
    void import("./highlight").then(({ highlight }) => !gone && setHtml(highlight(code, language)));
    return () => {
      gone = true;
    };
  }, [open, language, code]);
  return (
    <div className="code" data-testid="code">
      <header>
        <span>{language || "text"}</span>
        <CopyButton text={code} label="Copy code" />
      </header>
      <pre tabIndex={0}>
        {html === null ? <code>{code}</code> : <code dangerouslySetInnerHTML={{ __html: sanitized(html) }} />}
      </pre>
    </div>
  );
}
