"""How fast a client may send commands."""


class Bucket:
    """Tokens that come back at `rate` a second; it holds one second's worth."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate)
        self._at = now
        self.refused = 0

    def take(self, now: float) -> float:
        """0 when a token was there, else the seconds until the next one."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            self.refused = 0
            return 0.0
        self.refused += 1
        return (1 - self._tokens) / self._rate
