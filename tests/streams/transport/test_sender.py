"""Partitions of keys."""

import pytest

from streams.transport.sender import by_partition, partition_of

# Computed with kafka-python's own murmur2 partitioner.
CASES = [(b"u1", 8), (b"user-42", 8), ("größe".encode(), 16), (b"", 3), (b"0" * 100, 7)]


@pytest.mark.parametrize(("key", "partitions"), CASES)
def test_same_as_kafka(key: bytes, partitions: int) -> None:
    """A key goes where Kafka's default partitioner puts it."""
    from kafka.partitioner.default import murmur2

    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_by_partition() -> None:
    """Rows keep their order within a partition; a row without key goes to the first."""
    rows = [(b"a", b"1", 0), (b"b", b"2", 0), (b"a", b"3", 0), (None, b"4", 0)]
    parts = by_partition(rows, 4)
    assert sorted(r for part in parts.values() for r in part if r[0]) == sorted(rows[:3])
    assert [r[1] for r in parts[partition_of(b"a", 4)] if r[0] == b"a"] == [b"1", b"3"]
    assert (None, b"4", 0) in parts[0]
