"""A run whose prompts fail without end ends, and says whether the servers are gone."""

from collections import Counter

import pytest

from recipe.poise.trainer.separate import FailureWatch, without_its_info


class Buffer:
    """The part of verl's buffer that is wrapped."""

    def __init__(self):
        self.evicted = []

    def _evict_terminal_groups(self, global_steps, partition_id, eviction_reasons):
        self.evicted.append(eviction_reasons[2])
        return eviction_reasons[2], 0, 0, {}


def reasons(failed: int) -> tuple:
    return {"stale"}, {"dapo"}, {f"uid{number}" for number in range(failed)}, Counter()


def test_failures_in_a_row_end_the_run_and_others_do_not():
    buffer, checked = Buffer(), []
    watch = FailureWatch(buffer, 5, checked.append)
    for failed in (0, 2, 3):
        buffer._evict_terminal_groups(1, "train", reasons(failed))
    assert checked == [2, 5] and [len(uids) for uids in buffer.evicted] == [0, 2, 3]
    watch.failures = 0  # a batch was complete
    buffer._evict_terminal_groups(1, "train", reasons(5))
    with pytest.raises(
        RuntimeError, match="6 prompts failed in a row, more than 5, although the rollout servers answer"
    ):
        buffer._evict_terminal_groups(1, "train", reasons(1))


def test_a_server_that_is_gone_ends_it_at_the_first_failure():
    def gone(failures):
        raise RuntimeError(f"gone, {failures} lost")

    buffer = Buffer()
    FailureWatch(buffer, 5, gone)
    with pytest.raises(RuntimeError, match="gone, 1 lost"):
        buffer._evict_terminal_groups(1, "train", reasons(1))


def test_verl_says_that_hybrid_replicas_are_off_in_a_way_that_logging_refuses():
    """What `without_its_info` is there for; drop it when verl's line is mended."""
    import inspect

    from verl.trainer.ppo.v1 import trainer_separate_async as module

    assert 'replicas only",\n                flush=True,' in inspect.getsource(module.PPOTrainerSeparateAsync._setup)
    module.logger.setLevel("INFO")
    with pytest.raises(TypeError, match="flush"):
        module.logger.info("text", flush=True)
    with without_its_info():
        module.logger.info("text", flush=True)
    assert module.logger.isEnabledFor(20)
