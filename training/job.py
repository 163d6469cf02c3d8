"""What the command line hands to a training process: everything that it needs of the settings, as JSON."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from encoder.recipe import Recipe, TowerRecipe
from encoder.towers import Tower, load_tower
from schemas.declaration import PlatformMapping
from training.log import EventLog
from training.sources import folder_records, read_folder, read_unified, unified, unified_records
from training.splits import Split, by_time, leave_one_out


class Job(BaseModel):
    """A run's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path
    """Folder of files; training.sources says which."""
    platforms: tuple[PlatformMapping, ...]
    tower: str = "static"
    earliest_ms: int = 0
    recipe: Recipe = Recipe()
    tower_recipe: TowerRecipe = TowerRecipe()

    def load(self, warn: Callable[[str], None]) -> tuple[EventLog, Tower]:
        """The log and the tower that made its item vectors. Raises DataError, TowerError."""
        tower = load_tower(self.tower)
        names = {p.code: p.name for p in self.platforms}
        if unified(self.data):
            return read_unified(self.data, names, tower), tower
        return read_folder(self.data, self.platforms, tower, self.earliest_ms, warn), tower

    def texts(self, warn: Callable[[str], None]) -> tuple[EventLog, list[str]]:
        """The log with item vectors of no dims, for no tower has made them yet; and the text of every row of its catalogue. Raises DataError."""
        names = {p.code: p.name for p in self.platforms}
        if unified(self.data):
            records, _ = unified_records(self.data, names)
        else:
            records = folder_records(self.data, self.platforms, self.earliest_ms, warn)
        log = records.log(np.zeros((len(records.items), 0), np.float32))
        text = {i.item: t for i, t in zip(records.items, records.texts(), strict=True)}  # the later of two of one name counts
        return log, ["", *(text[name] for name in log.catalogue.names[1:])]

    def split(self, log: EventLog) -> Split:
        """As the recipe says. Raises DataError."""
        if self.recipe.split == "leave-one-out":
            return leave_one_out(log)
        return by_time(log, self.recipe.valid_share, self.recipe.test_share)
