"""The model that comes with the package."""

import hashlib
import json
import shutil

import pytest

from recipe.poise.quickstart.packaged import FOLDER, RECORD, WEIGHTS, DamagedModel, digest_of_tokenizer, packaged_model
from recipe.poise.quickstart.prepare import MANIFEST, default_settings, new_tokenizer, prepare, settings_of
from recipe.poise.quickstart.prepare import parser as options
from recipe.poise.quickstart.registry import QUICKSTART, TASKS, UNEVEN, WIDE
from recipe.poise.quickstart.warm_start import accuracy

# The quickstart's results in the documents are of these weights.
QUICKSTART_WEIGHTS = "a191bdb250bcea3e5ce9b13bea7d908d0d4fc6d6ff50038b1adfb13eac196553"
OF_TASK = FOLDER / QUICKSTART.name


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_it_is_small_and_its_digest_is_the_recorded_one(task):
    record = json.loads((FOLDER / task.packaged_as / RECORD).read_text())
    content = (FOLDER / task.packaged_as / WEIGHTS).read_bytes()
    assert len(content) < 3e6
    assert hashlib.sha256(content).hexdigest() == record["weights"]
    assert record["settings"] == default_settings(task).model_record()


def test_the_quickstarts_weights_and_tokenizer_stay(tokenizer):
    record = json.loads((OF_TASK / RECORD).read_text())
    assert record["weights"] == QUICKSTART_WEIGHTS
    assert record["tokenizer"] == digest_of_tokenizer(tokenizer)


# The uneven task's careful opening is also how tired and circling responses begin, so it promises less.
@pytest.mark.parametrize(
    ("task", "reliable", "start"), [(QUICKSTART, 0.7, (0.2, 0.5)), (UNEVEN, 0.3, (0.25, 0.5)), (WIDE, 0.2, (0.05, 0.3))]
)
def test_it_can_what_the_warm_start_teaches(task, reliable, start):
    tokenizer = new_tokenizer(task)
    model = packaged_model(default_settings(task).model_record(), tokenizer, FOLDER / task.packaged_as)
    asked = task.distinct_problems("val", 128, 0)
    assert accuracy(model, tokenizer, asked, task.careful_opening, task.max_response) > reliable
    assert start[0] < accuracy(model, tokenizer, asked, max_new_tokens=task.max_response) < start[1]


def test_other_settings_or_another_tokenizer_have_none(tokenizer):
    for arguments in (["--seed", "1"], ["--steps", "3"], ["--fast"]):
        settings = settings_of(options().parse_args(["--out", "x", *arguments]))
        assert packaged_model(settings.model_record(), tokenizer, OF_TASK) is None
    record = default_settings().model_record()
    tokenizer = new_tokenizer()
    tokenizer.add_tokens(["another"])
    assert packaged_model(record, tokenizer, OF_TASK) is None


def test_a_task_without_a_packaged_model_has_none(tmp_path, tokenizer):
    assert packaged_model(default_settings().model_record(), tokenizer, tmp_path) is None


def test_other_sizes_of_data_keep_the_model(tmp_path, capfd):
    settings = settings_of(options().parse_args(["--out", "x", "--train-prompts", "9", "--val-prompts", "8"]))
    assert prepare(tmp_path / "assets", settings)
    assert "warm start" not in capfd.readouterr().err
    assert json.loads((tmp_path / "assets" / MANIFEST).read_text())["settings"]["train_prompts"] == 9


def test_a_flipped_bit_is_refused(tmp_path, tokenizer):
    folder = shutil.copytree(OF_TASK, tmp_path / "model")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedModel, match="is damaged.*Install the project again"):
        packaged_model(default_settings().model_record(), tokenizer, folder)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "", "²"])
@pytest.mark.parametrize("option", ["--steps", "--val-prompts", "--threads"])
def test_sizes_that_are_none_are_refused(option, value, capsys):
    with pytest.raises(SystemExit):
        options().parse_args(["--out", "x", option, value])
    assert "is not a whole number of at least 1" in capsys.readouterr().err
