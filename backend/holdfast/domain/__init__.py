"""Pure rules: no clock, no randomness, no I/O. Everything else may import it; it imports nothing."""
