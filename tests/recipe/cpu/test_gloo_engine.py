"""Weights over gloo between real processes: two of a trainer, two of replicas; what is lost with one of them."""

import asyncio
import sys
import time

import pytest
import torch
import torch.multiprocessing as mp

from recipe.poise.cpu.gloo_engine import GlooCheckpointEngine, pack, unpack

BUCKET = 4096


def weights(sync: int) -> list[tuple[str, torch.Tensor]]:
    """Of several dtypes, one larger than a bucket, one empty, one without a dimension, one not contiguous."""
    made = torch.Generator().manual_seed(sync)
    return [
        ("embed", torch.randn(300, 7, generator=made)),
        ("half.weight", torch.randn(33, 5, generator=made).bfloat16()),
        ("tail", torch.randn(6, 4, generator=made).t()),
        ("count", torch.tensor(sync)),
        ("none", torch.empty(0, 3)),
        ("mask", torch.tensor([True, False, True])),
    ]


def test_what_is_packed_comes_out_again():
    for (name, sent), (found_name, found) in zip(weights(1), unpack(*pack(weights(1))), strict=True):
        assert name == found_name and sent.dtype == found.dtype and torch.equal(sent, found)
    with pytest.raises(ValueError, match="load is no dtype"):
        unpack(torch.frombuffer(bytearray(b'[["x", "load", [1], 0]]'), dtype=torch.uint8), torch.zeros(16))


def _member(place: int, topology_in, topology_out, results, gone: int | None, monkeypatched_host="127.0.0.1"):
    """Places 0 and 1 are the trainer's workers, 2 and 3 the replicas'; `gone` leaves after the first transfer."""
    import ray

    ray.util.get_node_ip_address = lambda: monkeypatched_host  # no cluster here
    torch.set_num_threads(1)
    engine = GlooCheckpointEngine(BUCKET, is_master=place == 0, timeout_s=5.0)

    async def receive():
        return [(name, tensor.clone()) async for name, tensor in engine.receive_weights()]

    for sync in (1, 2):
        topology_in.put((place, engine.prepare()))
        arguments = topology_out[place].get()
        if gone == place and sync == 2:
            return
        start = time.monotonic()
        try:
            engine.init_process_group(**arguments)
            if place < 2:
                asyncio.run(engine.send_weights(iter(weights(sync))))
                results.put((place, sync, "sent"))
            else:
                found = asyncio.run(receive())
                same = all(
                    a == c and b.dtype == d.dtype and torch.equal(b, d)
                    for (a, b), (c, d) in zip(weights(sync), found, strict=True)
                )
                results.put((place, sync, "same" if same else "other"))
        except (RuntimeError, torch.distributed.DistError) as error:
            results.put((place, sync, f"{type(error).__name__} after {time.monotonic() - start:.0f}"))
        engine.finalize()


def _transfers(gone: int | None) -> dict[tuple[int, int], str]:
    context = mp.get_context("fork")  # verl takes half a minute to import
    asked, results = context.Queue(), context.Queue()
    answers = [context.Queue() for _ in range(4)]
    members = [context.Process(target=_member, args=(p, asked, answers, results, gone)) for p in range(4)]
    for member in members:
        member.start()
    try:
        for _ in (1, 2):
            metadata = dict(asked.get(timeout=120) for _ in range(4))
            trainer, replicas = GlooCheckpointEngine.build_topology(2, 2, [metadata[p] for p in range(4)])
            for place in range(4):
                chosen, index = (trainer, place) if place < 2 else (replicas, place - 2)
                answers[place].put({key: value[index] for key, value in chosen.items()})
        count = 8 if gone is None else 7
        return {(place, sync): text for place, sync, text in (results.get(timeout=60) for _ in range(count))}
    finally:
        for member in members:
            member.join(timeout=30)
            member.kill()


def test_every_replica_gets_the_weights_again_and_again():
    found = _transfers(gone=None)
    for sync in (1, 2):
        assert [found[place, sync] for place in range(4)] == ["sent", "sent", "same", "same"]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo's timeouts are Linux's")
def test_a_replica_that_is_gone_ends_the_transfer_within_the_limit():
    found = _transfers(gone=3)
    assert found[2, 1] == found[3, 1] == "same"
    for place in (0, 2):
        assert "after" in found[place, 2] and int(found[place, 2].split()[-1]) < 30
    assert found[1, 2] == "sent"  # it only walks through the weights
