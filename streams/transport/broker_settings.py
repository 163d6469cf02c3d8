"""The settings of the brokers as each client library wants them: aiokafka, kafka-python, Faust. The only place that translates them."""

import ssl
from pathlib import Path
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.helpers import create_ssl_context
from kafka.net.sasl.oauth import AbstractTokenProvider as SyncTokenProvider

from streams.core.errors import SettingsError
from streams.core.settings import Kafka


class _TokenFile:
    """The token in a file: whoever renews it writes the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        try:
            return self._path.read_text().strip()
        except OSError as error:
            raise SettingsError(f"kafka.sasl_token_file = {str(self._path)!r}: cannot be read: {error.strerror}") from None


class _AsyncToken(AbstractTokenProvider):
    def __init__(self, file: _TokenFile) -> None:
        self._file = file

    async def token(self) -> str:
        return self._file.read()


class _SyncToken(SyncTokenProvider):
    def __init__(self, file: _TokenFile) -> None:
        super().__init__()
        self._file = file

    def token(self) -> str:
        return self._file.read()


def for_aiokafka(kafka: Kafka) -> dict[str, Any]:
    """Connection arguments for aiokafka's clients. Raises SettingsError."""
    return {"bootstrap_servers": kafka.bootstrap, "security_protocol": kafka.security_protocol, **_tls(kafka), **_sasl(kafka, _AsyncToken)}


def for_kafka_python(kafka: Kafka) -> dict[str, Any]:
    """Connection arguments for kafka-python's clients. Raises SettingsError."""
    brokers = kafka.bootstrap.split(",")
    return {"bootstrap_servers": brokers, "security_protocol": kafka.security_protocol, **_tls(kafka), **_sasl(kafka, _SyncToken)}


def for_faust(kafka: Kafka) -> Any:
    """The value of Faust's setting `broker_credentials`; None for a connection without TLS and SASL. Raises SettingsError."""
    import faust  # only a worker has the stream engine; other processes import this module without it

    context, sasl = _ssl_context(kafka), _sasl(kafka, _AsyncToken)
    if "sasl_oauth_token_provider" in sasl:
        return faust.OAuthCredentials(oauth_cb=sasl["sasl_oauth_token_provider"], ssl_context=context)
    if sasl:
        return faust.SASLCredentials(
            username=sasl["sasl_plain_username"], password=sasl["sasl_plain_password"], mechanism=sasl["sasl_mechanism"], ssl_context=context
        )
    return faust.SSLCredentials(context) if context else None


def _tls(kafka: Kafka) -> dict[str, Any]:
    context = _ssl_context(kafka)
    return {"ssl_context": context} if context else {}


def _ssl_context(kafka: Kafka) -> ssl.SSLContext | None:
    if not kafka.security_protocol.endswith("SSL"):
        return None
    password = kafka.ssl_key_password.get_secret_value() if kafka.ssl_key_password else None
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None,
            certfile=str(kafka.ssl_cert_file) if kafka.ssl_cert_file else None,
            keyfile=str(kafka.ssl_key_file) if kafka.ssl_key_file else None,
            password=password,
        )
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(f"kafka.ssl_ca_file, ssl_cert_file or ssl_key_file: cannot be used: {error}") from None
    return context


def _sasl(kafka: Kafka, token: type[_AsyncToken | _SyncToken]) -> dict[str, Any]:
    """The SASL arguments, which aiokafka and kafka-python call the same; empty without SASL."""
    if not kafka.security_protocol.startswith("SASL"):
        return {}
    if kafka.sasl_mechanism == "OAUTHBEARER":
        assert kafka.sasl_token_file is not None  # the settings were checked
        return {"sasl_mechanism": kafka.sasl_mechanism, "sasl_oauth_token_provider": token(_TokenFile(kafka.sasl_token_file))}
    assert kafka.sasl_password is not None
    password = kafka.sasl_password.get_secret_value()
    return {"sasl_mechanism": kafka.sasl_mechanism, "sasl_plain_username": kafka.sasl_username, "sasl_plain_password": password}
