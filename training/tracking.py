"""Experiment tracking: TensorBoard, or Weights & Biases, also offline (WANDB_MODE=offline); both beside the checkpoints."""

from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from encoder.recipe import Recipe
from training.splits import DataError


def tracker(recipe: Recipe) -> str | None:
    """accelerate's name of the tracker, None for none. Raises DataError where its package is missing: accelerate would say nothing."""
    if recipe.log_to != "none" and find_spec(recipe.log_to) is None:
        raise DataError(f"training.log_to = {recipe.log_to!r}: the package is not installed: pip install {recipe.log_to}")
    return None if recipe.log_to == "none" else recipe.log_to


def track(accelerator: Accelerator, recipe: Recipe, folder: Path) -> None:
    """Begin, with the recipe as what the run is known by."""
    if recipe.log_to != "none":
        known = {k: v if isinstance(v, int | float | str) else str(v) for k, v in recipe.model_dump().items()}
        accelerator.init_trackers("currents", known, {"wandb": {"dir": str(folder)}})
