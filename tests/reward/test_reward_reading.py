"""Reading a response happens in the event loop, so no text may keep it busy: not its size, not its repetitions."""

import time

import pytest

from reward.answer_region import final_answer
from reward.choice_verifier import chosen_letter
from reward.code.cases import program_of
from reward.json_verifier import given_values
from reward.math_verifier import normalise
from reward.shaping import format_bonus
from reward.value_verifier import canonical, given_text, read

READERS = {
    "math": lambda text: normalise((final_answer(text) or "")[:2000]),
    "choice": chosen_letter,
    "json": given_values,
    "value": lambda text: canonical(read(given_text(text))),
    "code": program_of,
    "bonus": lambda text: format_bonus(text, 0.1),
}
UNITS = (
    r"\boxed{", r"\boxed", r"\frac{", "<answer>", "</answer>", "<tool_call>", "Answer:", "answer ", "the answer is ",
    "```", "```json\n", "```python\nx\n", "####", "{", "[", "(", "[{", '{"a":', "\\", r"\{", "-", "**", "$",
    "<think>", "</think>", "9",
)  # fmt: skip
FILLERS = (" ", "\n", "\t", "*", "(", "-", "\\", "{", ",")
ENDS = ("", "x", "\n", "}", "```", ":")


def texts(size: int, fillers: tuple[str, ...], ends: tuple[str, ...]):
    for unit in UNITS:
        yield unit * (size // len(unit))
        for filler in fillers:
            for end in ends:
                yield unit + filler * (size - 40) + end


@pytest.mark.parametrize(("size", "fillers", "ends"), [(15_000, FILLERS, ENDS), (1_000_000, (" ", "-"), ("",))])
@pytest.mark.parametrize("name", READERS)
def test_every_text_is_read_at_once(name, size, fillers, ends):
    slowest = (0.0, "")
    for text in texts(size, fillers, ends):
        start = time.thread_time()
        READERS[name](text)
        slowest = max(slowest, (time.thread_time() - start, text[:20] + text[-5:]))
        assert slowest[0] < 0.5, slowest
