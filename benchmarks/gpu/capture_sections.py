"""What is measured in one of verl's engines: capture, sum_pi_squared, prompt passes, entropy, an update.

Each section returns rows for a table. Times of a pass are those of verl's `infer_batch`: micro-batches made, moved,
run and put together, features of all rows in the stream.
"""

import importlib.util
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import verl.utils.torch_functional as verl_F

from benchmarks.gpu import engines
from benchmarks.gpu.engines import STREAM, Batch, FastLogProbs, features, log_prob_pass
from benchmarks.gpu.timing import Deadline, against, compare, timed
from probe import Crossing, DistributedBank, FeatureLayout, ProbeBank, ProbeSettings
from recipe.poise.baseline.advantage import compute_advantages
from recipe.poise.capture.signals import DEFAULT_SIGNALS


@dataclass(frozen=True)
class Sizes:
    """Rows by tokens per row; tokens of a prompt and of a micro-batch; repetitions."""

    shape: str
    rows: dict[int, int]
    prompt: int
    budget: int
    repeat: int


FULL = Sizes("qwen3-4b", {1024: 32, 8192: 4}, 256, 8192, 12)
SMALL = Sizes("tiny", {32: 4, 96: 2}, 8, 96, 3)


class EngineSections:
    """One engine and the batches that go through it."""

    def __init__(self, strategy: str, device: str, sizes: Sizes, folder: Path, deadline: Deadline, **model):
        engines.open_group(device)
        self.device, self.sizes, self.deadline = device, sizes, deadline
        self.name = strategy.upper() + (", LoRA" if model.get("lora_rank") else "")
        complaint = engines.compiles(device)
        flash = device == "cuda" and importlib.util.find_spec("flash_attn")
        self.about = {"compiled entropy": complaint or "yes", "attention": "flash_attention_2" if flash else "sdpa"}
        folder = engines.model_folder(sizes.shape, device, folder)
        self.engine = engines.build(folder, strategy, self.about["attention"], not complaint, sizes.budget, **model)
        vocabulary = engines.SHAPES[sizes.shape]["vocab_size"]
        self.batches = {
            length: Batch(rows, length, sizes.prompt, vocabulary, sizes.budget) for length, rows in sizes.rows.items()
        }
        self.vocabulary, self.short = vocabulary, self.batches[min(self.batches)]

    def _run(self, batch: Batch, capture: bool, **flags):
        return lambda: log_prob_pass(self.engine, batch, capture, **flags)

    def _compare(self, variants, seconds: float = 10.0):
        seconds = max(0.0, min(seconds, self.deadline.left() - 30))
        return compare(variants, self.sizes.repeat, self.device, seconds)

    def capture(self) -> list[dict]:
        """The log-prob pass with capture against without, and whether both say the same to the last bit."""
        return [self._captured(batch, "blocks", FastLogProbs()) for batch in self.batches.values()]

    def capture_torch(self) -> list[dict]:
        """The same with verl's own log-probs, token by token where flash-attn is not installed."""
        return [self._captured(batch, "verl's own", nullcontext()) for batch in self.batches.values()]

    def _captured(self, batch: Batch, name: str, log_probs) -> dict:
        with log_probs:
            runs = self._compare({"without": self._run(batch, False), "with": self._run(batch, True)}, 18.0)
            plain = log_prob_pass(self.engine, batch, False)
            captured = log_prob_pass(self.engine, batch, True)
        row = {"engine": self.name, "log-probs": name, "tokens/row": batch.length, "rows": batch.rows}
        row |= {"without s": runs["without"].median} | against(runs["without"], runs["with"])
        row |= {"host ms": STREAM.seconds * 1e3, "same bits": same(plain, captured)}  # what the engine itself says
        return row | {"features finite": bool(features(batch).isfinite().all())}

    def identical(self) -> list[dict]:
        """Whether log-probs and entropies are the same to the last bit; the hook is taken off, so this comes last."""
        rows, plain = [], {}
        with FastLogProbs():
            for length, batch in self.batches.items():
                plain[length] = log_prob_pass(self.engine, batch, False)
                again = log_prob_pass(self.engine, batch, False)
                captured = log_prob_pass(self.engine, batch, True)
                row = {"engine": self.name, "tokens/row": length, "a pass repeats itself": same(plain[length], again)}
                rows.append(row | {"with = without capture": same(plain[length], captured)})
            self.engine._capture.remove()
            self.engine._capture = None
            for row, (length, batch) in zip(rows, self.batches.items(), strict=True):
                row["without = no hook at all"] = same(plain[length], log_prob_pass(self.engine, batch, False))
        return rows

    def sum_pi_squared(self) -> list[dict]:
        """verl's sum of squared probabilities in the same pass, capture on in both."""
        rows = []
        with FastLogProbs():
            for length, batch in self.batches.items():
                variants = {
                    "without": self._run(batch, True),
                    "with": self._run(batch, True, calculate_sum_pi_squared=True),
                }
                runs = self._compare(variants)
                row = {"engine": self.name, "tokens/row": length, "without s": runs["without"].median}
                rows.append(row | against(runs["without"], runs["with"]))
        return rows

    def prompts(self) -> list[dict]:
        """A pass over as many prompts alone as the short batch has rows, capture on; the last token is the response's,
        without which the engine takes no row."""
        length = self.sizes.prompt
        batch = Batch(self.short.rows, length, length - 1, self.vocabulary, self.sizes.budget)
        with FastLogProbs():
            runs = self._compare({"rollouts": self._run(self.short, True), "prompts": self._run(batch, True)})
        row = {"engine": self.name, "prompts": batch.rows, "tokens": length, "ms per prompt": 1e3 / batch.rows}
        row["ms per prompt"] *= runs["prompts"].median
        row |= against(runs["rollouts"], runs["prompts"])
        row.pop("added MB")
        return [row | {"rollouts s": runs["rollouts"].median, "tokens/rollout": self.short.length}]

    def seat(self) -> list[dict]:
        """What the probe's seat does with captured rows on the device: energies, values, a fit; then advantages."""
        log_prob_pass(self.engine, self.short, True)
        id_R = torch.arange(self.short.rows, device=STREAM.device)
        x_RF, energy_R = features(self.short), STREAM.lookup_weights(id_R)[:, 0]
        hidden, found = STREAM.hidden_size, []
        layout = FeatureLayout(("prompt", "response", *DEFAULT_SIGNALS), (hidden, hidden, *[1] * len(DEFAULT_SIGNALS)))
        reward_R = (id_R % 3 == 0).float()
        for fit in ("lagged", "fresh"):
            crossing = Crossing("energy", 0.99, fit, ("prompt",))  # type: ignore[arg-type]
            bank = ProbeBank(ProbeSettings(min_rows=2, rank=4), layout, device=STREAM.device, crossing=crossing)
            seat = DistributedBank(bank)
            for step in range(3):
                said = seat.predict(id_R, x_RF, reward_R, id_R // 2, weight_R=energy_R)
                metrics = seat.update(step)
            table = said.table_R6.cpu()
            advantages = compute_advantages(
                reward_R.cpu(),
                id_R.cpu() // 2,
                table[:, 0],
                table[:, 1:4],
                table[:, 4],
                energy_B=energy_R.cpu(),
                row_weight_B=table[:, 5],
            )
            row = {
                "engine": self.name,
                "fit": fit,
                "rows": self.short.rows,
                "values": bool(table[:, 0].isfinite().all()),
            }
            row |= {"energies": bool((energy_R > 0).all()), "advantages": bool(advantages.advantage_B.any())}
            found.append(row | {"window": int(metrics["window_rows"]), "device": str(STREAM.device)})
        return found

    def entropy(self) -> list[dict]:
        """The ways verl has to compute the entropy, on the long rows, capture off."""
        batch, rows = self.batches[max(self.batches)], []
        own = self.engine.compute_entropy_from_logits
        ways = {"compiled": own} if self.about["compiled entropy"] == "yes" else {}
        ways |= {"eager": verl_F.entropy_from_logits, "in chunks": verl_F.entropy_from_logits_with_chunking}

        def with_way(way):
            def run():
                self.engine.compute_entropy_from_logits = way
                log_prob_pass(self.engine, batch, False)

            return run

        try:
            with FastLogProbs():
                variants = {"none": self._run(batch, False, entropy=False)}
                runs = self._compare(variants | {name: with_way(way) for name, way in ways.items()})
        finally:
            self.engine.compute_entropy_from_logits = own
        for name in ways:
            row = {"engine": self.name, "entropy": name, "tokens/row": batch.length, "none s": runs["none"].median}
            rows.append(row | against(runs["none"], runs[name]))
        return rows

    def update(self) -> list[dict]:
        """One update over the short batch beside its log-prob pass, gradient checkpointing on; capture works after."""
        steps = 1 + self.sizes.repeat // 3
        rows = []
        for name in ("blocks", "verl's own"):
            if name == "blocks":
                with FastLogProbs():
                    rows.append(self._updates(name, steps))
            elif self.deadline.left() > 60:
                rows.append(self._updates(name, min(steps, 3)))
        return rows

    def _updates(self, name: str, steps: int) -> dict:
        passed = timed(self._run(self.short, True), self.device)[0]
        old = log_prob_pass(self.engine, self.short, True)["log_probs"]
        norms, runs = [], []
        for _ in range(steps):
            runs.append(timed(lambda: norms.append(engines.update(self.engine, self.short, old)), self.device))
        seconds = sorted(took for took, _ in runs[1:])[(steps - 1) // 2]
        return {
            **{"engine": self.name, "log-probs": name, "tokens/row": self.short.length, "rows": self.short.rows},
            **{"update s": seconds, "log-prob pass s": passed, "pass / update": passed / seconds},
            **{"peak MB": max(peak for _, peak in runs) / 1e6, "gradient norm": norms[-1], "updates": steps - 1},
        }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether the outputs of two passes agree to the last bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[key].values(), other[key].values()) for key in one)
