"""Settings for all tests, and the order in which they run."""

import os

# As launch/env.sh exports them, for a pytest that is started by hand; Ray's workers and subprocesses inherit them.
for _name, _value in {
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HYDRA_FULL_ERROR": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    # at Ray's 15 workers would wait for whatever else the machine does
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(_name, _value)


def pytest_collection_modifyitems(items):
    """End-to-end and Slurm tests last: what breaks quickly is seen quickly. The sort is stable."""
    items.sort(key=lambda item: any(item.get_closest_marker(name) for name in ("slurm", "e2e")))
