"""Counts of rows that housekeeping will remove: they are no findings."""

from sqlalchemy import Select, func, select
from sqlmodel import col

from mail.consistency.checks import CheckRun
from models.admin.tasks import UndoRecord
from models.auth.credentials import THROTTLE_RESET, AccessToken, Throttle
from models.files.blobs import Upload
from models.messages.tables import DeliveryReceipt, Message
from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from models.users.tables import Usage


async def count_expired_rows(check_run: CheckRun) -> dict[str, int]:
    """Count the rows that have expired, by kind."""
    return {
        name: int((await check_run.environment.database.read(statement))[0][0])
        for name, statement in _count_statements(check_run.environment).items()
    }


def _count_statements(environment: Environment) -> dict[str, Select[int]]:
    now, options = environment.now(), environment.options
    count = select(func.count())
    return {
        "old_receipts": count.where(
            col(DeliveryReceipt.at) <= now - options.duplicate_delivery_retention
        ),
        "old_replays": count.where(
            col(IdempotentPayload.at) <= now - options.idempotency_retention
        ),
        "expired_tokens": count.where(col(AccessToken.expires_at) <= now),
        "expired_throttles": count.where(col(Throttle.until) <= now - THROTTLE_RESET),
        "expired_usages": count.where(col(Usage.until) <= now),
        "expired_undos": count.where(col(UndoRecord.expires_at) <= now),
        "expired_uploads": count.where(col(Upload.expires_at) <= now),
        "messages_to_expire": count.where(
            col(Message.expires_at) <= now, col(Message.mailbox_id).is_not(None)
        ),
        "messages_to_purge": count.where(col(Message.purge_at) <= now),
    }
