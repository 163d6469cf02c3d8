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


EDGES = [
    ({"size_mb": 512.0, "latency_ms": 250.0, "parity": 1e-4}, {}, None),
    ({"slices": {"all": part(0.5, 0.625)}}, {"gain": 0.25}, "ndcg@10 of all: want better by more than 25.0%, got +25.0%"),
    ({"slices": {"platform news": part(0.5, 0.375, cases=50)}}, {"platform_loss": 0.25}, None),
    ({"slices": {"item-cold": part(0.5, 0.25, spread=0.125)}}, {"cold_loss": 0.25}, None),
    ({"slices": {"item-cold": part(0.5, 0.25, spread=0.124)}}, {"cold_loss": 0.25}, "ndcg@10 of cold items: want not shown worse by more than 25.0%"),
    ({"slices": {"all": part(0.5, 0.375)}, "compressed": {"size_mb": 4.5, "latency_ms": 5.0}}, {"compressed_loss": 0.25}, None),
    ({"slices": {"all": part(0.5, 0.5)}, "size_mb": 6.0, "compressed": {"size_mb": 8.0, "latency_ms": 5.0}}, {"compressed_gain": 0.25}, None),
    ({"slices": {"all": part(0.5, 0.5)}, "latency_ms": 6.0, "compressed": {"size_mb": 2.0, "latency_ms": 8.0}}, {"compressed_gain": 0.25}, None),
]


@pytest.mark.parametrize(("changes", "rules", "refused"), EDGES)
def test_at_the_bound(changes: dict[str, Any], rules: dict[str, float], refused: str | None) -> None:
    """A figure at its bound passes, but for a gain, which has to be more."""
    said = refusal(judge(figures(**changes), GateRules(**rules), ["shop", "news"]))
    assert (said is None) if refused is None else (said or "").startswith(refused)


def test_what_is_said() -> None:
    """Every rule says what it wanted and what it got, also one that was passed."""
    slices = {"all": part(0.25, 0.5, spread=0.125), "platform news": part(0.0, 0.5), "item-cold": part(0.5, 0.5)}
    said = [str(f) for f in judge(figures(slices=slices), GateRules(metric="hr@10"), ["news"])]
    assert said == [
        "hr@10 of all: want better by more than 0.0%, got +100.0%, 0.2500 → 0.5000 (difference +0.2500, 95 % +0.1250 to +0.3750, 500 cases)",
        "hr@10 of platform news: want worse by at most 5.0%, got 0.0000 → 0.5000 (difference +0.5000, 95 % +0.4900 to +0.5100, 500 cases)",
        "hr@10 of cold items: want not shown worse by more than 0.0%, "
        "got +0.0%, 0.5000 → 0.5000 (difference +0.0000, 95 % -0.0100 to +0.0100, 500 cases)",
        "size, MB: want at most 512, got 4",
        "latency, ms: want at most 250, got 20",
        "parity: want at most 0.0001, got 1e-06",
    ]


def test_nothing_cold() -> None:
    """Without cases of cold items there is no rule for them."""
    plain = figures()
    del plain["slices"]["item-cold"]
    findings = judge(plain, GateRules(), [])
    assert [f.rule for f in findings] == ["ndcg@10 of all", "size, MB", "latency, ms", "parity"]
    assert refusal(findings) is None


def test_few_cases_of_a_platform() -> None:
    """A platform with one case too few is refused for that, whatever its figures; with just enough its figures count."""
    worse = {"platform news": part(0.5, 0.1, cases=3)}
    assert refusal(judge(figures(slices=worse), GateRules(min_cases=4), ["news"])) == "cases of platform news: want at least 4, got 3"
    assert (refusal(judge(figures(slices=worse), GateRules(min_cases=3), ["news"])) or "").startswith("ndcg@10 of platform news: want worse by")
    assert refusal(judge(figures(), GateRules(min_cases=1), ["video"])) == "cases of platform video: want at least 1, got 0"
