"""Benchmarks: ratios against a control in the same run, never bare times."""
