"""An embedded task as tensors: prompts padded on the left, and a verdict on token ids.

Shapes: N prompts, L prompt tokens, S seeds, B rows, T response tokens, A tokens of an answer.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.many_seeds.sampling import Rollouts


@dataclass
class Part:
    """prompt_NL and mask_NL (bool), and answer_NA: token ids that the response has between </think> and its end, padded
    with -1."""

    prompt_NL: Tensor
    mask_NL: Tensor
    answer_NA: Tensor

    def __len__(self) -> int:
        return len(self.prompt_NL)


class TaskData:
    """What `recipe.poise.quickstart.prepare` wrote to a folder."""

    def __init__(self, folder: Path, limit: int, device: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        self.limit, self.end, self.pad = limit, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.end_think = self.tokenizer.convert_tokens_to_ids("</think>")
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "val")}
        self.train, self.val = (self._part(tables[name], device) for name in ("train", "val"))

    def _part(self, table: pd.DataFrame, device: str) -> Part:
        prompts = [
            self.tokenizer.apply_chat_template(list(p), add_generation_prompt=True, return_dict=False)
            for p in table["prompt"]
        ]
        answers = [
            self.tokenizer.encode(f" {r['ground_truth']}", add_special_tokens=False) for r in table["reward_model"]
        ]
        width, longest = -(-max(map(len, prompts)) // 8) * 8, max(map(len, answers))
        return Part(
            torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=device),
            torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=device),
            torch.tensor([a + [-1] * (longest - len(a)) for a in answers], device=device),
        )

    def right(self, part: Part, number_SB: Tensor, rollouts: Rollouts) -> Tensor:
        """(S, B) float32: 1 where the tokens after the last </think> are the answer's and nothing else."""
        token, mask = rollouts.token_SBT, rollouts.mask_SBT
        tokens = token.shape[2]
        place_T = torch.arange(tokens, device=token.device)
        last = torch.where((token == self.end_think) & mask, place_T, -1).amax(2)
        stop = torch.where((token == self.end) & mask, place_T, tokens).amin(2).clamp(max=tokens)
        answer = part.answer_NA[number_SB]
        length = (answer >= 0).sum(2)
        right = (last >= 0) & (stop - last - 1 == length)
        for place in range(answer.shape[2]):
            at = (last + 1 + place).clamp(max=tokens - 1)
            same = token.gather(2, at.unsqueeze(2)).squeeze(2) == answer[:, :, place]
            right &= same | (place >= length)
        return right.float()
