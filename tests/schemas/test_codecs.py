"""Wire formats: golden bytes, round trips, and that other bytes are refused with ValueError alone."""

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.deadletters import DeadLetter, decode_dead_letter, encode_dead_letter
from schemas.events import BEHAVIORS, MAX_TS_MS, MAX_VALUE, Event, canonical_user, decode_event, encode_event, hash64
from schemas.items import Item, ItemVector, clip_categories, content, decode_item_vector, encode_item_vector, item_key
from schemas.profiles import (
    Columns,
    Evidence,
    Interest,
    Profile,
    by_version,
    decode_profile,
    encode_profile,
    pack_maker,
    pack_profiles,
    pack_vector,
    unpack_vector,
)
from schemas.releases import Release, decode_release, encode_release

EVENT = Event(1, "u1", 1_767_323_045_678, 2**64 - 1, 3, 11, "sku-1", "a1", 18.5, None, "events.shop", 2, 99)
ITEM = ItemVector("shop:sku-1", "Mug", ("Kitchen",), "space", 2, pack_vector(np.array([0.6, -0.8])), 1_767_323_045_678)
PROFILE = Profile(
    "u1", 1_767_323_045_700, 1_767_323_045_678, 1_767_323_045_680, 1, 0, "baseline-3", "space", 2, "float16-le", ITEM.vector,
    (Interest("Kitchen", 1.0, 0.5, {"shop": 1.0}, (Evidence("shop:sku-1", "Mug", "buy", 1_767_323_045_678),)),),
)  # fmt: skip
LETTER = DeadLetter("not-json", "record: want JSON", "shop", "events.shop", 2, 99, 1_767_323_045_678, 1_767_323_045_700, None, b"{")
RELEASE = Release("s-1", "s-128-1", "s3://b/s-1", "00ff", "canary", 0.05, "baseline-192", 1_767_323_045_700, "retrain", "gate passed", {"hr@10": 0.5})

CODECS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any], Any, str]] = {
    "event": (
        encode_event, decode_event, EVENT,
        "9d01a27531cf0000019b7ca98f2ecfffffffffffffffff030ba5736b752d31a26131cb4032800000000000c0ab6576656e74732e73686f700263",
    ),
    "item vector": (
        encode_item_vector, decode_item_vector, ITEM,
        "88a17601a46974656daa73686f703a736b752d31a57469746c65a34d7567aa63617465676f7269657391a74b69746368656ea873706163655f6964a57370616365"
        "a464696d7302a6766563746f72c404cd3866baa26174cf0000019b7ca98f2e",
    ),
    "profile": (
        encode_profile, decode_profile, PROFILE,
        "8da17601a7757365725f6964a27531aa757064617465645f6174cf0000019b7ca98f44ad6c6173745f6576656e745f6174cf0000019b7ca98f2eab726563656976"
        "65645f6174cf0000019b7ca98f30a66576656e747301ad756e6b6e6f776e5f6974656d7300af656e636f6465725f76657273696f6eaa626173656c696e652d33a8"
        "73706163655f6964a57370616365a464696d7302ab766563746f725f74797065aa666c6f617431362d6c65a6766563746f72c404cd3866baa9696e746572657374"
        "739185a46e616d65a74b69746368656ea6776569676874ca3f800000a57472656e64ca3f000000a9706c6174666f726d7381a473686f70ca3f800000a865766964"
        "656e63659184a46974656daa73686f703a736b752d31a57469746c65a34d7567a86265686176696f72a3627579a26174cf0000019b7ca98f2e",
    ),
    "dead letter": (
        encode_dead_letter, decode_dead_letter, LETTER,
        "8ba17601a6726561736f6ea86e6f742d6a736f6ea664657461696cb17265636f72643a2077616e74204a534f4ea8706c6174666f726da473686f70a5746f706963"
        "ab6576656e74732e73686f70a9706172746974696f6e02a66f666673657463a974696d657374616d70cf0000019b7ca98f2ea26174cf0000019b7ca98f44a36b65"
        "79c0a576616c7565c4017b",
    ),
    "release": (
        encode_release, decode_release, RELEASE,
        "8ca17601a776657273696f6ea3732d31a873706163655f6964a7732d3132382d31a662756e646c65aa73333a2f2f622f732d31a6646967657374a430306666a5"
        "7374617465a663616e617279a57368617265cb3fa999999999999aa870726576696f7573ac626173656c696e652d313932a26174cf0000019b7ca98f44a26279"
        "a77265747261696ea3776879ab6761746520706173736564a76d65747269637381a56872403130cb3fe0000000000000",
    ),
}  # fmt: skip


ROWS = st.tuples(
    st.text(max_size=300), st.integers(0, MAX_TS_MS), st.sampled_from([0, 2**32 - 1, 2**32, MAX_TS_MS]), st.integers(0, 70_000), st.integers(0, 300)
)  # fmt: skip


@given(st.lists(ROWS, min_size=1, max_size=5), st.sampled_from([1, 127, 128, 192]))
def test_many_profiles(rows: list[tuple[str, int, int, int, int]], dims: int) -> None:
    """Many profiles packed at once are each the bytes of one alone."""
    vectors = [pack_vector(np.full(dims, n)) for n in range(len(rows))]
    one = [encode_profile(Profile(u, 7, a, b, n, k, "v", "s", dims, "float16-le", v)) for (u, a, b, n, k), v in zip(rows, vectors, strict=True)]
    users = [row[0].encode() for row in rows]
    newest, received, events, unknown = np.array([row[1:] for row in rows]).T
    maker, n = pack_maker("v", "s", dims), len(rows)
    assert pack_profiles(Columns(users, newest, received, events, unknown, [maker] * n, vectors, [b"\x90"] * n), 7) == one


@given(st.lists(st.tuples(st.text(max_size=1024), st.sampled_from(["v1", "v10", "", "ö" * 40])), max_size=20))
def test_by_version(rows: list[tuple[str, str]]) -> None:
    """Every packed profile is found with the encoder that made it."""
    packed = [encode_profile(Profile(user, 7, 1, 2, 3, 4, version, "s", 2, "float16-le", bytes(4))) for user, version in rows]
    found = by_version(packed)
    assert {i: version for version, at in found.items() for i in at} == {i: version for i, (_, version) in enumerate(rows)}
    assert sum(map(len, found.values())) == len(rows)


@pytest.mark.parametrize("name", CODECS)
def test_golden(name: str) -> None:
    """The bytes of a format never change within a version."""
    encode, decode, value, golden = CODECS[name]
    assert encode(value).hex() == golden
    again = decode(bytes.fromhex(golden))
    assert encode(again).hex() == golden


@pytest.mark.parametrize("name", CODECS)
def test_other_version(name: str) -> None:
    """A newer version is refused, saying so."""
    encode, decode, value, _ = CODECS[name]
    row = msgpack.unpackb(encode(value))
    newer = [9, *row[1:]] if isinstance(row, list) else row | {"v": 9}
    with pytest.raises(ValueError, match="9"):
        decode(msgpack.packb(newer))


@pytest.mark.parametrize("name", CODECS)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_other_bytes(name: str, noise: bytes, cut: int) -> None:
    """Any bytes, also cut or changed ones, decode or raise ValueError."""
    encode, decode, value, _ = CODECS[name]
    whole = encode(value)
    for data in (noise, whole[:cut], whole[:cut] + noise, noise + whole, msgpack.packb(noise)):
        try:
            decode(data)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - the other outcome is a value


@pytest.mark.parametrize("name", [n for n in CODECS if n != "event"])
def test_readable_anywhere(name: str) -> None:
    """A value is a plain MessagePack map with the version first."""
    encode, _, value, _ = CODECS[name]
    row = msgpack.unpackb(encode(value))
    assert next(iter(row.items())) == ("v", 1)


ids = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
numbers = st.none() | st.floats(-MAX_VALUE, MAX_VALUE)


@given(
    st.builds(
        Event, st.just(1), ids, st.integers(0, MAX_TS_MS), st.integers(0, 2**64 - 1), st.integers(0, 63), st.integers(0, len(BEHAVIORS) - 1),
        ids, ids, numbers, st.none() | st.floats(0, MAX_VALUE), st.text(st.characters(codec="utf-8")), st.integers(-1, 999), st.integers(-1, 2**60),
    )
)  # fmt: skip
def test_event_round_trip(event: Event) -> None:
    """Every event that may be is itself again after the wire."""
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(("field", "value"), [(1, ""), (2, -1), (2, MAX_TS_MS + 1), (3, -1), (4, 64), (5, 99), (6, ""), (8, 1e39), (9, -1.0)])
def test_event_bounds(field: int, value: Any) -> None:
    """An event out of bounds is refused: it could not be stored in a window."""
    row = msgpack.unpackb(encode_event(EVENT))
    row[field] = value
    with pytest.raises(ValueError, match="not a unified event"):
        decode_event(msgpack.packb(row))


def test_vector_length() -> None:
    """A vector of another length than its dims is refused, naming both."""
    row = msgpack.unpackb(encode_profile(PROFILE))
    with pytest.raises(ValueError, match="want 8 bytes"):
        decode_profile(msgpack.packb(row | {"dims": 4}))
    with pytest.raises(ValueError, match="want 8 bytes"):
        decode_item_vector(msgpack.packb(msgpack.unpackb(encode_item_vector(ITEM)) | {"dims": 4}))


def test_vector() -> None:
    """Vectors are little-endian float16."""
    assert pack_vector(np.array([1.0, -2.0])) == bytes.fromhex("003c00c0")
    np.testing.assert_array_equal(unpack_vector(bytes.fromhex("003c00c0")), np.array([1, -2], np.float32))


def test_hash() -> None:
    """Hashes are fixed for ever, and parts do not run together."""
    assert hash64("shop", "1") == 18082779217385682656
    assert hash64("ab", "c") != hash64("a", "bc")
    assert item_key("shop:1") == 4917932108756282448


def test_names() -> None:
    """Users, categories and content are put together in one way."""
    assert (canonical_user("shop", "a", True), canonical_user("shop", "a", False)) == ("a", "shop:a")
    assert clip_categories(["a", " a ", "", "b", "c", "d", "e"]) == ("a", "b", "c", "d")
    assert content(Item("x", "Mug", ("Kitchen", "Mugs"), "blue")) == "Mug Kitchen, Mugs blue"
