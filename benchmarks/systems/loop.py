"""The job as a confluent-kafka loop without group, rebalance or recovery: an upper bound for a Python process, as far as this loop is optimal."""

import sys
from pathlib import Path

import rocksdict
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.systems.job import Clock, Job, read_spec

BATCH = 4000


def main() -> None:
    """Do one run."""
    spec = read_spec(sys.argv[1])
    job, clock, parts = Job(spec), Clock(spec.events), range(spec.partitions)
    producer = Producer({"bootstrap.servers": spec.bootstrap, "linger.ms": 5, "batch.size": 1 << 19, "queue.buffering.max.messages": 1_000_000})
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    stores = [[rocksdict.Rdict(str(Path(spec.folder) / f"{name}{p}"), options) for p in parts] for name in ("windows", "profiles")]
    consumer = Consumer({"bootstrap.servers": spec.bootstrap, "group.id": spec.prefix, "enable.auto.commit": False})
    consumer.assign([TopicPartition(spec.topic, p, 0) for p in parts])
    done = False
    while not done:
        messages = consumer.consume(BATCH, 0.05)
        by_user: dict[tuple[int, bytes], list[bytes]] = {}
        received: dict[tuple[int, bytes], int] = {}
        for m in messages:
            at = m.partition(), m.key()
            by_user.setdefault(at, []).append(m.value())
            received[at] = m.timestamp()[1]
        if not by_user:
            continue
        windows = [job.fold(stores[0][p].get(user), values) for (p, user), values in by_user.items()]
        profiles = job.profiles([user for _, user in by_user], windows, list(received.values()))
        batches = [[rocksdict.WriteBatch(raw_mode=True) for _ in parts] for _ in stores]
        for (p, user), window, profile in zip(by_user, windows, profiles, strict=True):
            for batch, topic, value in zip(batches, (spec.windows, spec.profiles), (window, profile), strict=True):
                batch[p].put(user, value)
                producer.produce(topic, value, user, p)
        for store, batch in zip(stores, batches, strict=True):
            for p in parts:
                if batch[p].len():
                    store[p].write(batch[p])
        producer.flush()
        done = clock.count(len(messages))
    clock.tell()


if __name__ == "__main__":
    main()
