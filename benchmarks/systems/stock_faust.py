"""The job in unmodified Faust: an agent over events, and two tables."""

import sys

import faust

from benchmarks.systems.job import Clock, Job, read_spec

spec = read_spec(sys.argv.pop(1))
job, clock = Job(spec), Clock(spec.events)
RAW = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
app = faust.App(
    spec.prefix, broker=f"kafka://{spec.bootstrap}", store="rocksdb://", topic_partitions=spec.partitions, web_enabled=False,
    datadir=spec.folder, topic_replication_factor=1, consumer_auto_offset_reset="earliest", table_standby_replicas=0,
)  # fmt: skip
events = app.topic(spec.topic, partitions=spec.partitions, **RAW)
options = {"driver": "rocksdict"}
windows = app.Table("windows", options=dict(options), partitions=spec.partitions, key_type=bytes, value_type=bytes)
profiles = app.Table("profiles", options=dict(options), partitions=spec.partitions, key_type=bytes, value_type=bytes)


@app.agent(events)
async def update(stream):  # type: ignore[no-untyped-def]
    """Handle one event at a time."""
    async for event in stream.events():
        user, value = event.key, event.value
        windows[user] = window = job.fold(windows.get(user), [value])
        profiles[user] = job.profiles([user], [window], [int(event.message.timestamp * 1000)])[0]
        if clock.count(1):
            await app.producer.buffer.flush()
            await app.producer.flush()
            clock.tell()


if __name__ == "__main__":
    sys.argv += ["worker", "-l", "error"]
    app.main()
