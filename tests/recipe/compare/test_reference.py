"""A run beside the committed ones of its kind: noise does not depart, a run that learns nothing or is slow does."""

from dataclasses import replace

import numpy as np
import pytest

from launch.runfile import ROOT
from recipe.poise.compare.readers import ReadError
from recipe.poise.compare.records import read_all_records
from recipe.poise.compare.reference import FEWEST, departures, references

RECORDS = ROOT / "docs/leaderboard/runs"


@pytest.fixture
def known(made):
    """Six seeds whose accuracies have a deviation of 0.03."""
    noise = np.random.default_rng(0).normal(0, 0.03, size=6)
    return [made("poise", seed, 0.8 + float(found)) for seed, found in enumerate(noise)]


def test_a_seed_is_as_the_others(known):
    for left_out in known:
        assert departures(left_out, [record for record in known if record is not left_out]) == []


def test_noise_departs_seldom(made):
    """Of 100 draws of seven seeds each, with noise at every validation, next to none."""
    random, found = np.random.default_rng(1), 0
    for _ in range(100):
        records = []
        for seed in range(7):
            record = made("poise", seed, 0.8)
            accuracy = tuple(float(value) for value in record.validation.accuracy + random.normal(0, 0.03, size=5))
            records.append(replace(record, validation=replace(record.validation, accuracy=accuracy)))
        found += bool(departures(records[0], records[1:]))
    assert found <= 1


def test_what_goes_wrong_is_said(known, made):
    flat = made("poise", 9, 0.2)
    found = departures(flat, known)
    assert found[-1].startswith("accuracy after 8 updates is 0.200; of 6 such runs it is 0.8")
    slow = replace(known[0], medians=known[0].medians | {"timing_s/step": 30.0})
    assert departures(slow, known[1:]) == ["a step takes 30.0 s; on this machine it took 10.0 s"]
    assert departures(replace(slow, machine="another"), known[1:]) == []


def test_a_shorter_run_is_held_to_the_beginning(known, made):
    whole = made("poise", 9, 0.8)
    updates, validation = whole.updates, whole.validation
    short = replace(
        whole,
        updates=replace(updates, step=updates.step[:4], tokens=updates.tokens[:4], seconds=updates.seconds[:4]),
        validation=replace(
            validation,
            step=validation.step[:3],
            accuracy=validation.accuracy[:3],
            sources={name: values[:3] for name, values in validation.sources.items()},
        ),
    )
    assert departures(short, known) == []
    assert departures(replace(short, validation=replace(short.validation, accuracy=(0.2, 0.2, 0.2))), known)


def test_only_runs_of_the_same_kind_count(known, made):
    mine = made("poise", 9, 0.8)
    strangers = [made("grpo", 0, 0.8), made("poise", 100, 0.8), made("poise", 1, 0.8, rate=2e-4)]
    strangers += [made("poise", 2, 0.8, finished=False), replace(made("poise", 3, 0.8), task="uneven")]
    assert references(mine, [*known, *strangers]) == known
    with pytest.raises(ReadError, match=f"{FEWEST - 1} records of such runs, {FEWEST} are needed"):
        departures(mine, [*known[: FEWEST - 1], *strangers])
    other_steps = replace(mine.validation, step=(1, 3, 5, 7, 9))
    with pytest.raises(ReadError, match="other steps"):
        departures(replace(mine, validation=other_steps), known)


def test_the_committed_quickstart_is_in_agreement_with_itself():
    """Each seed of the reference lies where the other seeds say."""
    known = read_all_records([str(RECORDS)]) if RECORDS.is_dir() else []
    mine = [record for record in known if (record.task, record.method) == ("quickstart", "poise") and record.seed < 100]
    if len(mine) <= FEWEST:
        pytest.skip("there are no records of the quickstart's runs in docs/leaderboard/runs yet")
    for left_out in mine:
        assert departures(left_out, [record for record in mine if record is not left_out]) == []
