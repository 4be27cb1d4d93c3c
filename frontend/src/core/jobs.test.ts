import { describe, expect, it } from "vitest";
import { again, commandText, facts, grown, type Job, LONGEST_OUTPUT, type Piece, standing } from "./jobs";

const NOW = Date.parse("2026-01-01T00:01:00Z");

function job(values: Partial<Job>): Job {
  return {
    job_id: "j", name: "n", command: "true", cwd: null, sandbox: "on", on_restart: "end", status: "queued", queue: "default",
    position: 1, priority: 0, exit_code: null, signal: null, error: null, cpu_s: null, max_rss_bytes: null, kill_failures: 0,
    attempt: 0, retries: 0, failures: 0, version: 1, cancellation_status: null, created_at: "2026-01-01T00:00:00Z", run_at: null,
    started_at: null, completed_at: null, metadata: {}, ...values,
  };
}

describe("where a job stands", () => {
  it.each<[Partial<Job>, string]>([
    [{ position: 3 }, "position 3"],
    [{ position: 1, run_at: "2026-01-01T00:01:30Z" }, "position 1, starts in 30 s"],
    [{ position: 2, failures: 1 }, "try 2, position 2"],
    [{ status: "running", started_at: "2026-01-01T00:00:30Z" }, "30 s"],
    [{ status: "running", started_at: "2026-01-01T00:00:30Z", cancellation_status: "Requested" }, "stopping… 30 s"],
    [{ status: "completed", started_at: "2026-01-01T00:00:30Z", completed_at: "2026-01-01T00:00:32Z" }, "completed in 2.0 s"],
    [{ status: "cancelled", completed_at: "2026-01-01T00:00:32Z" }, "cancelled"],
  ])("%j", (values, words) => {
    expect(standing(job(values), NOW)).toBe(words);
  });

  it("tells what is out of the ordinary", () => {
    expect(facts(job({}))).toEqual([]);
    expect(facts(job({ exit_code: 0, kill_failures: 2, sandbox: "off" }))).toEqual([
      ["exit", "0"],
      ["kills without effect", "2"],
      ["sandbox", "none"],
    ]);
  });
});

it("shows a command as a person would type it", () => {
  expect(commandText("a | b")).toBe("a | b");
  expect(commandText(["echo", "it's", "a b", ""])).toBe("echo 'it'\\''s' 'a b' ''");
});

it("asks for the same again", () => {
  expect(again(job({ cwd: "x", priority: 3 }))).toMatchObject({ command: "true", cwd: "x", priority: 3, queue: "default" });
  expect(again(job({}))).not.toHaveProperty("cwd");
});

describe("output", () => {
  const out = (text: string): Piece => ({ stream: "stdout", text });

  it("grows by stream", () => {
    const all = [out("a"), out("b"), { stream: "stderr", text: "c" } as Piece, out("d")].reduce(grown, [] as Piece[]);
    expect(all).toEqual([out("ab"), { stream: "stderr", text: "c" }, out("d")]);
  });

  it("keeps its end, and no more than is bearable", () => {
    let all: Piece[] = [];
    for (let n = 0; n < 60; n++) all = grown(all, out(`${n}`.padStart(9_999, "x") + "\n"));
    const text = all.map((piece) => piece.text).join("");
    expect(text.length).toBe(LONGEST_OUTPUT);
    expect(text.endsWith("59\n")).toBe(true);
  });
});
