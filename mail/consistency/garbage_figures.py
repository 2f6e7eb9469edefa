"""Counts of rows that housekeeping will remove: they are no findings."""

from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, func, select
from sqlmodel import col

from mail.consistency.checks import CheckRun
from models.admin.tasks import UndoRecord
from models.auth.credentials import THROTTLE_RESET, AccessToken, Throttle
from models.files.blobs import Upload
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.idempotency import IdempotentPayload
from models.store.columns import UtcDateTime
from models.users.tables import Usage


async def count_expired_rows(check_run: CheckRun) -> dict[str, int]:
    """Count the rows that have expired, by kind."""
    now, options = check_run.environment.now(), check_run.environment.options
    parameters = {
        "now": now,
        "receipts_before": now - options.duplicate_delivery_retention,
        "payloads_before": now - options.idempotency_retention,
        "throttles_before": now - THROTTLE_RESET,
    }
    (row,) = await check_run.environment.database.read(_count_statement(), parameters)
    return dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


@cache
def _count_statement() -> Select[*tuple[Any, ...]]:
    now = bindparam("now", type_=UtcDateTime())
    conditions = {
        "old_receipts": col(DeliveryReceipt.at) <= bindparam("receipts_before"),
        "old_replays": col(IdempotentPayload.at) <= bindparam("payloads_before"),
        "expired_tokens": col(AccessToken.expires_at) <= now,
        "expired_throttles": col(Throttle.until) <= bindparam("throttles_before"),
        "expired_usages": col(Usage.until) <= now,
        "expired_undos": col(UndoRecord.expires_at) <= now,
        "expired_uploads": col(Upload.expires_at) <= now,
        "messages_to_expire": (col(Message.expires_at) <= now)
        & col(Message.mailbox_id).is_not(None),
        "messages_to_purge": col(Message.purge_at) <= now,
    }
    counts = [
        select(func.count()).where(condition).scalar_subquery().label(name)
        for name, condition in conditions.items()
    ]
    return select(*counts)
