"""The embedded default's problems, demonstrations, tokenizer and the program that makes the assets."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.poise.quickstart import behaviours
from recipe.poise.quickstart.model import THINK, THINK_END, make_tokenizer
from recipe.poise.quickstart.prepare import MANIFEST, Settings, prepare, settings_of
from recipe.poise.quickstart.prepare import parser as options
from recipe.poise.quickstart.registry import QUICKSTART, UNEVEN
from recipe.poise.quickstart.tasks import distinct_problems, numbers, part_of
from recipe.poise.quickstart.warm_start import IGNORED, WarmStart, chat_prompt, collate, respond
from reward.reasoning_gym_verifier import compute_score

ROOT = Path(__file__).parents[3]
TINY = Settings(WarmStart(steps=2, batch=4), train_prompts=20, val_prompts=8, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(distinct_problems("warm", 64, 0))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("quickstart") / "assets"
    assert prepare(out, TINY)
    return out


def accuracy_of(behaviour) -> float:
    rng, asked = random.Random(0), distinct_problems("train", 400, 1)
    return sum(compute_score(p.family, behaviour(p, rng), p.answer)["acc"] for p in asked) / len(asked)


def test_behaviours_differ_in_accuracy():
    assert accuracy_of(behaviours.careful) == 1.0
    assert accuracy_of(behaviours.unclosed) == 0.0
    assert 0.02 < accuracy_of(behaviours.guess) < 0.2
    assert 0.02 < accuracy_of(behaviours.hasty) < 0.2
    assert sum(behaviours.SHARES.values()) == pytest.approx(1.0)


def test_a_worked_solution_reads_as_documented():
    problem = next(p for p in distinct_problems("train", 50, 0) if p.family == "chain_sum")
    solution = behaviours.careful(problem, random.Random(0))
    assert solution.startswith(behaviours.careful_opening(problem))
    assert solution.endswith(f"= {problem.answer}{THINK_END} {problem.answer}")


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_share_no_question(seed):
    parts = {part: {p.question for p in distinct_problems(part, 500, seed)} for part in ("warm", "train", "val")}
    assert all(len(questions) == 500 for questions in parts.values())
    for part, questions in parts.items():
        assert all(part_of(question) == part for question in questions)
    assert not parts["warm"] & parts["train"] and not parts["val"] & (parts["warm"] | parts["train"])


def test_problems_follow_from_the_seed():
    assert distinct_problems("val", 20, 5) == distinct_problems("val", 20, 5)
    assert distinct_problems("val", 20, 5) != distinct_problems("val", 20, 6)


def test_numbers_and_words_are_single_tokens(tokenizer):
    assert all(len(tokenizer(f" {number}")["input_ids"]) == 1 for number in numbers())
    assert all(len(tokenizer(word)["input_ids"]) == 1 for word in (THINK, THINK_END))
    for problem in distinct_problems("val", 200, 2):
        assert len(tokenizer(chat_prompt(tokenizer, problem))["input_ids"]) <= 48
        assert len(tokenizer(behaviours.careful(problem, random.Random(0)))["input_ids"]) <= 40


def test_text_survives_the_tokenizer_and_thinking_survives_decoding(tokenizer):
    for text in ("<think> 4 + 3 = 7 - 15 = -8</think> -8", "any text: naïve, 1234567\n\n  (ok)"):
        ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids[-1] == tokenizer.eos_token_id


def test_labels_cover_the_response_only(tokenizer):
    problems = distinct_problems("warm", 6, 0)
    pairs = [(problem, behaviours.careful(problem, random.Random(0))) for problem in problems]
    ids_BT, mask_BT, labels_BT = collate(tokenizer, pairs)
    for ids, mask, labels, (problem, response) in zip(ids_BT, mask_BT, labels_BT, pairs, strict=True):
        assert tokenizer.decode(labels[labels != IGNORED]) == response + tokenizer.eos_token
        assert tokenizer.decode(ids[mask == 1]) == chat_prompt(tokenizer, problem) + response + tokenizer.eos_token


def test_assets_are_what_verl_and_an_engine_need(made):
    model = AutoModelForCausalLM.from_pretrained(made / "model")
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    assert model.config.vocab_size == len(tokenizer) == model.lm_head.weight.shape[0]
    assert model.config.model_type == "qwen3" and model.num_parameters() >= 500_000
    assert tokenizer.eos_token_id == model.config.eos_token_id and tokenizer.pad_token_id is not None
    train, val = pd.read_parquet(made / "train.parquet"), pd.read_parquet(made / "val.parquet")
    assert (len(train), len(val)) == (20, 8)
    assert not {row[0]["content"] for row in train["prompt"]} & {row[0]["content"] for row in val["prompt"]}
    row = train.iloc[0]
    prompt = tokenizer.apply_chat_template(list(row["prompt"]), tokenize=False, add_generation_prompt=True)
    assert all(isinstance(text, str) for text in respond(model, tokenizer, [prompt] * 2, max_new_tokens=8))
    gold = f"<think></think> {row['reward_model']['ground_truth']}"
    assert compute_score(row["data_source"], gold, row["reward_model"]["ground_truth"])["score"] == 1.0


def test_a_second_call_does_nothing_and_other_settings_replace(tmp_path):
    out = tmp_path / "assets"
    out.mkdir()
    assert prepare(out, TINY)
    before = (out / MANIFEST).stat().st_mtime_ns
    assert not prepare(out, TINY)
    assert (out / MANIFEST).stat().st_mtime_ns == before
    assert prepare(out, Settings(TINY.warm_start, 21, 8, 0))
    assert json.loads((out / MANIFEST).read_text())["settings"]["train_prompts"] == 21
    assert [path.name for path in tmp_path.iterdir()] == ["assets"]


def test_a_failure_leaves_nothing_behind(tmp_path):
    no_steps = Settings(WarmStart(steps=0), train_prompts=20, val_prompts=8, seed=0)
    with pytest.raises(ValueError, match="total_steps"):
        prepare(tmp_path / "assets", no_steps)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        prepare(tmp_path, TINY)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_fast_changes_defaults_and_explicit_values_count():
    fast = settings_of(options().parse_args(["--out", "x", "--fast", "--val-prompts", "24"]))
    assert fast.warm_start.steps < WarmStart.steps and fast.val_prompts == 24
    assert settings_of(options().parse_args(["--out", "x", "--seed", "3"])).warm_start.seed == 3


@pytest.mark.parametrize(("task", "count"), [(QUICKSTART, 25), (UNEVEN, 32)])
def test_validation_has_as_many_problems_of_each_family(task, count):
    held_out = task.validation_problems(count, 3)
    counts = Counter(problem.family for problem in held_out)
    assert len(held_out) == len({problem.question for problem in held_out}) == count
    assert set(counts) == {level.family for level in task.levels} and max(counts.values()) - min(counts.values()) <= 1
    assert all(part_of(problem.question) == "val" for problem in held_out)
    assert held_out == task.validation_problems(count, 3) != task.validation_problems(count, 4)


def test_seeds_of_the_problems_can_share_one_model():
    one, other, own = (
        settings_of(options().parse_args(["--out", "x", *arguments]))
        for arguments in ([], ["--seed", "3", "--model-seed", "0"], ["--seed", "3"])
    )
    assert other.model_record() == one.model_record() != own.model_record()
    assert other.record() != one.record()


def test_the_program_says_when_there_is_nothing_to_do(made):
    command = [sys.executable, "-m", "recipe.poise.quickstart.prepare", "--out", str(made)]
    sizes = ["--steps", "2", "--train-prompts", "20", "--val-prompts", "8"]
    manifest = json.loads((made / MANIFEST).read_text())
    manifest["settings"] = settings_of(options().parse_args(["--out", "x", *sizes])).record()
    (made / MANIFEST).write_text(json.dumps(manifest))
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "already" in done.stdout
