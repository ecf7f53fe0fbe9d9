"""State on disk: read back bit by bit, refused with the difference, and never executed."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probe import FeatureLayout, ProbeBank, ProbeSettings, state
from probe.refresh import FIRST, SECOND
from probe.settings import KINDS


def settings(**changes):
    return ProbeSettings(**{"min_rows": 8, "window_rows": 100, "exact_features": 4, "rank": 4} | changes)


@pytest.fixture
def saved(tmp_path, layout, step_rows):
    bank = ProbeBank(settings(), layout)
    for step in range(3):
        bank.update(*step_rows(seed=step), step=step)
    bank.save(tmp_path / "probe")
    return bank, tmp_path / "probe"


def without_times(metrics):
    return {name: value for name, value in metrics.items() if "time" not in name}


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_goes_on_bit_by_bit(kind, tmp_path, layout, step_rows):
    config = settings(kind=kind, domains={"code": "code*"}, borrow_rows=30, max_age=4)
    bank, again = ProbeBank(config, layout), ProbeBank(config, layout)
    rows = [step_rows(seed=step) for step in range(8)]
    for step in range(4):
        bank.update(*rows[step], rows[step][2] % 4 // 3, step=step)
    bank.save(tmp_path / "probe")
    again.load(tmp_path / "probe")
    for step in range(4, 8):
        domain_R = rows[step][2] % 4 // 3
        first, second = bank.predict(rows[step][0], domain_R), again.predict(rows[step][0], domain_R)
        assert torch.equal(first.value_R, second.value_R) and torch.equal(first.weight_R3, second.weight_R3)
        metrics = [b.update(*rows[step], domain_R, step=step) for b in (bank, again)]
        assert str(without_times(metrics[0])) == str(without_times(metrics[1]))  # as text: NaN equals NaN
    assert again.updates == 8


@pytest.mark.parametrize("kind", ["subspace_ridge", "logistic"])
def test_a_refresh_under_way_goes_on_bit_by_bit(kind, tmp_path, layout, step_rows):
    """Saved in each half of it, and between two; rows come back in other slots."""
    config = settings(kind=kind, window_rows=160)
    rows = [step_rows(prompts=10, seed=step) for step in range(30)]

    def patient():
        """A bank that no row stands out for."""
        bank = ProbeBank(config, layout)
        bank.probes[0].estimator.refresh_energy = 0.0
        return bank

    bank, halves = patient(), set()
    for step in range(14):
        bank.update(*rows[step], step=step)
    steps = range(14, 24) if kind == "subspace_ridge" else range(14, 24, 4)
    for step in range(14, 24):
        if step in steps:
            bank.save(tmp_path / "probe")
            again = patient()
            again.load(tmp_path / "probe")
            names = {name for name in load_file(tmp_path / "probe" / "probe.safetensors") if "refresh." in name}
            halves.add(frozenset(name.rpartition(".")[2] for name in names))
            straight = copy.deepcopy(bank)
            for later in range(step, step + 6):
                for b in (straight, again):
                    b.update(*rows[later], step=later)
            assert torch.equal(straight.predict(rows[-1][0]).value_R, again.predict(rows[-1][0]).value_R)
        bank.update(*rows[step], step=step)
    assert {frozenset(FIRST), frozenset(SECOND)} <= halves


@pytest.mark.parametrize("name", ["image", "moments"])
def test_half_of_a_refresh_under_way_is_refused(name, tmp_path, layout, step_rows):
    bank = ProbeBank(settings(window_rows=160), layout)
    for step in range(14):
        bank.update(*step_rows(prompts=10, seed=step), step=step)
        if step > 8 and bank.probes[0].estimator.refresh.image is not None:
            break
    setattr(bank.probes[0].estimator.refresh, name, None)
    bank.save(tmp_path / "probe")
    with pytest.raises(ValueError, match="is damaged .*estimator.refresh: .* do not fit"):
        ProbeBank(settings(window_rows=160), layout).load(tmp_path / "probe")


def test_an_empty_bank_round_trips(tmp_path, layout):
    ProbeBank(settings(), layout).save(tmp_path / "probe")
    again = ProbeBank(settings(), layout)
    again.load(tmp_path / "probe")
    assert again.predict(torch.zeros(2, 13)).value_R.isnan().all()


def test_saving_replaces_and_leaves_nothing_behind(saved, step_rows):
    bank, folder = saved
    bank.update(*step_rows(seed=9), step=9)
    bank.save(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["probe"]
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]


def test_another_probes_state_is_refused_with_the_difference(saved, layout):
    _, folder = saved
    with pytest.raises(ValueError, match=r"settings.window_rows: this run 4096, checkpoint 100"):
        ProbeBank(settings(window_rows=4096), layout).load(folder)
    with pytest.raises(ValueError, match=r"features.entropy: this run absent, checkpoint 1"):
        ProbeBank(settings(), FeatureLayout(("prompt", "response"), (6, 6))).load(folder)


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty", "nested"])
def test_a_damaged_file_fails_cleanly_and_executes_nothing(saved, layout, name, damage, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    _, folder = saved
    whole = (folder / name).read_bytes()
    damaged = {"truncated": whole[:50], "pickle": pickle.dumps(Bomb()), "empty": b"", "nested": b"[" * 100_000}
    (folder / name).write_bytes(damaged[damage])
    with pytest.raises(ValueError, match="damaged"):
        ProbeBank(settings(), layout).load(folder)
    assert not (tmp_path / "executed").exists()


def flips(content: bytes, places):
    """The content with one byte changed, at each of the places."""
    for place in places:
        mask = (0x01, 0x20, 0xFF)[place % 3]  # the next digit or letter, the other case, anything
        yield place, content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_every_flipped_byte_is_found(saved, layout, name):
    """Each byte of the manifest; of the tensors each of the header's and a sample of the rest."""
    _, folder = saved
    whole, bank = (folder / name).read_bytes(), ProbeBank(settings(), layout)
    places = range(len(whole))
    if name == "probe.safetensors":
        header = 8 + int.from_bytes(whole[:8], "little")
        places = [*range(header), *range(header, len(whole), 97), len(whole) - 1]
    assert len(places) > 1000
    for place, damaged in flips(whole, places):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="use an older checkpoint .trainer.resume_mode=resume_path"):
            bank.load(folder)
            pytest.fail(f"byte {place} of {name}")
    for damaged in (whole + b" ", whole[:-1]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged .*use an older checkpoint"):
            bank.load(folder)
    (folder / name).write_bytes(whole)
    bank.load(folder)


def made(folder, change):
    """Write the state in `folder` anew after `change(content, tensors)`: the digest is right."""
    identity, content, tensors = state.read(folder)
    change(content, tensors)
    state.write(folder, identity, content, tensors)


def number(*keys, value):
    """A change of one number of the manifest."""

    def change(content, tensors):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def tensor(name, function):
    """A change of one tensor."""

    def change(content, tensors):
        tensors[name] = function(tensors[name]).contiguous()

    return change


def hole(value, place=(0,)):
    def change(x):
        x = x.clone()
        x[place] = value
        return x

    return change


NAN, INF = float("nan"), float("inf")
DOMAIN = ("domains", "default")
MADE_UP = [
    (number("updates", value=-1), "updates=-1: want a whole number of at least 0"),
    (number("updates", value=1.5), "updates=1.5: want a whole number"),
    (number("updates", value="3"), "updates='3': want a whole number"),
    (number("more", value=1), "unknown setting more=1"),
    (lambda content, tensors: content.pop("updates"), "updates is missing"),
    (number(*DOMAIN, "window", "next_group", value=-1), "window.next_group=-1: want a whole number"),
    (number(*DOMAIN, "window", "next_group", value=3), "groups out of range"),
    (number(*DOMAIN, "window", "next_serial", value=3), "not in order"),
    (number(*DOMAIN, "window", "next", value=3), "window.*next"),
    (number(*DOMAIN, "estimator", "intercept_", value=None), "estimator.intercept_=null: want a finite number"),
    (number(*DOMAIN, "estimator", "penalty_", value=-1.0), "estimator.penalty_=-1.0: want a finite number of at least"),
    (number(*DOMAIN, "estimator", "low_", value=0.5), "estimator.low_=0.5: want a finite number at most 0"),
    (number(*DOMAIN, "estimator", "more", value=0.5), "estimator: want the numbers low_, high_"),
    (number(*DOMAIN, "estimator", value=[]), r"estimator=\[\]: want a mapping"),
    (number(*DOMAIN, "weights", value=[0.5, 0.5, 0.5]), "want 3 that sum to one"),
    (number(*DOMAIN, "weights", value=[2.0, -1.0, 0.0]), r"weights\[0\]=2.0: want a finite number"),
    (number(*DOMAIN, "errors", value=[0.1]), "errors .*want 3"),
    (number("domains", value={}), "domains , want default"),
    (tensor("0.window.feature", hole(NAN, (0, 0))), "window.feature: a number is not finite"),
    (tensor("0.window.reward", hole(INF)), "window.reward: a number is not finite"),
    (tensor("0.window.target", hole(NAN)), "window.target: a number is not finite"),
    (tensor("0.window.value", hole(-INF)), "window.value: a number is not finite"),
    (tensor("0.estimator.basis_", hole(NAN, (0, 0))), "estimator.basis_: a number is not finite"),
    (tensor("0.estimator.weight_", hole(INF)), "estimator.weight_: a number is not finite"),
    (tensor("0.estimator.projected_", hole(NAN, (0, 0))), "estimator.projected_: a number is not finite"),
    (tensor("0.guard.left_out", hole(INF)), "guard.left_out: a number is not finite"),
    (tensor("0.window.feature", lambda x: x[:, :3]), r"window.feature: .* of shape \(100, 3\), want .* \(100, 13\)"),
    (tensor("0.window.feature", lambda x: x.double()), "window.feature: torch.float64"),
    (tensor("0.window.reward", lambda x: x[:, None]), r"window.reward: .* of shape \(100, 1\), want"),
    (tensor("0.window.serial", lambda x: x.flip(0)), "not in order"),
    (tensor("0.window.weight", hole(-1.0)), "window: weights out of range"),
    (tensor("0.window.target_weight", hole(0.0)), "window: weights out of range"),
    (tensor("0.window.serial", lambda x: x.float()), "window.serial: torch.float32"),
    (tensor("0.estimator.basis_", lambda x: x[:, :3]), "projections of 5 numbers in a subspace of 4"),
    (tensor("0.estimator.basis_", lambda x: x.repeat(1, 2)), "a basis of 8 directions, there can be 4"),
    (tensor("0.estimator.mean_", lambda x: x[:-1]), r"estimator.mean_: .* \(12,\), want .* \(13\)"),
    (tensor("0.estimator.projected_", lambda x: x[:-1]), r"estimator.projected_: .* want .* \(100, K\)"),
    (tensor("0.guard.left_out", lambda x: x[:-1]), "guard.left_out: .* want"),
    (lambda content, tensors: tensors.pop("0.estimator.mean_"), "estimator: lacks mean_"),
    (lambda content, tensors: tensors.pop("0.window.step"), "window: has .*, want .* step"),
    (lambda content, tensors: tensors.update({"1.window.step": torch.zeros(1)}), "1.window.step: there is no such"),
    (lambda content, tensors: tensors.update({"0.estimator.x": torch.zeros(1)}), "estimator.x: there is no such"),
]


@pytest.mark.parametrize(("change", "message"), MADE_UP)
def test_what_cannot_have_been_saved_is_refused(saved, layout, change, message):
    """Also in a file that somebody made: its digest is right."""
    _, folder = saved
    made(folder, change)
    with pytest.raises(ValueError, match=f"(?s)is damaged .*{message}.*use an older checkpoint"):
        ProbeBank(settings(), layout).load(folder)


@pytest.mark.parametrize("kind", ["ensemble", "mlp", "logistic"])
def test_every_estimator_checks_its_own(kind, tmp_path, layout, step_rows):
    bank = ProbeBank(settings(kind=kind), layout)
    bank.update(*step_rows(), step=0)
    bank.save(tmp_path / "probe")
    _, content, tensors = state.read(tmp_path / "probe")
    learned = [name for name in tensors if name.startswith("0.estimator.")]
    assert len(learned) > 5
    for name in learned:
        for wrong in (lambda x: x * NAN, lambda x: x.half(), lambda x: x[None]):
            bank.save(tmp_path / "probe")
            made(tmp_path / "probe", tensor(name, wrong))
            with pytest.raises(ValueError, match=name.rpartition(".")[2]):
                ProbeBank(settings(kind=kind), layout).load(tmp_path / "probe")
    for key in content["domains"]["default"]["estimator"]:
        bank.save(tmp_path / "probe")
        made(tmp_path / "probe", number(*DOMAIN, "estimator", key, value="1"))
        with pytest.raises(ValueError, match=key.rpartition(".")[2]):
            ProbeBank(settings(kind=kind), layout).load(tmp_path / "probe")


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "true"])
def test_words_and_overflow_in_the_manifest_are_no_numbers(saved, layout, word):
    _, folder = saved
    made(folder, number("updates", value=987654321))
    path = folder / "probe.json"
    text = path.read_text().replace("987654321", word)
    blank = text.replace(json.loads(text, parse_constant=str)["digest"], state.BLANK)
    digest = state._digest(blank.encode(), folder / "probe.safetensors")
    path.write_text(blank.replace(state.BLANK, digest, 1))
    with pytest.raises(ValueError, match=f"is damaged .({word} is no number|updates=.*want a whole number)"):
        ProbeBank(settings(), layout).load(folder)


def test_a_state_of_another_format_says_what_to_do(saved, layout):
    _, folder = saved
    (folder / "probe.json").write_text(json.dumps({"version": 5, "digest": "0", "updates": 1}))
    with pytest.raises(ValueError, match="format 5, this program reads format 6: .*trainer.resume_mode=disable"):
        ProbeBank(settings(), layout).load(folder)


def test_features_in_another_order_are_refused(saved):
    _, folder = saved
    with pytest.raises(ValueError, match=r"feature_order: this run \['response'.*checkpoint \['prompt'"):
        ProbeBank(settings(), FeatureLayout(("response", "prompt", "entropy"), (6, 6, 1))).load(folder)


def test_domains_in_another_order_find_their_own(tmp_path, layout, step_rows):
    first, second = ({"a.b": "x*", "c": "y*"}, {"c": "y*", "a.b": "x*"})
    bank, again = (ProbeBank(settings(domains=domains, borrow_rows=0), layout) for domains in (first, second))
    rows = step_rows(prompts=60)
    bank.update(*rows, rows[2] % 3 // 2)  # two thirds of a.b, one of c
    bank.save(tmp_path / "probe")
    again.load(tmp_path / "probe")
    said = [b.predict(rows[0], torch.full((120,), place)).value_R for b, place in ((bank, 0), (again, 1))]
    assert torch.equal(*said) and said[0].isfinite().all()


def test_bank_and_state_do_not_import_each_other():
    text = (Path(state.__file__)).read_text()
    assert "probe.bank" not in text and "from probe" not in text


def test_no_state_there(tmp_path, layout):
    with pytest.raises(FileNotFoundError):
        ProbeBank(settings(), layout).load(tmp_path / "probe")
