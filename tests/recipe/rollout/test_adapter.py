"""The weight sync does not wait for ever."""

import asyncio
import time

import pytest
import torch
import zmq


@pytest.mark.timeout(120)
def test_a_sender_whose_receiver_has_died_gives_up(tmp_path, monkeypatch):
    """verl's own sender, and nobody at the other end."""
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    from recipe.poise import plugin

    plugin.register()  # vLLM's CPU build answers to verl's question for its version
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    from recipe.poise.rollout.adapter import limit_waiting

    sender = BucketedWeightSender(f"ipc://{tmp_path}/nobody.sock", bucket_size_mb=1, use_shm=True)
    limit_waiting(1.0)
    start = time.monotonic()
    try:
        with pytest.raises(zmq.Again):
            asyncio.run(sender.async_send_weights(iter([("weight", torch.zeros(4))])))
    finally:
        limit_waiting(-0.001)  # as zmq has it
    assert 0.9 < time.monotonic() - start < 30
