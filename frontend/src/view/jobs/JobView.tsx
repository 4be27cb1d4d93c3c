import { useMutation, useQuery } from "@tanstack/react-query";
import { useEffect, useRef, useState } from "react";
import { api, links } from "../../core/api";
import { again, commandText, facts, grown, type Job, type Piece, signOf, standing } from "../../core/jobs";
import { readable, visible } from "../../core/output";
import { inWords } from "../browser";
import { useServerTime } from "../hooks";

const POLL_MS = 1_000;

interface Props {
  id: string;
  onClose: () => void;
  onAgain: (job: Job) => void;
  onChange: () => void;
}

/** One job: where it stands, what it says, and what can be done about it. */
export function JobView({ id, onClose, onAgain, onChange }: Props) {
  const { data: job, error, refetch } = useQuery({ queryKey: ["job", id], queryFn: () => api.job(id), refetchInterval: POLL_MS });
  const changed = () => {
    void refetch();
    onChange();
  };
  const cancel = useMutation({ mutationFn: () => api.cancelJob(id), onSettled: changed });
  const repeat = useMutation({ mutationFn: (of: Job) => api.submitJob(again(of)), onSuccess: onAgain, onSettled: onChange });
  const now = useServerTime(job !== undefined && job.completed_at === null);
  const failed = error ?? cancel.error ?? repeat.error;
  const isOpen = job !== undefined && job.completed_at === null;
  const isStopping = cancel.isPending || (isOpen && job.cancellation_status !== null);
  return (
    <section className="job" aria-label="Job">
      <header>
        <h2>{job?.name ?? "…"}</h2>
        {isOpen && (
          <button type="button" className="stop" disabled={isStopping} onClick={() => cancel.mutate()}>
            {isStopping ? "Stopping…" : "Cancel"}
          </button>
        )}
        {job && !isOpen && (
          <button type="button" disabled={repeat.isPending} onClick={() => repeat.mutate(job)}>
            Run again
          </button>
        )}
        <button type="button" className="quiet" aria-label="Close" onClick={onClose}>
          ✕
        </button>
      </header>
      {failed && <p role="alert" className="problem">{inWords(failed)}</p>}
      {job && (
        <>
          <p className={`job-status ${job.status}`} data-testid="job-status">
            <span aria-hidden="true">{signOf(job)}</span> {job.error && job.status !== "cancelled" ? `${job.error} · ` : ""}
            {standing(job, now)}
            {facts(job).map(([name, value]) => ` · ${name} ${value}`)}
          </p>
          <pre className="output command">{visible(commandText(job.command))}</pre>
          <LiveOutput id={id} isWaiting={job.status === "queued"} onNews={changed} />
          <p className="note">
            <a href={links.jobOutput(id)} download={`${id}.txt`}>Whole output</a>
          </p>
        </>
      )}
    </section>
  );
}

/** The end of what a job has said, followed while it goes on; the browser comes back by itself where it stood. */
function LiveOutput({ id, isWaiting, onNews }: { id: string; isWaiting: boolean; onNews: () => void }) {
  const [pieces, setPieces] = useState<Piece[]>([]);
  const box = useRef<HTMLPreElement>(null);
  const isAtEnd = useRef(true);
  const tell = useRef(onNews);
  tell.current = onNews;
  useEffect(() => {
    setPieces([]);
    const source = new EventSource(links.jobEvents(id));
    let waiting: Piece[] = [];
    let frame = 0;
    const show = () => {
      frame = 0;
      const more = waiting;
      waiting = [];
      setPieces((before) => more.reduce(grown, before));
    };
    source.addEventListener("message", () => tell.current(), { once: true });
    source.onmessage = (event) => {
      waiting.push(JSON.parse(event.data as string) as Piece);
      frame ||= requestAnimationFrame(show);
    };
    source.addEventListener("end", () => {
      source.close();
      tell.current();
    });
    return () => {
      source.close();
      cancelAnimationFrame(frame);
    };
  }, [id]);
  useEffect(() => {
    const element = box.current;
    if (element && isAtEnd.current) element.scrollTop = element.scrollHeight;
  }, [pieces]);
  const onScroll = () => {
    const element = box.current;
    if (element) isAtEnd.current = element.scrollHeight - element.scrollTop - element.clientHeight < 24;
  };
  if (isWaiting && pieces.length === 0) return <p className="hint">It has not started yet.</p>;
  return (
    <pre ref={box} className="output live exact" role="log" aria-live="off" aria-label="Output" tabIndex={0} onScroll={onScroll} data-testid="job-output">
      {pieces.map((piece, place) => (
        <span key={place} className={piece.stream}>{readable(piece.text)}</span>
      ))}
    </pre>
  );
}
