"""Event→profile age, live: from a record's creation by a load generator to its acknowledged profile, at shares of the most that a worker takes.

The most is what it folds while the generator, beside it, offers more: `python -m benchmarks.age --shares .5 .9 --runs 1`.
"""

import argparse
import asyncio

import uvloop

from benchmarks.common import bench, kafka, load, median, record, working

SHARES, FIXED, SECONDS, WARM_S, USERS, RUNS, FLOOD = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0), (5000,), 15.0, 5.0, 20_000, 1, 30_000


async def most(bootstrap: str, encoder: str, seconds: float, flood: float) -> float:
    """Events/s that are folded, after the first seconds, while more are offered."""
    async with bench(bootstrap, encoding={"encoder": encoder}) as settings, working(settings) as worker:
        process = await load(settings, flood, seconds, USERS)
        await asyncio.sleep(WARM_S)
        before, began = worker.metrics.value("currents_folded_total"), asyncio.get_running_loop().time()
        await process.wait()
        lag, after = worker.lag(), worker.metrics.value("currents_folded_total")
        if worker.failed.done():
            await worker.failed
        if not lag:
            print(f"the generator offered no more than was taken: {flood}/s is too little, or the generator too slow", flush=True)
        return (after - before) / (asyncio.get_running_loop().time() - began)


async def measure(bootstrap: str, per_second: float, encoder: str = "baseline", seconds: float = SECONDS) -> tuple[float, float]:
    """p50 and p99 of the ages after the first seconds, ms."""
    async with bench(bootstrap, encoding={"encoder": encoder}) as settings, working(settings) as worker:
        process = await load(settings, per_second, seconds, USERS)
        await asyncio.sleep(WARM_S)
        worker.metrics.age.forget()
        await process.wait()
        if worker.failed.done():
            await worker.failed
        p50, p99 = worker.metrics.age.percentiles(50, 99)
        return round(p50), round(p99)


def main() -> None:
    """The most first, then its shares and some fixed rates; of several runs the one with the median p99."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--rates", type=float, nargs="*", default=FIXED, help="events/s, besides")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--flood", type=float, default=FLOOD, help="events/s that are offered to find the most")
    parser.add_argument("--encoder", default="baseline")
    a = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with kafka() as bootstrap:
        maximum = median(uvloop.run(most(bootstrap, a.encoder, a.seconds, a.flood)) for _ in range(a.runs))
        print(f"most: {maximum}/s", flush=True)
        wanted = {f"{share:.0%}": share * maximum for share in a.shares} | {f"{rate:.0f}/s": rate for rate in a.rates}
        for name, per_second in wanted.items():
            runs = sorted((uvloop.run(measure(bootstrap, per_second, a.encoder, a.seconds)) for _ in range(a.runs)), key=lambda r: r[1])
            middle = runs[len(runs) // 2]
            figures[name] = {"events/s": round(per_second), "p50": middle[0], "p99": middle[1]}
            print(name, figures[name], flush=True)
    note = (
        f"shares of {maximum:,.0f} events/s, the most with the generator beside it; {a.encoder} encoder, whole path; goal p99 ≤ 250 at half, "
        "≤ 1,000 at 90 %, ≤ 300 at 5000/s"
    )
    record("age", figures, "ms from Kafka to the acknowledged profile", note, most=maximum)


if __name__ == "__main__":
    main()
