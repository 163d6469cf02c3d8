"""The job in Quix Streams, in an environment of its own. Quix Streams passes one event at a time; it has no batches.

With `batch` the job collects windows by hand and encodes them at once. A crash would lose the windows that wait when a checkpoint is committed.
Holding the commit back would cost more, so this is the best case.
"""

import sys

from quixstreams import Application

from benchmarks.systems.job import Clock, Job, read_spec


def main() -> None:
    """Do one run."""
    spec = read_spec(sys.argv[1])
    job, clock = Job(spec), Clock(spec.events)
    app = Application(
        broker_address=spec.bootstrap, consumer_group=spec.prefix, auto_offset_reset="earliest", state_dir=spec.folder, commit_interval=2.0,
        loglevel="WARNING", use_changelog_topics=True, processing_guarantee="at-least-once",
    )  # fmt: skip
    source = app.topic(spec.topic, value_deserializer="bytes", key_deserializer="bytes")
    out = app.topic(spec.profiles, value_serializer="bytes", key_serializer="bytes")
    waiting: dict[bytes, tuple[bytes, int]] = {}
    producer = app.get_producer() if spec.batch else None

    def window_of(value, state):  # type: ignore[no-untyped-def]
        window = job.fold(state.get_bytes("w"), [value])
        state.set_bytes("w", window)
        return window

    def one(value, key, timestamp, headers, state):  # type: ignore[no-untyped-def]
        profile = job.profiles([key], [window_of(value, state)], [timestamp])[0]
        clock.count(1)
        return profile

    def flush() -> None:
        users, windows = list(waiting), [w for w, _ in waiting.values()]
        for user, profile in zip(users, job.profiles(users, windows, [t for _, t in waiting.values()]), strict=True):
            producer.produce(spec.profiles, profile, user)
        producer.poll(0)
        waiting.clear()

    def many(value, key, timestamp, headers, state):  # type: ignore[no-untyped-def]
        waiting[key] = window_of(value, state), timestamp
        if len(waiting) >= spec.batch or clock.done == spec.events - 1:
            flush()
        clock.count(1)

    frame = app.dataframe(source)
    if spec.batch:
        frame.apply(many, stateful=True, metadata=True)
    else:
        frame.apply(one, stateful=True, metadata=True).to_topic(out)
    app.run(count=spec.events, collect=False)
    if producer is not None:
        producer.flush()
    clock.tell()


if __name__ == "__main__":
    main()
