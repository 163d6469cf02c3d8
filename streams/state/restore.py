"""Tablets from their changelogs: a bulk reader, beside Faust, that goes straight into write batches."""

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from aiokafka import TopicPartition

from encoder.features import UNKNOWN, ItemTable
from schemas.profiles import is_by, is_of, unknown_items
from schemas.rows import bad_profiles, bad_windows, check_key
from schemas.windows import DTYPE, ROW_BYTES, Policy, check, fold, newest_ms
from streams.core.cancel import stop, to_thread
from streams.core.clock import now_ms
from streams.core.fault_points import point
from streams.core.settings import Kafka
from streams.monitoring.rejected import Rejected
from streams.state.tablet import FALLBACK, LOST, UNPUBLISHED, Tablet, key_bytes
from streams.state.tablets import STALE_MS
from streams.transport.reading import read_to_end, reader

log = logging.getLogger("currents.restore")
NOTHING_MS = 10
"""How long a restore waits for rows before it asks whether there are any: most find none, and the tablet's users wait for it."""
MOST_SEEN = 250_000  # windows of a tablet whose outline is remembered while it is restored: some 45 MB
_ROW = struct.Struct(f"{ROW_BYTES}s")
Outline = tuple[int, int] | None
"""(time of the newest event in ms, number of events) of a window; None where there is none."""


async def restore(
    tablet: Tablet,
    kafka: Kafka,
    topics: tuple[str, str],
    table: ItemTable,
    policy: Policy,
    count: Callable[[int], None],
    fallback: str | None = None,
    rejected: Rejected | None = None,
) -> list[bytes]:
    """Bring a tablet up to the end of its two changelogs (windows, then profiles). Returns the users whose last rows there are wrong.

    Reads the rows that are newer than the tablet. A tablet that is stale, or whose offset lies beyond the log, is emptied first. Windows are merged,
    not replaced: a worker that stood still while it published may have put an old row behind a newer one, and no event may be lost by that.
    Users whose profile is of the encoder `fallback` wait for the right one. Marks the returned users as unpublished, until they are published again.
    A row that cannot be used is left out, told to `rejected`, and its user is among the returned; where the tablet has no window of that user either,
    because the log was compacted to that row, the user is marked as LOST too.
    """
    began, rows, last = time.perf_counter(), 0, dict[str, int]()
    short, stale = set[bytes](), set[bytes]()  # users whose last window lacks events, whose last profile is of another window
    lost, rejected = set[bytes](), rejected or Rejected()
    consumer = reader(kafka, wait_ms=NOTHING_MS)
    await consumer.start()
    try:
        parts = [TopicPartition(name, tablet.partition) for name in topics]
        first, end = await asyncio.gather(consumer.beginning_offsets(parts), consumer.end_offsets(parts))
        have = {tp: tablet.offset(tp.topic) for tp in parts}
        if any(at and (now_ms() - at > STALE_MS or not first[tp] <= offset + 1 <= end[tp]) for tp, (offset, at) in have.items()):
            log.info("tablet %d: does not continue its changelog, emptied", tablet.partition)
            tablet.wipe()
            have = dict.fromkeys(parts, (-1, 0))
        seen = Seen(empty=next(tablet.scan("windows"), None) is None)
        steps = (
            partial(put_windows, short=short, policy=policy, seen=seen, lost=lost, rejected=rejected),
            partial(put_profiles, stale=stale, table=table, fallback=fallback, noted={}, seen=seen, lost=lost, rejected=rejected),
        )
        for tp, put in zip(parts, steps, strict=True):  # the end of the profiles is known after that of the windows, which come first
            start = max(have[tp][0] + 1, first[tp])
            async for _, records in read_to_end(consumer, {tp: start}, NOTHING_MS):
                last[tp.topic] = records[-1].offset
                await to_thread(put, tablet, records, offsets={tp.topic: last[tp.topic]})
                rows += len(records)
                count(len(records))
                point("in-restore")
        wrong = sorted({*short, *stale, *tablet.waiting(UNPUBLISHED)})
        notes = [*((UNPUBLISHED, user) for user in wrong), *((LOST, user) for user in sorted(lost))]
        tablet.write(waiting=notes, offsets=last, now_ms=now_ms())  # at once: no row is skipped whose user is not noted
    finally:
        await stop(consumer)
    log.info("tablet %d: %d rows restored in %.2f s", tablet.partition, rows, time.perf_counter() - began)
    if wrong:
        log.warning("tablet %d: the last rows of %d users are not right, or may not be: publishing them again", tablet.partition, len(wrong))
    return wrong


class Seen:
    """The outlines of the windows that a restore put into an empty tablet, so that they are not read again. Forgets all beyond MOST_SEEN."""

    def __init__(self, empty: bool = False) -> None:
        self._outlines: dict[bytes, Outline] | None = {} if empty else None

    def windows(self, tablet: Tablet, users: list[bytes]) -> dict[bytes, bytes | None]:
        """What the tablet has of these users. Who was not seen has nothing."""
        there = users if self._outlines is None else [u for u in users if u in self._outlines]
        return {**dict.fromkeys(users), **dict(zip(there, tablet.windows(there), strict=True))}

    def put(self, windows: Mapping[bytes, bytes | None]) -> None:
        """These are the tablet's now."""
        if self._outlines is not None:
            self._outlines.update((user, outline(window)) for user, window in windows.items())
            if len(self._outlines) > MOST_SEEN:
                self._outlines = None

    def outlines(self, tablet: Tablet, users: list[bytes]) -> list[Outline]:
        """Of the windows that the tablet has of these users."""
        if self._outlines is None:
            return [outline(window) for window in tablet.windows(users)]
        return [self._outlines.get(user) for user in users]


def outline(window: bytes | None) -> Outline:
    """Of one window."""
    return (newest_ms(window), (len(window) - 1) // ROW_BYTES) if window else None


def put_windows(
    tablet: Tablet,
    records: Sequence[Any],
    short: set[bytes],
    policy: Policy,
    offsets: dict[str, int],
    seen: Seen | None = None,
    lost: set[bytes] | None = None,
    rejected: Rejected | None = None,
) -> None:
    """Merge rows of the windows' changelog into a tablet; `short` gains the users whose last row lacks events, and loses the others.

    `offsets` are noted where nobody is short: who goes on from there would not hear of them. A row that cannot be used lacks every event: its user is
    short, and `lost` as long as the tablet has no window of that user. An erased user is neither.
    """
    seen, lost = seen or Seen(), set() if lost is None else lost
    bad = bad_windows([(r.key, r.value) for r in records])
    found = seen.windows(tablet, list({r.key for n, r in enumerate(records) if n not in bad or _has_user(r)}))
    erased = set[bytes]()
    for n, record in enumerate(records):
        key, new = record.key, record.value
        if n in bad:
            (rejected or Rejected())(record, bad[n])
            if _has_user(record):
                short.add(key)
                if found[key] is None:
                    lost.add(key)
            continue
        old = found[key]
        whole = new if new is None or old is None else merge(old, new, policy)
        found[key] = whole
        lost.discard(key)
        (erased.add if new is None else erased.discard)(key)
        (short.discard if whole == new else short.add)(key)
    resolved = [(LOST, user) for user in erased]
    tablet.write(windows=found.items(), resolved=resolved, offsets=None if short else offsets, now_ms=now_ms())
    seen.put(found)


def _has_user(record: Any) -> bool:
    """Whether a row that cannot be used has the key of a user: only its value is wrong then."""
    try:
        return bool(check_key(record.key))
    except ValueError:
        return False


def put_profiles(
    tablet: Tablet,
    records: Sequence[Any],
    stale: set[bytes],
    table: ItemTable,
    offsets: dict[str, int],
    fallback: str | None = None,
    noted: dict[bytes, list[bytes]] | None = None,
    seen: Seen | None = None,
    lost: set[bytes] | None = None,
    rejected: Rejected | None = None,
) -> None:
    """Put rows of the profiles' changelog into a tablet that has its windows; `stale` gains the users whose last row is of another window.

    `offsets` are noted where nobody is stale. A row that cannot be used is left out, and its user is stale. An erased user is no longer `lost`.
    A row that counts unknown items: they are looked for in the window, and the user is noted as one who waits for them.
    A row from before an item came, of a worker that died before it encoded its user again: the user is noted as one who waits for an item.
    A row of the encoder `fallback`: the user is noted as one who waits for the encoder. `noted`: who was for what, by earlier rows; a later row of
    theirs takes that back.
    """
    bad = bad_profiles([(r.key, r.value) for r in records])
    for n, error in bad.items():
        (rejected or Rejected())(records[n], error)
    latest = {r.key: r.value for n, r in enumerate(records) if n not in bad}
    last_is_bad = {r.key: n in bad for n, r in enumerate(records) if n not in bad or _has_user(r)}
    users, late, lacking = list(latest), list[tuple[bytes, bytes]](), dict[bytes, int]()
    for user, shape in zip(users, (seen or Seen()).outlines(tablet, users), strict=True):
        profile = latest[user]
        right = shape is None or not profile or is_of(profile, *shape)
        (stale.discard if right else stale.add)(user)
        if right and shape and profile and (unknown := unknown_items(profile)):
            lacking[user] = unknown
        if fallback and profile and is_by(profile, fallback):
            late.append((FALLBACK, user))
    stale.update(user for user, is_bad in last_is_bad.items() if is_bad)
    erased = [user for user, profile in latest.items() if profile is None and not last_is_bad[user]]
    if lost is not None:
        lost.difference_update(erased)
    windows = dict(zip(lacking, tablet.windows(list(lacking)), strict=True))
    for user, window in windows.items():
        keys = np.frombuffer(window[1:] if window else b"", DTYPE)["item_key"]
        known = keys[table.index(keys) != UNKNOWN]
        if len(keys) - len(known) < lacking[user]:
            late.append((key_bytes(int(known[0])), user))
    earlier = {} if noted is None else {user: noted.pop(user) for user in users if user in noted}
    still = set(late)
    over = [(key, user) for user, keys in earlier.items() for key in keys if (key, user) not in still]
    over += [(LOST, user) for user in erased]
    if noted is not None:
        for key, user in late:
            noted.setdefault(user, []).append(key)
    waiting = [*late, *awaited(windows, table)]
    tablet.write(profiles=latest.items(), waiting=waiting, resolved=over, offsets=None if stale else offsets, now_ms=now_ms())


def merge(old: bytes, new: bytes, policy: Policy) -> bytes:
    """What the policy keeps of two windows of one user. Almost always `new` continues `old`, and that is seen without a fold."""
    if new.startswith(old):
        return new
    if policy.per_platform or policy.strong:  # evicted rows may be from anywhere in `old`: those that `new` lacks are tried again
        lacking = set(_ROW.iter_unpack(check(old)[1:])) - set(_ROW.iter_unpack(check(new)[1:]))
        return fold(new, (row for (row,) in lacking), policy) if lacking else new
    at = old.find(new[1 : 1 + ROW_BYTES], 1)
    if at > 0 and (at - 1) % ROW_BYTES == 0 and len(new) > policy.overall * ROW_BYTES and new.startswith(old[at:], 1):
        return new  # full: what it lacks was evicted
    return fold(check(new), (old[i : i + ROW_BYTES] for i in range(1, len(check(old)), ROW_BYTES)), policy)


def awaited(windows: Mapping[bytes, bytes | None], table: ItemTable) -> list[tuple[bytes, bytes]]:
    """(8-byte item key, user) for every item of these windows that has no vector."""
    users = [u for u, w in windows.items() if w]
    bodies = [check(w)[1:] for w in windows.values() if w]
    keys = np.frombuffer(b"".join(bodies), DTYPE)["item_key"]
    unknown = np.flatnonzero(table.index(keys) == UNKNOWN)
    owner = np.repeat(np.arange(len(users)), [len(b) // ROW_BYTES for b in bodies])[unknown]
    pairs = set(zip(keys[unknown].tolist(), owner.tolist(), strict=True))
    return [(key_bytes(key), users[n]) for key, n in pairs]
