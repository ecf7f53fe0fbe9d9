"""Progress as a file and as a terminal see it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from recipe.poise import progress as module
from recipe.poise.progress import progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lines(capsys):
    """What was printed on standard error so far, line by line."""
    found: list[str] = []

    def call() -> list[str]:
        text = capsys.readouterr().err
        assert "\r" not in text
        found.extend(text.splitlines())
        return found

    return call


@pytest.mark.parametrize("total", [1, 7, 10, 300])
def test_a_line_for_each_tenth(lines, total):
    assert list(progress(range(total), desc="warm start")) == list(range(total))
    found = lines()
    assert len(found) == min(total, 10)
    assert found[-1].startswith(f"warm start: {total}/{total} steps (100%), 00:00")
    if total == 300:
        assert [line.split()[2] for line in found] == [f"{n}/300" for n in range(30, 301, 30)]
        assert found[0].endswith("to go")


def test_and_one_every_half_minute(lines, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with progress(total=1000, desc="slow", unit="rows", initial=500) as bar:
        for _ in range(4):
            now += 16
            bar.update()
        bar.set_postfix(loss=1)
    assert lines() == [
        "slow: 502/1000 rows (50%), 00:32, 2:12:48 to go",
        "slow: 504/1000 rows (50%), 01:04, 2:12:16 to go",
    ]


def test_without_a_total_and_with_a_word_in_between(lines, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    bar = progress(iter("abc"))
    for _ in bar:
        now += 31
        bar.set_postfix(loss="0.5", refresh=False)
        bar.write("a word")
    assert lines() == [f"{n} steps, {time}, loss=0.5" for n, time in ((1, "00:31"), (2, "01:02"), (3, "01:33"))]


def test_an_error_is_not_held_up_and_silence_is_silence(lines):
    with pytest.raises(ValueError, match="mine"), progress(total=10) as bar:
        bar.update()
        raise ValueError("mine")
    assert [line.split()[0] for line in lines()] == ["1/10"]
    assert list(progress(range(50), disable=True)) == list(range(50))
    assert len(lines()) == 1


def test_a_terminal_gets_a_bar():
    script = "from recipe.poise.progress import progress\nfor _ in progress(range(50), desc='x'): pass"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=env) as process:
        os.close(theirs)
        text = b""
        try:
            while data := os.read(ours, 4096):
                text += data
        except OSError:  # how a terminal ends
            pass
        os.close(ours)
    assert process.returncode == 0 and b"\r" in text and b"x: 100%|" in text
