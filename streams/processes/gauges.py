"""The gauges of a worker. Prometheus reads their values from the worker's parts at each scrape."""

from streams.monitoring.metrics import Metrics
from streams.processes.backlog import Backlog
from streams.profile.encoder_guard import Guard
from streams.profile.late_items import LateItems
from streams.state.item_store import ItemStore
from streams.state.tablets import Tablets
from streams.transport.faust_batches import BatchApp


def add_gauges(metrics: Metrics, tablets: Tablets, store: ItemStore, backlog: Backlog, guard: Guard, late: LateItems, app: BatchApp) -> None:
    """Register the gauges of a worker's parts."""
    gauge = metrics.gauge
    gauge("currents_users", "Users with a profile here (RocksDB's estimate)", lambda: tablets.total("users"))
    gauge("currents_rocksdb_disk_bytes", "RocksDB on disk", lambda: tablets.total("disk"))
    gauge("currents_rocksdb_memory_bytes", "RocksDB memtables", lambda: tablets.total("memory"))
    gauge("currents_items_known", "Items with a vector", lambda: store.table.size - 1)
    gauge("currents_tablets", "Tablets of this worker", lambda: sum(1 for _ in tablets))
    lag = "Records assigned to this worker and not yet acked; NaN while the brokers are away"
    gauge("currents_lag_records", lag, lambda: float("nan") if app.brokers_away() else backlog.records())
    gauge("currents_brokers_silent_seconds", "Since the brokers last knew this worker", app.brokers_silent_s)
    gauge("currents_encoder_failing_seconds", "For how long the encoder has failed; 0 while it works", guard.failing_s)
    gauge("currents_late_items", "Items whose users are to be encoded again", late.pending)
    gauge("currents_out_of_range", "Partitions whose log did not have the group's offset", lambda: app.consumer.out_of_range)
    gauge("currents_lost_batches", "Batches that Faust lost and that were read again", lambda: app.lost_batches)
