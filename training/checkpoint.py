"""Checkpoints of a training run: written atomically, and refused for a run of another recipe or other data.

<folder>/checkpoint/    everything that training goes on from: accelerate's state, and loop.json beside it
<folder>/best           the weights of the best epoch
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from encoder.recipe import Recipe
from training.log import EventLog
from training.splits import DataError

STATE = "loop.json"
FREE = {"epochs", "patience", "checkpoint_steps", "log_to", "threads"}
"""Fields of a recipe that may change when a run is resumed."""


@dataclass
class Loop:
    """The position of a run; stored with every checkpoint."""

    epoch: int = 0
    step: int = 0
    """Batches of this epoch that are done."""
    best: float = -1.0
    best_epoch: int = -1
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of this epoch's losses so far."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row an epoch: mean losses and the validation metric."""


class Checkpoints:
    """The checkpoints of one run in its folder."""

    def __init__(self, accelerator: Accelerator, folder: Path, recipe: Recipe, data: EventLog) -> None:
        self._accelerator, self._folder = accelerator, folder
        self._here, self._old, self._new = (folder / name for name in ("checkpoint", "checkpoint.old", "checkpoint.new"))
        self._best = folder / "best"
        self._run = {**recipe.model_dump(mode="json", exclude=FREE), "processes": accelerator.num_processes}
        self._run |= {"events": len(data.rows), "users": len(data.users), "items": data.catalogue.size - 1}

    def load(self) -> Loop | None:
        """Restore what is registered with accelerate; None where there is no checkpoint. Raises DataError for another run's."""
        found = next((f for f in (self._here, self._old) if (f / STATE).exists()), None)  # the old one: it ended between two renames
        if found is None:
            return None
        stored: dict[str, Any] = json.loads((found / STATE).read_text())
        for key, now in self._run.items():
            if (then := stored["run"].get(key)) != now:
                raise DataError(f"{self._folder}: holds a run with {key} = {then!r}, this one has {now!r}; go on with that, or take another folder")
        self._accelerator.load_state(str(found))
        return Loop(**stored["loop"])

    def save(self, loop: Loop) -> None:
        """Write a checkpoint atomically: a new folder replaces the old one."""
        everyone, main = self._accelerator.wait_for_everyone, self._accelerator.is_main_process
        everyone()
        if main:
            shutil.rmtree(self._new, ignore_errors=True)
        everyone()
        self._accelerator.save_state(str(self._new))
        everyone()  # each has written a file of its own
        if main:
            (self._new / STATE).write_text(json.dumps({"run": self._run, "loop": asdict(loop)}))
            if self._here.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                self._here.rename(self._old)
            self._new.rename(self._here)
            shutil.rmtree(self._old, ignore_errors=True)

    def keep(self, model: torch.nn.Module) -> None:
        """Remember weights as the best ones."""
        if self._accelerator.is_main_process:
            stage = self._best.with_suffix(".new")
            torch.save(model.state_dict(), stage)
            stage.rename(self._best)

    def restore_best(self, model: torch.nn.Module) -> None:
        """Put the best weights into a model on the CPU, if any were kept."""
        if self._best.exists():
            model.load_state_dict(torch.load(self._best, map_location="cpu", weights_only=True))
