"""Weights from the trainer to replicas that stand alone, over gloo: a checkpoint engine of verl's for CPUs.

Named by ``rollout.checkpoint_engine.custom_backend_module`` and chosen by ``backend=gloo``. Rank 0 of the trainer
broadcasts to every replica's workers in a group of their own, which is opened for each transfer. Per bucket: the
lengths, what is in it as JSON, the bytes; nothing is unpickled.

Shapes: tensors are sent whole; a bucket is as large as ``update_weights_bucket_megabytes``, or as its one tensor.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from datetime import timedelta
from typing import cast

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

# a standalone replica's worker imports this module in place of it
import recipe.poise.rollout.standalone  # noqa: F401

ALIGNMENT = 16  # bytes; a view of any dtype may begin there


def pack(names: list[tuple[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Description and bytes of tensors, both (n,) uint8."""
    places: list[tuple[str, str, list[int], int]] = []
    offset = 0
    for name, tensor in names:
        places.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    data = torch.zeros(offset, dtype=torch.uint8)
    for (_, tensor), (*_, start) in zip(names, places, strict=True):
        data[start : start + tensor.nbytes] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return torch.frombuffer(bytearray(json.dumps(places).encode()), dtype=torch.uint8), data


def unpack(description: Tensor, data: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors of `pack`, as views of `data`."""
    found = []
    for name, kind, shape, start in json.loads(bytes(description.tolist())):
        dtype = getattr(torch, kind)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{name}: {kind} is no dtype of torch")
        size = dtype.itemsize * torch.Size(shape).numel()
        found.append((name, data[start : start + size].view(dtype).view(shape)))
    return found


@CheckpointEngineRegistry.register("gloo")
class GlooCheckpointEngine(CheckpointEngine):
    """verl's interface; `is_master` on the trainer's rank 0.

    Args:
        bucket_size: bytes that travel at once.
        timeout_s: for opening the group and for each broadcast; a replica that is gone ends the transfer with an error.
            Set by ``checkpoint_engine.engine_kwargs.gloo.timeout_s``.
    """

    def __init__(self, bucket_size: int, is_master: bool = False, timeout_s: float = 120.0):
        self.bucket_size, self.is_master, self.timeout = bucket_size, is_master, timedelta(seconds=timeout_s)
        self._store: dist.TCPStore | None = None
        self._group: dist.ProcessGroup | None = None
        self._rank = -1

    def prepare(self) -> tuple[str, int] | None:
        """The master's address, where the others meet it."""
        if not self.is_master:
            return None
        host = ray.util.get_node_ip_address().strip("[]")
        self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=self.timeout)
        return host, self._store.port

    @classmethod
    def build_topology(cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list):
        """Rank 0 of the trainer sends (its other ranks: -1), all workers of the replicas receive."""
        size = 1 + rollout_world_size

        def arguments(ranks: list[int]) -> dict[str, list]:
            return {"rank": ranks, "size": [size] * len(ranks), "address": [metadata[0]] * len(ranks)}

        return arguments([0] + [-1] * (actor_wg_world_size - 1)), arguments(list(range(1, size)))

    def init_process_group(self, rank: int, size: int, address: tuple[str, int]) -> None:
        self._rank = rank
        if rank < 0:
            return
        if self._store is None:
            self._store = dist.TCPStore(*address, is_master=False, timeout=self.timeout)
        # no default group and no name: the trainer's and the replicas' own groups are left alone
        self._group = cast(dist.ProcessGroup, dist.ProcessGroupGloo(self._store, rank, size, self.timeout))

    def finalize(self) -> None:
        self._group = self._store = None

    def _broadcast(self, tensor: Tensor) -> None:
        assert self._group is not None
        self._group.broadcast(tensor, root=0).wait()

    def _send(self, bucket: list[tuple[str, Tensor]], last: bool) -> None:
        description, data = pack(bucket)
        self._broadcast(torch.tensor([len(description), len(data), int(last)]))
        for part in (description, data):
            if len(part):
                self._broadcast(part)

    def _receive(self) -> tuple[list[tuple[str, Tensor]], bool]:
        lengths = torch.zeros(3, dtype=torch.int64)
        self._broadcast(lengths)
        described, sent, last = lengths.tolist()
        description, data = (torch.empty(length, dtype=torch.uint8) for length in (described, sent))
        for part in (description, data):
            if len(part):
                self._broadcast(part)
        return unpack(description, data), bool(last)

    @torch.no_grad()
    async def send_weights(self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None) -> None:
        """Every rank of the trainer walks through `weights`, whose making is collective; rank 0 sends them."""
        bucket: list[tuple[str, Tensor]] = []
        size = 0
        for name, weight in weights:
            if self._rank < 0:
                continue
            if bucket and size + weight.nbytes > self.bucket_size:
                await asyncio.to_thread(self._send, bucket, False)
                bucket, size = [], 0
            bucket.append((name, weight))
            size += weight.nbytes
        if self._rank >= 0:
            await asyncio.to_thread(self._send, bucket, True)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, Tensor], None]:
        """Names and tensors in the order in which they were sent."""
        last = False
        while not last:
            bucket, last = await asyncio.to_thread(self._receive)
            for name, weight in bucket:
                yield name, weight
