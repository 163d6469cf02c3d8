"""The Faust app: its settings, topics and agents. What there is, nothing that happens."""

import logging
from pathlib import Path

from streams.core.settings import Settings
from streams.transport.broker_settings import for_faust
from streams.transport.faust_batches import BatchApp

log = logging.getLogger("currents.app")
LONGEST_STALL_S = 30 * 86_400.0
"""A worker whose encoder fails fetches nothing meanwhile. After this time it would leave the group, and join again only once it fetches."""
HEARTBEAT_S = 0.5
"""A worker hears of a rebalance at its next heartbeat; until then the tablets of one that left have nobody."""


def make_app(settings: Settings, url: str) -> BatchApp:
    """A Faust app of these settings; `url` is where other workers reach this one, and tells it apart from them."""
    k, w = settings.kafka, settings.worker
    folder = Path(w.data_dir) / "faust"
    folder.mkdir(parents=True, exist_ok=True)
    app = BatchApp(
        w.prefix,
        broker=[f"kafka://{address.strip()}" for address in k.bootstrap.split(",")],
        broker_credentials=for_faust(k),
        broker_session_timeout=w.session_timeout_s,
        broker_heartbeat_interval=min(HEARTBEAT_S, w.session_timeout_s / 4),
        broker_rebalance_timeout=max(w.session_timeout_s, 6.0),
        broker_commit_interval=w.commit_interval_s,
        broker_max_poll_records=w.max_poll_records,
        broker_max_poll_interval=LONGEST_STALL_S,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=w.instance or None,
        consumer_max_fetch_size=4 << 20,
        consumer_metadata_max_age_ms=30_000,  # until a topic that was missing is noticed
        producer_acks=-1,
        producer_max_batch_size=512 << 10,
        producer_max_request_size=24 << 20,
        stream_buffer_maxsize=2,  # batches in flight: more would be fetched ahead in tiny ones, and throughput collapses
        stream_wait_empty=False,  # Tablets.freeze waits for what is in flight, and only for that
        table_standby_replicas=0,
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        cython_optimizations=True,
        web_enabled=False,
        canonical_url=url,
        datadir=folder,
        autodiscover=False,
    )
    app.linger_ms, app.out_of_range = w.linger_ms, k.out_of_range
    if k.isolation == "read_committed":
        app.committed_topics = {topic for p in settings.platforms for topic in (p.topic, p.items_topic) if topic}
    return app
