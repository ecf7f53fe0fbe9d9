"""The probe in verl's critic seat.

verl fuses this worker into the actor's process, so the features that the engine captured are at hand. In each step
verl calls ``infer_batch`` (predict) and ``train_mini_batch`` (fit); `probe.DistributedBank` does both for all ranks.

Shapes: B rows on this rank, F features.
"""

import logging
import os
import shutil
import time
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.utils.profiler import DistProfiler, DistProfilerExtension

from probe import Crossing, DistributedBank, FeatureLayout, ProbeBank
from probe.prompts import PromptProbe
from probe.study.dump import write_dump
from recipe.poise.baseline.inputs import passed_prompts, step_inputs
from recipe.poise.capture.dump import dump_layout
from recipe.poise.capture.engine import ROW_FIELD, flat
from recipe.poise.capture.signals import REWARD
from recipe.poise.capture.stream import STREAM, CaptureSettings
from recipe.poise.config import PoiseConfig
from recipe.poise.plugin import check_registered

logger = logging.getLogger(__name__)

MESH = "poise"
PROMPTS = "prompts"  # of the checkpoint's folder: the prompt probe, where prompts are chosen
# (B, 7) float32: value; weights of probe, RLOO and constant; constant; what the row counts for its siblings; its energy
PREDICTION_FIELD = "poise_prediction"
INFER_FIELDS = [ROW_FIELD, "input_ids", "rm_scores"]
FIT_FIELDS = [ROW_FIELD]
_dispatch = make_nd_compute_dataproto_dispatch_fn(mesh_name=MESH)


def feature_layout(poise: PoiseConfig, hidden_size: int) -> FeatureLayout:
    """Names and sizes of the features, in the engine's order; the rollout's own reward comes last."""
    signals = [name for name in poise.signals if name != REWARD]
    names = [*poise.states, *signals] + ([REWARD] if REWARD in poise.signals else [])
    sizes = [hidden_size] * len(poise.states) + [1] * (len(names) - len(poise.states))
    return FeatureLayout(tuple(names), tuple(sizes))


def crossing(poise: PoiseConfig) -> Crossing:
    """What rows weigh and how values are fitted; of the features, the prompt's state depends on no rollout."""
    blocks = tuple(name for name in ("prompt",) if name in poise.states)
    form = (poise.coherence, poise.surprise) if poise.weights == "energy" else (None, None)
    return Crossing(poise.weights, poise.weight_cap, poise.fit, blocks, *form)


class ProbeWorker(Worker, DistProfilerExtension):
    """Answers to the methods that verl's trainer calls on a critic.

    `poise`, `capture`, `rollouts` (of a prompt) and `bypass` (no log-prob pass) are set on a subclass by `configured`:
    verl builds the worker from its own critic config, which has no room for ours.
    """

    poise: PoiseConfig
    capture: CaptureSettings
    rollouts: int = 1
    bypass: bool = False

    def __init__(self, config):
        Worker.__init__(self)
        DistProfilerExtension.__init__(self, DistProfiler(rank=self.rank, config=None, tool_config=None))
        check_registered()
        self._bank: DistributedBank | None = None
        self._prompts: PromptProbe | None = None  # rank 0, where prompts are chosen
        self._saved: list[str] = []
        self._mesh_known = False
        self._predict_seconds = 0.0
        STREAM.settings = self.capture  # runs before the actor's engine is built in this process

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self):
        """verl's "initialise the model": nothing to do before the actor's engine exists."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def set_loss_fn(self, loss_fn):
        """The probe has its own loss."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def _query_dispatch_info(self, mesh_name: str):
        # verl asks at the first call on the mesh, after the actor's engine was built: take over the engine's layout
        if not self._mesh_known:
            self._require_engine()
            self._register_dispatch_collect_info(MESH, dp_rank=STREAM.dp_rank, is_collect=STREAM.collects)
            self._mesh_known = True
        return Worker._query_dispatch_info(self, mesh_name)

    def _require_engine(self) -> int:
        """Hidden size of the capturing engine in this process."""
        if STREAM.hidden_size is None:
            raise RuntimeError(
                "the probe found no capturing engine in its process. POISE needs the actor and the critic seat on one "
                "resource pool, and actor_rollout_ref.model.external_lib=recipe.poise.capture.engine"
            )
        return STREAM.hidden_size

    def _require_bank(self) -> DistributedBank:
        """Built when the engine's sizes are known."""
        if self._bank is None:
            layout = feature_layout(self.poise, self._require_engine())
            bank = None
            if self.rank == 0:
                bank = ProbeBank(
                    self.poise.probe,
                    layout,
                    device=STREAM.device,
                    seed=self.poise.seed,
                    self_target=self.poise.prompt_only,
                    crossing=crossing(self.poise),
                )
                if self.poise.choosing:
                    self._prompts = PromptProbe(
                        self.poise.probe,
                        self._require_engine(),
                        self.rollouts,
                        self.poise.weights,
                        self.poise.weight_cap,
                        STREAM.device,
                        self.poise.seed,
                    )
            self._bank = DistributedBank(bank)
        return self._bank

    @register(dispatch_mode=_dispatch, blocking=False)
    def infer_batch(self, data: TensorDict) -> TensorDict:
        """Predict with the probe fitted on earlier steps, or cross-fitted on this one too.

        Returns ``poise_prediction`` (B, 7), and ``values`` (nested, one number repeated over the row's tokens) in the
        form in which verl reads a critic's output.
        """
        start = time.perf_counter()
        step = int(tu.get_non_tensor_data(data=data, key="poise_step", default=0))
        row_B4 = flat(data[ROW_FIELD]).to(STREAM.device)
        feature_BF, weight_B2 = step_inputs(self._require_bank(), data, row_B4, self.poise.states, self.bypass)
        id_B, group_B, domain_B, failed_B = row_B4.unbind(1)
        reward_B = _row_sums(data["rm_scores"]).to(feature_BF)
        reward_B = torch.where(failed_B > 0, float("nan"), reward_B)  # a failed verifier's 0 is no reward
        if REWARD in self.poise.signals:
            feature_BF = torch.cat([feature_BF, reward_B.unsqueeze(1)], dim=1)
        self._dump(step, row_B4, reward_B)
        if not STREAM.collects:
            id_B = torch.full_like(id_B, -1)  # ranks that share a sequence hold the same rows: one of them counts
        energy_B, length_B = weight_B2.unbind(1)
        weight_B = {"uniform": None, "length": length_B, "energy": energy_B}[self.poise.weights]
        said = self._require_bank().predict(id_B, feature_BF, reward_B, group_B, domain_B, weight_B)
        prediction_B7 = torch.cat([said.table_R6, energy_B.unsqueeze(1)], dim=1).cpu()
        self._predict_seconds = time.perf_counter() - start

        # verl's critic metrics want a number: the window's mean stands in where there is no prediction yet
        value_B = torch.where(prediction_B7[:, 0].isfinite(), prediction_B7[:, 0], prediction_B7[:, 4]).nan_to_num(0.0)
        offsets = data["input_ids"].offsets().cpu()
        values = torch.nested.nested_tensor_from_jagged(torch.repeat_interleave(value_B, offsets.diff()), offsets)
        return TensorDict({PREDICTION_FIELD: prediction_B7, "values": values}, batch_size=len(row_B4))

    def _dump(self, step: int, row_B4: Tensor, reward_B: Tensor) -> None:
        """Write this rank's rows for the offline study, in the steps that are dumped."""
        dumped = STREAM.lookup_dump(row_B4[:, 0])
        if dumped is None or not STREAM.collects:
            return
        known = row_B4[:, 0] >= 0  # no padding, no intermediate outputs
        feature_BF, prompt_B = dumped
        write_dump(
            Path(str(self.poise.dump_features.folder)),
            step,
            self.rank,
            dump_layout(STREAM.dump_places, self._require_engine()),
            torch.cat([feature_BF, reward_B.unsqueeze(1)], dim=1)[known],
            reward_B[known],
            prompt_B[known],
            row_B4[known, 1],
        )

    @register(dispatch_mode=_dispatch, blocking=False)
    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        """Put the step's rows in the window and fit; the metrics are rank 0's."""
        start, metrics = time.perf_counter(), {"mfu": 0.0}
        step = int(tu.get_non_tensor_data(data=data, key="poise_step", default=0))
        prompts = self._learn_prompts(step)
        learned = self._require_bank().update(step)
        if learned:  # rank 0
            metrics |= prompts
            metrics |= learned | {
                "time_capture_s": STREAM.seconds,
                "time_predict_s": self._predict_seconds,
                "time_fit_s": time.perf_counter() - start,
            }
        STREAM.clear()
        return tu.get_tensordict(
            tensor_dict={}, non_tensor_dict={"metrics": {name: [value] for name, value in metrics.items()}}
        )

    def _learn_prompts(self, step: int) -> dict[str, float]:
        """The prompt probe takes in the rows that the bank is about to; metrics of it."""
        rows = self._require_bank().rows
        if self._prompts is None or rows is None:  # not rank 0, or prompts are not chosen
            return {}
        start = time.perf_counter()
        x_NF, reward_N, group_N, domain_N, weight_N = rows
        state_ND = x_NF[:, feature_layout(self.poise, self._require_engine()).slices["prompt"]]
        learned = self._prompts.learn(state_ND, reward_N, group_N, domain_N, step, weight_N)
        return {f"prompt_{name}": value for name, value in learned.items()} | {
            "time_prompt_fit_s": time.perf_counter() - start
        }

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def judge_prompts(self, domain_C: Tensor) -> Tensor | None:
        """What the candidates of the last prompt pass promise, (C, 5) as in `PromptProbe.judge`; None but on rank 0.

        Args:
            domain_C: int64; the probe of each candidate.
        """
        state_CD = passed_prompts(self._require_bank().collect, torch.arange(len(domain_C)))
        if self._prompts is None or state_CD is None:
            return None
        return self._prompts.judge(state_CD, domain_C.to(state_CD.device)).cpu()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path, hdfs_path=None, global_step=0, max_ckpt_to_keep=None):
        """Rank 0 writes weights, window and counters to `local_path`, atomically; older ones are rotated out."""
        bank = self._require_bank().bank
        if bank is None:  # not rank 0
            return
        bank.save(local_path)
        if self._prompts is not None:
            self._prompts.save(Path(local_path) / PROMPTS)
        if hdfs_path is not None:
            from verl.utils import hdfs_io

            hdfs_io.makedirs(hdfs_path, exist_ok=True)
            hdfs_io.copy(src=local_path, dst=hdfs_path, dirs_exist_ok=True)
        self._saved = [path for path in self._saved if path != local_path] + [local_path]
        if max_ckpt_to_keep:
            for path in self._saved[:-max_ckpt_to_keep]:
                shutil.rmtree(path, ignore_errors=True)
            self._saved = self._saved[-max_ckpt_to_keep:]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path, hdfs_path=None, del_local_after_load=False):
        """Raises FileNotFoundError where the checkpoint has no probe, ValueError where it is another probe's."""
        bank = self._require_bank().bank
        if bank is None:  # not rank 0
            return
        if not os.path.isdir(local_path):
            raise FileNotFoundError(
                f"{local_path} does not exist: the checkpoint was not written by a POISE run. To start a probe anew on "
                "this policy, give the policy as actor_rollout_ref.model.path (merged) and set "
                "trainer.resume_mode=disable."
            )
        bank.load(local_path)
        if self._prompts is not None:
            if (Path(local_path) / PROMPTS).is_dir():
                self._prompts.load(Path(local_path) / PROMPTS)
            else:
                logger.warning("%s is of a run that did not choose prompts: the prompt probe starts anew", local_path)
        self._saved.append(local_path)


def _row_sums(rewards: Tensor) -> Tensor:
    """(B,) outcome reward from token-level rewards, nested or padded; NaN stays NaN."""
    if not rewards.is_nested:
        return rewards.float().sum(dim=-1)
    lengths = rewards.offsets().diff()  # type: ignore[attr-defined]
    row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    values = rewards.values().float()
    return torch.zeros(len(lengths), device=values.device).index_add_(0, row.to(values.device), values)


def configured(
    poise: PoiseConfig, capture: CaptureSettings, rollouts: int = 1, bypass: bool = False
) -> type[ProbeWorker]:
    """A subclass that carries the settings; it is pickled by value, since its module cannot be imported."""
    return type(
        "ConfiguredProbeWorker",
        (ProbeWorker,),
        {"poise": poise, "capture": capture, "rollouts": rollouts, "bypass": bypass, "__module__": "poise_run"},
    )
