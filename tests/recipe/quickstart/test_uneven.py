"""The second embedded task: problems, demonstrations, and that difficulty decides how they are worked."""

import json
import random
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest

from recipe.poise.quickstart import uneven, uneven_behaviours
from recipe.poise.quickstart.behaviours import sample
from recipe.poise.quickstart.model import THINK_END
from recipe.poise.quickstart.prepare import MANIFEST, Settings, new_tokenizer, parser, prepare, settings_of
from recipe.poise.quickstart.registry import QUICKSTART, UNEVEN
from recipe.poise.quickstart.tasks import part_of
from recipe.poise.quickstart.warm_start import IGNORED, WarmStart, chat_prompt, collate
from reward.reasoning_gym_verifier import compute_score

FAMILIES = ("chain_sum", "products", "count_primes")


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer(UNEVEN)


@pytest.fixture(scope="module")
def asked():
    return UNEVEN.distinct_problems("train", 600, 1)


def tokens(tokenizer, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def test_parts_share_no_question():
    parts = {part: {p.question for p in UNEVEN.distinct_problems(part, 192, 0)} for part in ("warm", "train", "val")}
    for part, questions in parts.items():
        assert len(questions) == 192 and all(part_of(question) == part for question in questions)
    assert not parts["warm"] & parts["train"] and not parts["val"] & (parts["warm"] | parts["train"])


def test_problems_keep_their_bounds(asked):
    assert {problem.family for problem in asked} == set(FAMILIES)
    for problem in asked:
        if problem.family == "count_primes":
            first, last = problem.terms
            assert 1 <= first <= last <= uneven.END and last - first < uneven.MOST_NUMBERS
        else:
            low, high = (-9, 20) if problem.family == "chain_sum" else (1, 120)
            assert all(low <= result <= high for result in problem.partial_results())
            assert str(problem.partial_results()[-1]) == problem.answer


def test_careful_is_right_and_failures_are_mostly_not(asked):
    rng, right = random.Random(0), defaultdict(list)
    for problem in asked:
        for behaviour in UNEVEN.shares(problem):
            text = behaviour(problem, rng)
            right[problem.family, behaviour.__name__].append(compute_score(problem.family, text, problem.answer)["acc"])
    for (_, name), found in right.items():
        assert np.mean(found) == 1.0 if name == "careful" else np.mean(found) < 0.4
    assert all(right[family, "careful"] for family in FAMILIES)
    assert len({tuple(failures) for failures in uneven_behaviours.FAILURES.values()}) == len(FAMILIES)


def test_right_traces_are_many_and_confident_mistakes_one(asked):
    rng = random.Random(0)
    for problem in asked[:60]:
        assert len({uneven_behaviours.careful(problem, rng) for _ in range(20)}) > 10
        for failure in uneven_behaviours.FAILURES[problem.family]:
            if failure in (uneven_behaviours.misread, uneven_behaviours.dropped, uneven_behaviours.added):
                assert len({failure(problem, rng) for _ in range(5)}) == 1


def test_a_worked_solution_reads_as_documented(asked):
    solutions = {p.family: uneven_behaviours.careful(p, random.Random(0)) for p in asked}
    for problem in asked:
        solution = uneven_behaviours.careful(problem, random.Random(3))
        assert solution.endswith(f"{THINK_END} {problem.answer}")
    assert " to " in solutions["count_primes"] and " 1 : " in solutions["chain_sum"]


def test_shares_spread_over_the_prompts_and_follow_difficulty(asked):
    shares = [UNEVEN.shares(problem) for problem in asked]
    assert all(sum(share.values()) == pytest.approx(1.0) for share in shares)
    careful = np.array([share[uneven_behaviours.careful] for share in shares])
    assert careful.std() > 0.28 and careful.min() < 0.05 and careful.max() > 0.95
    hardness = [uneven.difficulty(problem) for problem in asked]
    assert 0 <= min(hardness) and max(hardness) <= 1
    assert (np.diff(careful[np.argsort(hardness)]) <= 1e-12).all()
    for family in FAMILIES:
        assert careful[[p.family == family for p in asked]].std() > 0.2


def test_everything_fits_the_limits_and_numbers_are_single_tokens(tokenizer, asked):
    assert all(tokens(tokenizer, f" {number}") == 1 for number in uneven.numbers())
    rng, lengths = random.Random(0), []
    for problem in asked:
        assert tokens(tokenizer, chat_prompt(tokenizer, problem)) <= 64
        assert tokens(tokenizer, uneven_behaviours.careful(problem, rng)) < UNEVEN.max_response
        assert tokens(tokenizer, uneven_behaviours.circles(problem, rng)) > UNEVEN.max_response
        text = sample(problem, rng, UNEVEN.shares(problem))
        lengths.append(min(tokens(tokenizer, text) + 1, UNEVEN.max_response))
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert np.mean(lengths) > 55 and np.mean(np.array(lengths) > 150) > 0.05


def test_demonstrations_are_cut_as_rollouts_are(tokenizer, asked):
    text = uneven_behaviours.circles(asked[0], random.Random(0))
    _, _, labels_BT = collate(tokenizer, [(asked[0], text)], UNEVEN.max_response)
    kept = labels_BT[labels_BT != IGNORED]
    assert len(kept) == UNEVEN.max_response and tokenizer.eos_token_id not in kept


def test_assets_of_the_task(tmp_path):
    settings = Settings(WarmStart(steps=2, batch=8), train_prompts=20, val_prompts=8, seed=0, task=UNEVEN.name)
    assert prepare(tmp_path / "assets", settings)
    assert not prepare(tmp_path / "assets", settings)
    manifest = json.loads((tmp_path / "assets" / MANIFEST).read_text())
    assert manifest["settings"]["task"] == "uneven" and set(manifest["accuracy"]) == {"start", "careful"}
    rows = pd.read_parquet(tmp_path / "assets" / "val.parquet")
    assert len(rows) == 8 and set(rows["data_source"]) <= set(FAMILIES)


def test_the_task_is_chosen_by_name():
    chosen = settings_of(parser().parse_args(["--out", "x", "--task", "uneven"]))
    assert chosen.task == "uneven" and chosen.warm_start.steps == UNEVEN.steps
    assert settings_of(parser().parse_args(["--out", "x"])).task == QUICKSTART.name
