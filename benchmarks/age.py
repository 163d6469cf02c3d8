"""Event→profile age, live: from a record's creation by a load generator to its acknowledged profile."""

import asyncio

import uvloop

from benchmarks.common import bench, kafka, load, record, working

RATES, SECONDS, WARM_S, USERS = (1000, 2500, 5000, 8000), 15, 5, 20_000


async def measure(bootstrap: str, per_second: float) -> tuple[float, float]:
    """p50 and p99 of the ages after the first seconds, ms."""
    async with bench(bootstrap) as settings, working(settings) as worker:
        process = await load(settings, per_second, SECONDS, USERS)
        await asyncio.sleep(WARM_S)
        worker.metrics.age.forget()
        await process.wait()
        p50, p99 = worker.metrics.age.percentiles(50, 99)
        return round(p50), round(p99)


def main() -> None:
    """Three runs a rate; the one with the median p99."""
    figures = {}
    with kafka() as bootstrap:
        for per_second in RATES:
            runs = sorted((uvloop.run(measure(bootstrap, per_second)) for _ in range(3)), key=lambda r: r[1])
            figures[f"{per_second}/s"] = {"p50": runs[1][0], "p99": runs[1][1]}
    record(
        "age",
        figures,
        "ms from Kafka to the acknowledged profile",
        "baseline encoder, whole path, the load generator beside it; goal p99 ≤ 300 at 5000/s",
    )


if __name__ == "__main__":
    main()
