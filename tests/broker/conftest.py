"""One embedded broker for the whole tier."""

from collections.abc import Iterator

import pytest

from streams.broker import embedded


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    with embedded() as address:
        yield address
