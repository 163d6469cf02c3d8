"""Settings: one TOML file and environment variables, read once. `docs/settings.md` lists every key."""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from encoder.recipe import GateRules, Recipe
from schemas.events import BEHAVIOR_CODE, BEHAVIORS
from schemas.mapping import PlatformMapping
from schemas.releases import Rules
from schemas.windows import Policy
from streams.core.errors import SettingsError
from streams.core.settings_errors import masked, nearest, say

ENV_PREFIX = "CURRENTS_"
CONFIG_VARIABLE = "CURRENTS_CONFIG"
NO_SETTINGS = (CONFIG_VARIABLE, "CURRENTS_DATA")  # the latter names the folder of the research data to the tests
CONFIG_FILE = "currents.toml"
BEHAVIOR_WEIGHTS = {
    "view": 1.0, "click": 1.0, "read": 1.5, "like": 3.0, "follow": 3.0, "share": 3.0, "comment": 3.0,
    "save": 3.0, "search": 1.0, "cart": 4.0, "buy": 6.0, "rate": 3.0, "hide": -4.0, "unknown": 0.5,
}  # fmt: skip


class Section(BaseModel):
    """A table of the settings file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Kafka(Section):
    """The brokers, and how to reach them."""

    bootstrap: str = Field("127.0.0.1:9092", description="Brokers, `host:port`, comma-separated")
    replication: int = Field(1, ge=1, description="Replication factor of the topics that Currents creates")
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Transactions on the platforms' topics: their records are taken once committed, or as they come"
    )
    out_of_range: Literal["earliest", "latest", "stop"] = Field(
        "earliest", description="Where to read on if a log ends before the group's offset (restored, made anew); `stop`: the worker ends"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field("PLAINTEXT", description="Protocol towards the brokers")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "PLAIN", description="SASL mechanism, with a SASL protocol"
    )
    sasl_username: str | None = Field(None, description="SASL user")
    sasl_password: SecretStr | None = Field(None, description="SASL password; never printed")
    sasl_token_file: Path | None = Field(None, description="OAUTHBEARER: file with the token, read again for each connection")
    ssl_ca_file: Path | None = Field(None, description="CA certificates (PEM) for SSL; the system's by default")
    ssl_cert_file: Path | None = Field(None, description="Client certificate (PEM) for brokers that ask for one")
    ssl_key_file: Path | None = Field(None, description="Its private key (PEM), if that is not in the same file")
    ssl_key_password: SecretStr | None = Field(None, description="Password of the private key; never printed")

    @model_validator(mode="after")
    def _sasl_needs_a_user(self) -> "Kafka":
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism == "OAUTHBEARER":
            if not self.sasl_token_file:
                raise ValueError("sasl_mechanism = OAUTHBEARER needs sasl_token_file")
        elif self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"security_protocol = {self.security_protocol} needs sasl_username and sasl_password")
        return self


class Worker(Section):
    """One worker process."""

    prefix: str = Field("currents", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Consumer group, and prefix of Currents' own topics")
    data_dir: Path = Field(Path("currents-data"), description="Folder of the RocksDB stores; one worker each")
    partitions: int = Field(8, ge=1, le=512, description="Partitions of `<prefix>.events`, windows and profiles; fixed once created")
    max_poll_records: int = Field(4000, ge=1, description="Largest record batch")
    linger_ms: float = Field(40.0, ge=0, le=1000, description="Milliseconds for which few events wait for more, twice on their way")
    instance: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,249}$",
        description="Static membership: a name in the group that no other worker has; back within the session, it has its tablets again at once",
    )
    session_timeout_s: float = Field(6.0, gt=0, description="Seconds without heartbeat after which the group gives a worker up")
    commit_interval_s: float = Field(1.0, gt=0, description="Seconds between offset commits")
    max_away_s: float = Field(30.0, ge=0, description="Seconds without brokers after which `/readyz` answers 503; 0: it goes on answering 200")
    cache_mb: int = Field(64, ge=1, description="RocksDB block cache of the whole worker, MiB")
    write_buffer_mb: int = Field(8, ge=1, description="RocksDB memtable of one tablet's table, MiB")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level")


class Ingest(Section):
    """What is accepted of platform events."""

    max_skew_s: float = Field(300.0, ge=0, description="Events further ahead of the clock than this are dead letters")
    earliest: str = Field("2000-01-01T00:00:00+00:00", description="Events before this time (ISO 8601) are dead letters")
    max_bytes: int = Field(2_000_000, ge=1, description="Larger events are dead letters")
    dead_letter_days: float = Field(14.0, gt=0, description="Retention of dead letters, days")
    schema_registry: str = Field("", pattern=r"^(https?://[^@\s]+)?$", description="URL of a Schema Registry for framed values")
    schema_registry_username: str = Field("", description="User of the registry (HTTP Basic)")
    schema_registry_password: SecretStr | None = Field(None, description="Its password; never printed")
    event_days: float = Field(30.0, gt=0, description="Retention of the unified topic, days")

    @field_validator("earliest")
    @classmethod
    def _is_a_time(cls, value: str) -> str:
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("want a time as ISO 8601") from None
        return value

    def earliest_ms(self) -> int:
        """`earliest` in ms since the epoch; UTC where it names no zone."""
        at = datetime.fromisoformat(self.earliest)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


class Encoding(Section):
    """Item tower and encoder."""

    tower: str = Field("static", description="`static` (shipped), or the folder of a tower (of a text model: extra `train`)")
    encoder: str = Field("baseline", description="`baseline`, `demo` (shipped, for the synthetic world), or the folder of a bundle")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="ONNX Runtime on `cpu`, torch on `cuda` (extra `gpu`); `auto` looks")
    threads: int = Field(1, ge=1, description="Threads that encode windows, beside the others of the process")
    fallback: Literal["none", "baseline"] = Field("none", description="While the encoder fails: events wait, or the baseline encodes")
    fallback_after_s: float = Field(30.0, ge=0, description="Seconds of failing after which the fallback steps in")
    window: int = Field(64, ge=1, le=512, description="Events kept per user: the newest")
    window_per_platform: int = Field(0, ge=0, le=64, description="Besides, the newest of each platform; 0: none")
    window_strong: int = Field(0, ge=0, le=512, description="Besides, the newest strong actions, such as buy, like, follow or hide; 0: none")

    @property
    def policy(self) -> Policy:
        """What a window keeps."""
        return Policy(self.window, self.window_per_platform, self.window_strong)


class Portrait(Section):
    """The readable side of a profile."""

    interests: int = Field(10, ge=0, le=100, description="Named interests kept per profile")
    evidence: int = Field(2, ge=0, le=10, description="Items named behind each interest")
    half_life_h: float = Field(336.0, gt=0, description="Hours after which an event counts half")
    weights: dict[str, float] = Field(BEHAVIOR_WEIGHTS, description="Weight of each behavior; negative counts against")

    @model_validator(mode="after")
    def _known_behaviors(self) -> "Portrait":
        unknown = sorted(set(self.weights) - set(BEHAVIOR_CODE))
        if unknown:
            raise ValueError(f"weights: unknown behavior {unknown[0]!r}, want one of {', '.join(BEHAVIORS)}")
        return self


class Query(Section):
    """The query endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8321, ge=0, le=65535, description="Port; 0 takes a free one")
    url: str | None = Field(None, description="Where other workers reach this one; `http://host:port` by default")
    max_batch: int = Field(1000, ge=1, description="Users in one batchGet, items in one rank")
    max_body_bytes: int = Field(4_000_000, ge=1, description="Larger request bodies are refused")


class Serve(Section):
    """`currents serve`: a read replica of the profile changelog."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8322, ge=0, le=65535, description="Port; 0 takes a free one")
    data_dir: Path = Field(Path("currents-replica"), description="Folder of its RocksDB stores; one replica each")
    max_behind_s: float = Field(30.0, gt=0, description="Seconds behind the changelog from which on reads are refused (503)")
    max_behind_records: int = Field(100_000, ge=0, description="Rows behind the changelog, in the user's partition, from which on reads are refused")
    items: bool = Field(False, description="Keep all items too, so that rank is answered")
    cache_mb: int = Field(256, ge=1, description="RocksDB block cache of the whole replica, MiB")
    write_buffer_mb: int = Field(16, ge=1, description="RocksDB memtable of one partition, MiB")


class Archive(Section):
    """`currents archive`: the unified topic as Parquet."""

    url: str = Field("currents-archive", description="Folder or fsspec URL of the archive; one archiver each")
    batch_records: int = Field(200_000, ge=1, description="Records of a partition that are written at once")
    flush_s: float = Field(300.0, gt=0, description="Seconds after which what has come is written")
    merge_s: float = Field(3600.0, gt=0, description="Seconds between merges of small batches")
    merge_records: int = Field(1_000_000, ge=1, description="Batches are merged up to so many records")


class Retrain(Section):
    """`currents retrain`: a new release from the live log."""

    folder: Path = Field(Path("currents-retrain"), description="Folder of the runs")
    schedule: str = Field("17 3 * * 1", description="When, as a cron expression in UTC, without --once")
    source: Literal["topic", "archive"] = Field("topic", description="Read the unified topic, or `archive.url`")
    events: int = Field(2_000_000, ge=1, description="Newest events that are read, at most")
    min_events: int = Field(10_000, ge=1, description="Fewer are refused")
    epochs: int = Field(4, ge=1, description="Most passes over the data, from a warm start; else `training.epochs`")
    lr: float = Field(3e-4, gt=0, description="Peak learning rate, from a warm start; else `training.lr`")
    prune: float = Field(0.5, gt=0, lt=1, description="Share of the feed-forward channels that `--compress pruned` takes out")
    bundles: str = Field("currents-bundles", description="Folder or fsspec URL where workers find the bundles of candidates")


class Releases(Section):
    """Which encoder workers take from `<prefix>.releases`, and how they go over to it: `docs/swapping.md`."""

    follow: Literal["auto", "on", "off"] = Field(
        "auto", description="`on`: what is served there wins over `encoding.encoder`; `off`: never; `auto`: on while `encoding.encoder` is `baseline`"
    )
    retry_s: float = Field(30.0, gt=0, description="Seconds until a bundle is tried again whose store was away")
    allowed_urls: tuple[str, ...] = Field(
        (),
        description="Folders or URLs that a release's bundle must lie within; none: `retrain.bundles`, the process's `data_dir`, `encoding.encoder`",
    )
    max_bundle_mb: int = Field(2048, ge=1, description="Larger bundles are refused, MiB")
    fetch_timeout_s: float = Field(300.0, gt=0, description="Seconds in which a bundle has to be fetched, loaded and tried out")
    reencode_per_s: float = Field(
        1000.0, ge=0, description="Users a second and worker who are encoded again after a change; 0: none but who act or are read"
    )
    observed_per_s: float = Field(20.0, ge=0, description="Arriving events a second and worker that test the profile before them; 0: none")
    decide: bool = Field(True, description="A canary is promoted or rolled back by the rules below; else only by a command")
    alpha: float = Field(0.05, gt=0, lt=1, description="Chance that the rules are wrong, over a whole trial")
    tolerated_loss: float = Field(0.01, ge=0, le=1, description="Live hit rate that a candidate may have lost and be promoted")
    least_events: int = Field(500, ge=1, description="Events of a trial before anything is decided")
    most_events: int = Field(100_000, ge=1, description="Events after which a candidate that is not known to be good enough is rolled back")
    tolerated_later_ms: float = Field(100.0, ge=0, description="Milliseconds by which a candidate may make a batch's profiles older")
    reencode_on_read: bool = Field(True, description="Who is read and has an earlier encoder's profile is the next to be encoded again")

    @property
    def rules(self) -> Rules:
        """When a trial ends."""
        return Rules(self.alpha, self.tolerated_loss, self.least_events, self.most_events, later_ms=self.tolerated_later_ms)


class Drifts(Section):
    """Alarms when events or vectors are no longer distributed as they were: `docs/swapping.md`; of records alone if `releases.observed_per_s` = 0."""

    window_s: float = Field(300.0, gt=0, description="Seconds that are compared with the time before")
    reference_h: float = Field(24.0, gt=0, description="Hours after which what was counted before weighs half")
    psi: float = Field(0.2, gt=0, description="Population stability index above which there is an alarm")
    share: float = Field(0.02, gt=0, le=1, description="Share of all by which one that doubled or halved must have moved for an alarm")
    alpha: float = Field(1e-4, gt=0, lt=1, description="Chance of either without any change, above which there is none")
    least: int = Field(500, ge=1, description="Events of a window, and of the time before, without which nothing is said")


class Settings(BaseSettings):
    """Everything a Currents process can be told. Environment variables win over the file: `CURRENTS_KAFKA__BOOTSTRAP=…`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True)

    kafka: Kafka = Kafka()
    worker: Worker = Worker()
    ingest: Ingest = Ingest()
    encoding: Encoding = Encoding()
    portrait: Portrait = Portrait()
    query: Query = Query()
    serve: Serve = Serve()
    releases: Releases = Releases()
    drift: Drifts = Drifts()
    training: Recipe = Recipe()
    gate: GateRules = GateRules()
    archive: Archive = Archive()
    retrain: Retrain = Retrain()
    platforms: Annotated[tuple[PlatformMapping, ...], Field(description="One table per platform: `docs/mappings.md`")] = ()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then what `load` read from the file."""
        return _Environment(settings_cls), init_settings

    @model_validator(mode="after")
    def _distinct_platforms(self) -> "Settings":
        for what in ("name", "code"):
            seen = [getattr(p, what) for p in self.platforms]
            twice = next((v for v in seen if seen.count(v) > 1), None)
            if twice is not None:
                raise ValueError(f"platforms: {what} = {twice!r} stands twice")
        return self

    @model_validator(mode="after")
    def _an_instance_keeps_its_address(self) -> "Settings":
        if self.worker.instance and not (self.query.url or self.query.port):
            raise ValueError("worker.instance needs query.url or a query.port other than 0: the other workers go on sending reads to where it was")
        return self

    def follows(self) -> bool:
        """Whether the topic of releases says which encoder serves."""
        return self.releases.follow == "on" or (self.releases.follow == "auto" and self.encoding.encoder == "baseline")

    def unfollowed(self) -> str:
        """Why the topic of releases is not followed, and what to do; empty where it is."""
        if self.follows():
            return ""
        if self.releases.follow == "off":
            return 'releases.follow = "off"'
        return f'encoding.encoder = "{self.encoding.encoder}" names an encoder; releases.follow = "on" follows promotions all the same'

    def declared(self) -> list[dict[str, Any]]:
        """The platforms as JSON that another process reads as these same mappings: by the keys of the settings file, such as `in` of a filter."""
        rows = [platform.model_dump(mode="json", by_alias=True) for platform in self.platforms]
        return [row | {"items_topic": row["items_topic"] or "none"} for row in rows]

    def topic(self, name: str) -> str:
        """One of Currents' own topics: events, item-vectors, windows, profiles, dead-letters, releases."""
        return f"{self.worker.prefix}.{name}"


class _Environment(EnvSettingsSource):
    """Environment variables, but for the one that names the settings file."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {k: v for k, v in self.env_vars.items() if k.upper() != CONFIG_VARIABLE}


def load(path: Path | None = None) -> Settings:
    """Settings from `path`, $CURRENTS_CONFIG or ./currents.toml if there is one, and the environment. Raises SettingsError."""
    values, name = read_file(path)
    known = {f"{ENV_PREFIX}{section}".upper() for section in Settings.model_fields}
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in NO_SETTINGS and variable.upper().split("__")[0] not in known:
            hint = nearest(variable.upper().split("__")[0], known)
            raise SettingsError(f"environment: {variable} is no setting, want {ENV_PREFIX}<SECTION>__<KEY>{hint}")
    try:
        return Settings(**values)
    except ValidationError as error:
        environment = _Environment(Settings)()
        told = [say(e, "environment" if _within(e["loc"], environment) else name, values | environment, Settings) for e in error.errors()]
        raise SettingsError("\n".join(told)) from None
    except Exception as error:  # pydantic-settings wraps JSON errors of complex variables in its own type
        raise SettingsError(f"environment: {masked(str(error))}") from None


def read_file(path: Path | None) -> tuple[dict[str, Any], str]:
    """The settings file as a dict, and its name; ({}, "defaults") without one. Raises SettingsError."""
    given = path or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    file = given or Path(CONFIG_FILE)
    if given is None and not file.exists():
        return {}, "defaults"
    try:
        return tomllib.loads(file.read_text()), str(file)
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not TOML: {error}") from None


def _within(loc: Sequence[int | str], environment: Mapping[str, Any]) -> bool:
    """Whether what stands at a place of the settings came from the environment."""
    section = environment.get(str(loc[0])) if loc else None
    return section is not None and (len(loc) == 1 or not isinstance(section, dict) or loc[1] in section)


def sources(settings: Settings, path: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """(key, value, source) of every effective setting; source is "default", "environment" or the file. Secrets are masked, those in URLs too."""
    values, name = read_file(path)
    environment = _Environment(Settings)()
    for section, field in Settings.model_fields.items():
        chosen = getattr(settings, section)
        if not isinstance(chosen, BaseModel):
            source = "environment" if section in environment else name if section in values else "default"
            yield section, ", ".join(p.name for p in chosen) or "none", source
            continue
        del field
        for key, value in chosen:
            source = "environment" if key in environment.get(section, {}) else name if key in values.get(section, {}) else "default"
            yield f"{section}.{key}", masked(str(value)), source
