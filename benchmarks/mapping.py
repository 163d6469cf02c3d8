"""How many events a second one core maps: bytes of a platform -> unified event -> bytes."""

import time

import orjson

from benchmarks.common import median, record
from schemas.events import encode_event
from schemas.mapping import Mapper, PlatformMapping, Rejected
from tests.schemas.test_presets import CASES, NOW

N, RUNS = 20_000, 5


def main() -> None:
    """The first sample of each shipped mapping, median of five runs."""
    figures: dict[str, float] = {}
    for preset in dict.fromkeys(c[0] for c in CASES):
        raw = orjson.dumps(next(c[1] for c in CASES if c[0] == preset))
        mapper, rates = Mapper(PlatformMapping.model_validate({"name": "p", "code": 1, "preset": preset}), 300_000, 0), []
        for _ in range(RUNS):
            began = time.perf_counter()
            for offset in range(N):
                found = mapper.events(raw, "t", 0, offset, NOW)
                assert not isinstance(found, Rejected)
                for event in found:
                    encode_event(event)
            rates.append(N / (time.perf_counter() - began))
        figures[preset] = median(rates)
    record("mapping", figures, "events/s on one core", "goal 50,000")


if __name__ == "__main__":
    main()
