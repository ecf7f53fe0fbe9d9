"""The model that comes with the package."""

import hashlib
import json
import shutil

import pytest

from recipe.poise.quickstart import behaviours
from recipe.poise.quickstart.packaged import FOLDER, RECORD, WEIGHTS, DamagedModel, packaged_model
from recipe.poise.quickstart.prepare import MANIFEST, default_settings, new_tokenizer, prepare, settings_of
from recipe.poise.quickstart.prepare import parser as options
from recipe.poise.quickstart.tasks import distinct_problems
from recipe.poise.quickstart.warm_start import accuracy


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def test_it_is_small_and_its_digest_is_the_recorded_one():
    record = json.loads((FOLDER / RECORD).read_text())
    content = (FOLDER / WEIGHTS).read_bytes()
    assert len(content) < 3e6
    assert hashlib.sha256(content).hexdigest() == record["weights"]
    assert record["settings"] == default_settings().model_record()


def test_it_can_what_the_warm_start_teaches(tokenizer):
    model = packaged_model(default_settings().model_record(), tokenizer)
    asked = distinct_problems("val", 128, 0)
    assert accuracy(model, tokenizer, asked, opening=behaviours.careful_opening) > 0.7
    assert 0.2 < accuracy(model, tokenizer, asked) < 0.5


def test_other_settings_or_another_tokenizer_have_none(tokenizer):
    for arguments in (["--seed", "1"], ["--steps", "3"], ["--fast"]):
        settings = settings_of(options().parse_args(["--out", "x", *arguments]))
        assert packaged_model(settings.model_record(), tokenizer) is None
    record = default_settings().model_record()
    tokenizer = new_tokenizer()
    tokenizer.add_tokens(["another"])
    assert packaged_model(record, tokenizer) is None


def test_other_sizes_of_data_keep_the_model(tmp_path, capfd):
    settings = settings_of(options().parse_args(["--out", "x", "--train-prompts", "9", "--val-prompts", "8"]))
    assert prepare(tmp_path / "assets", settings)
    assert "warm start" not in capfd.readouterr().err
    assert json.loads((tmp_path / "assets" / MANIFEST).read_text())["settings"]["train_prompts"] == 9


def test_a_flipped_bit_is_refused(tmp_path, tokenizer):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
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
