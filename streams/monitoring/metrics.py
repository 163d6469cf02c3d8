"""Prometheus metrics of workers and read replicas."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.monitoring.rejected import Rejected

AGE_BUCKETS_MS = (10, 25, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 2500, 5000, 10_000, 30_000, 60_000, 600_000)
RECENT = 100_000  # newest ages that percentiles use
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Ages:
    """Owns the bucket counts of ages. Counts a whole batch per call, which prometheus_client's Histogram cannot."""

    def __init__(self) -> None:
        self._edges = np.array(AGE_BUCKETS_MS, float)
        self._counts = np.zeros(len(self._edges) + 1)
        self._sum = 0.0

    def observe(self, ages_ms: np.ndarray) -> None:
        """Count (n,) ages in ms."""
        self._counts += np.bincount(np.searchsorted(self._edges, ages_ms), minlength=len(self._counts))
        self._sum += float(ages_ms.sum())

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the counts to a family as one cumulative histogram, in seconds."""
        bounds = [*(f"{e / 1000:g}" for e in self._edges), "+Inf"]
        family.add_metric(labels, list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True)), self._sum / 1000)


class AgeHistogram(Ages, Collector):
    """Owns the event→profile ages: a histogram, and percentiles of the newest ages."""

    def __init__(self) -> None:
        super().__init__()
        self._recent = np.zeros(RECENT)
        self._seen = 0

    def observe(self, ages_ms: np.ndarray) -> None:
        """Count (n,) ages in ms."""
        super().observe(ages_ms)
        kept = ages_ms[-RECENT:]
        self._recent[(self._seen + np.arange(len(kept))) % RECENT] = kept
        self._seen += len(kept)

    def forget(self) -> None:
        """Drop the ages that percentiles use."""
        self._seen = 0

    def percentiles(self, *wanted: float) -> list[float]:
        """Return percentiles of the last RECENT ages, ms; zeros if there is no age yet."""
        known = self._recent[: min(self._seen, RECENT)]
        return np.percentile(known, wanted).tolist() if known.size else [0.0] * len(wanted)

    def collect(self) -> Iterator[Metric]:
        """Yield the histogram."""
        family = HistogramMetricFamily("currents_event_age_seconds", "From an event's arrival in Kafka to its acknowledged profile")
        self.add_to(family, [])
        yield family

    describe = collect  # Registry.value finds the metric by its names


class VersionAges(Collector):
    """Owns the profile ages of each encoder version."""

    def __init__(self) -> None:
        self._ages: dict[str, Ages] = {}

    def __call__(self, version: str) -> Ages:
        """Return the ages of an encoder version."""
        return self._ages.setdefault(version, Ages())

    def collect(self) -> Iterator[Metric]:
        """Yield one family with a histogram per version."""
        text = "From the arrival in Kafka of the newest event behind a profile to its acknowledgement, by who made it"
        family = HistogramMetricFamily("currents_profile_age_seconds", text, labels=["version"])
        for version, ages in list(self._ages.items()):
            ages.add_to(family, [version])
        yield family

    describe = collect


class Registry:
    """Owns the metrics of every process that has an HTTP endpoint. One instance per process."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.query_seconds = Histogram("currents_query_seconds", "Answers of the query endpoint", ["route"], buckets=SECONDS, registry=r)
        text = "Rows of Currents' own topics that cannot be used and were left out"
        self._rejected = Counter("currents_rejected_rows_total", text, ["topic", "reason"], registry=r)
        self.rejected = Rejected(lambda topic, reason: self._rejected.labels(topic, reason).inc())

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Register a gauge whose value `read` returns at each scrape."""
        Gauge(name, text, registry=self.registry).set_function(read)

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        found = (s for family in self.registry.restricted_registry([name]).collect() for s in family.samples if s.name == name)
        return sum(s.value for s in found if labels.items() <= s.labels.items())


class SwapMetrics(Registry):
    """Owns the metrics of every process that follows `currents.releases`."""

    def __init__(self) -> None:
        super().__init__()
        r = self.registry
        self.refused = Counter("currents_releases_refused_total", "Releases and records that were refused", ["channel"], registry=r)
        self.swap_seconds = Histogram("currents_swap_seconds", "Change of the lineup between two batches", buckets=SECONDS, registry=r)


class Metrics(SwapMetrics):
    """Owns the metrics of a worker."""

    def __init__(self) -> None:
        super().__init__()
        r = self.registry
        self.received = Counter("currents_received_total", "Records read from platform topics", ["platform"], registry=r)
        self.events = Counter("currents_events_total", "Events written to the unified topic", ["platform"], registry=r)
        self.filtered = Counter("currents_filtered_total", "Records left out by a mapping's filters", ["platform"], registry=r)
        self.dead = Counter("currents_dead_letters_total", "Records rejected", ["platform", "reason"], registry=r)
        self.left_out = Counter("currents_left_out_fields_total", "Optional fields left out of events", ["platform", "reason"], registry=r)
        self.items = Counter("currents_items_total", "Item vectors written", ["platform"], registry=r)
        self.folded = Counter("currents_folded_total", "Events folded into windows", registry=r)
        self.unchanged = Counter("currents_unchanged_total", "Windows that a batch left as they were: duplicates, replays, too old", registry=r)
        self.profiles = Counter("currents_profiles_total", "Profiles written", registry=r)
        self.reencoded = Counter("currents_reencoded_total", "Profiles written again for late item vectors, or after the fallback", registry=r)
        self.encoder_failures = Counter("currents_encoder_failures_total", "Attempts at which the encoder failed", ["version"], registry=r)
        self.fallback = Counter("currents_fallback_profiles_total", "Profiles that the fallback encoder made", registry=r)
        self.released = Counter("currents_released_profiles_total", "Profiles written again because another encoder should make them", registry=r)
        self.live_tests = Counter("currents_live_tests_total", "Events that tested the profile before them", ["platform", "version"], registry=r)
        self.live_hits = Counter("currents_live_hits_total", "Of these, whose item was among the first", ["platform", "version"], registry=r)
        self.drift = Gauge("currents_drift_psi", "Population stability index of the last window against the time before", ["what", "of"], registry=r)
        self.drift_alarm = Gauge("currents_drift_alarm", "1 while that is above its bounds", ["what", "of"], registry=r)
        self.candidate_failures = Counter("currents_candidate_failures_total", "Batches that a candidate could not encode", ["version"], registry=r)
        self.repaired = Counter("currents_repaired_total", "Users published again, another worker's stale rows being last", registry=r)
        self.rebuilt = Counter("currents_rebuilt_windows_total", "Windows folded again from the unified topic, no good row being left", registry=r)
        self.restored = Counter("currents_restored_rows_total", "Changelog rows read to rebuild tablets", registry=r)
        self.batch_seconds = Histogram("currents_batch_seconds", "One update batch, from records to acknowledgement", buckets=SECONDS, registry=r)
        self.encode_seconds = Histogram("currents_encode_seconds", "Fold, encode and portrait of one batch", buckets=SECONDS, registry=r)
        self.batch_events = Histogram(
            "currents_batch_events", "Events in one update batch", buckets=(1, 5, 10, 50, 100, 500, 1000, 2000, 4000), registry=r
        )
        self.age, self.profile_age = AgeHistogram(), VersionAges()
        r.register(self.age)
        r.register(self.profile_age)


class ReplicaMetrics(SwapMetrics):
    """Owns the metrics of a read replica."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Counter("currents_followed_rows_total", "Rows of the profile changelog read", registry=self.registry)
