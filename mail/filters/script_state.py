"""What scripts remember of mail that came before: whom they have answered, and what has come."""

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
    """Whether this is remembered."""
    return bool(among(turn, user_id, kind, [key]))


def among(
    turn: Turn, user_id: int, kind: MemoryKind, keys: Collection[str], but: str = ""
) -> frozenset[str]:
    """Which of these are remembered, without what the delivery of the receipt `but` has left."""
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
    """Remember this until then; it was left by the delivery of this receipt."""
    kind, key = what
    row = {"user_id": user_id, "kind": kind, "key": key, "receipt": receipt, "until": until}
    turn.send([(_remembered(turn.connection.dialect.name), row)])
