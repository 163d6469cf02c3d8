"""Events/s of the update path alone: events of the unified topic → windows, profiles, changelogs, with an encoder without cost."""

import uvloop

from benchmarks.common import bench, events, kafka, median, rate, record, send, working
from benchmarks.systems.job import Stub
from schemas.events import encode_event
from schemas.mapping import Rejected
from streams.ingest.normalise import mappers
from streams.releases.routing import Lineup

N, USERS, RUNS = 200_000, 20_000, 3


async def measure(bootstrap: str, interests: int) -> float:
    """Send all events, then start the worker, and return the events/s at which it catches up."""
    async with bench(bootstrap, portrait={"interests": interests}) as settings:
        mapper = mappers(settings)["shop"]
        found = ((key, mapper.events(raw, "", 0, 0, 2**50)) for key, raw in events(N, USERS))
        await send(settings, settings.topic("events"), ((key, encode_event(e[0])) for key, e in found if not isinstance(e, Rejected)))
        async with working(settings) as worker:
            worker.lifecycle.swapper.lineup = Lineup(Stub())
            return await rate(worker, N)


def main() -> None:
    """Record the medians of three runs, with the portrait of ten interests and without."""
    with kafka() as bootstrap:
        figures = {
            "with portrait": median(uvloop.run(measure(bootstrap, 10)) for _ in range(RUNS)),
            "without portrait": median(uvloop.run(measure(bootstrap, 0)) for _ in range(RUNS)),
        }
    record("update", figures, "events/s in one worker, catching up", "stub encoder, 200,000 events of 20,000 users, 4 partitions; goal 25,000")


if __name__ == "__main__":
    main()
