"""A policy-sized value model, trained as PPO trains it: verl's own worker, engine, loss and optimiser, in this process.

The worker is the one that verl's trainer puts in the critic's seat, built from the same config (``+method=ppo``) and
called with the same two methods; only Ray and TransferQueue, which carry the rows there, are left out.

Shapes: R rows.
"""

import os
import time
from functools import partial

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.net_utils import get_free_port
from verl.workers.config import CriticConfig, TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.losses import value_loss

import recipe.poise.capture.engine  # noqa: F401  registers the engines of the CPU platform
from launch.compose import CONFIG_DIR
from recipe.poise.studies.rollout_pool import Pool


def critic_config(name: str, model: str, learning_rate: float | None, overrides: list[str]) -> CriticConfig:
    """The critic of a run of PPO, from a config of ours; `learning_rate` None keeps the config's."""
    GlobalHydra.instance().clear()
    asked = ["+method=ppo", f"actor_rollout_ref.model.path={model}", *overrides]
    asked += [] if learning_rate is None else [f"critic.optim.lr={learning_rate}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose(name, overrides=asked)
    OmegaConf.resolve(config)
    critic: CriticConfig = omega_conf_to_dataclass(config.critic)
    # as verl's trainer does before it starts the worker
    critic.engine.infer_max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
    critic.engine.max_token_len_per_gpu = critic.ppo_infer_max_token_len_per_gpu
    return critic


def rows_of(pool: Pool, chosen: Tensor) -> TensorDict:
    """Rows of a pool as verl's worker gets them: prompts, responses and what belongs to their tokens, jagged."""
    rows = chosen.tolist()
    lengths = [int(pool.length_R[row]) for row in rows]
    ids = [pool.ids[row] for row in rows]

    def jagged(parts) -> Tensor:
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    fields = {
        "input_ids": jagged(ids),
        "position_ids": jagged(torch.arange(len(row)) for row in ids),
        "prompts": jagged(row[:-length] for row, length in zip(ids, lengths, strict=True)),
        "responses": jagged(row[-length:] for row, length in zip(ids, lengths, strict=True)),
        "response_mask": jagged(torch.ones(length, dtype=torch.int64) for length in lengths),
        "loss_mask": jagged(torch.ones(length, dtype=torch.int64) for length in lengths),
        # outcome rewards, gamma = lambda = 1: the return of every response token is the reward
        "returns": jagged(
            torch.full((length,), float(pool.reward_R[row])) for row, length in zip(rows, lengths, strict=True)
        ),
    }
    return TensorDict(fields, batch_size=len(rows))


class ValueModel:
    """A critic of verl's.

    Attributes:
        parameters: trainable numbers. seconds_train, seconds_predict: spent in `update` and `predict` so far.
    """

    def __init__(self, config: CriticConfig, rows_per_update: int, seed: int = 0):
        single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(single | {"MASTER_PORT": os.environ.get("MASTER_PORT") or str(get_free_port("127.0.0.1")[0])})
        torch.manual_seed(seed)  # the head is new
        self._rows, self._seed = rows_per_update, seed
        settings = TrainingWorkerConfig(
            model_type="value_model",
            model_config=config.model,
            engine_config=config.engine,
            optimizer_config=config.optim,
            checkpoint_config=config.checkpoint,
            profiler_config=None,
        )
        self._worker = _worker_class()(settings)
        self._worker.reset()
        self._worker.set_loss_fn(partial(value_loss, config=config))
        self.parameters = sum(p.numel() for p in self._worker.engine.module.parameters())
        self.seconds_train = self.seconds_predict = 0.0

    def predict(self, pool: Pool, chosen: Tensor) -> Tensor:
        """(R,) the value of the prompt: at its last token, before anything of the response."""
        start = time.perf_counter()
        values = self._values(rows_of(pool, chosen))
        self.seconds_predict += time.perf_counter() - start
        return torch.stack([row[0] for row in values])

    def _values(self, rows: TensorDict) -> list[Tensor]:
        """Per row, the value before each response token."""
        out = self._worker.infer_batch(tu.assign_non_tensor(rows.copy(), compute_loss=False, temperature=1.0))
        lengths = rows["responses"].offsets().diff().tolist()
        # verl shifts by one: what stands on a token is the value of the state after it
        return [row[-n - 1 : -1].float() for row, n in zip(out["values"].unbind(), lengths, strict=True)]

    def update(self, pool: Pool, chosen: Tensor) -> float:
        """One update as in a step of PPO: old values (for the clipped loss), then an optimiser step; the loss."""
        start = time.perf_counter()
        rows = rows_of(pool, chosen)
        rows["values"] = torch.nested.as_nested_tensor(self._values(rows), layout=torch.jagged)
        said = self._worker.train_mini_batch(
            tu.assign_non_tensor(
                rows, global_batch_size=len(chosen), mini_batch_size=len(chosen), epochs=1, seed=self._seed,
                dataloader_kwargs={"shuffle": False}, temperature=1.0,
            )
        )  # fmt: skip
        self.seconds_train += time.perf_counter() - start
        return float(tu.get(said, "metrics")["loss"][0])

    def epoch(self, pool: Pool, chosen: Tensor, generator: torch.Generator) -> float:
        """All rows once, in a new order, `rows_per_update` at a time; the mean loss."""
        order = chosen[torch.randperm(len(chosen), generator=generator)]
        losses = [self.update(pool, part) for part in order.split(self._rows)]
        return sum(losses) / len(losses)

    def close(self) -> None:
        """Let go of the model; the process group stays for the next one."""
        del self._worker


def _worker_class() -> type[TrainingWorker]:
    if os.environ.get("VERL_PLATFORM", "").strip().lower() != "cpu":
        return TrainingWorker
    from recipe.poise.cpu.workers import CpuTrainingWorker

    return CpuTrainingWorker
