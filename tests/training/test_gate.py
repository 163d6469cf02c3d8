"""GateRules of the gate."""

import math
from typing import Any

import pytest

from encoder.recipe import GateRules
from training.gate import judge, refusal


def part(serving: float, candidate: float, spread: float = 0.01, cases: int = 500) -> dict[str, Any]:
    d = candidate - serving
    return {"cases": cases, "serving": serving, "candidate": candidate, "difference": {"mean": d, "low": d - spread, "high": d + spread}}


def figures(**changes: Any) -> dict[str, Any]:
    slices = {"all": part(0.2, 0.21), "platform shop": part(0.3, 0.31), "platform news": part(0.1, 0.1), "item-cold": part(0.05, 0.05)}
    plain = {"size_mb": 4.0, "latency_ms": 20.0, "parity": 1e-6}
    return {"slices": {**slices, **changes.pop("slices", {})}, **plain, **changes}


CASES = [
    ({}, None),
    ({"slices": {"all": part(0.2, 0.2)}}, "ndcg@10 of all: want better by more than 0.0%, got +0.0%, 0.2000 → 0.2000"),
    ({"slices": {"platform news": part(0.1, 0.094)}}, r"ndcg@10 of platform news: want worse by at most 5.0%, got -6.0%, 0.1000 → 0.0940"),
    ({"slices": {"platform news": part(0.1, 0.096)}}, None),
    ({"slices": {"platform news": part(0.0, 0.0)}}, None),
    ({"slices": {"platform news": part(0.1, 0.2, cases=49)}}, "cases of platform news: want at least 50, got 49"),
    ({"slices": {"item-cold": part(0.05, 0.045)}}, None),
    ({"slices": {"item-cold": part(0.05, 0.03)}}, "ndcg@10 of cold items: want not shown worse by more than 0.0%, got -40.0%"),
    ({"size_mb": 513.0}, "size, MB: want at most 512, got 513"),
    ({"latency_ms": 300.0}, "latency, ms: want at most 250, got 300"),
    ({"parity": 2e-4}, "parity: want at most 0.0001, got 0.0002"),
    ({"parity": math.nan}, "parity: want at most 0.0001, got nan"),
    ({"slices": {"all": part(0.2, math.nan)}}, "ndcg@10 of all"),
]


@pytest.mark.parametrize(("changes", "refused"), CASES)
def test_rules(changes: dict[str, Any], refused: str | None) -> None:
    """Each rule refuses what it is for, says by how much, and nothing else is refused."""
    findings = judge(figures(**changes), GateRules(), ["shop", "news"])
    assert len(findings) == 7
    said = refusal(findings)
    if refused is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(refused)
        assert sum(not f.passed for f in findings) == 1


def test_bounds_are_settings() -> None:
    """GateRules say where the bounds are."""
    found = figures(slices={"all": part(0.2, 0.203)})
    assert refusal(judge(found, GateRules(gain=0.01), ["shop"])) is None
    assert "better by more than 2.0%" in (refusal(judge(found, GateRules(gain=0.02), ["shop"])) or "")


def test_missing_platform() -> None:
    """A declared platform without any case is refused by name, unless none is asked for."""
    assert refusal(judge(figures(), GateRules(), ["shop", "video"])) == "cases of platform video: want at least 50, got 0"
    assert refusal(judge(figures(), GateRules(min_cases=0), ["shop", "video"])) is None


def test_all_that_fails_is_said() -> None:
    """Several failed rules are one line."""
    said = refusal(judge(figures(size_mb=1000.0, latency_ms=1000.0), GateRules(), ["shop"]))
    assert said == "size, MB: want at most 512, got 1e+03; latency, ms: want at most 250, got 1e+03"


COMPRESSED = [
    ({}, None),
    ({"slices": {"all": part(0.2, 0.197)}}, "ndcg@10 of all: want worse by at most 1.0%, got -1.5%"),
    ({"size_mb": 7.5, "latency_ms": 39.0}, "size or latency: want less by at least 10.0%, got 6.2% smaller, 2.5% faster"),
    ({"size_mb": 9.0, "latency_ms": 30.0}, None),
    ({"size_mb": math.nan, "latency_ms": 39.0}, "size or latency"),
]


@pytest.mark.parametrize(("changes", "refused"), COMPRESSED)
def test_compressed(changes: dict[str, Any], refused: str | None) -> None:
    """A compressed variant need not be better, but next to as good, and clearly smaller or faster."""
    plain = figures(**{"slices": {"all": part(0.2, 0.1985)}, **changes}, compressed={"size_mb": 8.0, "latency_ms": 40.0})
    said = refusal(judge(plain, GateRules(), ["shop", "news"]))
    assert (said is None) == (refused is None)
    assert refused is None or refused in (said or "")
