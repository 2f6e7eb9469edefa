"""Table of the audit log: administrative mutations with what they changed."""

from typing import Any

from sqlalchemy import Index

from models.store.columns import (
    OptionalInt64,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
    json_column,
)
from models.users.roles import Role


class AuditLogEntry(RowWithId, table=True):
    """One object that an administrative mutation changed. It contains no secret."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_at", "at", "id"),
        Index("ix_audit_log_domain_id", "domain_id", "at", "id"),
        Index("ix_audit_log_actor_id", "actor_id", "at", "id"),
        Index("ix_audit_log_target_id", "target_id", "at", "id"),
    )

    at: Timestamp
    actor: str  # username, or the name of a key
    actor_id: OptionalInt64 = None  # the user; None: an API key of the platform
    role: Role = enum_column(Role)
    ip: str | None = None
    mutation: str  # its name in the schema
    target_kind: str | None = None  # type of the target
    target_id: OptionalInt64 = None
    # of the target
    domain_id: int | None = foreign_key(
        "domains.id", index=False, ondelete="SET NULL", default=None
    )
    before: dict[str, Any] | None = json_column()
    after: dict[str, Any] | None = json_column()
    reason: str | None = None
