"""Verdicts of `diagnose` on runs with known truth."""
