"""Log lines of libraries are told once in a while."""

import logging

from streams.monitoring.logs import QUIET_S, OnceInAWhile


def record(name: str, line: int = 1, error: Exception | None = None) -> logging.LogRecord:
    found = (type(error), error, None) if error else None
    return logging.LogRecord(name, logging.ERROR, "module.py", line, "no broker at %s", ("127.0.0.1:1",), found)


def test_a_library_repeats_itself() -> None:
    """A library's line is logged once in a while, and then says how often it was held back."""
    now = [0.0]
    once = OnceInAWhile(lambda: now[0])
    assert [once.filter(record("aiokafka")) for _ in range(100)] == [True] + [False] * 99
    assert once.filter(record("aiokafka", line=2))
    now[0] = QUIET_S
    again = record("aiokafka")
    assert once.filter(again)
    assert again.getMessage() == "no broker at 127.0.0.1:1 (and 99 like it in 30 s)"


def test_our_own_lines() -> None:
    """Our own lines are never held back."""
    once = OnceInAWhile(lambda: 0.0)
    assert all(once.filter(record("currents.update")) for _ in range(5))


def test_errors_of_connections() -> None:
    """A library's line of a broken connection names the error and shows no traceback; of another error it does."""
    broken, other = record("kafka", 1, ConnectionResetError(104, "reset")), record("kafka", 2, KeyError("x"))
    once = OnceInAWhile(lambda: 0.0)
    assert once.filter(broken)
    assert once.filter(other)
    assert (broken.getMessage(), broken.exc_info) == ("no broker at 127.0.0.1:1: ConnectionResetError: [Errno 104] reset", None)
    assert other.exc_info is not None
