"""Mathematical answers: the forms they come in, equality, and what a model may write to break a verifier."""

import asyncio
import os
import subprocess
import sys
import time

import psutil
import pytest

from reward.answer_region import final_answer
from reward.math_verifier import MathVerifier
from reward.process_pool import LimitedPool, TimeLimitExceeded, WorkerDied

VERIFIER = MathVerifier(time_limit_s=20)  # the first answer waits for the libraries to load


def judge(response, gold):
    return asyncio.run(VERIFIER.verify(response, gold, {}))


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} no, \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        (r"\boxed 9.", "9"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        ("Answer: 12", "12"),
        ("**Answer:** 12", "12"),
        (r"Answer: $\boxed{12}$", "12"),
        ("The sum is 3.\n#### 3", "3"),
        ("<answer> 4 </answer>", "4"),
        ("Answer: 1\n#### 2\n<answer>3</answer>", "3"),
        (r"\boxed{1} Answer: 2", "2"),
        (r"<think>\boxed{1}</think> no box", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"never opens \boxed{2}", "2"),
        (r"<think>never closes \boxed{2}", None),
        (r"<think>1</think>\boxed{2}<think>or \boxed{3}", "2"),
        ("the answer is 5", None),
        ("", None),
        ("</think>", None),
    ],
)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"), ("42.0", "42"), ("042", "42"), ("1,234", "1234"), ("1{,}234", "1,234"), (r"\frac12", "0.5"),
        ("1/2", r"\dfrac{1}{2}"), (r"2\frac{1}{2}", "5/2"), (r"50\%", "50"), ("50%", "50"), (r"12\text{ cm}", "12"),
        (r"\$18", "18"), ("18 dollars", "18"), (r"90^\circ", "90"), (r"\{2, 1\}", r"\{1, 2\}"), ("3, 5", "3,5"),
        ("[0, 1)", "[0,1)"), ("x=5", "5"), (r"\sqrt{8}", r"2\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"), ("１２", "12"),
        ("٣", "3"), ("−3", "-3"), (r"\textbf{(073)}", "73"), (r"\text{(B)}", "(B)"), ("$7$", "7"), ("10^3", "1000"),
        (r"5\times 10^3", "5000"), ("5 × 10^3", "5000"), (r"\pi/2", r"\frac{\pi}{2}"),
    ],
)  # fmt: skip
def test_equal_answers(answer, gold):
    assert judge(rf"so it is \boxed{{{answer}}}", gold).score == 1.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("43", "42"), ("-42", "42"), ("4.2", "42"), ("1234", "12345"), ("(0,1)", "[0,1]"), (r"\{1\}", r"\{1, 2\}"),
        ("3", "3,5"), ("x+1", "x-1"), (r"\sqrt{2}", "1.41"), ("nothing", "0"), ("1/3", "0.3"), ("∞", "0"),
    ],
)  # fmt: skip
def test_other_answers(answer, gold):
    verdict = judge(rf"so it is \boxed{{{answer}}}", gold)
    assert (verdict.score, verdict.failed) == (0.0, False)


def test_several_ground_truths_are_alternatives():
    assert judge(r"\boxed{4}", ["3", "4"]).score == 1.0
    assert judge(r"\boxed{5}", ["3", "4"]).score == 0.0


@pytest.mark.parametrize("gold", ["", "  ", [], ["1", ""]])
def test_an_empty_ground_truth_is_said(gold):
    with pytest.raises(ValueError, match="empty mathematical ground truth"):
        judge(r"\boxed{1}", gold)


@pytest.mark.parametrize(
    "response",
    [
        "", " ", "\x00", r"\boxed{" * 2000, r"\boxed{" + "{" * 5000 + "1" + "}" * 5001,
        r"\boxed{" + r"\frac{1}{" * 200 + "2" + "}" * 201, r"\boxed{" + r"\sqrt{" * 300 + "}" * 300 + "}",
        "a" * 1_000_000, r"\boxed{" + "1" * 1_000_000 + "}", r"\boxed{9}" * 100_000, "<answer>" * 100_000,
        "Answer:" * 150_000, "#" * 1_000_000, r"\boxed{\left(\right.}", r"\boxed{\begin{pmatrix}1\end{}}", "\\",
        "\\boxed{\ud83d\ude00}", r"\boxed{x^{x^{x^{x}}}}", r"\boxed{1/0}", r"\boxed{\lim}",
    ],
    ids=range(20),
)  # fmt: skip
def test_whatever_a_model_writes_has_an_outcome_in_time(response):
    start = time.monotonic()
    verdict = judge(response, "123456789")
    assert verdict.score == 0.0 and time.monotonic() - start < 45


def test_a_megabyte_of_reasoning_does_not_hide_the_answer():
    start = time.thread_time()
    assert judge("<think>" + "wait " * 250_000 + r"</think>\boxed{8}", "8").score == 1.0
    assert time.thread_time() - start < 1


def test_an_answer_that_computes_for_ever_is_a_failed_verifier_and_blocks_nobody():
    """sympy would need ages for this power; another answer is judged meanwhile."""
    verifier = MathVerifier(time_limit_s=3, workers=2)

    async def both():
        await verifier.verify(r"\boxed{2/4}", "1/2", {})
        start = time.monotonic()
        hard = asyncio.create_task(verifier.verify(r"\boxed{9^{9^{9^{9}}}+1}", r"\sqrt{2}^{7^{7^{7^{7}}}}", {}))
        await asyncio.sleep(0.1)
        quick = [await verifier.verify(rf"\boxed{{{n}/2}}", "7/2", {}) for n in range(5, 10)]
        quick_s = time.monotonic() - start
        return await hard, quick, quick_s, time.monotonic() - start

    hard, quick, quick_s, seconds = asyncio.run(both())
    assert [v.score for v in quick] == [0, 0, 1, 0, 0] and quick_s < 2.5
    assert hard.score == 0.0 and seconds < 12
    if seconds > 3:
        assert hard.failed and "no result within 3 s" in hard.reason
    assert judge(r"\boxed{2/4}", "1/2").score == 1.0  # the killed worker was replaced


def test_towers_and_factorials_that_nobody_can_evaluate_are_wrong_at_once():
    verifier = MathVerifier(time_limit_s=20, workers=1)
    forms = ("9^{9^{9^{9}}}", "9**9**9+%d", "10^{10^{10}}", "(10^9)!", "9!!!", "123456!", "2^{10000000}", "1e9999999")

    async def both():
        await verifier.verify(r"\boxed{2/4}", "1/2", {})
        start = time.monotonic()
        towers = await asyncio.gather(*(verifier.verify(rf"\boxed{{{form}}}", "1/2", {}) for form in forms))
        return towers, time.monotonic() - start

    towers, seconds = asyncio.run(both())
    assert [(verdict.acc, verdict.failed) for verdict in towers] == [(0.0, False)] * len(forms) and seconds < 2
    for answer, gold in (("2^{2^{3}}", "256"), ("10^{100}", "10^{10^2}"), ("5!", "120"), ("9^{9^9}", "9^{9^{9}}")):
        assert judge(rf"\boxed{{{answer}}}", gold).acc == 1.0  # what can be evaluated is, and equal text is equal


def test_answers_that_hang_hold_a_good_one_up_for_a_moment_each():
    """They hang in the library: no look at their shape would tell."""
    verifier = MathVerifier(time_limit_s=1, workers=1)
    gold = r"\sqrt{2}^{7^{7^{7^{7}}}}"  # a tower itself, so that towers are let through

    async def go():
        await verifier.verify(r"\boxed{2/4}", "1/2", {})
        hanging = [
            asyncio.create_task(verifier.verify(rf"\boxed{{9^{{9^{{9^{{9}}}}}}+{n}}}", gold, {})) for n in range(10)
        ]
        await asyncio.sleep(0.05)
        start = time.monotonic()
        good = await verifier.verify(r"\boxed{2/4}", "1/2", {})
        held_up = time.monotonic() - start
        return good, held_up, await asyncio.gather(*hanging)

    good, held_up, hung = asyncio.run(go())
    assert good.acc == 1.0 and held_up < 7  # 2.7 s on an idle machine; their whole limits are 10 s
    assert all(verdict.failed and "no result within 1 s" in verdict.reason for verdict in hung)


def test_the_limit_is_hard_and_a_dead_worker_is_told_apart():
    pool = LimitedPool(1, os.getpid)  # the workers cannot import this file
    try:
        assert asyncio.run(pool.run(abs, -3, limit_s=30)) == 3
        start = time.monotonic()
        with pytest.raises(TimeLimitExceeded):
            asyncio.run(pool.run(time.sleep, 60, limit_s=0.5))
        assert time.monotonic() - start < 6
        with pytest.raises(WorkerDied):
            asyncio.run(pool.run(os.abort, limit_s=30))
        with pytest.raises(ZeroDivisionError):
            asyncio.run(pool.run(divmod, 1, 0, limit_s=30))
        assert asyncio.run(pool.run(abs, -4, limit_s=30)) == 4
    finally:
        pool.close()


def test_workers_die_with_a_killed_parent():
    code = (
        "import asyncio\nfrom reward.math_verifier import MathVerifier\n"
        "if __name__ == '__main__':\n"
        "    v = MathVerifier(60)\n"
        "    print(asyncio.run(v.verify('\\\\boxed{2/4}', '1/2', {})).score, flush=True)\n"
        "    import time; time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "1.0\n"
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="time_limit_s"):
        MathVerifier(time_limit_s=0)
