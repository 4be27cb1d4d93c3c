import { describe, expect, it } from "vitest";
import { elapsed, size, stopWords, took } from "./words";

describe("words", () => {
  it.each([
    [-5, "0 ms"], [80, "80 ms"], [999.4, "999 ms"], [1_949, "1.9 s"], [9_999, "9.9 s"], [59_999, "59 s"], [61_000, "1 min 01 s"], [3_660_000, "1 h 01 min"],
  ])("for %i ms: %s", (ms, text) => expect(took(ms)).toBe(text));

  it("count whole seconds while something goes on", () => expect(elapsed(1_949)).toBe("1 s"));

  it.each([[0, "0 B"], [1023, "1023 B"], [1024, "1.0 KiB"], [15_000, "14 KiB"], [1024 ** 3, "1.0 GiB"]])("for %i bytes: %s", (bytes, text) => expect(size(bytes)).toBe(text));

  it("say what was stopped and how", () => {
    expect(stopWords(undefined)).toBe("Stopped.");
    expect(stopWords({ took_ms: 12 })).toBe("Stopped in 12 ms.");
    const processes = [{ pid: 1, how: "killed" }, { pid: 2, how: "terminated" }];
    expect(stopWords({ took_ms: 80, processes, reason: "enough" })).toBe("Stopped in 80 ms · 2 processes ended (1 killed). Reason: enough");
    expect(stopWords({ took_ms: 80, processes: processes.slice(1) })).toBe("Stopped in 80 ms · 1 process ended.");
  });
});
