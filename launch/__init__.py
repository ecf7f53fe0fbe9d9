"""How a run starts: on one machine, by a Ray job, under Slurm. See docs/launch.md."""
