"""The study's gradient of a batch is that of one update of verl's actor: its worker, engine, loss and aggregation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS, PROMPTS, DIRECTIONS, SEED = 32, 4, 6, 5


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_the_gradient_is_that_of_verls_update(mode, tmp_path):
    """In a process of its own: verl's worker opens a process group."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "VERL_PLATFORM": "cpu", "VLLM_TARGET_DEVICE": "cpu", "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, mode, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count("agrees") == 3


def check(mode: str, folder: Path) -> None:
    import torch

    from recipe.poise.quickstart.model import make_model
    from recipe.poise.quickstart.prepare import new_tokenizer
    from recipe.poise.studies import advantages as adv
    from recipe.poise.studies import estimators as menu
    from recipe.poise.studies.rollout_pool import Policy, Pool
    from recipe.poise.studies.scores import row_scores

    tokenizer = new_tokenizer()
    make_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy, generator = Policy(str(folder)), torch.Generator().manual_seed(0)
    length_R = torch.randint(1, 12, (ROWS,), generator=generator)
    ids = [torch.randint(3, len(tokenizer), (7 + int(n),), generator=generator) for n in length_R]
    reward_R = torch.randint(0, 2, (ROWS,), generator=generator).double()
    pool = Pool(ids, length_R, reward_R, torch.zeros(ROWS, 1), torch.arange(ROWS) // 8, None, 8)  # type: ignore[arg-type]
    with torch.no_grad():
        log_prob_RL, logits = policy.log_probs(*policy.batch(ids))
    log_probs = [log_prob_RL[row, 6 : 6 + int(n)] for row, n in enumerate(length_R)]
    squares_RL = logits.softmax(-1).square().sum(-1)
    squares = [squares_RL[row, 6 : 6 + int(n)] for row, n in enumerate(length_R)]
    mask_RT = torch.arange(int(length_R.max())) < length_R.unsqueeze(1)
    padded = [torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (log_probs, squares)]
    token_RT = adv.token_baseline(reward_R, 8, *padded, mask_RT)
    weights = torch.stack([torch.ones_like(token_RT), token_RT])
    plain, otb = row_scores(str(folder), ids, weights, length_R, DIRECTIONS, SEED)
    factor_R = menu.row_factor(mode, length_R)
    made = menu.Material(pool, pool, plain.scaled(factor_R), otb.scaled(factor_R), {}, {}, mode)
    worker = actor(str(folder), mode)
    for name, advantage_R in {
        "RLOO": adv.rloo(reward_R, 8), "constant": adv.constant(reward_R, 8, length_R.double()), "OTB": None,
    }.items():  # fmt: skip
        groups = menu.groups(made, menu.Method(name, 8, "yes", advantage_R))
        ours_K = torch.from_numpy(groups.total_POK.sum((0, 1)) / groups.counted_PO.sum())
        advantage_RT = token_RT if advantage_R is None else advantage_R.float().unsqueeze(1) * mask_RT
        theirs_K = projected(gradient(worker, pool, log_probs, advantage_RT))
        torch.testing.assert_close(ours_K, -theirs_K, rtol=2e-4, atol=1e-6 * float(theirs_K.abs().max()))
        print(name, "agrees", ours_K[:3].tolist())


def actor(model: str, mode: str):
    """The worker that verl puts in the actor's seat, from the quickstart's config, with verl's PPO loss."""
    from functools import partial

    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.net_utils import get_free_port
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.utils.losses import ppo_loss

    from launch.compose import CONFIG_DIR
    from recipe.poise.cpu.workers import CpuTrainingWorker

    port = str(get_free_port("127.0.0.1")[0])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    overrides = [f"actor_rollout_ref.model.path={model}", f"actor_rollout_ref.actor.loss_agg_mode={mode}"]
    overrides += ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=200"]  # several micro-batches
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose("poise_quickstart", overrides=overrides)
    OmegaConf.resolve(config)
    actor_config = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    actor_config.model_config = omega_conf_to_dataclass(config.actor_rollout_ref.model)
    engine = actor_config.engine
    # as verl's actor worker does before it starts the training worker
    engine.use_dynamic_bsz = actor_config.use_dynamic_bsz
    engine.max_token_len_per_gpu = engine.infer_max_token_len_per_gpu = actor_config.ppo_max_token_len_per_gpu
    engine.use_remove_padding = actor_config.model_config.use_remove_padding
    worker = CpuTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=actor_config.model_config,
            engine_config=engine,
            optimizer_config=actor_config.optim,
            checkpoint_config=actor_config.checkpoint,
            profiler_config=None,
        )
    )
    worker.reset()
    worker.set_loss_fn(partial(ppo_loss, config=actor_config))
    return worker


def gradient(worker, pool, log_probs, advantage_RT) -> dict:
    """What one update hands to the optimiser, before clipping; the update itself is left out."""
    import torch
    from verl.utils import tensordict_utils as tu

    from recipe.poise.studies.value_model import rows_of

    def jagged(parts):
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    rows = rows_of(pool, torch.arange(ROWS))
    rows["old_log_probs"] = jagged(log_probs)
    rows["advantages"] = jagged(row[: int(n)] for row, n in zip(advantage_RT, pool.length_R, strict=True))
    seen = {}

    def look() -> float:
        for name, parameter in worker.engine.module.named_parameters():
            grad = parameter.grad
            seen[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
        return 0.0

    worker.engine.optimizer_step = look
    worker.train_mini_batch(
        tu.assign_non_tensor(
            rows, global_batch_size=ROWS, mini_batch_size=ROWS, epochs=1, seed=0, temperature=1.0,
            dataloader_kwargs={"shuffle": False},
        )
    )  # fmt: skip
    return seen


def projected(gradients: dict):
    """(K,) onto the study's directions."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    total = torch.zeros(DIRECTIONS).double()
    for part in gradients.values():
        signs = torch.randint(0, 2, (DIRECTIONS, part.numel()), generator=generator, dtype=torch.int8) * 2 - 1
        total += signs.double() @ part.double().flatten()
    return total


if __name__ == "__main__":
    check(sys.argv[1], Path(sys.argv[2]))
