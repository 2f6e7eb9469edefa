"""The memory of scripts: senders that got a reply, and IDs of `duplicate` tests."""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import UpdateBase, select
from sqlmodel import col

from models.filters.sieve_scripts import SieveMemory, SieveMemoryKind
from models.runtime.environment import DatabaseTransaction
from models.store.columns import insert_with_conflict
from models.store.prepared_statements import prepare_cached


def is_remembered(
    transaction: DatabaseTransaction, user_id: int, memory_kind: SieveMemoryKind, memory_key: str
) -> bool:
    """Return True if the key is remembered."""
    return bool(load_remembered_sieve_keys(transaction, user_id, memory_kind, [memory_key]))


def load_remembered_sieve_keys(
    transaction: DatabaseTransaction,
    user_id: int,
    memory_kind: SieveMemoryKind,
    memory_keys: Collection[str],
    except_receipt: str = "",
) -> frozenset[str]:
    """Return the remembered keys, without those that the delivery `except_receipt` has stored."""
    statement = select(col(SieveMemory.key)).where(
        col(SieveMemory.user_id) == user_id,
        col(SieveMemory.kind) == memory_kind,
        col(SieveMemory.key).in_(memory_keys),
        col(SieveMemory.until) > transaction.environment.now(),
        col(SieveMemory.receipt) != (except_receipt or "-"),
    )
    return frozenset(transaction.connection.execute(statement).scalars())


@prepare_cached
def _upsert_memory(dialect: str) -> UpdateBase:
    new = insert_with_conflict(dialect, SieveMemory)
    values = {"until": new.excluded.until, "receipt": new.excluded.receipt}
    return new.on_conflict_do_update(
        index_elements=["user_id", "kind", "key"], set_=values
    ).inline()


def upsert_remembered_sieve_key(
    transaction: DatabaseTransaction,
    user_id: int,
    kind_and_key: tuple[SieveMemoryKind, str],
    expires_at: datetime,
    receipt_digest: str = "",
) -> None:
    """Remember a key until it expires, with the receipt of the delivery that stores it."""
    kind, key = kind_and_key
    row = {
        "user_id": user_id,
        "kind": kind,
        "key": key,
        "receipt": receipt_digest,
        "until": expires_at,
    }
    transaction.execute_statements([(_upsert_memory(transaction.connection.dialect.name), row)])
