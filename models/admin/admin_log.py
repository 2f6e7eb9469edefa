"""The administrative log: who changed what of others."""

from typing import Any

from sqlalchemy import Index

from models.store.columns import MaybeNumber, Moment, Row, choice, plain, ref
from models.users.roles import Role


class AdminLogEntry(Row, table=True):
    """An administrative mutation and one thing it changed. Never a secret."""

    __tablename__ = "admin_log"
    __table_args__ = (
        Index("ix_admin_log_at", "at", "id"),
        Index("ix_admin_log_domain_id", "domain_id", "at", "id"),
        Index("ix_admin_log_actor_id", "actor_id", "at", "id"),
        Index("ix_admin_log_target_id", "target_id", "at", "id"),
    )

    at: Moment
    actor: str  # user name, or the name of a key
    actor_id: MaybeNumber = None  # user; None: a key of the platform
    role: Role = choice(Role)
    ip: str | None = None
    mutation: str  # as the schema calls it
    target_kind: str | None = None  # type of the target
    target_id: MaybeNumber = None
    domain_id: int | None = ref(  # whose target
        "domains.id", index=False, ondelete="SET NULL", default=None
    )
    before: dict[str, Any] | None = plain()
    after: dict[str, Any] | None = plain()
    reason: str | None = None
