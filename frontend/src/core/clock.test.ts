import { describe, expect, it } from "vitest";
import { ServerClock } from "./clock";

describe("the server's clock", () => {
  const noon = Date.parse("2026-01-01T12:00:00Z");

  it.each([-3_600_000, 0, 3_600_000])("is known whatever the local clock says: %i ms off", (off) => {
    let local = noon + off;
    const clock = new ServerClock(() => local);
    clock.heard("2026-01-01T11:00:00Z");
    clock.heard("2026-01-01T12:00:00Z");
    clock.heard("2026-01-01T11:30:00Z");
    local += 5_000;
    expect(clock.now()).toBe(noon + 5_000);
  });

  it("is the local one until a time was heard", () => {
    const clock = new ServerClock(() => 7);
    clock.heard("nonsense");
    expect(clock.now()).toBe(7);
  });
});
