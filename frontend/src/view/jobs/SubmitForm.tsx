import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { api } from "../../core/api";
import type { Job, NewJob } from "../../core/jobs";
import { inWords } from "../browser";

interface Props {
  queue: string;
  onSubmitted: (job: Job) => void;
}

/** A command for bash, and what seldom differs behind it. */
export function SubmitForm({ queue, onSubmitted }: Props) {
  const [command, setCommand] = useState("");
  const submit = useMutation({
    mutationFn: (job: NewJob) => api.submitJob(job),
    onSuccess: onSubmitted,
    onError: (_, job) => setCommand((now) => now || String(job.command)),
  });
  return (
    <form
      className="submit"
      onSubmit={(event) => {
        event.preventDefault();
        submit.mutate({ command, queue, ...options(new FormData(event.currentTarget)) });
        setCommand("");
      }}
    >
      <div className="submit-line">
        <input aria-label="Command" placeholder="Command, for bash" value={command} maxLength={20_000} spellCheck={false} onChange={(event) => setCommand(event.target.value)} />
        <button type="submit" className="primary" disabled={!command.trim()}>
          Submit
        </button>
      </div>
      <details>
        <summary>Options</summary>
        <div className="options">
          <label>Name <input name="name" maxLength={255} /></label>
          <label>Priority <input name="priority" type="number" min={-1000} max={1000} /></label>
          <label>Timeout, s <input name="timeout" type="number" min={1} max={86_400} /></label>
          <label>Retries <input name="retries" type="number" min={0} max={100} /></label>
          <label className="check"><input name="keep" type="checkbox" /> goes on when the service restarts</label>
        </div>
      </details>
      {submit.error && <p role="alert" className="problem">{inWords(submit.error)}</p>}
    </form>
  );
}

function options(form: FormData): Partial<NewJob> {
  const found: Partial<NewJob> = {};
  const name = form.get("name");
  if (typeof name === "string" && name.trim()) found.name = name.trim();
  for (const field of ["priority", "timeout", "retries"] as const) {
    const value = form.get(field);
    if (typeof value === "string" && value !== "") found[field] = Number(value);
  }
  if (form.get("keep")) found.on_restart = "keep";
  return found;
}
