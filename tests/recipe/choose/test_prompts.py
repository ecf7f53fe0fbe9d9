"""Candidates are tokenised as verl's rollout does, and spread over ranks."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils.data import Dataset
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.rl_dataset import collate_fn

from recipe.poise.capture.engine import PROMPT_FIELD, PROMPT_FLAG
from recipe.poise.choose.prompts import PromptTokens, prompt_batch
from recipe.poise.quickstart.model import make_model, make_tokenizer
from recipe.poise.trainer.choice import ROLLOUTS_FIELD, ChosenPrompts

CONFIG_DIR = str(Path(__file__).parents[3] / "recipe/poise/config")
QUESTIONS = ["What is 3 + 4?", "What is 2 * 5 * 7 - 8 + 11 - 4 + 9 * 3?", "Add 1 and 1."]


class Rows(Dataset):
    """A data set in the form of verl's."""

    def __init__(self, questions=QUESTIONS, **more):
        self.rows = [
            {"raw_prompt": [{"role": "user", "content": text}], "data_source": "sums", "dummy": torch.zeros(1), **more}
            for text in questions
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return dict(self.rows[place])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = make_tokenizer([])
    tokenizer.save_pretrained(folder)
    make_model(tokenizer, seed=0).save_pretrained(folder)
    return folder, tokenizer


def config_of(folder, *overrides):
    with initialize_config_dir(CONFIG_DIR, version_base=None):
        return compose("poise_quickstart", overrides=[f"actor_rollout_ref.model.path={folder}", *overrides])


def rollout_tokens(config, tokenizer, messages):
    """What verl's single-turn agent loop asks the server for."""
    from verl.experimental.agent_loop.agent_loop import DictConfigWrap
    from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

    async def ask():
        wrapped = (DictConfigWrap(config), SimpleNamespace(), tokenizer, None, None, DictConfigWrap(config.data))
        loop = SingleTurnAgentLoop(*wrapped, hf_model_type="qwen3")
        return await loop.ct_build_initial_tokens(messages)

    return asyncio.run(ask())


@pytest.mark.parametrize("length", [64, 12])
def test_tokens_are_those_of_the_rollout_cut_on_the_left_where_too_long(model, length):
    folder, tokenizer = model
    config = config_of(folder, f"data.max_prompt_length={length}")
    rows = Rows()
    tokens = PromptTokens(config, rows)
    seen = []
    for place in range(3):
        found, source = tokens.of(place)
        messages = rows[place]["raw_prompt"]
        assert found.tolist() == rollout_tokens(config, tokenizer, messages) and source == "sums"
        whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found.tolist() == whole[-length:]
        seen.append(len(whole))
    assert max(seen) > 12 and len(set(seen)) == 3  # of unequal length, and one that was cut


def test_prompts_with_pictures_are_refused(model):
    folder, _ = model
    rows = Rows()
    rows.rows[1]["raw_prompt"] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(ValueError, match="prompt 1 of the training data has image.*candidates=1"):
        PromptTokens(config_of(folder), rows).of(1)


@pytest.mark.parametrize(
    ("count", "ranks", "multiple", "rows"), [(7, 1, 1, 7), (7, 2, 1, 8), (7, 2, 4, 8), (9, 4, 2, 16)]
)
def test_a_batch_gives_each_rank_as_many_rows_and_like_work(count, ranks, multiple, rows):
    noise = torch.Generator().manual_seed(0)
    tokens = [torch.randint(5, 99, (int(n),), generator=noise) for n in torch.randint(2, 90, (count,), generator=noise)]
    batch = prompt_batch(tokens, ranks, multiple)
    id_R = batch[PROMPT_FIELD][:, 0]
    assert len(batch) == rows and sorted(id_R[id_R >= 0].tolist()) == list(range(count)) and batch[PROMPT_FLAG]
    for id_, ids, places in zip(
        id_R.tolist(), batch["input_ids"].unbind(), batch["position_ids"].unbind(), strict=True
    ):
        assert torch.equal(ids, tokens[max(id_, 0)]) and torch.equal(places, torch.arange(len(ids)))
    work = batch["input_ids"].offsets().diff().view(ranks, -1).sum(1)
    assert int(work.max() - work.min()) <= 90


def test_the_loader_hands_out_what_the_chooser_says_with_its_rollouts():
    given = {2: 3, 0: 1}
    chooser = SimpleNamespace(
        take=lambda count: [2, 0][:count], given=lambda places: [given[place] for place in places]
    )
    loader = ChosenPrompts(chooser, Rows(), 2)
    batch = next(iter(loader))
    assert loader.places == [2, 0] and batch[ROLLOUTS_FIELD].tolist() == [3, 1]
    plain = collate_fn([Rows()[2], Rows()[0]])
    assert set(batch) - set(plain) == {ROLLOUTS_FIELD} and batch[ROLLOUTS_FIELD].dtype == object
    assert all(np.array_equal(batch[name], plain[name]) for name in plain)
    # as verl's trainer packs it, and its agent loop takes it apart
    batch["uid"] = np.array(["a", "b"], dtype=object)
    parts = tu.concat_tensordict([tu.get_tensordict(dict(batch)), tu.get_tensordict(dict(batch))]).chunk(2)
    assert [part[ROLLOUTS_FIELD][row] for part in parts for row in range(2)] == [3, 1, 3, 1]
    assert [len(range(part.get(ROLLOUTS_FIELD)[row].data)) for part in parts for row in range(2)] == [3, 1, 3, 1]
    chooser.given = lambda places: None
    assert set(next(loader)) == set(plain) and loader.state_dict() == {}
