"""Tables of statistics by time, and of the resets of usage counters."""

from datetime import timedelta
from typing import Any, ClassVar

from sqlalchemy import PrimaryKeyConstraint
from sqlmodel import Field, SQLModel

from models.metrics.latency_histogram import BUCKET_COUNT
from models.store.columns import BIG_INTEGER, Int64, OptionalInt64, Timestamp

SHORT_STEP, LONG_STEP = 300, 3600  # seconds
SAMPLE_PERIOD = 86_400  # seconds; the first sample of each period has all domains
RETENTION_BY_STEP = {SHORT_STEP: timedelta(days=14), LONG_STEP: timedelta(days=400)}
SUMMED_COLUMNS = (
    "sign_ins", "sign_in_failures", "messages_in", "bytes_in", "messages_junk", "viruses",
    "messages_out", "bytes_out", "messages_bounced", "api_operations",
    *(f"latency_{index}" for index in range(BUCKET_COUNT)),
)  # fmt: skip
SAMPLED_COLUMNS = ("storage", "active_users", "queue_length")  # the highest value of the step


def _key_column() -> Any:
    return Field(sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False})


class StatisticStep(SQLModel, table=True):
    """The statistics of the platform or of one domain in a step of 5 minutes or of one hour.

    All processes add to the same row. The platform has a row for each step in which a process ran;
    a domain has none if nothing happened. `latency_<n>` counts the API operations by duration, see
    models/metrics/latency_histogram.py.
    """

    __tablename__ = "statistic_steps"
    __table_args__: ClassVar[Any] = (
        PrimaryKeyConstraint("domain_id", "step_seconds", "started_at"),
    )

    domain_id: int = _key_column()  # 0: the platform
    step_seconds: int = _key_column()
    started_at: int = _key_column()  # seconds since 1970
    sign_ins: Int64 = 0
    sign_in_failures: Int64 = 0
    messages_in: Int64 = 0
    bytes_in: Int64 = 0
    messages_junk: Int64 = 0
    viruses: Int64 = 0
    messages_out: Int64 = 0
    bytes_out: Int64 = 0
    messages_bounced: Int64 = 0
    api_operations: Int64 = 0
    latency_0: Int64 = 0
    latency_1: Int64 = 0
    latency_2: Int64 = 0
    latency_3: Int64 = 0
    latency_4: Int64 = 0
    latency_5: Int64 = 0
    latency_6: Int64 = 0
    latency_7: Int64 = 0
    latency_8: Int64 = 0
    latency_9: Int64 = 0
    latency_10: Int64 = 0
    latency_11: Int64 = 0
    latency_12: Int64 = 0
    latency_13: Int64 = 0
    storage: OptionalInt64 = None  # bytes; None: not sampled
    active_users: OptionalInt64 = None
    queue_length: OptionalInt64 = None  # recipients that wait in the queue


class MetricReset(SQLModel, table=True):
    """The last reset of a usage counter on all processes."""

    __tablename__ = "metric_resets"

    name: str = Field(primary_key=True)  # see models/metrics/names.py
    reset_at: Timestamp
