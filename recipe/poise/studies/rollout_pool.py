"""Rollouts of a fixed policy: rewards, captured features, token ids; for the studies of gradients and values.

Sampling is transformers' own, at temperature 1: these studies need a fixed checkpoint and no server.
"""

import asyncio
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from probe import FeatureLayout
from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, resolve_block, token_spans
from recipe.poise.capture.signals import DEFAULT_SIGNALS, compute_signals
from recipe.poise.evaluate.scoring import load_reward, verdict_of

REWARD = "reward.reasoning_gym_verifier:compute_score"


@dataclass
class Pool:
    """P prompts x n rollouts; R = P n rows in that order.

    Attributes:
        ids: token ids of prompt and response, one tensor per row. length_R: response tokens.
        reward_R: (R,) float32. feature_RF: (R, F) float32, POISE's default features.
        prompt_R: (R,) number of the prompt.
    """

    ids: list[Tensor]
    length_R: Tensor
    reward_R: Tensor
    feature_RF: Tensor
    prompt_R: Tensor
    layout: FeatureLayout
    n: int


class Policy:
    """A causal language model with the capture that training uses."""

    def __init__(self, path: str, block: float = 19 / 36, num_tokens: int = 10, device: str = "cpu"):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device).eval()
        layers = self.model.config.num_hidden_layers
        self.block = find_blocks(self.model, layers)[resolve_block(block, layers)]
        self.capture = HiddenStateCapture(self.block, num_tokens)
        self.end_think = self.tokenizer.convert_tokens_to_ids("</think>")
        self.pad = self.tokenizer.pad_token_id
        self.capture_seconds = 0.0  # what capture added to the passes so far: spans, the hook, the signals

    def batch(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Token ids and mask (R, L), padded on the right."""
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad).to(self.model.device)
        length_R = torch.tensor([len(row) for row in ids], device=padded.device)
        return padded, (torch.arange(padded.shape[1], device=padded.device) < length_R.unsqueeze(1)).long()

    def log_probs(self, ids_RL: Tensor, mask_RL: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each next token (R, L - 1), and the logits."""
        logits = self.model(input_ids=ids_RL, attention_mask=mask_RL).logits.float()
        return logits[:, :-1].log_softmax(-1).gather(2, ids_RL[:, 1:, None]).squeeze(2), logits

    @torch.no_grad()
    def features(self, ids: list[Tensor], lengths: list[int], limit: int, see: Callable | None = None) -> Tensor:
        """(R, F): prompt state, response state, the default signals, of one forward pass; `see` may look at the pass
        (arguments as in `energies.Observer.see`)."""
        start, hook = time.perf_counter(), self.capture.seconds
        offsets = torch.tensor([0, *torch.tensor([len(row) for row in ids]).cumsum(0).tolist()])
        flat = torch.cat(ids)
        spans = token_spans(flat, offsets, torch.tensor(lengths), self.end_think)
        ids_RL, mask_RL = self.batch(ids)
        self.capture.arm(spans, ids_RL.shape[1])
        before = time.perf_counter() - start
        log_prob, logits = self.log_probs(ids_RL, mask_RL)
        hook = self.capture.seconds - hook
        states = self.capture.take()
        if see is not None:
            see(ids_RL, mask_RL.sum(1), torch.tensor(lengths), log_prob, logits)
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        rows = [(entropy[i, : len(row)], log_prob[i, : len(row) - 1]) for i, row in enumerate(ids)]
        start = time.perf_counter()
        signals = compute_signals(
            DEFAULT_SIGNALS, spans, torch.cat([e for e, _ in rows]),
            torch.cat([torch.cat([p, p.new_zeros(1)]) for _, p in rows]), flat, (self.tokenizer.eos_token_id,), limit,
        )  # fmt: skip
        self.capture_seconds += before + hook + time.perf_counter() - start
        return torch.cat([*states, signals], dim=1).float()

    @torch.no_grad()
    def sample(
        self, prompts: list[list[int]], n: int, limit: int, batch: int = 256, device: str | None = None
    ) -> tuple[list[Tensor], list[int]]:
        """Token ids and response lengths, n rows per prompt; on `device`, where one is named, and back."""
        home = self.model.device
        self.model.to(device or home)
        try:
            return self._sample(prompts, n, limit, batch)
        finally:
            self.model.to(home)

    def _sample(self, prompts: list[list[int]], n: int, limit: int, batch: int) -> tuple[list[Tensor], list[int]]:
        ids, lengths, per = [], [], max(1, batch // n)
        eos = self.tokenizer.eos_token_id
        for start in tqdm(range(0, len(prompts), per), desc="sampling", leave=False, disable=None):
            chosen = prompts[start : start + per]
            width = max(map(len, chosen))
            left = torch.tensor([[self.pad] * (width - len(p)) + p for p in chosen]).repeat_interleave(n, 0)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chosen]).repeat_interleave(n, 0)
            out = self.model.generate(
                left.to(self.model.device), attention_mask=mask.to(self.model.device), do_sample=True, temperature=1.0,
                top_k=0, top_p=1.0, max_new_tokens=limit, eos_token_id=eos, pad_token_id=self.pad,
            ).cpu()  # fmt: skip
            for row, tokens in enumerate(out[:, width:]):
                ends = (tokens == eos).nonzero()
                length = int(ends[0]) + 1 if len(ends) else len(tokens)
                ids.append(torch.cat([torch.tensor(chosen[row // n]), tokens[:length]]))
                lengths.append(length)
        return ids, lengths


def _score(function, rows: list[dict], texts: list[str]) -> list[float]:
    async def one(row, text):
        call = function(row["data_source"], text, row["reward_model"]["ground_truth"], row.get("extra_info"))
        return await call if inspect.isawaitable(call) else call

    async def everything():
        return [verdict_of(await one(row, text)).score for row, text in zip(rows, texts, strict=True)]

    return asyncio.run(everything())


def prompt_count(data: Path) -> int:
    """Rows of a parquet file."""
    return pyarrow.parquet.read_metadata(data).num_rows


def make_pool(
    policy: Policy,
    data: Path,
    prompts: slice | np.ndarray,
    n: int,
    limit: int,
    reward: str,
    see: Callable | None = None,
    device: str | None = None,
) -> Pool:
    """Sample (on `device`), score and capture prompts (by row number) of a parquet file in verl's schema; `see` as in
    `features`."""
    table = pd.read_parquet(data).iloc[prompts]
    rows = table.to_dict("records")
    tokens = [
        policy.tokenizer.apply_chat_template(list(row["prompt"]), add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    batch = 256 if device in (None, "cpu") else 2048  # an accelerator waits for calls, not for rows
    ids, lengths = policy.sample(tokens, n, limit, batch, device)
    texts = policy.tokenizer.batch_decode(
        [row[-length:] for row, length in zip(ids, lengths, strict=True)], skip_special_tokens=True
    )
    scores = _score(load_reward(reward), [row for row in rows for _ in range(n)], texts)
    features = [
        policy.features(ids[start : start + 128], lengths[start : start + 128], limit, see)
        for start in tqdm(range(0, len(ids), 128), desc="features", leave=False, disable=None)
    ]
    hidden = policy.model.config.hidden_size
    layout = FeatureLayout(("prompt", "response", *DEFAULT_SIGNALS), (hidden, hidden, *[1] * len(DEFAULT_SIGNALS)))
    return Pool(
        ids, torch.tensor(lengths), torch.tensor(scores), torch.cat(features).cpu(),
        torch.arange(len(rows)).repeat_interleave(n), layout, n,
    )  # fmt: skip
