"""Settings of how long data is kept."""

from datetime import timedelta

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, Duration


class RetentionSettings(BaseSettings):
    """Settings of retention. Each is the variable `MERGANSER_` with the name in capitals."""

    files_retention: Duration = Field(
        default=DEFAULT_OPTIONS.files_retention,
        description="Files that are not shared and were not downloaded for this time are "
        "deleted. 0 s: never.",
    )
    exports_retention: Duration = Field(
        default=DEFAULT_OPTIONS.exports_retention,
        description="How long an exported account can be downloaded. Then it is deleted.",
    )
    undo_window: Duration = Field(
        default=DEFAULT_OPTIONS.undo_window,
        description="How long a change to messages can be undone.",
    )
    deleted_messages_retention: Duration = Field(
        default=DEFAULT_OPTIONS.deleted_messages_retention,
        description="How long deleted messages can be restored.",
    )
    scim_deletion_grace_period: Duration = Field(
        default=DEFAULT_OPTIONS.scim_deletion_grace_period,
        description="How long an account that a directory deleted by SCIM can be restored. Then "
        "its data is removed. 0 s: the data is removed at once.",
    )
    backup_restore_window: Duration = Field(
        default=DEFAULT_OPTIONS.backup_restore_window,
        description="How old a database backup can be when you restore it. Objects that no row "
        "refers to are kept for this time. 0 s: they are deleted after a day.",
    )
    duplicate_delivery_retention: Duration = Field(
        default=DEFAULT_OPTIONS.duplicate_delivery_retention,
        description="How long a delivery is remembered, so that a repeated delivery of the same "
        "message is not stored twice.",
    )
    idempotency_retention: Duration = Field(
        default=DEFAULT_OPTIONS.idempotency_retention,
        description="How long the response to a mutation with an idempotency key is kept.",
    )
    journal_retention: Duration = Field(
        default=DEFAULT_OPTIONS.journal_retention,
        ge=timedelta(days=1),
        description="How long clients that were offline can still read changes. Whole days.",
        json_schema_extra={"hint": "write whole days such as 30 days"},
    )
    journal_max_events: int = Field(
        default=DEFAULT_OPTIONS.journal_max_events,
        ge=1000,
        description="Largest number of changes of one account that clients can still read.",
    )
    subscriptions_max_lag_events: int = Field(
        default=DEFAULT_OPTIONS.subscriptions_max_lag_events,
        ge=500,
        description="Largest number of changes by which a subscription can lag behind. A client "
        "that lags further reads the current state again.",
    )
    security_log_retention: Duration = Field(
        default=DEFAULT_OPTIONS.security_log_retention,
        description="How long security events are kept. 0 s: none are written.",
    )
    message_trace_retention: Duration = Field(
        default=DEFAULT_OPTIONS.message_trace_retention,
        description="How long the delivery trace of messages is kept. 0 s: none is written.",
    )
    audit_log_retention: Duration = Field(
        default=DEFAULT_OPTIONS.audit_log_retention,
        ge=timedelta(days=1),
        description="How long the log of administrative changes is kept.",
    )

    cluster_node_retention: Duration = Field(
        default=DEFAULT_OPTIONS.cluster_node_retention,
        ge=timedelta(minutes=1),
        description="How long the node of a server that has stopped is listed. Nodes that "
        "`clusterNodeAdd` added stay.",
        json_schema_extra={"hint": "write at least 1 minute"},
    )

    @field_validator("journal_retention")
    @classmethod
    def _check_whole_days(cls, retention: timedelta) -> timedelta:
        if retention % timedelta(days=1):
            raise ValueError("must be whole days")
        return retention
