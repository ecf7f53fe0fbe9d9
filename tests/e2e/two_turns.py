"""An agent loop for the tests: a turn, what a tool says to it, a second turn. Named by ``agent_loops.yaml`` beside it.

Sessions with an odd number give their turns as two outputs, the second of which has all that came before as its prompt.
"""

from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

TOOL_TEXT = "12 + 30 = 42 "  # longer than a state's tokens


class TwoTurns(AgentLoopBase):
    """The model's first turn has 8 tokens, its second what is left of the response."""

    async def run(self, sampling_params, priority=0, **kwargs):
        room = self.rollout_config.response_length
        prompt = await self.ct_build_initial_tokens(list(kwargs["raw_prompt"]))
        tool = self.tokenizer.encode(TOOL_TEXT, add_special_tokens=False)
        first = await self._turn(prompt, sampling_params, 8)
        second = await self._turn(prompt + first.token_ids + tool, sampling_params, room - 8 - len(tool))
        extra = second.extra_fields | {"turn_scores": [], "tool_rewards": []}
        for name in ("min_global_steps", "global_steps"):  # the session began with the first turn
            if name in first.extra_fields:
                extra[name] = first.extra_fields[name]

        def output(prompt_ids, parts):
            """`parts`: tokens, whether they are the model's own, log-probs."""
            return AgentLoopOutput(
                prompt_ids=prompt_ids,
                response_ids=[token for tokens, _, _ in parts for token in tokens],
                response_mask=[own for tokens, own, _ in parts for _ in tokens],
                response_logprobs=[number for _, _, numbers in parts for number in numbers],
                num_turns=4,
                metrics=AgentLoopMetrics(),
                extra_fields=dict(extra),
            )

        turns = [(turn.token_ids, 1, turn.log_probs) for turn in (first, second)]
        said = (tool, 0, [0.0] * len(tool))
        if int(kwargs["session_id"]) % 2:
            return [output(prompt, [turns[0]]), output(prompt + first.token_ids + tool, [turns[1]])]
        return output(prompt, [turns[0], said, turns[1]])

    async def _turn(self, prompt_ids, sampling_params, count):
        # a copy: the sessions of a prompt share the dictionary
        parameters = {**sampling_params, "max_tokens": count}
        return await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=parameters
        )
