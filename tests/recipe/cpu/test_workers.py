"""Weights that are put aside on a CPU stay as they were."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from verl.experimental.separation.engine_workers import DetachActorWorker

from recipe.poise.cpu.workers import CpuDetachActorWorker


@pytest.fixture
def module(tmp_path):
    """Sharded by FSDP2 over a group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    sharded = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    yield fully_shard(sharded, mesh=mesh)
    dist.destroy_process_group()


def weights(module) -> list[torch.Tensor]:
    assert all(isinstance(parameter, DTensor) for parameter in module.parameters())
    return [parameter.full_tensor().detach().clone() for parameter in module.parameters()]


def swapped(cls, module):
    """The weights in verl's order: put aside, updated, put aside, the old ones back, the new ones back."""
    worker = cls.__new__(cls)
    worker.config = SimpleNamespace(actor=SimpleNamespace(strategy="fsdp2"))
    worker.actor = SimpleNamespace(engine=SimpleNamespace(module=module))
    worker._strategy_handlers = None
    worker.save_model_to_cpu(0)
    old = weights(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    new = weights(module)
    worker.save_model_to_cpu(1)
    worker.restore_model_from_cpu(0)
    back = weights(module)
    worker.restore_model_from_cpu(1)
    return old, new, back, weights(module)


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_old_weights_come_back_and_then_the_new_ones(module):
    old, new, back, forth = swapped(CpuDetachActorWorker, module)
    assert same(back, old) and same(forth, new) and not same(old, new)


def test_verls_own_would_change_with_the_actor(module):
    """What the copies are there for; drop them when verl makes them."""
    old, new, back, _ = swapped(DetachActorWorker, module)
    assert same(back, new) and not same(back, old)
