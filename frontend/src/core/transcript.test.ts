import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { whole } from "./actions";
import type { Recorded, State } from "./frames";
import { Transcript } from "./transcript";

type Golden = { name: string; session: string; events: Recorded[]; states: ({ after: number } & State)[] };

const folder = new URL("../../../tests/golden/", import.meta.url);
const files = readdirSync(folder).filter((name) => name.endsWith(".json"));
const goldens = files.map((name) => JSON.parse(readFileSync(new URL(name, folder), "utf8")) as Golden);

/** A tool call's half written arguments are in no snapshot; they come in one piece or not at all. */
function isBetweenCalls(events: Recorded[], after: number): boolean {
  const types = events.filter((event) => event.seq <= after).map(({ event }) => event.type);
  const count = (type: string) => types.filter((one) => one === type).length;
  return count("TOOL_CALL_START") === count("TOOL_CALL_END");
}

/** A golden state with all that its actions have. */
function complete(state: State): State {
  return { ...state, messages: state.messages.map(whole) };
}

describe("the fold", () => {
  it("has golden files", () => expect(goldens.length).toBeGreaterThan(4));

  it.each(goldens)("gives the golden states, event by event: $name", ({ session, events, states }) => {
    const transcript = new Transcript(session);
    for (const { after, ...state } of states) {
      transcript.applyAll(events.filter((event) => event.seq > transcript.seq && event.seq <= after));
      expect(transcript.state(), `after ${after}`).toEqual(complete(state));
    }
  });

  it.each(goldens)("gives the last state when all is applied at once: $name", ({ session, events, states }) => {
    const transcript = new Transcript(session);
    transcript.applyAll(events);
    const { after: _, ...last } = states.at(-1)!;
    expect(transcript.state()).toEqual(complete(last as State));
  });

  it.each(goldens)("goes on from the snapshot at every event: $name", ({ session, events, states }) => {
    const { after: _, ...last } = states.at(-1)!;
    for (const { after, ...state } of states.filter((one) => isBetweenCalls(events, one.after))) {
      const transcript = Transcript.from(session, after, structuredClone(state as State));
      transcript.applyAll(events.filter((event) => event.seq > after));
      expect(transcript.state(), `cut at ${after}`).toEqual(complete(last as State));
    }
  });
});
