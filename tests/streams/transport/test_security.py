"""Every client, over TLS with each SASL mechanism and a client certificate, on Apache Kafka; and what a refusal says."""

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.core.errors import BrokerError
from streams.core.settings import Kafka, Settings
from streams.transport.clients import consumer, producer
from streams.transport.reading import answers
from streams.transport.topics import asking
from testkit.apache import PROPERTIES, ApacheKafka, free_port

pytestmark = pytest.mark.kafka
PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
BEARER = "org.apache.kafka.common.security.oauthbearer"


def properties(folder: Path, secure: int, mutual: int) -> str:
    listeners = f"SASL_SSL://127.0.0.1:{secure},SSL://127.0.0.1:{mutual}"
    plain = PROPERTIES.replace("listeners=PLAINTEXT", f"listeners={listeners},PLAINTEXT", 1)
    plain = plain.replace("advertised.listeners=PLAINTEXT", f"advertised.listeners={listeners},PLAINTEXT")
    plain = plain.replace("CONTROLLER:PLAINTEXT", "CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL")
    return (
        plain
        + f"""
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN,OAUTHBEARER
ssl.keystore.location={folder}/broker.p12
ssl.keystore.password=secret
ssl.truststore.location={folder}/trust.p12
ssl.truststore.password=secret
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.plain.sasl.jaas.config={PLAIN} user_ann="right";
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config={BEARER}.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="ann";
listener.name.sasl_ssl.oauthbearer.sasl.server.callback.handler.class={BEARER}.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler
"""
    )


def certificates(folder: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for ca in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("broker", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    openssl("pkcs12", "-export", "-in", "broker.pem", "-inkey", "broker.key", "-out", "broker.p12", "-passout", "pass:secret")
    store = ["-keystore", "trust.p12", "-storepass", "secret", "-storetype", "PKCS12"]
    subprocess.run(["keytool", "-importcert", "-noprompt", "-file", "ca.pem", "-alias", "ca", *store], cwd=folder, check=True, capture_output=True)


def token() -> str:
    """A token as a broker takes it that checks no signatures."""
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": "ann", "iat": now, "exp": now + 3600})
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts) + "."


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, str]]]:
    """How to reach the broker: name -> section `kafka`."""
    folder, secure, mutual = tmp_path_factory.mktemp("secured"), free_port(), free_port()
    certificates(folder)
    (folder / "token").write_text(token())
    ca = {"ssl_ca_file": str(folder / "ca.pem")}
    sasl = {"bootstrap": f"127.0.0.1:{secure}", "security_protocol": "SASL_SSL", **ca}
    plain = {**sasl, "sasl_mechanism": "PLAIN", "sasl_username": "ann", "sasl_password": "right"}
    own = {"ssl_cert_file": str(folder / "client.pem"), "ssl_key_file": str(folder / "client.key")}
    (folder / "broker").mkdir()
    with ApacheKafka(folder / "broker", properties=properties(folder, secure, mutual)):
        yield {
            "plain": plain,
            "bearer": {**sasl, "sasl_mechanism": "OAUTHBEARER", "sasl_token_file": str(folder / "token")},
            "mutual": {"bootstrap": f"127.0.0.1:{mutual}", "security_protocol": "SSL", **ca, **own},
            "wrong password": {**plain, "sasl_password": "wrong"},
            "unknown CA": {**plain, "ssl_ca_file": str(folder / "other.pem")},
        }


@pytest.mark.parametrize("how", ["plain", "bearer", "mutual"])
def test_reached(secured: dict[str, dict[str, str]], how: str) -> None:
    """Admin client, producer, consumer and aiokafka's clients connect."""
    settings = Settings(kafka=secured[how])
    with asking(settings.kafka) as client:
        client.list_topics()
    producer(settings).close()
    consumer(settings).close()
    assert asyncio.run(answers(settings.kafka, 10))


@pytest.mark.parametrize(("how", "says"), [("wrong password", "password"), ("unknown CA", "ssl_ca_file")])
def test_refused(secured: dict[str, dict[str, str]], how: str, says: str) -> None:
    """A refusal names the settings to look at."""
    with pytest.raises(BrokerError, match=says), asking(Kafka(**secured[how]), 1):
        pass
