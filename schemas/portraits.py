"""The bytes of a portrait, in pieces: the field `interests` of a profile is joined from them without packing anything twice.

interest = map of 5: name, weight, trend, platforms, evidence      action = map of 4: item, title, behavior, at
"""

import msgpack

_pack = msgpack.Packer().pack


def _array(n: int) -> bytes:
    return bytes([0x90 + n]) if n < 16 else b"\xdc" + n.to_bytes(2, "big")


def _map(n: int) -> bytes:
    return bytes([0x80 + n]) if n < 16 else b"\xde" + n.to_bytes(2, "big")


def interest_begins(category: str) -> bytes:
    """The bytes of an interest up to its name."""
    return _map(5) + bytes(_pack("name")) + bytes(_pack(category))


def action_begins(item: str, title: str) -> bytes:
    """The bytes of an action up to its title."""
    return _map(4) + b"".join(map(_pack, ("item", item, "title", title)))
