"""When something that failed is tried again."""

LONGEST_S = 3600.0


def backoff_s(failures: int, first_s: float, chance: float) -> float:
    """Seconds until the next try: `first_s`, doubled for each failure before, and up to half of that less by `chance`.

    `failures` is how many tries had failed before this one (0 for the first), `chance` a number from 0 to 1, so that
    what failed together is not tried together.
    """
    whole = min(first_s * 2.0 ** min(failures, 30), LONGEST_S)
    return whole * (1 - chance / 2)
