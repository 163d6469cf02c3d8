"""The job file: the settings that a training process needs, written by the command line as JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict

from encoder.recipe import Compress, GateRules, Recipe, TowerRecipe
from encoder.towers import Tower, load_tower
from schemas.declaration import PlatformMapping
from schemas.windows import Policy
from training.log import EventLog
from training.sources import folder_records, read_folder, read_unified, unified, unified_records
from training.splits import DataError, Split, by_time, leave_one_out


class Retraining(BaseModel):
    """Further settings of a retraining."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serving: str
    """`baseline`, `demo`, or the folder of the serving release's bundle."""
    rules: GateRules = GateRules()
    min_events: int = 1
    epochs: int = 4
    """From a warm start; `lr` too."""
    lr: float = 3e-4
    compress: Compress = ""
    prune: float = 0.5
    """Share of the feed-forward channels that `pruned` takes out."""


class Job(BaseModel):
    """A run's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)] = None
    """Folder of files, or URL of an archive; training.sources says which."""
    platforms: tuple[PlatformMapping, ...]
    tower: str = "static"
    earliest_ms: int = 0
    recipe: Recipe = Recipe()
    tower_recipe: TowerRecipe = TowerRecipe()
    window: Policy = Policy(64)
    """What the workers' windows keep."""
    retrain: Retraining | None = None

    @property
    def log_folder(self) -> str:
        """Where the log is. Raises DataError where none is given."""
        if self.data is None:
            raise DataError("no log is given")
        return self.data

    @property
    def names(self) -> dict[int, str]:
        """Platform code -> name."""
        return {p.code: p.name for p in self.platforms}

    def load(self, warn: Callable[[str], None]) -> tuple[EventLog, Tower]:
        """The log and the tower that made its item vectors. Raises DataError, TowerError."""
        folder, tower = self.log_folder, load_tower(self.tower)
        if unified(folder):
            return read_unified(folder, self.names, tower), tower
        return read_folder(Path(folder), self.platforms, tower, self.earliest_ms, warn), tower

    def texts(self, warn: Callable[[str], None]) -> tuple[EventLog, list[str]]:
        """The log with item vectors of no dims, for no tower has made them yet; and the text of every row of its catalogue. Raises DataError."""
        folder = self.log_folder
        if unified(folder):
            records, _ = unified_records(folder, self.names)
        else:
            records = folder_records(Path(folder), self.platforms, self.earliest_ms, warn)
        log = records.log(np.zeros((len(records.items), 0), np.float32))
        text = {i.item: t for i, t in zip(records.items, records.texts(), strict=True)}  # the later of two of one name counts
        return log, ["", *(text[name] for name in log.catalogue.names[1:])]

    def split(self, log: EventLog, successive: bool = False) -> Split:
        """As the recipe says; `successive`: by time every event of the newest part is tested, not each user's last. Raises DataError."""
        if self.recipe.split == "leave-one-out":
            return leave_one_out(log)
        return by_time(log, self.recipe.valid_share, self.recipe.test_share, successive)
