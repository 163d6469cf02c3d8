"""Memory of a worker while a million users with small windows arrive."""

import asyncio
import gc

import psutil
import uvloop

from benchmarks.common import bench, kafka, record, send, working

USERS, STEP, PER_USER = 1_000_000, 100_000, 2


async def measure(bootstrap: str) -> dict[str, float]:
    """Return number of users -> resident memory after this step, MiB."""
    process, figures = psutil.Process(), dict[str, float]()
    async with bench(bootstrap, worker={"cache_mb": 64}) as settings, working(settings) as worker:
        for done in range(0, USERS, STEP):
            rows = (
                (
                    f"m{u}".encode(),
                    f'{{"account":"m{u}","item":"i{(u * 7 + k) % 4000}","behavior":"view","time":{1_790_000_000_000 + k},"id":"{u}-{k}"}}'.encode(),
                )
                for k in range(PER_USER)
                for u in range(done, done + STEP)
            )
            await send(settings, settings.platforms[0].topic, rows)
            while worker.metrics.value("currents_folded_total") < (done + STEP) * PER_USER:
                if worker.failed.done():
                    await worker.failed
                await asyncio.sleep(0.1)
            gc.collect()
            figures[f"{(done + STEP) // 1000}k users"] = round(process.memory_info().rss / 2**20)
    return figures


def main() -> None:
    """Do one run, because memory is not noisy."""
    with kafka() as bootstrap:
        figures = uvloop.run(measure(bootstrap))
    record("memory", figures, "MiB resident, worker and load generator in one process", "two events a user, block cache 64 MiB; goal: flat")


if __name__ == "__main__":
    main()
