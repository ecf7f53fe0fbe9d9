"""Supervised warm start on demonstrations, and the measure of where it leads: accuracy of sampled responses.

Shapes: B demonstrations or prompts, T tokens.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipe.poise.progress import progress
from recipe.poise.quickstart import behaviours
from recipe.poise.quickstart.registry import QUICKSTART, Task
from recipe.poise.quickstart.tasks import Problem, problems
from reward.reasoning_gym_verifier import compute_score

IGNORED = -100


@dataclass(frozen=True)
class WarmStart:
    """Settings of the supervised phase."""

    steps: int = 700
    """Optimiser steps."""
    batch: int = 64
    """Demonstrations a step."""
    lr: float = 3e-3
    """Highest learning rate: reached after 5% of the steps, then falling to zero by a cosine."""
    careful_share: float = 0.5
    """First share of the steps, in which careful demonstrations only are shown: reliability before variety."""
    seed: int = 0
    """Of the demonstrations."""


def chat_prompt(tokenizer: PreTrainedTokenizerFast, problem: Problem) -> str:
    """The problem as verl puts it to the model."""
    messages = [{"role": "user", "content": problem.question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def collate(
    tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[Problem, str]], limit: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Problems with responses as token ids, attention mask and labels, each int64 ``(B, T)``, padded on the right.

    Labels are ignored on the prompt and on padding. Responses are cut at `limit` tokens.
    """
    prompts = tokenizer([chat_prompt(tokenizer, problem) for problem, _ in pairs])["input_ids"]
    responses = tokenizer([response + tokenizer.eos_token for _, response in pairs])["input_ids"]
    responses = [response[:limit] for response in responses]
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    ids_BT = torch.full((len(pairs), width), tokenizer.pad_token_id)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids_BT[row, :end] = torch.tensor(prompt + response)
        mask_BT[row, :end] = 1
        labels_BT[row, len(prompt) : end] = torch.tensor(response)
    return ids_BT, mask_BT, labels_BT


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: WarmStart, task: Task = QUICKSTART
) -> None:
    """Fit the model to demonstrations of the task's warm-start problems, in place; a progress bar shows the loss."""
    rng = random.Random(settings.seed)
    source = problems("warm", settings.seed, task.levels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.lr,
        total_steps=settings.steps,
        # a rise of exactly one step divides by zero
        pct_start=max(0.05, 2 / settings.steps) if settings.steps > 2 else 0.05,
        cycle_momentum=False,
    )
    model.train()
    bar = progress(range(settings.steps), desc="warm start")
    for step in bar:
        only_careful = step < settings.careful_share * settings.steps
        batch = [next(source) for _ in range(settings.batch)]
        pairs = [
            (
                problem,
                behaviours.sample(problem, rng, {task.first_lesson: 1.0} if only_careful else task.shares(problem)),
            )
            for problem in batch
        ]
        if task.micro_batches > 1:
            pairs.sort(key=lambda pair: len(pair[1]))
        size = -(-len(pairs) // task.micro_batches)
        parts = [
            collate(tokenizer, pairs[start : start + size], task.max_response) for start in range(0, len(pairs), size)
        ]
        tokens = sum(int((labels_BT != IGNORED).sum()) for _, _, labels_BT in parts)
        loss = 0.0
        for ids_BT, mask_BT, labels_BT in parts:
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            mean = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
            part = mean * (int((labels_BT != IGNORED).sum()) / tokens)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    model.eval()


@torch.no_grad()
def respond(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], max_new_tokens: int = 64
) -> list[str]:
    """Responses at temperature 1 to prompts as text (B of them), without special tokens, as the verifier sees them."""
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    ids_BT = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=True, top_k=0, top_p=1.0)
    return tokenizer.batch_decode(ids_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: list[Problem],
    opening: Callable[[Problem], str] = lambda problem: "",
    max_new_tokens: int = 64,
) -> float:
    """Share of right answers over one sampled response to each problem; `opening` forces how a response begins."""
    openings = [opening(problem) for problem in asked]
    texts = [chat_prompt(tokenizer, problem) + begun for problem, begun in zip(asked, openings, strict=True)]
    responses = respond(model, tokenizer, texts, max_new_tokens)
    rows = zip(asked, openings, responses, strict=True)
    return sum(compute_score(p.family, begun + rest, p.answer)["acc"] for p, begun, rest in rows) / len(asked)
