"""verl's FSDP engine with capture of pooled hidden states in the log-prob pass.

Named by ``actor_rollout_ref.model.external_lib``: verl imports it in every worker before it looks an engine up. A
registration with a vendor wins over verl's own for "cuda", so nothing of verl is replaced.

Shapes: R rows of a micro-batch, T its tokens (packed), L padded length, D hidden size, F features.
"""

import inspect
import time
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import verl.utils.model
from transformers import AutoModelForTokenClassification
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithValueHead

# the actor's worker imports this module, and builds the sending end of the weight sync afterwards
import recipe.poise.rollout.standalone  # noqa: F401
from recipe.poise.capture.dump import DUMP_FLAG, DumpCapture, prompt_hash
from recipe.poise.capture.energy import score_weights
from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, prompt_spans, resolve_block, token_spans
from recipe.poise.capture.signals import SIGNALS, compute_signals
from recipe.poise.capture.stream import STREAM

CAPTURE_FLAG = "poise_capture"  # set by the trainer in batch.extra_info, seen in every micro-batch of that pass
PROMPT_FLAG = "poise_prompts"  # set in the batch of a prompt pass: rows are prompts without responses
PROMPT_FIELD = "poise_prompt"  # (C, 1) int64: which candidate; negative: padding
ROW_FIELD = "poise_row"  # (B, 4) int64 in TransferQueue: row id, group id, domain id, whether the reward is left out


def flat(value: torch.Tensor) -> torch.Tensor:
    """(R, k) from a field of k numbers per row, which TransferQueue hands back as a jagged nested tensor."""
    return value.values().reshape(value.size(0), -1) if value.is_nested else value.reshape(value.size(0), -1)


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device="cuda", vendor=["nvidia", "amd"]
)
class PoiseFSDPEngine(FSDPEngineWithLMHead):
    """FSDP1 and FSDP2 with a hook on one decoder block, armed during flagged forward-only passes."""

    _capture: HiddenStateCapture | None = None
    _dump_capture: DumpCapture | None = None

    def _build_model_optimizer(self):
        super()._build_model_optimizer()
        if STREAM.settings is None or self.engine_config.forward_only:
            return  # not a POISE run, or the reference policy
        config = self.model_config.hf_config
        config = getattr(config, "text_config", config)  # vision-language models keep the decoder's settings inside
        block = resolve_block(STREAM.settings.block, config.num_hidden_layers)
        sp_group, sp_rank = None, 0
        if self.use_ulysses_sp:
            sp_group = self.ulysses_device_mesh["sp"].get_group()
            sp_rank = self.ulysses_device_mesh["sp"].get_local_rank()
        blocks = find_blocks(self.module, config.num_hidden_layers)
        capture = partial(
            HiddenStateCapture, sp_rank=sp_rank, sp_size=self.ulysses_sequence_parallel_size, sp_group=sp_group
        )
        self._capture = capture(blocks[block], STREAM.settings.num_tokens)
        dump = STREAM.settings.dump
        if dump.folder is not None:
            STREAM.dump_places = dump.places(block, STREAM.settings.num_tokens, config.num_hidden_layers)
            self._dump_capture = DumpCapture(blocks, STREAM.dump_places, capture)
        STREAM.hidden_size = config.hidden_size
        STREAM.device = get_device_id()
        STREAM.dp_rank = self.get_data_parallel_rank()
        STREAM.collects = self.is_mp_src_rank_with_outputs()

    def forward_step(self, micro_batch, loss_function, forward_only):
        flagged = tu.get_non_tensor_data(data=micro_batch, key=CAPTURE_FLAG, default=False)
        settings = STREAM.settings
        if self._capture is not None and tu.get_non_tensor_data(data=micro_batch, key=PROMPT_FLAG, default=False):
            return self._prompt_step(micro_batch, self._capture)
        if self._capture is None or settings is None or not (forward_only and flagged):
            return super().forward_step(micro_batch, loss_function, forward_only)

        start = time.perf_counter()
        micro_batch = micro_batch.to(get_device_id())
        input_ids = micro_batch["input_ids"]
        spans = token_spans(
            input_ids.values(),
            input_ids.offsets(),
            micro_batch["responses"].offsets().diff(),
            settings.end_think_id,
            micro_batch["response_mask"].values(),
        )
        packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        padded_length = None if packed else int(input_ids.offsets().diff().max())
        hook_seconds = self._capture.seconds
        self._capture.arm(spans, padded_length)
        dump = self._dump_capture if tu.get_non_tensor_data(data=micro_batch, key=DUMP_FLAG, default=False) else None
        if dump:
            dump.arm(spans, padded_length)
        prepared = time.perf_counter()
        try:
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
            passed = time.perf_counter()
            prompt_RD, response_RD = self._capture.take()
            dumped_RF = dump.take() if dump else None
        finally:
            self._capture.disarm()
            if dump:
                dump.disarm()

        states = {"prompt": prompt_RD, "response": response_RD}
        columns = [states[name] for name in settings.states]
        said = output["model_output"]
        # asked for by us alone: it goes no further
        sum_pi_squared = said.pop("sum_pi_squared", None)
        weight_R2 = score_weights(
            said["log_probs"].values(),
            micro_batch["response_mask"].values(),
            spans,
            settings.loss_agg_mode,
            None if sum_pi_squared is None else sum_pi_squared.values(),
            settings.energy,
        )
        signals = partial(
            compute_signals,
            spans=spans,
            entropy_T=said["entropy"].values(),
            log_prob_T=said["log_probs"].values(),
            input_ids_T=input_ids.values(),
            eos_token_ids=settings.eos_token_ids,
            max_response_length=settings.max_response_length,
        )
        if settings.signals:
            columns.append(signals(settings.signals))
        # without features, the energies are all that is wanted
        feature_RF = torch.cat(columns or [prompt_RD[:, :0]], dim=1).float()
        if dumped_RF is not None:
            STREAM.append_dump(torch.cat([dumped_RF, signals(SIGNALS)], dim=1), prompt_hash(input_ids.values(), spans))
        # host time outside verl's own pass, plus the time inside the hook
        seconds = (prepared - start) + (time.perf_counter() - passed) + (self._capture.seconds - hook_seconds)
        STREAM.append(flat(micro_batch[ROW_FIELD])[:, 0], feature_RF, weight_R2, seconds)
        return loss, output

    def _prompt_step(self, micro_batch, capture: HiddenStateCapture):
        """States of prompts, into the stream; of the logits only the last token's are made, where the model can."""
        micro_batch = micro_batch.to(get_device_id())
        input_ids = micro_batch["input_ids"]
        offsets = input_ids.offsets()
        packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        model_inputs, _ = self.prepare_model_inputs(micro_batch=micro_batch)
        if keeps_logits(self.module):
            model_inputs["logits_to_keep"] = 1
        capture.arm(prompt_spans(input_ids.values(), offsets), None if packed else int(offsets.diff().max()))
        reduced = self._autocast_dtype != torch.float32
        context = torch.autocast(get_device_name(), self._autocast_dtype) if reduced else nullcontext()
        try:
            with context:
                self.module(**model_inputs, use_cache=False)
            prompt_RD, _ = capture.take()
        finally:
            capture.disarm()
        id_R1 = flat(micro_batch[PROMPT_FIELD])
        STREAM.append_prompts(id_R1[:, 0], prompt_RD)
        # verl wants a number per row
        return torch.tensor(0.0), {"model_output": {PROMPT_FIELD: id_R1}, "loss": 0.0, "metrics": {}}


def keeps_logits(module: torch.nn.Module) -> bool:
    """Whether the language model, under whatever wrapping, makes logits of as many tokens as it is told to."""
    heads = [child for child in module.modules() if getattr(child, "lm_head", None) is not None]
    return any("logits_to_keep" in inspect.signature(child.forward).parameters for child in heads)


class CpuFSDPMixin:
    """FSDP2 over gloo. FSDP1 is not offered here: torch refuses its ``sync_module_states`` on CPU modules."""

    def _build_fsdp_module(self, module):
        module = super()._build_fsdp_module(module)  # type: ignore[misc]
        # parameters are where they belong: verl then stages nothing to an accelerator when it saves or sends weights
        self._uses_fsdp2_cpu_offload_policy = True
        return module


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
class PoiseCpuFSDPEngine(CpuFSDPMixin, PoiseFSDPEngine):
    """The policy on a CPU."""


def load_value_model(local_path, torch_dtype, model_config, trust_remote_code):
    """verl's `load_valuehead_model`, with the attention that the config names: verl's asks for FlashAttention in so
    many words and ignores ``override_config``."""
    return AutoModelForTokenClassification.from_pretrained(
        local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code,
        attn_implementation=model_config._attn_implementation,
    )  # fmt: skip


@contextmanager
def configured_attention():
    """`load_value_model` in the place where verl looks its loader up, while a value model is built."""
    original = verl.utils.model.load_valuehead_model
    verl.utils.model.load_valuehead_model = load_value_model
    try:
        yield
    finally:
        verl.utils.model.load_valuehead_model = original


@EngineRegistry.register(model_type="value_model", backend=["fsdp", "fsdp2"], device="cuda", vendor="nvidia")
class ValueEngine(FSDPEngineWithValueHead):
    """verl's value model, for PPO, with the attention that the config names."""

    def _build_module(self):
        with configured_attention():
            return super()._build_module()


@EngineRegistry.register(model_type="value_model", backend=["fsdp2"], device="cpu")
class CpuValueEngine(CpuFSDPMixin, ValueEngine):
    """The same on a CPU."""
