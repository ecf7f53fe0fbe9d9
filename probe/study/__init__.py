"""Offline comparison of what to read and how to learn from it, on real rollouts: `python -m probe.study`."""
