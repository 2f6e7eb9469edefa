"""Damage to stored objects."""

import os
from collections.abc import Callable

from models.store.object_store import ObjectStoreProtocol

BlobDamage = Callable[[bytes], bytes | None]
BLOB_DAMAGES: dict[str, BlobDamage] = {
    "deleted": lambda _: None,
    "emptied": lambda _: b"",
    "truncated": lambda data: data[:-1],
    "extended": lambda data: data + b"?",
    "other": lambda data: os.urandom(len(data) // 2),
}


async def damage_blob(store: ObjectStoreProtocol, object_name: str, damage: BlobDamage) -> None:
    """Replace the content of a stored object by what the damage leaves of it."""
    damaged = damage(await store.get(object_name))
    await store.delete([object_name])
    if damaged is not None:
        await store.put(object_name, damaged)
