"""The memory of scripts: senders that got a reply, and IDs of `duplicate` tests."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.filters.sieve_scripts import MemoryKind, SieveMemory
from models.runtime.environment import Turn
from models.store.columns import insert_or
from models.store.prepared_statements import prepared


def known(turn: Turn, user_id: int, kind: MemoryKind, key: str) -> bool:
    """Return True if the key is remembered."""
    return bool(among(turn, user_id, kind, [key]))


def among(
    turn: Turn, user_id: int, kind: MemoryKind, keys: Collection[str], but: str = ""
) -> frozenset[str]:
    """Return the remembered keys, without those that the delivery `except_receipt` has stored."""
    asked = select(col(SieveMemory.key)).where(
        col(SieveMemory.user_id) == user_id,
        col(SieveMemory.kind) == kind,
        col(SieveMemory.key).in_(keys),
        col(SieveMemory.until) > turn.world.now(),
        col(SieveMemory.receipt) != (but or "-"),
    )
    return frozenset(turn.connection.execute(asked).scalars())


@prepared
def _remembered(dialect: str) -> Any:
    new = insert_or(dialect, SieveMemory)
    values = {"until": new.excluded.until, "receipt": new.excluded.receipt}
    return new.on_conflict_do_update(
        index_elements=["user_id", "kind", "key"], set_=values
    ).inline()


def noted(
    turn: Turn, user_id: int, what: tuple[MemoryKind, str], until: datetime, receipt: str = ""
) -> None:
    """Remember a key until it expires, with the receipt of the delivery that stores it."""
    kind, key = what
    row = {"user_id": user_id, "kind": kind, "key": key, "receipt": receipt, "until": until}
    turn.send([(_remembered(turn.connection.dialect.name), row)])
