"""Without a log-prob pass, in the real seat over gloo: rows get their prompt's state from whichever rank had it, and
the rollout's own energies; sessions of several outputs count as one. Two ranks as one."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[3]
WIDTH, PROMPTS, ROLLOUTS = 5, 12, 2
OUTPUTS = 3  # of each prompt's second rollout


def step_of(step):
    """Row fields, session fields, log-probs and masks of a step, and the prompts' states; rewards by row."""
    noise = torch.Generator().manual_seed(step)
    state_GD = torch.randn(PROMPTS, WIDTH, generator=noise)
    rows, sessions = [], []
    for group in range(PROMPTS):
        for rollout in range(ROLLOUTS):
            outputs = OUTPUTS if rollout else 1
            last = len(rows) + outputs - 1
            for output in range(outputs):
                place = len(rows)
                rows.append([place if place == last else -(place + 1), group, 0, 0])
                sessions.append([last, int(output == 0)])
    row_R4, session_R2 = torch.tensor(rows), torch.tensor(sessions)
    length_R = torch.randint(2, 7, (len(rows),), generator=noise).tolist()
    log_probs = [-2 * torch.rand(n, generator=noise) for n in length_R]
    masks = [(torch.rand(n, generator=noise) < 0.7).long() for n in length_R]
    reward_R = (torch.rand(len(rows), generator=noise) < (3 * state_GD[row_R4[:, 1], 0]).sigmoid()).float()
    return row_R4, session_R2, log_probs, masks, reward_R, state_GD


def expected_weights(step):
    """(R, 2) energy and length of the whole session, by a loop."""
    _, session_R2, log_probs, masks, _, _ = step_of(step)
    table = []
    for session in session_R2[:, 0].tolist():
        energy = length = 0.0
        for row in (session_R2[:, 0] == session).nonzero().flatten().tolist():
            counted = [float(x) for x, own in zip(log_probs[row], masks[row], strict=True) if own]
            norms = [(1 - math.exp(x)) * -x for x in counted]
            energy += 0.9 * sum(x * x for x in norms) + 0.1 * sum(norms) ** 2
            length += len(norms)
        table.append((energy, length))
    return torch.tensor(table)


def jagged(parts):
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def worker(rank, ranks, folder):
    from tensordict import TensorDict

    from recipe.poise.baseline.inputs import SESSION_FIELD
    from recipe.poise.baseline.worker import PREDICTION_FIELD, configured
    from recipe.poise.capture.engine import ROW_FIELD
    from recipe.poise.capture.stream import STREAM, CaptureSettings
    from recipe.poise.config import PoiseConfig

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    STREAM.hidden_size, STREAM.device, STREAM.dp_rank = WIDTH, "cpu", rank
    said, seen = {}, {}
    for case in ("bypass", "rewards", "pass"):
        states = () if case == "rewards" else ("prompt",)
        poise = PoiseConfig(states=states, signals=(), probe={"min_rows": 8, "exact_features": 64})
        capture = CaptureSettings(0.5, 3, poise.states, (), None, (1,), 32)
        seat = configured(poise, capture, ROLLOUTS, bypass=case != "pass")(None)
        for step in range(3):
            row_R4, session_R2, log_probs, masks, reward_R, state_GD = step_of(step)
            noise = torch.Generator().manual_seed(step)
            mine = torch.randperm(len(row_R4), generator=noise).tensor_split(ranks)[rank].tolist()
            if case == "bypass":  # prompts and one of padding, spread in another order than the rows
                prompts = torch.randperm(PROMPTS, generator=noise).tensor_split(ranks)[rank]
                STREAM.append_prompts(torch.cat([prompts, torch.tensor([-1])]), state_GD[[*prompts.tolist(), 0]])
            if case == "pass":  # a later output's prompt holds what was said before
                first = session_R2[mine, 1].unsqueeze(1) > 0
                feature = torch.where(first, state_GD[row_R4[mine, 1]], 99.0)
                weight = torch.rand(len(row_R4), 2, generator=torch.Generator().manual_seed(step + 50))[mine]
                STREAM.append(row_R4[mine, 0], feature, weight, 0.0)
            data = {
                ROW_FIELD: row_R4[mine],
                SESSION_FIELD: session_R2[mine],
                "rm_scores": reward_R[mine].unsqueeze(1),
                "input_ids": jagged([torch.zeros(3, dtype=torch.int64)] * len(mine)),
                "rollout_log_probs": jagged([log_probs[row] for row in mine]),
                "response_mask": jagged([masks[row] for row in mine]),
            }
            table = seat.infer_batch(TensorDict(data, batch_size=len(mine)))[PREDICTION_FIELD]
            if rank == 0:
                seen[case, step] = seat._bank.rows
            out = seat.train_mini_batch(TensorDict({ROW_FIELD: row_R4[mine]}, batch_size=len(mine)))
            said[case, step] = (torch.tensor(mine), table)
    metrics = {name: values[0] for name, values in out["metrics"].items()}
    torch.save((said, seen, metrics), f"{folder}/{ranks}.{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """By number of ranks: tables (R, 7) of what was said, by case and step; what rank 0 learned from."""
    folder = tmp_path_factory.mktemp("inputs")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VERL_PLATFORM": "cpu"}
    found = {}
    for ranks in (1, 2):
        processes = [
            subprocess.Popen([sys.executable, __file__, str(rank), str(ranks), str(folder)], env=environment)
            for rank in range(ranks)
        ]
        assert [process.wait(timeout=240) for process in processes] == [0] * ranks
        parts = [torch.load(folder / f"{ranks}.{rank}.pt", weights_only=True) for rank in range(ranks)]
        tables = {}
        for key in parts[0][0]:
            places, values = (torch.cat([part[0][key][side] for part in parts]) for side in (0, 1))
            tables[key] = values[places.argsort()]
        found[ranks] = (tables, parts[0][1], parts[0][2])
    return found


def test_rows_learn_from_their_prompts_state(inputs):
    for step in range(3):
        x_NF, reward_N, group_N, _, _ = inputs[2][1]["bypass", step]
        row_R4, _, _, _, reward_R, state_GD = step_of(step)
        assert len(x_NF) == PROMPTS * ROLLOUTS  # a session is one row
        torch.testing.assert_close(x_NF, state_GD[group_N], rtol=0, atol=0)
        torch.testing.assert_close(reward_N, reward_R[row_R4[:, 0] >= 0], rtol=0, atol=0)


def test_a_session_weighs_what_its_outputs_weigh_together(inputs):
    for step in range(3):
        weight_R2 = expected_weights(step)
        for case in ("bypass", "rewards"):
            torch.testing.assert_close(inputs[1][0][case, step][:, 6], weight_R2[:, 0].float(), rtol=1e-5, atol=1e-6)
        last_R = step_of(step)[0][:, 0] >= 0
        learned_N = inputs[2][1]["bypass", step][4]
        torch.testing.assert_close(learned_N.float(), weight_R2[last_R, 0].float(), rtol=1e-5, atol=1e-6)


def test_with_a_pass_a_session_has_the_state_of_the_datas_prompt(inputs):
    x_NF, _, group_N, _, weight_N = inputs[2][1]["pass", 2]
    _, session_R2, _, _, _, state_GD = step_of(2)
    torch.testing.assert_close(x_NF, state_GD[group_N], rtol=0, atol=0)
    drawn_R = torch.rand(len(session_R2), 2, generator=torch.Generator().manual_seed(52))[:, 0]
    sum_R = torch.zeros_like(drawn_R).index_add_(0, session_R2[:, 0], drawn_R)
    torch.testing.assert_close(weight_N.float(), sum_R[session_R2[:, 0].unique()], rtol=1e-5, atol=1e-6)


def test_without_features_there_is_no_value_and_a_mixture_of_the_rest(inputs):
    tables, seen, metrics = inputs[2]
    rows_R = step_of(2)[0][:, 0] >= 0
    table_R7 = tables["rewards", 2][rows_R]
    assert table_R7[:, 0].isnan().all() and (table_R7[:, 1] == 0).all() and table_R7[:, 4].isfinite().all()
    torch.testing.assert_close(table_R7[:, 2] + table_R7[:, 3], torch.ones(len(table_R7)))
    assert seen["rewards", 2][0].shape == (PROMPTS * ROLLOUTS, 0)
    assert metrics["window_rows"] == 3 * PROMPTS * ROLLOUTS


def test_two_ranks_say_what_one_says(inputs):
    for key, table_R7 in inputs[1][0].items():
        torch.testing.assert_close(inputs[2][0][key], table_R7, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_another_number_of_log_probs_than_of_tokens_is_refused():
    from recipe.poise.baseline.inputs import rollout_weights
    from recipe.poise.capture.stream import CaptureSettings

    data = {"rollout_log_probs": jagged([torch.zeros(2)]), "response_mask": jagged([torch.ones(3)])}
    with pytest.raises(ValueError, match="the agent loop must give response_logprobs for each token"):
        rollout_weights(data, CaptureSettings(0.5, 3, (), (), None, (1,), 32))


if __name__ == "__main__":
    import verl  # noqa: F401  the plug-in registers the platform

    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
