"""How each client library is told to reach the brokers."""

import asyncio
import socket
from typing import Any

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from streams.core.settings import Kafka
from streams.transport.broker_settings import for_aiokafka, for_faust, for_kafka_python
from streams.transport.reading import answers

SASL = {"sasl_mechanism": "PLAIN", "sasl_plain_username": "me", "sasl_plain_password": "word"}


def kafka(protocol: str, user: str | None = None) -> Kafka:
    named = {"sasl_username": user, "sasl_password": "word"} if user else {}
    return Kafka.model_validate({"bootstrap": "h:1,i:2", "security_protocol": protocol, **named})


@pytest.mark.parametrize(
    ("protocol", "user", "tls", "sasl"),
    [("PLAINTEXT", None, False, {}), ("SSL", None, True, {}), ("SASL_PLAINTEXT", "me", False, SASL), ("SASL_SSL", "me", True, SASL)],
)
def test_connection(protocol: str, user: str | None, tls: bool, sasl: dict[str, Any]) -> None:
    """Each client connects as the settings say: with TLS where the protocol has it, with user and password where they are given."""
    asked = kafka(protocol, user)
    ours = for_aiokafka(asked)
    context = ours.pop("ssl_context", None)
    assert (context is not None and context.check_hostname) is tls
    assert ours == {"bootstrap_servers": "h:1,i:2", "security_protocol": protocol, **sasl}
    theirs = for_kafka_python(asked)
    context = theirs.pop("ssl_context", None)
    assert (context is not None and context.check_hostname) is tls
    assert theirs == {"bootstrap_servers": ["h:1", "i:2"], "security_protocol": protocol, **sasl}
    faust = credentials_to_aiokafka_auth(for_faust(asked))
    context = faust.pop("ssl_context", None)
    assert (context is not None and context.check_hostname) is tls
    assert faust == {"security_protocol": protocol, **sasl}


def test_no_broker_answers() -> None:
    """Where nobody listens no broker answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert asyncio.run(answers(Kafka(bootstrap=f"127.0.0.1:{port}"), 5.0)) is False
