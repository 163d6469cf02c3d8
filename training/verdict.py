"""Whether training was worth it: the trained encoder beside the one that it began from and the baseline, on the same cases."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.evaluate import Ranked
from training.metrics import METRICS, difference

METRIC = "hr@10"


@dataclass(frozen=True)
class Verdict:
    """Means of the metric, and the paired differences with their 95 % intervals."""

    trained: float
    other: dict[str, float]
    """What is compared with -> its mean; the start comes first."""
    gained: dict[str, dict[str, float]]
    """What is compared with -> mean, low and high of trained minus it."""

    @property
    def worse(self) -> bool:
        """Whether the result is shown to be worse than its start: the whole interval is below 0."""
        return self.gained[next(iter(self.gained))]["high"] < 0

    @property
    def better(self) -> bool:
        """Whether it is shown to be better."""
        return self.gained[next(iter(self.gained))]["low"] > 0

    def lines(self) -> list[str]:
        """In words, a line each: the figures, then what they mean."""
        told = [f"trained: {METRIC} {self.trained:.4f}"]
        for name, mean in self.other.items():
            d = self.gained[name]
            told.append(f"{name}: {METRIC} {mean:.4f}; trained minus that {d['mean']:+.4f} (95 % {d['low']:+.4f} to {d['high']:+.4f}, cases paired)")
        if self.worse:
            return [*told, "warning: the trained encoder is worse than the one that it began from; do not serve it"]
        return [*told, "better than its start" if self.better else "not shown to be better than its start"]


def judged(found: Mapping[str, Ranked], start: str) -> Verdict:
    """The models `trained`, `before` and `decayed mean` ranked on the same cases; `start` says what `before` is."""
    compared = {f"start ({start})": "before", "baseline (decayed mean)": "decayed mean"}
    mean = {name: float(METRICS[METRIC](found[name].rank).mean()) for name in ("trained", *compared.values())}
    gained = {title: difference(found["trained"].rank, found[name].rank, METRIC) for title, name in compared.items()}
    return Verdict(mean["trained"], {title: mean[name] for title, name in compared.items()}, gained)
