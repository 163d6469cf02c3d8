"""What the command line hands to a training process: everything that it needs of the settings, as JSON."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from encoder.recipe import Recipe
from encoder.towers import Tower, load_tower
from schemas.declaration import PlatformMapping
from schemas.windows import Policy
from training.log import EventLog
from training.sources import read_folder, read_unified, unified
from training.splits import DataError, Split, by_time, leave_one_out


class Job(BaseModel):
    """A run's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = None
    """Folder of files; training.sources says which."""
    platforms: tuple[PlatformMapping, ...]
    tower: str = "static"
    earliest_ms: int = 0
    recipe: Recipe = Recipe()
    window: Policy = Policy(64)
    """What the workers' windows keep."""

    def load(self, warn: Callable[[str], None]) -> tuple[EventLog, Tower]:
        """The log and the tower that made its item vectors. Raises DataError, TowerError."""
        if self.data is None:
            raise DataError("no log is given")
        tower = load_tower(self.tower)
        names = {p.code: p.name for p in self.platforms}
        if unified(self.data):
            return read_unified(self.data, names, tower), tower
        return read_folder(self.data, self.platforms, tower, self.earliest_ms, warn), tower

    def split(self, log: EventLog) -> Split:
        """As the recipe says. Raises DataError."""
        if self.recipe.split == "leave-one-out":
            return leave_one_out(log)
        return by_time(log, self.recipe.valid_share, self.recipe.test_share)
