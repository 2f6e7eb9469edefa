"""Counts of rows that housekeeping will remove: they are no findings."""

from sqlalchemy import Select, func, select
from sqlmodel import col

from mail.consistency.checks import Look
from models.admin.tasks import Undo
from models.auth.credentials import CALM, AccessToken, Throttle
from models.files.blobs import Upload
from models.messages.tables import Message, Receipt
from models.runtime.environment import World
from models.runtime.idempotency import Replay
from models.users.tables import Usage


async def figures(look: Look) -> dict[str, int]:
    """Count the rows that have expired, by kind."""
    return {
        name: int((await look.world.database.read(asked))[0][0])
        for name, asked in _old(look.world).items()
    }


def _old(world: World) -> dict[str, Select[int]]:
    now, options = world.now(), world.options
    count = select(func.count())
    return {
        "old_receipts": count.where(col(Receipt.at) <= now - options.receipts_for),
        "old_replays": count.where(col(Replay.at) <= now - options.replays_for),
        "expired_tokens": count.where(col(AccessToken.expires_at) <= now),
        "expired_throttles": count.where(col(Throttle.until) <= now - CALM),
        "expired_usages": count.where(col(Usage.until) <= now),
        "expired_undos": count.where(col(Undo.expires_at) <= now),
        "expired_uploads": count.where(col(Upload.expires_at) <= now),
        "messages_to_expire": count.where(
            col(Message.expires) <= now, col(Message.mailbox_id).is_not(None)
        ),
        "messages_to_purge": count.where(col(Message.purge_at) <= now),
    }
