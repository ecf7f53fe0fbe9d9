"""Comparison of runs: POISE beside other estimators, one report."""
