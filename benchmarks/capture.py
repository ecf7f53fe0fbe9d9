"""What capture costs: the log-prob pass with it against without, on the same model and tokens.

    python benchmarks/capture.py --device cpu
    python benchmarks/capture.py --device cuda --model qwen3-4b --rows 16 --lengths 2048 8192 --repeat 15

Prints medians of interleaved repetitions and of their ratios, and the memory that capture adds: on a GPU the difference
of the peaks, on a CPU all that the hook allocates. Weights are random: the cost does not depend on them.

Shapes: R rows, T packed tokens, D hidden size.
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

    from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, resolve_block, token_spans
    from recipe.poise.capture.signals import DEFAULT_SIGNALS, compute_signals

SHAPES = {
    "57m": {"hidden_size": 640, "intermediate_size": 1920, "num_hidden_layers": 10, "vocab_size": 8192},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "vocab_size": 151936},
}
HEADS = {
    "57m": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 80},
    "qwen3-4b": {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}
NUM_TOKENS, END_THINK = 10, 3


def make_model(name: str, device: str) -> torch.nn.Module:
    config = hf.Qwen3Config(**SHAPES[name], **HEADS[name], attn_implementation="sdpa")
    with torch.device(device):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    return model.eval()


class Pass:
    """One log-prob pass over R packed rows, as verl's engine does it."""

    def __init__(self, model, rows: int, length: int, device: str):
        self.model, self.device = model, device
        generator = torch.Generator().manual_seed(0)
        ids_T = torch.randint(4, model.config.vocab_size, (rows * length,), generator=generator)
        ids_T[length - 20 :: length] = END_THINK
        self.ids_T = ids_T.to(device)
        self.offsets = torch.arange(0, rows * length + 1, length, device=device)
        self.responses_R = torch.full((rows,), length * 3 // 4, device=device)
        self.positions_T = torch.arange(length, device=device).repeat(rows)
        blocks = find_blocks(model, model.config.num_hidden_layers)
        self.capture = HiddenStateCapture(blocks[resolve_block(19 / 36, len(blocks))], NUM_TOKENS)

    def _log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(
            input_ids=self.ids_T[None], position_ids=self.positions_T[None], attention_mask=None, use_cache=False
        ).logits[0]
        log_prob_T, entropy_T = [], []
        for logits_cV, labels_c in zip(logits.split(2048), self.ids_T.roll(-1).split(2048), strict=True):
            normal_cV = logits_cV.float().log_softmax(-1)
            log_prob_T.append(normal_cV.gather(-1, labels_c[:, None])[:, 0])
            entropy_T.append(-(normal_cV.exp() * normal_cV).sum(-1))
        return torch.cat(log_prob_T), torch.cat(entropy_T)

    @torch.no_grad()
    def run(self, capture: bool) -> tuple[float, int]:
        """Seconds, and (on a GPU) peak bytes of the pass."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        if capture:
            spans = token_spans(self.ids_T, self.offsets, self.responses_R, END_THINK)
            self.capture.arm(spans, None)
        log_prob_T, entropy_T = self._log_probs()
        if capture:
            prompt_RD, response_RD = self.capture.take()
            signals_RS = compute_signals(
                DEFAULT_SIGNALS, spans, entropy_T, log_prob_T, self.ids_T, (2,), int(self.responses_R[0])
            )
            torch.cat([prompt_RD, response_RD, signals_RS], dim=1)
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter() - start, torch.cuda.max_memory_allocated()
        return time.perf_counter() - start, 0

    @torch.no_grad()
    def bytes_of_hook(self) -> int:
        """All bytes that the hook allocates, whether freed again or not: an upper bound of what it adds to the peak."""
        hidden = torch.zeros(1, len(self.ids_T), self.model.config.hidden_size)
        self.capture.arm(token_spans(self.ids_T, self.offsets, self.responses_R, END_THINK), None)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.capture._hook(None, None, hidden)
        self.capture.disarm()
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=SHAPES, default=None, help="default: 57m on a CPU, qwen3-4b on a GPU")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    name = options.model or ("qwen3-4b" if options.device == "cuda" else "57m")
    model = make_model(name, options.device)
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    print(f"{machine}, {options.threads} thread(s), torch {torch.__version__}, transformers {hf.__version__}")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{name}: {millions:.1f} M parameters, {options.rows} rows, seed 0")
    heads = ("tokens/row", "without s", "with s", "ratio", "ratio's IQR", "hook ms", "rows x 2D B", "added B")
    print("".join(f"{head:>14}" for head in heads))
    for length in options.lengths:
        one = Pass(model, options.rows, length, options.device)
        for capture in (False, True):
            one.run(capture)
        hook, seconds, peaks = one.capture.seconds, ([], []), ([], [])
        for repetition in range(options.repeat):
            for capture in (False, True) if repetition % 2 else (True, False):
                took, peak = one.run(capture)
                seconds[capture].append(took)
                peaks[capture].append(peak)
        hook = (one.capture.seconds - hook) / options.repeat
        plain, captured = (statistics.median(side) for side in seconds)
        low, ratio, high = statistics.quantiles((b / a for a, b in zip(*seconds, strict=True)), n=4)
        added = max(peaks[1]) - max(peaks[0]) if options.device == "cuda" else one.bytes_of_hook()
        floor = options.rows * 2 * model.config.hidden_size * 4
        times = (f"{plain:.4f}", f"{captured:.4f}", f"{ratio:.4f}", f"{low:.3f}-{high:.3f}", f"{hook * 1e3:.2f}")
        print(f"{length:>14}" + "".join(f"{cell:>14}" for cell in (*times, f"{floor:,}", f"{added:,}")), flush=True)
        one.capture.remove()


if __name__ == "__main__":
    main()
