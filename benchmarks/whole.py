"""The whole path in one process, catching up: platform JSON → unified → windows → baseline encoder → profiles."""

import uvloop

from benchmarks.common import bench, events, kafka, median, rate, record, send, working

N, USERS, RUNS = 200_000, 20_000, 3


async def measure(bootstrap: str, encoder: str = "baseline") -> float:
    """Send first, then start the worker, so that it catches up."""
    async with bench(bootstrap, encoding={"encoder": encoder}) as settings:
        await send(settings, settings.platforms[0].topic, events(N, USERS))
        async with working(settings) as worker:
            return await rate(worker, N)


def main() -> None:
    """Median of three runs."""
    with kafka() as bootstrap:
        runs = [uvloop.run(measure(bootstrap)) for _ in range(RUNS)]
    figures = {"baseline": median(runs), "slowest run": round(min(runs)), "fastest run": round(max(runs))}
    record(
        "whole",
        figures,
        "events/s in one worker, catching up",
        "200,000 events of 20,000 users, windows of 64, portraits of ten interests; goal 15,000",
    )


if __name__ == "__main__":
    main()
