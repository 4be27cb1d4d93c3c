import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { api, type Entry, links } from "../core/api";
import { textOf, visible } from "../core/output";
import { pieces } from "../core/markdown";
import { size } from "../core/words";
import { inWords } from "./browser";
import { Dialog } from "./Dialog";

const LONGEST_VIEW = 256 * 1024;
const MOST_ENTRIES = 1_000;
const PIECE = 4_000;

/** A session's working folder: what is in it, to look at and to take away. */
export default function FilesDialog({ session, onClose }: { session: string; onClose: () => void }) {
  const [folder, setFolder] = useState("");
  const [file, setFile] = useState<string | null>(null);
  const goTo = (path: string) => {
    setFile(null);
    setFolder(path);
  };
  return (
    <Dialog title="Files" kind="files" onClose={onClose}>
      <Trail folder={folder} file={file} onGo={goTo} />
      {file === null ? (
        <Folder key={folder} session={session} path={folder} onFolder={goTo} onFile={setFile} />
      ) : (
        <FileView key={file} session={session} path={file} onBack={() => setFile(null)} />
      )}
      <div className="choices">
        <button type="button" onClick={onClose}>
          Close
        </button>
      </div>
    </Dialog>
  );
}

/** The way from the working folder to what is shown. */
function Trail({ folder, file, onGo }: { folder: string; file: string | null; onGo: (path: string) => void }) {
  const names = folder === "" ? [] : folder.split("/");
  const places = names.map((name, place) => ({ name, path: names.slice(0, place + 1).join("/") }));
  return (
    <nav className="trail" aria-label="Place">
      {[{ name: "Working folder", path: "" }, ...places].map(({ name, path }) => (
        <button key={path} type="button" className="quiet" aria-current={path === folder && file === null ? "page" : undefined} onClick={() => onGo(path)}>
          {visible(name)}
        </button>
      ))}
      {file !== null && <span aria-current="page">{visible(file.slice(folder === "" ? 0 : folder.length + 1))}</span>}
    </nav>
  );
}

interface FolderProps {
  session: string;
  path: string;
  onFolder: (path: string) => void;
  onFile: (path: string) => void;
}

function Folder({ session, path, onFolder, onFile }: FolderProps) {
  const { data, error, isPending, refetch } = useQuery({ queryKey: ["files", session, path], queryFn: () => api.files(session, path) });
  if (error) return <Fault words={inWords(error)} onAgain={() => void refetch()} />;
  if (isPending) return <p className="hint">Loading…</p>;
  const entries = data.entries.toSorted(byName);
  const within = (name: string) => (path === "" ? name : `${path}/${name}`);
  return (
    <>
      {entries.length === 0 && <p className="hint">This folder is empty.</p>}
      <ul className="entries" data-testid="files">
        {entries.slice(0, MOST_ENTRIES).map((entry) => (
          <Row key={entry.name} session={session} entry={entry} path={within(entry.name)} onFolder={onFolder} onFile={onFile} />
        ))}
      </ul>
      {entries.length > MOST_ENTRIES && <p className="hint">{(entries.length - MOST_ENTRIES).toLocaleString("en")} more are not shown.</p>}
    </>
  );
}

function byName(one: Entry, other: Entry): number {
  const rank = (entry: Entry) => (entry.kind === "folder" ? 0 : 1);
  return rank(one) - rank(other) || one.name.localeCompare(other.name);
}

function Row({ session, entry, path, onFolder, onFile }: FolderProps & { entry: Entry }) {
  const { name, kind, bytes, modified } = entry;
  const open = kind === "folder" ? () => onFolder(path) : () => onFile(path);
  return (
    <li data-testid="file" data-kind={kind}>
      <button type="button" className="quiet name" disabled={kind === "other" || kind === "link"} onClick={open}>
        {visible(name)}
        {kind === "folder" ? "/" : ""}
      </button>
      <span className="note">{kind === "file" ? size(bytes) : kind === "folder" ? "" : kind}</span>
      <time className="note" dateTime={modified}>{new Date(modified).toLocaleString([], { dateStyle: "short", timeStyle: "short" })}</time>
      {kind === "file" ? <a href={links.file(session, path)} download={name} aria-label={`Download ${visible(name)}`}>↓</a> : <span />}
    </li>
  );
}

function FileView({ session, path, onBack }: { session: string; path: string; onBack: () => void }) {
  const { data, error, isPending, refetch } = useQuery({
    queryKey: ["file", session, path],
    queryFn: ({ signal }) => api.file(session, path, LONGEST_VIEW, signal),
    gcTime: 0,
  });
  if (error) return <Fault words={inWords(error)} onAgain={() => void refetch()} />;
  if (isPending) return <p className="hint">Loading…</p>;
  const text = textOf(data.bytes);
  return (
    <>
      <div className="choices start">
        <button type="button" onClick={onBack}>Back</button>
        <button type="button" onClick={() => void refetch()}>Reload</button>
        <a className="button" href={links.file(session, path)} download>Download</a>
      </div>
      {text === null ? (
        <p className="hint">This is not text. It can be downloaded.</p>
      ) : (
        <pre className="output exact file" tabIndex={0} aria-label={`Content of ${visible(path)}`} data-testid="file-text">
          {pieces(text, PIECE, "\n").map((piece, place) => <span key={place} className="piece">{piece}</span>)}
        </pre>
      )}
      {text !== null && !data.isWhole && <p className="note">Only the first {size(LONGEST_VIEW)} are shown.</p>}
      {text === "" && <p className="hint">This file is empty.</p>}
    </>
  );
}

function Fault({ words, onAgain }: { words: string; onAgain: () => void }) {
  return (
    <p role="alert" className="problem">
      {words}
      <button type="button" className="quiet" onClick={onAgain}>
        Try again
      </button>
    </p>
  );
}
