"""Ending a run at a step boundary, with a checkpoint, when the launcher asks for it (preemption, time limit).

The launcher makes the file ``stop_requested`` in ``trainer.default_local_dir``. The trainer then saves the step,
logs it, and ends with exit status 75 (EX_TEMPFAIL of sysexits.h: try again later).
"""

import os

from verl.trainer.ppo.v1.trainer_base import PPOTrainer

STOP_FILE = "stop_requested"
EXIT_STATUS = 75


class StopRequested(Exception):
    """Training ended at a step boundary because it was asked to; its checkpoint is complete."""


def stop_requested(folder: str) -> bool:
    """Whether the file is there. The folder is listed: a network filesystem may answer for one name from a cache."""
    try:
        return STOP_FILE in os.listdir(folder)
    except FileNotFoundError:
        return False  # nothing was saved yet, and nobody asked


class StopMixin(PPOTrainer):
    """Looks for the request at the end of each step."""

    _saved_step: int | None = None
    _stop_after: int | None = None

    def _save_checkpoint(self):
        super()._save_checkpoint()
        self._saved_step = self.global_steps

    def on_step_end(self):
        # before verl hands the device to the rollout again: this is where verl itself saves
        if stop_requested(self.config.trainer.default_local_dir):
            if self._saved_step != self.global_steps:
                self._save_checkpoint()
            self._stop_after = self.global_steps
        super().on_step_end()

    def on_step_begin(self):
        if self._stop_after is not None:  # its metrics are logged by now
            self._shutdown_dump_executor()
            raise StopRequested(f"stopped after step {self._stop_after}, as requested; its checkpoint is complete")
        super().on_step_begin()
