"""The settings of the brokers as each client library wants them: aiokafka, kafka-python, Faust. The only place that translates them."""

import ssl
from typing import Any

from aiokafka.helpers import create_ssl_context

from streams.core.settings import Kafka


def for_aiokafka(kafka: Kafka) -> dict[str, Any]:
    """Connection arguments for aiokafka's clients."""
    context = _ssl_context(kafka)
    return {
        "bootstrap_servers": kafka.bootstrap,
        "security_protocol": kafka.security_protocol,
        **({"ssl_context": context} if context else {}),
        **_sasl(kafka),
    }


def for_kafka_python(kafka: Kafka) -> dict[str, Any]:
    """Connection arguments for kafka-python's clients."""
    return {
        "bootstrap_servers": kafka.bootstrap.split(","),
        "security_protocol": kafka.security_protocol,
        **({"ssl_cafile": str(kafka.ssl_ca_file)} if kafka.ssl_ca_file else {}),
        **_sasl(kafka),
    }


def for_faust(kafka: Kafka) -> Any:
    """The value of Faust's setting `broker_credentials`; None for a connection without TLS and SASL."""
    import faust  # only a worker has the stream engine; other processes import this module without it

    context, sasl = _ssl_context(kafka), _sasl(kafka)
    if sasl:
        return faust.SASLCredentials(
            username=sasl["sasl_plain_username"], password=sasl["sasl_plain_password"], mechanism=sasl["sasl_mechanism"], ssl_context=context
        )
    return faust.SSLCredentials(context) if context else None


def _ssl_context(kafka: Kafka) -> ssl.SSLContext | None:
    if not kafka.security_protocol.endswith("SSL"):
        return None
    context: ssl.SSLContext = create_ssl_context(cafile=str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None)
    return context


def _sasl(kafka: Kafka) -> dict[str, Any]:
    """The SASL arguments, which aiokafka and kafka-python call the same; empty without a password."""
    if not kafka.sasl_password:
        return {}
    password = kafka.sasl_password.get_secret_value()
    return {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": kafka.sasl_username, "sasl_plain_password": password}
