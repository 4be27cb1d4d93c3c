import { keepPreviousData, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { api } from "../../core/api";
import { type Job, signOf, standing } from "../../core/jobs";
import { inWords } from "../browser";
import { useServerTime } from "../hooks";
import { JobView } from "./JobView";
import { SubmitForm } from "./SubmitForm";

const POLL_MS = 1_000;

interface Props {
  /** The job that is looked at. */
  job: string | null;
  onOpen: (job: string | null) => void;
}

/** A queue with what runs and waits in it, what has ended, and one job beside them. */
export default function JobsPage({ job, onOpen }: Props) {
  const [queue, setQueue] = useState("default");
  const client = useQueryClient();
  const refresh = () => void client.invalidateQueries({ queryKey: ["jobs"] });
  const polled = { refetchInterval: POLL_MS, placeholderData: keepPreviousData };
  const queues = useQuery({ queryKey: ["jobs", "queues"], queryFn: api.queues, ...polled });
  const standing = useQuery({ queryKey: ["jobs", "queue", queue], queryFn: () => api.queue(queue), ...polled });
  const recent = useQuery({ queryKey: ["jobs", "list", queue], queryFn: () => api.jobs(queue), ...polled });
  const failed = standing.error ?? recent.error ?? queues.error;
  const line = standing.data?.jobs ?? [];
  const ended = (recent.data?.items ?? []).filter((one) => one.completed_at !== null);
  const waiting = line.filter((one) => one.status === "queued");
  return (
    <div className="jobs">
      <section className="job-lists" aria-label="Queue">
        <QueueHead queue={queue} names={queues.data?.items.map((one) => one.name) ?? [queue]} onQueue={setQueue} limit={standing.data?.max_running} onChange={refresh} />
        {failed && <p role="alert" className="problem">{inWords(failed)}</p>}
        <SubmitForm
          queue={queue}
          onSubmitted={(submitted) => {
            refresh();
            onOpen(submitted.job_id);
          }}
        />
        <JobList title="Running" jobs={line.filter((one) => one.status === "running")} current={job} onOpen={onOpen} onChange={refresh} />
        <JobList title={`Waiting${waiting.length > 0 ? ` (${standing.data?.queued})` : ""}`} jobs={waiting} current={job} onOpen={onOpen} onChange={refresh} canMove />
        <JobList title="Ended" jobs={ended} current={job} onOpen={onOpen} onChange={refresh} />
        {!standing.isPending && line.length + ended.length === 0 && <p className="hint">No jobs in this queue yet.</p>}
      </section>
      {job && <JobView key={job} id={job} onClose={() => onOpen(null)} onAgain={(next) => onOpen(next.job_id)} onChange={refresh} />}
    </div>
  );
}

interface HeadProps {
  queue: string;
  names: string[];
  limit: number | undefined;
  onQueue: (queue: string) => void;
  onChange: () => void;
}

/** Which queue is shown, and how many of its jobs run at once. */
function QueueHead({ queue, names, limit, onQueue, onChange }: HeadProps) {
  const change = useMutation({ mutationFn: (many: number) => api.setMaxRunning(queue, many), onSettled: onChange });
  const make = useMutation({
    mutationFn: (name: string) => api.setMaxRunning(name, 1),
    onSuccess: (made) => onQueue(made.name),
    onSettled: onChange,
  });
  const step = (by: number) => limit !== undefined && change.mutate(limit + by);
  const error = change.error ?? make.error;
  return (
    <>
      <header className="queue-head">
        <label>
          <span className="visually-hidden">Queue</span>
          <select value={queue} onChange={(event) => onQueue(event.target.value)}>
            {(names.includes(queue) ? names : [...names, queue]).map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            const input = new FormData(event.currentTarget).get("name");
            if (typeof input === "string" && input.trim()) make.mutate(input.trim());
            event.currentTarget.reset();
          }}
        >
          <input name="name" aria-label="New queue" placeholder="New queue" maxLength={100} />
        </form>
        <span className="limit" role="group" aria-label="Jobs at once">
          <button type="button" className="quiet" aria-label="Fewer at once" disabled={!limit || limit <= 1} onClick={() => step(-1)}>
            −
          </button>
          <output data-testid="max-running">{limit ?? "…"}</output> at once
          <button type="button" className="quiet" aria-label="More at once" disabled={limit === undefined} onClick={() => step(1)}>
            +
          </button>
        </span>
      </header>
      {error && <p role="alert" className="problem">{inWords(error)}</p>}
    </>
  );
}

interface ListProps {
  title: string;
  jobs: Job[];
  current: string | null;
  onOpen: (job: string) => void;
  onChange: () => void;
  canMove?: boolean;
}

function JobList({ title, jobs, current, onOpen, onChange, canMove = false }: ListProps): ReactNode {
  const now = useServerTime(jobs.some((job) => job.status === "running" || job.status === "queued"));
  const swap = useMutation({ mutationFn: ([a, b]: [Job, Job]) => api.swapJobs(a, b), onSettled: onChange });
  if (jobs.length === 0) return null;
  return (
    <section>
      <h2>{title}</h2>
      {swap.error && <p role="alert" className="problem">{inWords(swap.error)}</p>}
      <ol className="job-list">
        {jobs.map((job, place) => (
          <li key={job.job_id} className={job.job_id === current ? `current ${job.status}` : job.status} data-testid="job" data-status={job.status}>
            <button type="button" className="title" aria-current={job.job_id === current} onClick={() => onOpen(job.job_id)}>
              <span className="sign" aria-hidden="true">{signOf(job)}</span>
              <span className="name">{job.name}</span>
              <span className="facts">{standing(job, now)}</span>
            </button>
            {canMove && (
              <button type="button" className="quiet" aria-label={`Move ${job.name} up`} disabled={place === 0} onClick={() => swap.mutate([jobs[place - 1] as Job, job])}>
                ↑
              </button>
            )}
          </li>
        ))}
      </ol>
    </section>
  );
}
