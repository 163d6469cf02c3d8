"""Whether a candidate is promoted, rolled back, or watched on: pure functions of what arriving events said of it and of the serving encoder.

Every event that is looked at asks both encoders for the item acted on, given the same window before it. The difference of the two hits, -1, 0 or 1,
is paired: what makes an event hard is the same for both. One may look after every event: the interval is a confidence sequence, and always holds.

A batch is acknowledged as a whole, so a slow candidate makes the profiles of both old, and their ages side by side say nothing. Now and then both are
timed on the same windows instead: by how much later a batch would be if the candidate alone had encoded it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, NamedTuple

from schemas.releases import Rules

Action = Literal["watch", "promote", "roll back"]


@dataclass
class Sums:
    """Of paired hits."""

    events: int = 0
    served: int = 0
    """Hits of the serving encoder."""
    tried: int = 0
    """Hits of the candidate."""
    differing: int = 0
    """Events that one of them hit and the other did not: the sum of the squared differences."""

    def add(self, served: bool, tried: bool) -> None:
        """One event."""
        self.events += 1
        self.served += served
        self.tried += tried
        self.differing += served != tried


@dataclass
class Trial:
    """What this worker saw of one candidate against one serving encoder."""

    served: str
    tried: str
    whole: Sums = field(default_factory=Sums)
    platforms: dict[str, Sums] = field(default_factory=dict)
    failures: int = 0
    """Batches that the candidate could not encode."""
    delays: list[float] = field(default_factory=list)
    """By how many ms a batch would be later with the candidate alone, of batches now and then."""


class Verdict(NamedTuple):
    """What to do, and why in words."""

    action: Action
    why: str


def interval(sums: Sums, alpha: float, at: int) -> tuple[float, float]:
    """Bounds of the mean of tried minus served that hold for all numbers of events at once with chance 1 - alpha, tightest near `at` events.

    The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences", arXiv:2103.06476, theorem 2.2, with their ρ for `at`; it also holds for a mean that changes and for events that depend on
    those before. It is Robbins' normal mixture (1970), of which the mixture SPRT is the test.
    """
    n = sums.events
    if not n:
        return -1.0, 1.0
    mean = (sums.tried - sums.served) / n
    deviation = math.sqrt(max(sums.differing / n - mean**2, 1 / n))  # never nothing: a few equal hits prove no equality
    rho2 = (-2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))) / at
    margin = deviation * math.sqrt(2 * (n * rho2 + 1) / (n**2 * rho2) * math.log(math.sqrt(n * rho2 + 1) / alpha))
    return max(-1.0, mean - margin), min(1.0, mean + margin)


def slower(delays: Sequence[float], bound_ms: float, alpha: float) -> bool:
    """Whether more than half of all batches are later by more than the bound. Asked after every batch, it is wrong once with chance alpha.

    The median, for a machine stalls now and then, and means of a few such times say little. Of n batches k are later than the bound: the uniform
    mixture of all shares against one half, 2^n B(k + 1, n - k + 1), is a martingale if the share is one half, so it ever exceeds 1 / alpha with
    chance alpha (Ville; Robbins, Statistical methods related to the law of the iterated logarithm, 1970); if the share is less, k is no sooner there.
    """
    n, k = len(delays), sum(d > bound_ms for d in delays)
    evidence = n * math.log(2) + math.lgamma(k + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 2)
    return 2 * k > n and evidence >= -math.log(alpha)


def decide(trial: Trial, rules: Rules) -> Verdict:
    """Roll back what fails, is slow, is worse, or is not known to be good enough in time; promote what is not worse by more than is tolerated."""
    n, (low, high) = trial.whole.events, interval(trial.whole, rules.alpha, rules.least)
    said = f"hit rate {low:+.4f} to {high:+.4f} against {trial.served}, {n} events"
    if trial.failures > rules.failures:
        return Verdict("roll back", f"could not encode {trial.failures} batches, {rules.failures} are tolerated")
    if slower(trial.delays, rules.later_ms, rules.alpha):
        ages = f"profiles {median(trial.delays):.0f} ms later than with {trial.served} (median of {len(trial.delays)} batches)"
        return Verdict("roll back", f"slower: {ages}, {rules.later_ms:g} ms are tolerated")
    if n < rules.least:
        return Verdict("watch", f"{n} of at least {rules.least} events")
    if worse := "worse" if high < 0 else _worse_on(trial, rules):
        return Verdict("roll back", f"{worse}: {said}")
    if low > -rules.tolerated:
        timed = len(trial.delays)
        return Verdict("promote", said) if timed >= rules.timed else Verdict("watch", f"{timed} of at least {rules.timed} timed batches")
    late = n >= rules.most
    return Verdict("roll back", f"not known to lose less than {rules.tolerated:g} by now: {said}") if late else Verdict("watch", said)


def _worse_on(trial: Trial, rules: Rules) -> str:
    """A platform on which the candidate is known to be worse, in words; empty where there is none. The chance of being wrong is shared among them."""
    for name, sums in sorted(trial.platforms.items()):
        highest = interval(sums, rules.alpha / len(trial.platforms), rules.least)[1]
        if sums.events >= rules.least and highest < 0:
            return f"worse on {name} (hit rate at most {highest:+.4f}, {sums.events} events)"
    return ""


def figures(trial: Trial, rules: Rules) -> Mapping[str, float]:
    """What goes into the record."""
    n, (low, high) = max(trial.whole.events, 1), interval(trial.whole, rules.alpha, rules.least)
    timed = {"online_later_ms": round(median(trial.delays), 2)} if trial.delays else {}
    return {
        "online_events": float(trial.whole.events), "online_hit_rate": round(trial.whole.tried / n, 4),
        "online_hit_rate_serving": round(trial.whole.served / n, 4), "online_low": round(low, 4), "online_high": round(high, 4),
        "online_failures": float(trial.failures), "online_timed_batches": float(len(trial.delays)), **timed,
    }  # fmt: skip
