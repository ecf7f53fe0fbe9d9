"""The embedded default: a tiny warm-started model, tasks and data that let RL be watched on two CPU cores."""
