"""The prompt pass in verl's own engine: real processes over gloo, FSDP2, with and without LoRA, packed and padded.

The states of a prompt must be those that the log-prob pass captures of its rollouts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
N = 3  # tokens that a state is the mean of


def rows(seed=0):
    """Prompts of 2 to 17 tokens, and a response to each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(9, 12), (2, 1), (17, 5), (3, 7), (6, 2), (12, 9), (5, 3)]
    return [tuple(torch.randint(5, 200, (n,), generator=generator) for n in pair) for pair in lengths]


def make_engine(folder, lora_rank):
    """verl's engine as `ActorRolloutRefWorker` builds it, of our class, on this process's rank."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    from recipe.poise.capture.stream import STREAM, CaptureSettings
    from recipe.poise.cpu.workers import init_process_group

    init_process_group()
    STREAM.settings = CaptureSettings(0.5, N, ("prompt", "response"), (), None, (1,), 32)
    torch.manual_seed(0)
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(folder),
            override_config={"attn_implementation": "sdpa"},
            lora_rank=lora_rank,
            enable_gradient_checkpointing=False,
            external_lib="recipe.poise.capture.engine",
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            dtype="float32",
            use_torch_compile=False,
            mixed_precision={"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        ),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=1),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def infer(engine, data, packed, dynamic):
    from verl.utils import tensordict_utils as tu

    tu.assign_non_tensor(
        data, use_remove_padding=packed, use_dynamic_bsz=dynamic, max_token_len_per_gpu=40, micro_batch_size_per_gpu=2,
        use_fused_kernels=False,
    )  # fmt: skip
    with engine.eval_mode():
        return engine.infer_batch(data, loss_function=None)


def log_prob_batch(pairs):
    """The batch of a log-prob pass over rollouts, rows numbered."""
    from verl.utils import tensordict_utils as tu

    from recipe.poise.capture.engine import CAPTURE_FLAG, ROW_FIELD

    def jagged(parts):
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    ids = [torch.cat(pair) for pair in pairs]
    number_R = torch.arange(len(pairs))
    return tu.get_tensordict(
        {
            "input_ids": jagged(ids),
            "position_ids": jagged(torch.arange(len(row)) for row in ids),
            "responses": jagged(response for _, response in pairs),
            "response_mask": jagged(torch.ones_like(response) for _, response in pairs),
            "loss_mask": jagged(torch.ones_like(response) for _, response in pairs),
            ROW_FIELD: torch.stack([number_R, number_R, 0 * number_R, 0 * number_R], dim=1),
        },
        {CAPTURE_FLAG: True, "calculate_entropy": True, "compute_loss": False, "temperature": 1.0},
    )


def one_rank(folder, out):
    from verl.utils.tensordict_utils import chunk_tensordict

    from recipe.poise.capture.engine import keeps_logits
    from recipe.poise.capture.stream import STREAM
    from recipe.poise.choose.prompts import prompt_batch

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    engine = make_engine(folder, int(os.environ["LORA"]))
    assert keeps_logits(engine.module)
    pairs = rows()
    for packed in (True, False):
        for dynamic in (True, False):
            batch = log_prob_batch([*pairs, pairs[0]])
            STREAM.clear()
            infer(engine, batch, packed, dynamic)
            expected = STREAM.lookup(torch.arange(7))[:, : STREAM.hidden_size]
            batch = prompt_batch([prompt for prompt, _ in pairs], ranks, 2)
            assert len(batch) == 8
            said = infer(engine, chunk_tensordict(batch, ranks)[rank], packed, dynamic)["model_output"]
            assert (
                list(said) == ["poise_prompt"] and said["poise_prompt"].values().numel() == 8 // ranks
            )  # nothing else
            id_R, state_RD = STREAM.take_prompts()
            found[packed, dynamic] = (expected, id_R, state_RD)
    torch.save(found, f"{out}/{rank}.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from recipe.poise.quickstart.model import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer([])
    tokenizer.save_pretrained(folder)
    make_model(tokenizer, seed=0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("ranks", "lora"), [(1, 0), (2, 4)])
def test_states_are_those_of_the_log_prob_pass(model, ranks, lora, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks),
        "DIST_INIT_METHOD": f"file://{tmp_path}/store", "LORA": str(lora), "MASTER_ADDR": "127.0.0.1",
        "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(model), str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0] * ranks
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    for case, (expected, _, _) in parts[0].items():
        id_N = torch.cat([part[case][1] for part in parts])
        state_ND = torch.cat([part[case][2] for part in parts])
        assert sorted(id_N.tolist()) == [-1, *range(7)], case
        order = id_N.argsort()[1:]
        torch.testing.assert_close(state_ND[order], expected, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    import verl  # noqa: F401  the plug-in registers the platform

    one_rank(*sys.argv[1:])
