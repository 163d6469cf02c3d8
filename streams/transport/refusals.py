"""Why brokers that are there refuse a connection: the client libraries try again, and say at last that no broker answers."""

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor

from aiokafka.conn import create_conn
from aiokafka.errors import AuthenticationFailedError, KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError

from streams.core.settings import Kafka
from streams.transport.broker_settings import for_aiokafka

TRIED_S = 5.0


def refusal(kafka: Kafka) -> str | None:
    """What the first broker refuses, and the settings to look at; None where that is not known."""
    with ThreadPoolExecutor(1) as thread:  # which has no event loop, whoever asks
        return thread.submit(lambda: asyncio.run(_refusal(kafka))).result()


async def _refusal(kafka: Kafka) -> str | None:
    host, _, port = kafka.bootstrap.split(",")[0].strip().rpartition(":")
    options = for_aiokafka(kafka)
    del options["bootstrap_servers"]
    try:
        connection = await asyncio.wait_for(create_conn(host, int(port), **options), TRIED_S)
    except (AuthenticationFailedError, SaslAuthenticationFailed, UnsupportedSaslMechanismError) as error:
        return f"the broker refuses the login: {error} (kafka.sasl_mechanism, sasl_username, sasl_password, sasl_token_file)"
    except ssl.SSLCertVerificationError as error:
        return f"the broker's certificate is not trusted: {error.verify_message} (kafka.ssl_ca_file)"
    except ssl.SSLError as error:
        return f"TLS fails: {error.reason or error} (kafka.security_protocol, ssl_cert_file, ssl_key_file)"
    except (KafkaError, OSError, ValueError, TimeoutError):
        return None
    connection.close()
    return None
