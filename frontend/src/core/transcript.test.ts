import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import type { Recorded, State } from "./frames";
import { Transcript } from "./transcript";

type Golden = { name: string; session: string; events: Recorded[]; states: ({ after: number } & State)[] };

const folder = new URL("../../../tests/golden/", import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
const goldens = files.map((name) => JSON.parse(readFileSync(new URL(name, folder), "utf8")) as Golden);

/** A tool call's half written arguments are in no snapshot; they come in one piece or not at all. */
const cutAnywhere = goldens.filter((golden) => golden.name !== "actions");

describe("the fold", () => {
  it("has golden files", () => expect(goldens.length).toBeGreaterThan(4));

  it.each(goldens)("gives the golden states, event by event: $name", ({ session, events, states }) => {
    const transcript = new Transcript(session);
    for (const { after, ...state } of states) {
      transcript.applyAll(events.filter((event) => event.seq > transcript.seq && event.seq <= after));
      expect(transcript.state(), `after ${after}`).toEqual(state);
    }
  });

  it.each(goldens)("gives the last state when all is applied at once: $name", ({ session, events, states }) => {
    const transcript = new Transcript(session);
    transcript.applyAll(events);
    const { after: _, ...last } = states.at(-1)!;
    expect(transcript.state()).toEqual(last);
  });

  it.each(cutAnywhere)("goes on from the snapshot at every event: $name", ({ session, events, states }) => {
    const { after: _, ...last } = states.at(-1)!;
    for (const { after, ...state } of states) {
      const transcript = Transcript.from(session, after, structuredClone(state));
      transcript.applyAll(events.filter((event) => event.seq > after));
      expect(transcript.state(), `cut at ${after}`).toEqual(last);
    }
  });
});
