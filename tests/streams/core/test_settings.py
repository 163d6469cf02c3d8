"""Settings: where they come from, and what is said of mistakes."""

from pathlib import Path

import pytest

from schemas.windows import Policy
from streams.core.errors import SettingsError
from streams.core.settings import Archive, Settings, load, sources
from streams.core.settings_errors import masked

GOOD = '[kafka]\nbootstrap = "file:1"\n[worker]\npartitions = 3\n[[platforms]]\nname = "shop"\ncode = 1\npreset = "plain"\n'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


def test_precedence(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment wins over the file, the file over the default; each says where it comes from."""
    monkeypatch.setenv("CURRENTS_WORKER__PARTITIONS", "5")
    settings = load(config)
    assert (settings.kafka.bootstrap, settings.worker.partitions, settings.query.port) == ("file:1", 5, 8321)
    found = {key: (value, source) for key, value, source in sources(settings, config)}
    assert settings.encoding.policy == Policy(64)
    assert found["worker.partitions"] == ("5", "environment")
    assert found["kafka.bootstrap"] == ("file:1", str(config))
    assert found["query.port"] == ("8321", "default")
    assert found["platforms"] == ("shop", str(config))


def test_where_the_file_is(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is the one given, else the one named in the environment, else ./currents.toml, else none."""
    assert load().kafka.bootstrap == "127.0.0.1:9092"
    Path("currents.toml").write_text('[kafka]\nbootstrap = "here:1"\n')
    assert load().kafka.bootstrap == "here:1"
    monkeypatch.setenv("CURRENTS_CONFIG", str(config))
    assert load().kafka.bootstrap == "file:1"


MISTAKES = [
    ("[worker]\npartitions = 0", ("worker.partitions = 0", "greater than or equal to 1")),
    ("[worker]\npartitions = 'many'", ("worker.partitions = 'many'", "valid integer")),
    ("[encoding]\nwindow_per_platform = 65", ("encoding.window_per_platform = 65", "less than or equal to 64")),
    ("[encoding]\nwindow_strong = -1", ("encoding.window_strong = -1", "greater than or equal to 0")),
    ("[worker]\ninstance = 'a'\n[query]\nport = 0", ("worker.instance needs query.url",)),
    ("[worker]\npartitons = 1", (": worker.partitons: unknown key; did you mean partitions?",)),
    ("[worker]\ncolour = 1", (": worker.colour: unknown key",)),
    ("[workers]\na = 1", (": workers: unknown key; did you mean worker?",)),
    (GOOD + "fliters = []\n", (": platforms.shop.fliters: unknown key; did you mean filters?",)),
    (
        GOOD + "filters = [{ path = 'a', equals = 1 }, { path = 'a', inn = [1] }]\n",
        (": platforms.shop.filters[2].inn: unknown key; did you mean in?",),
    ),
    (
        GOOD + "[platforms.items]\nid = 'a'\ntitle = 'b'\nseperator = '/'\n",
        (": platforms.shop.items.seperator: unknown key; did you mean separator?",),
    ),
    (GOOD + "time_format = 'm'\n", (": platforms.shop.time_format = 'm'", "'us'")),
    ("[[platforms]]\ncode = 1\npreset = 'plain'\n", (": platforms[1].name: Field required",)),
    ("[archive]\nflush_s = 'https://me:hunter2@host/a?x=1&token=hunter3'", ("archive.flush_s = 'https://me:***@host/a?x=1&token=***'",)),
    ("[kafka]\nsecurity_protocol = 'SASL_SSL'", ("kafka", "needs sasl_username")),
    ("[kafka]\nsecurity_protocol = 'TLS'", ("kafka.security_protocol = 'TLS'", "'SASL_SSL'")),
    ("[portrait]\nweights = { teleport = 1.0 }", ("portrait", "unknown behavior 'teleport'")),
    ("[ingest]\nearliest = 'long ago'", ("ingest.earliest = 'long ago'", "ISO 8601")),
    ("[[platforms]]\nname = 'shop'\ncode = 1", ("platforms.shop.account", "required")),
    (GOOD + "[[platforms]]\nname = 'news'\ncode = 1\npreset = 'plain'\n", ("code = 1 stands twice",)),
    ("worker = [", ("not TOML",)),
]


@pytest.mark.parametrize(("text", "says"), MISTAKES)
def test_mistakes(config: Path, text: str, says: tuple[str, ...]) -> None:
    """A mistake is told with file, key, value and what was expected."""
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(config)
    for one in (str(config), *says):
        assert one in str(caught.value)


def test_variable_of_the_tests(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that names the research data to the tests is no mistake: processes that tests start inherit it."""
    monkeypatch.setenv("CURRENTS_DATA", "somewhere")
    assert load(config).worker.prefix


def test_mistakes_in_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is no setting is refused, and a bad value says that it comes from the environment."""
    monkeypatch.setenv("CURRENTS_WORKR__PARTITIONS", "5")
    with pytest.raises(SettingsError, match=r"CURRENTS_WORKR__PARTITIONS is no setting.*did you mean CURRENTS_WORKER"):
        load(config)
    monkeypatch.delenv("CURRENTS_WORKR__PARTITIONS")
    monkeypatch.setenv("CURRENTS_WORKER__PARTITIONS", "x")
    with pytest.raises(SettingsError, match=r"environment: worker.partitions = 'x'"):
        load(config)


SECRETS = [
    "[kafka]\nsasl_pasword = 'hunter2'",
    "[kafka]\nsasl_password = 'hunter2'\nsecurity_protocol = 'SASL_SSL'",
    "[kafka]\nsasl_password = ['hunter2']",
    "[kafak]\nsasl_password = 'hunter2'",
    "[worker]\nsasl_password = 'hunter2'",
    "sasl_password = 'hunter2'",
    "[query]\nport = 'http://me:hunter2@host'",
    "[query]\nport = 's3://bucket/key?X-Amz-Signature=hunter2&a=1'",
]


@pytest.mark.parametrize("text", SECRETS)
def test_mistakes_keep_secrets(config: Path, text: str) -> None:
    """Whatever is wrong, a password is not printed."""
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(config)
    assert str(config) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_masked() -> None:
    """Credentials in URLs are masked, in the settings that are printed too; other URLs stay as they are."""
    assert masked("s3://key:hunter2@host/x: gone") == "s3://key:***@host/x: gone"
    assert masked("http://host:8321/v1/profiles/a@b?vector=true") == "http://host:8321/v1/profiles/a@b?vector=true"
    settings = Settings(archive=Archive(url="s3://key:hunter2@host/x"))
    assert ("archive.url", "s3://key:***@host/x", "default") in sources(settings)


def test_missing_file(tmp_path: Path) -> None:
    """A settings file that was named must be there."""
    with pytest.raises(SettingsError, match=r"cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_secrets(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password is never shown."""
    monkeypatch.setenv("CURRENTS_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("CURRENTS_KAFKA__SASL_USERNAME", "me")
    monkeypatch.setenv("CURRENTS_KAFKA__SASL_PASSWORD", "hunter2")
    settings = load(config)
    assert "hunter2" not in repr(settings) + str(list(sources(settings, config)))
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == "hunter2"
