"""What the prompt pass costs: its share of a step of log-prob pass, update and generation, on the same model.

    python benchmarks/prompt_pass.py
    python benchmarks/prompt_pass.py --prompt 256 --response 2048 --candidates 4 --rollouts 2 --repeat 3

Plain transformers, as verl's engine calls it: packed rows, up to --budget tokens a micro-batch, prompts without logits.
The update is a forward and a backward pass without an optimiser's step. Generation is what a step of decoding takes
in the middle of the responses, with a cache, times their length: vLLM may be faster, so a second share leaves it out.
Weights are random: the cost does not depend on them.

Shapes: T packed tokens.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose probe.py would hide the package

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import torch
    import transformers as hf

    from benchmarks.capture import NUM_TOKENS, SHAPES, make_model
    from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, prompt_spans, resolve_block

DECODED = 8  # tokens that are generated to know what one takes


class Step:
    """The parts of one step that asks `prompts` prompts."""

    def __init__(self, model, options):
        self.model, self.options = model, options
        blocks = find_blocks(model, model.config.num_hidden_layers)
        self.capture = HiddenStateCapture(blocks[resolve_block(19 / 36, len(blocks))], NUM_TOKENS)
        self.noise = torch.Generator().manual_seed(0)

    def _micro_batches(self, rows: int, length: int):
        """Ids and positions (1, T) of packed rows."""
        each = max(1, self.options.budget // length)
        for start in range(0, rows, each):
            count = min(each, rows - start)
            shape = (1, count * length)
            ids = torch.randint(4, self.model.config.vocab_size, shape, generator=self.noise)
            yield ids.to(self.model.device), torch.arange(length, device=self.model.device).repeat(count)[None]

    @torch.no_grad()
    def prompt_pass(self) -> None:
        options = self.options
        for ids, positions in self._micro_batches(options.prompts * options.candidates, options.prompt):
            self.capture.arm(
                prompt_spans(ids[0], torch.arange(0, ids.shape[1] + 1, options.prompt, device=ids.device)), None
            )
            self.model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, logits_to_keep=1)
            self.capture.take()

    def _log_probs(self, ids, positions) -> torch.Tensor:
        logits = self.model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits[0]
        return logits.float().log_softmax(-1).gather(-1, ids[0].roll(-1)[:, None])[:, 0]

    def _rollouts(self):
        options = self.options
        return self._micro_batches(options.prompts * options.rollouts, options.prompt + options.response)

    @torch.no_grad()
    def log_prob_pass(self) -> None:
        for ids, positions in self._rollouts():
            self._log_probs(ids, positions)

    def update(self) -> None:
        for ids, positions in self._rollouts():
            self._log_probs(ids, positions).mean().backward()
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def generation(self) -> float:
        """Seconds, from a few tokens in the middle."""
        options = self.options
        shape = (options.prompts * options.rollouts, options.prompt + options.response // 2)
        ids = torch.randint(4, self.model.config.vocab_size, shape, generator=self.noise).to(self.model.device)
        cache = hf.DynamicCache(config=self.model.config)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        start = time.perf_counter()
        for _ in range(DECODED):
            self.model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return (time.perf_counter() - start) / DECODED * options.response


def timed(part, device: str) -> float:
    """Seconds of a part, or what it says of itself."""
    start = time.perf_counter()
    said = part()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start if said is None else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=SHAPES, default=None, help="default: 57m on a CPU, qwen3-4b on a GPU")
    parser.add_argument("--prompts", type=int, default=1, help="asked in the step")
    parser.add_argument("--candidates", type=int, default=4, help="judged for each prompt that is asked")
    parser.add_argument("--rollouts", type=int, default=2, help="of a prompt")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--response", type=int, default=2048, help="tokens")
    parser.add_argument("--budget", type=int, default=2304, help="tokens of a micro-batch")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    name = options.model or ("qwen3-4b" if options.device == "cuda" else "57m")
    model = make_model(name, options.device)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {options.threads} thread(s), torch {torch.__version__}, transformers {hf.__version__}")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    judged = options.prompts * options.candidates
    asked = f"{options.prompts} x {options.rollouts} rollouts of {options.prompt} + {options.response} tokens"
    print(f"{name}: {millions:.1f} M parameters; {judged} prompts of {options.prompt} tokens judged; {asked}; seed 0")
    step = Step(model, options)
    parts = (step.prompt_pass, step.log_prob_pass, step.update, step.generation)
    step.prompt_pass()
    heads = ("", "prompt pass s", "log-prob s", "update s", "generation s", "of all", "without generation")
    print("".join(f"{head:>20}" for head in heads), flush=True)
    seconds = []
    for repetition in range(options.repeat):
        seconds.append([timed(part, options.device) for part in parts])
        print_row(str(repetition + 1), seconds[-1])
    print_row("median", [statistics.median(column) for column in zip(*seconds, strict=True)])


def print_row(label: str, row: list[float]) -> None:
    shares = (row[0] / sum(row), row[0] / sum(row[:3]))
    cells = (label, *(f"{value:.2f}" for value in row), *(f"{share:.1%}" for share in shares))
    print("".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
