"""Whether a new release may be announced: pure rules on measured figures. Every rule gives a line, passed or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from encoder.recipe import GateRules

COLD = "item-cold"


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule: the condition, the measured value, and whether it passed."""

    rule: str
    wanted: str
    got: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.rule}: want {self.wanted}, got {self.got}"


def judge(figures: Mapping[str, Any], rules: GateRules, platforms: Sequence[str]) -> list[Finding]:
    """Figures as training.evaluate.beside and training.retrain measure them -> a finding a rule. A figure that is no number passes nothing.

    Of a compressed variant ("compressed" is there: {"size_mb", "latency_ms"} of the serving release) other rules stand for "better".

    {"slices": {"all" | "item-cold" | "platform <name>": {"cases": n, "serving": mean, "candidate": mean, "difference": {"mean", "low", "high"}}},
     "size_mb": MB, "latency_ms": ms, "parity": largest difference}
    """
    slices = figures["slices"]
    everything = slices["all"]
    if "compressed" in figures:
        out = _compressed(everything, figures, rules)
    else:
        better = everything["difference"]["mean"] > rules.gain * everything["serving"]
        out = [Finding(f"{rules.metric} of all", f"better by more than {rules.gain:.1%}", told(everything), bool(better))]
    out += [_platform(name, slices.get(f"platform {name}"), rules) for name in platforms]
    if COLD in slices:
        held = slices[COLD]["difference"]["high"] >= -rules.cold_loss * slices[COLD]["serving"]
        out.append(Finding(f"{rules.metric} of cold items", f"not shown worse by more than {rules.cold_loss:.1%}", told(slices[COLD]), bool(held)))
    for rule, key, most in (
        ("size, MB", "size_mb", rules.size_mb),
        ("latency, ms", "latency_ms", rules.latency_ms),
        ("parity", "parity", rules.parity),
    ):
        out.append(Finding(rule, f"at most {most:g}", f"{figures[key]:.3g}", bool(figures[key] <= most)))
    return out


def _compressed(everything: Mapping[str, Any], figures: Mapping[str, Any], rules: GateRules) -> list[Finding]:
    held = everything["difference"]["mean"] >= -rules.compressed_loss * everything["serving"]
    out = [Finding(f"{rules.metric} of all", f"worse by at most {rules.compressed_loss:.1%}", told(everything), bool(held))]
    was = figures["compressed"]
    less = {name: 1 - figures[name] / was[name] for name in ("size_mb", "latency_ms")}
    said = f"{less['size_mb']:.1%} smaller, {less['latency_ms']:.1%} faster"
    return [*out, Finding("size or latency", f"less by at least {rules.compressed_gain:.1%}", said, max(less.values()) >= rules.compressed_gain)]


def _platform(name: str, found: Mapping[str, Any] | None, rules: GateRules) -> Finding:
    if found is None or found["cases"] < rules.min_cases:
        cases = found["cases"] if found else 0
        return Finding(f"cases of platform {name}", f"at least {rules.min_cases}", str(cases), cases >= rules.min_cases)
    passed = found["difference"]["mean"] >= -rules.platform_loss * found["serving"]
    return Finding(f"{rules.metric} of platform {name}", f"worse by at most {rules.platform_loss:.1%}", told(found), bool(passed))


def told(found: Mapping[str, Any]) -> str:
    """A slice's comparison in words."""
    d = found["difference"]
    share = f"{d['mean'] / found['serving']:+.1%}, " if found["serving"] else ""
    return (
        f"{share}{found['serving']:.4f} → {found['candidate']:.4f} (difference {d['mean']:+.4f}, 95 % {d['low']:+.4f} to {d['high']:+.4f}, "
        f"{found['cases']} cases)"
    )


def refusal(findings: Sequence[Finding]) -> str | None:
    """The rules that were not passed, as one line; None if all were."""
    failed = [str(f) for f in findings if not f.passed]
    return "; ".join(failed) or None
