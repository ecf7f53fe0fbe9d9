"""Optional parts of the reward beside correctness, reported apart from acc.

The overlong penalty is verl's own: ``reward.reward_manager.name=dapo`` with ``reward.reward_kwargs.max_resp_len`` and
``.overlong_buffer_cfg`` (DAPO, arXiv 2503.14476, eq. 13); it counts tokens, which a reward function does not see.
"""

from reward.answer_region import CLOSE, final_answer


def format_bonus(response: str, bonus: float) -> float:
    """`bonus` for a response that closes its reasoning once and then gives an answer in one of the usual forms."""
    if not bonus:
        return 0.0
    return bonus if response.count(CLOSE) == 1 and final_answer(response) is not None else 0.0
