/** The server's time, as far as this machine can tell: from the times that the server tells. */

export class ServerClock {
  /** How far the local clock is ahead, in ms: the least that was seen, since what is heard is never from the future. */
  private ahead: number | null = null;

  constructor(private readonly local: () => number) {}

  /** A time that the server told just now, or some time ago. */
  heard(time: string): void {
    const told = Date.parse(time);
    if (Number.isNaN(told)) return;
    const seen = this.local() - told;
    this.ahead = this.ahead === null ? seen : Math.min(this.ahead, seen);
  }

  /** Milliseconds since 1970 on the server; the local clock's until a time was heard. */
  now(): number {
    return this.local() - (this.ahead ?? 0);
  }
}

export const serverClock = new ServerClock(() => Date.now());
