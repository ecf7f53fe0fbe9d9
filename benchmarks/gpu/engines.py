"""verl's own FSDP engines on a model of random weights, in one process: what the measurements are made on.

The engine is the one that a run gets: named by device and strategy in verl's registry, loaded from a folder, given
batches with the fields that verl's trainer sends. Ray, rollouts and the trainer are left out.

Shapes: R rows, T tokens of all rows, L tokens of a row, P tokens of its prompt.
"""

import math
import os
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as hf
import verl.workers.engine.fsdp.transformer_impl as engine_module
from torch import Tensor, nn
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig, FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry
from verl.workers.utils.losses import ppo_loss

from recipe.poise.capture.engine import CAPTURE_FLAG, ROW_FIELD  # registers the engine with capture
from recipe.poise.capture.signals import DEFAULT_SIGNALS
from recipe.poise.capture.stream import STREAM, CaptureSettings

SHAPES = {
    "qwen3-4b": {
        **{"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    },
    "tiny": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 512},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    },
}
END_THINK, EOS = 3, 2
BLOCK, NUM_TOKENS = 19 / 36, 10
ROPE = {"rope_type": "default", "rope_theta": 1e6}


def open_group(device: str) -> None:
    """A process group of one, as verl names its backends; nothing leaves the process."""
    if dist.is_initialized():
        return
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    if device == "cuda":
        torch.cuda.set_device(0)
    backend = "cpu:gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def model_folder(shape: str, device: str, folder: Path) -> Path:
    """`folder` with a model of random bfloat16 weights in Hugging Face's format; written where it is not there yet."""
    if (folder / "written").exists():
        return folder
    config = hf.Qwen3Config(
        **SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=40960, rope_parameters=ROPE
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "written").touch()
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return folder


def build(folder: Path, strategy: str, attention: str, compiles: bool, budget: int, **model):
    """verl's engine of this strategy with capture, parameters and optimizer states in bfloat16, ready to run.

    Args:
        compiles: whether the entropy is compiled, which is verl's default.
        budget: tokens of a micro-batch.
        model: settings of verl's HFModelConfig.
    """
    STREAM.settings = CaptureSettings(
        **{"block": BLOCK, "num_tokens": NUM_TOKENS, "states": ("prompt", "response"), "signals": DEFAULT_SIGNALS},
        **{"end_think_id": END_THINK, "eos_token_ids": (EOS,), "max_response_length": 1 << 20},
    )
    model_config = HFModelConfig(
        path=str(folder), load_tokenizer=False, override_config={"attn_implementation": attention}, **model
    )
    engine_config = FSDPEngineConfig(
        **{"strategy": strategy, "model_dtype": "bf16", "use_torch_compile": compiles, "use_remove_padding": True},
        **{"max_token_len_per_gpu": budget, "infer_max_token_len_per_gpu": budget},
    )
    engine = EngineRegistry.new(
        "language_model",
        strategy,
        model_config=model_config,
        engine_config=engine_config,
        optimizer_config=FSDPOptimizerConfig(lr=1e-6, total_training_steps=1000),
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine


def nested(parts: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


class Batch:
    """R rows of L tokens each, P of them the prompt's; ids are random, each row has one ``</think>``."""

    def __init__(self, rows: int, length: int, prompt: int, vocabulary: int, budget: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.rows, self.length, self.budget = rows, length, budget
        id_RL = torch.randint(4, vocabulary, (rows, length), generator=generator)
        if length - prompt > 40:
            id_RL[:, length - 20] = END_THINK
        response_mask_R = [torch.ones(length - prompt, dtype=torch.int64) for _ in range(rows)]
        self.fields = {
            "input_ids": nested(list(id_RL)),
            "position_ids": nested([torch.arange(length) for _ in range(rows)]),
            "prompts": nested(list(id_RL[:, :prompt])),
            "responses": nested(list(id_RL[:, prompt:])),
            "response_mask": nested(response_mask_R),
            "loss_mask": nested(response_mask_R),
            ROW_FIELD: nested([torch.tensor([row, row // 2, 0, 0]) for row in range(rows)]),
        }
        self.advantage_R = torch.randn(rows, generator=generator)

    def data(self, fields: dict | None = None, **flags):
        """A TensorDict as verl's worker hands it to the engine."""
        common = {"temperature": 1.0, "use_remove_padding": True, "use_dynamic_bsz": True, "use_fused_kernels": False}
        common |= {"max_token_len_per_gpu": self.budget, "global_batch_size": self.rows}
        return tu.get_tensordict(dict(self.fields | (fields or {})), non_tensor_dict=common | flags)


def log_prob_pass(engine, batch: Batch, capture: bool, entropy: bool = True, **flags) -> dict[str, Tensor]:
    """The pass of verl's `compute_log_prob`: its outputs, nested (R, L); with `capture`, features are in STREAM."""
    STREAM.clear()
    data = batch.data(calculate_entropy=entropy, **{CAPTURE_FLAG: capture}, **flags)
    with engine.eval_mode():
        return engine.infer_batch(data)["model_output"]


def features(batch: Batch) -> Tensor:
    """(R, F) what the last pass with capture has read."""
    return STREAM.lookup(torch.arange(batch.rows))


def update(engine, batch: Batch, old_log_probs: Tensor) -> float:
    """One PPO update over the batch (a single mini-batch, accumulated over micro-batches); the gradient's norm.

    Args:
        old_log_probs: nested (R, L), of the log-prob pass.
    """
    response = batch.length - int(batch.fields["prompts"].offsets().diff()[0])
    old_RY = old_log_probs.values().view(batch.rows, batch.length)[:, -response - 1 : -1].float().cpu()
    advantages = [advantage.expand(response).clone() for advantage in batch.advantage_R]
    data = batch.data({"old_log_probs": nested(list(old_RY)), "advantages": nested(advantages)})
    config = FSDPActorConfig(
        **{"strategy": engine.engine_config.strategy, "rollout_n": 2, "use_dynamic_bsz": True},
        **{"ppo_mini_batch_size": batch.rows},
    )
    with engine.train_mode():
        output = engine.train_batch(data, loss_function=partial(ppo_loss, config))
    return float(output["metrics"]["grad_norm"])


def rows_at_once(logits: Tensor, labels: Tensor, inplace_backward: bool = True, rows: int = 512) -> Tensor:
    """verl's torch function for log-probs on blocks of rows, where verl's own takes them one by one.

    Without flash-attn's kernel verl launches a few small kernels per token, which may take longer than the model.
    This stands for a machine that has it: the pass is then fast, and whatever is added to it shows most.
    """
    parts = [
        nn.functional.log_softmax(part_NV, dim=-1).gather(-1, label_N.unsqueeze(-1)).squeeze(-1)
        for part_NV, label_N in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


class FastLogProbs:
    """verl's engine with `rows_at_once` in place of its own function, for a while."""

    def __enter__(self):
        self.own = engine_module.logprobs_from_logits
        engine_module.logprobs_from_logits = rows_at_once

    def __exit__(self, *error):
        engine_module.logprobs_from_logits = self.own


def compiles(device: str) -> str:
    """Empty where torch.compile works on this machine, else its complaint."""
    if device == "cpu":
        return "left out on a CPU"
    try:
        doubled = torch.compile(lambda x: (x * 2).sum(), dynamic=True)(torch.ones(8, 8, device=device))
        return "" if math.isclose(float(doubled), 128.0) else f"gave {float(doubled)}"
    except Exception as error:  # whatever it is, the measurements go on without
        return f"{type(error).__name__}: {str(error)[:300]}"
