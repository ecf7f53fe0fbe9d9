"""The embedded default: a tiny warm-started model, tasks and data that let RL be watched on two CPU cores."""

import os

# Before torch loads OpenMP: threads that wait for each other shall sleep. Where other processes use the cores too, they
# would burn them in turn: on two busy cores 0.19 steps of warm start per second with two threads, 2.8 like this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
