"""A hundred thousand dead letters, mended; the command is killed on its way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from kafka import KafkaConsumer, TopicPartition

from schemas.deadletters import DeadLetter, encode_dead_letter
from schemas.events import decode_event
from testkit.cluster import PARTITIONS, RIGHT, Cluster, wait_for
from testkit.load import plain

pytestmark = pytest.mark.kafka
LETTERS, BAD = 100_000, 10  # every BAD-th letter is beyond help


def letters(c: Cluster) -> Iterator[bytes]:
    """Letters of events whose behavior the mapping did not know."""
    r, now = random.Random(11), time.time_ns() // 1_000_000
    for n in range(LETTERS):
        body = orjson.loads(plain(r, f"e{n}", now - LETTERS + n, 2000)) | {"behavior": "??" if n % BAD == 0 else "gawp"}
        yield encode_dead_letter(DeadLetter("unknown-behavior", "", "shop", f"{c.prefix}.in.shop", 0, n, now, now, b"k", orjson.dumps(body)))


def test_killed(cluster: Callable[..., Cluster]) -> None:
    """After kill -9 in the middle and another run every mended event is in the log once, the others are reported, and the profiles are right."""
    c = cluster(toml=PLAIN_MENDED)
    c.items()
    c.send(c.settings.topic("dead-letters"), letters(c))
    process = redrive(c)
    wait_for("some letters to be marked", lambda: ends(c, "redriven") > LETTERS // 20)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < ends(c, "events") < LETTERS * (BAD - 1) // BAD
    first = ends(c, "redriven") - 1
    counts = result(redrive(c))
    assert counts["still_rejected"] == {"unknown-behavior": LETTERS // BAD}
    assert first + counts["mended"] >= LETTERS * (BAD - 1) // BAD
    log = Counter(decode_event(r.value).offset for r in c.log("events"))
    assert log == Counter(n for n in range(LETTERS) if n % BAD)
    assert result(redrive(c)) == {**counts, "mended": 0, "events": 0}
    assert ends(c, "events") == LETTERS * (BAD - 1) // BAD
    worker = c.worker("a").ready()
    c.drain()
    assert worker.terminate() == 0
    assert c.check(worker.data_dir) == RIGHT


PLAIN_MENDED = """
[[platforms]]
name = "shop"
code = 1
preset = "plain"
shared_ids = true
behaviors = {{ gawp = "view" }}
topic = "{prefix}.in.shop"
items_topic = "{prefix}.in.items"
"""


def redrive(c: Cluster) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "streams.commands.main", "dead-letters", "redrive", "--json", "--config", str(c.config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def ends(c: Cluster, name: str) -> int:
    """Records of one of Currents' topics."""
    consumer = KafkaConsumer(bootstrap_servers=c.bootstrap)
    try:
        return int(sum(consumer.end_offsets([TopicPartition(c.settings.topic(name), p) for p in range(PARTITIONS)]).values()))
    finally:
        consumer.close()
