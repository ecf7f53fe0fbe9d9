"""GURU's domains through the router: ground truths as its data set holds them, answers as its prompts ask for them."""

import asyncio
import json

import pytest

from reward.code.local_sandbox import SandboxUnavailable
from reward.router import compute_score, find_route, verifier_of
from reward.value_verifier import read

ZEBRA = {"header": ["House", "Name", "Pet"], "rows": [["1", "Ann", "cat"], ["2", "Bob", "dog"]]}
SWAPPED = {"header": ["House", "Name", "Pet"], "rows": [["1", "Ann", "dog"], ["2", "Bob", "cat"]]}
BIRDS = '["robin", "blue jay", "owl"]'
GRID = "[[1, 0], [0, 2]]"
CODEIO = '"output": {"preorder": "[97]", "found": "true", "name": "Ann"}'


def tag(answer: object) -> str:
    return f"<think>or <answer>no</answer></think>So <answer> {answer} </answer>"


@pytest.mark.parametrize(
    ("source", "response", "truth", "right"),
    [
        ("logic__zebra_puzzle_dataset", tag(ZEBRA), json.dumps(ZEBRA), True),
        ("logic__zebra_puzzle_dataset", tag(json.dumps(ZEBRA)), json.dumps(ZEBRA), True),
        ("logic__zebra_puzzle_dataset", tag(SWAPPED), json.dumps(ZEBRA), False),
        ("zebra_puzzle_dataset", f"<answer>{ZEBRA}", json.dumps(ZEBRA), False),
        ("logic__ordering_puzzle_dataset", tag("[Robin, blue jay, owl]"), BIRDS, True),
        ("logic__ordering_puzzle_dataset", tag("['robin', 'blue jay', 'owl']"), BIRDS, True),
        ("logic__ordering_puzzle_dataset", tag("[blue jay, robin, owl]"), BIRDS, False),
        ("logic__graph_logical_dataset", tag("Node"), "node", True),
        ("logic__graph_logical_dataset", tag("edge"), "node", False),
        ("logic__arcagi1", tag("[[1, 0],\n [0, 2]]"), GRID, True),
        ("simulation__arcagi2", tag("[[1, 0], [0, 3]]"), GRID, False),
        ("logic__barc", tag("[[1, 0]]"), GRID, False),
        (
            "simulation__codeio",
            '```json\n{"output": {"preorder": [97], "found": true, "name": "Ann"}}\n```',
            CODEIO,
            True,
        ),
        ("simulation__codeio", '{"name": "Ann", "preorder": "[97]", "found": "true"}', CODEIO, True),
        ("simulation__codeio", '```json\n{"preorder": [97], "found": true, "name": "ann"}\n```', CODEIO, False),
        ("simulation__codeio", '{"output": 3}', '"output": 3', True),
        ("table__hitab", r"\boxed{Peru | 1,200}", "1200|peru", True),
        ("table__hitab", r"\boxed{Peru}", "1200|peru", False),
        ("table__hitab", r"\boxed{Chile | 1,200}", "1200|peru", False),
        ("table__multihier", r"\boxed{0.50}", "1/2", True),
        ("stem__web", r"\boxed{Oxidation}", "oxidation", True),
        ("stem__web", r"\boxed{reduction}", "oxidation", False),
        ("stem__web", r"\boxed{\frac{1}{2}}", "0.5", True),
        ("stem__supergpqa", r"\boxed{C}", "C", True),
        ("math__deepscaler_preview", r"\boxed{34}", "34", True),
    ],
)
def test_domains(source, response, truth, right):
    result = asyncio.run(compute_score(source, response, truth, {}))
    assert (result["acc"], result["verifier_failed"]) == (float(right), 0.0)


@pytest.mark.parametrize(
    "answer", ["", "[" * 20_000, "{" * 20_000, "(" * 9_000 + ")" * 9_000, "9" * 9_000, "[" + "a," * 9_000]
)
def test_whatever_a_model_writes_is_wrong(answer):
    for response in (tag(answer), answer, f"```json\n{answer}\n```"):
        result = asyncio.run(compute_score("logic__arcagi1", response, GRID, {}))
        assert (result["acc"], result["verifier_failed"]) == (0.0, 0.0)


def test_an_empty_truth_is_a_failed_verifier():
    assert asyncio.run(compute_score("logic__arcagi1", tag(GRID), " ", {}))["verifier_failed"] == 1.0


def test_reading():
    assert read("(1, 'a')") == (1, "a") and read("__import__('os')") == "__import__('os')"


def test_programs_with_the_imports_that_the_task_takes_for_granted():
    assert find_route("codegen__leetcode2k") == ("code", {})
    try:
        verifier_of("codegen__leetcode2k")
    except SandboxUnavailable as error:
        pytest.skip(f"this machine cannot isolate a program: {error}")
    program = "class Solution:\n    def first(self, values: List[int]) -> int:\n        return values[%d]"
    truth = json.dumps({"functional": "def check(f):\n    assert f([3, 4]) == 3\n\ncheck(Solution().first)"})
    kept = {"metadata": json.dumps({"extra_info": {"prefix": "from typing import List", "index": 1}})}
    for index, extra_info, right in ((0, kept, 1.0), (1, kept, 0.0), (0, {}, 0.0)):
        response = f"```python\n{program % index}\n```"
        result = asyncio.run(compute_score("codegen__leetcode2k", response, truth, extra_info))
        assert (result["acc"], result["verifier_failed"]) == (right, 0.0)
