"""Coverage-guided fuzzing of every decoder and every shipped mapping with atheris, which is no dependency of the project.

pip install atheris && python -m tests.fuzz.fuzz_codecs -max_total_time=300
"""

import sys

import atheris

with atheris.instrument_imports(include=["schemas"]):
    from schemas.deadletters import decode_dead_letter
    from schemas.declaration import presets
    from schemas.events import decode_event, encode_event
    from schemas.items import decode_item_vector
    from schemas.mapping import Mapper, PlatformMapping, Rejected
    from schemas.profiles import decode_profile
    from schemas.windows import Policy, fold, rows_of

MAPPERS = [Mapper(PlatformMapping.model_validate({"name": "p", "code": 1, "preset": p}), 300_000, 0) for p in presets()]


def one(data: bytes) -> None:
    """Decoders raise nothing but ValueError; mappings raise nothing, and what they accept survives the wire."""
    for decode in (decode_event, decode_item_vector, decode_profile, decode_dead_letter, rows_of):
        try:
            decode(data)
        except ValueError:
            continue
    if len(data) >= 32:
        for policy in (Policy(2), Policy(1, 1, 1)):
            window = fold(None, [data[:32], data[-32:]], policy)
            assert fold(window, [data[-32:], data[:32]], policy) == window
    for mapper in MAPPERS:
        found = mapper.events(data, "t", 0, 0, 1_800_000_000_000)
        if not isinstance(found, Rejected):
            assert [decode_event(encode_event(e)) for e in found] == found
        mapper.item(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
