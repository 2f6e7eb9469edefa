"""The key file, and the table of keys that stored secrets are encrypted with."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, select
from sqlmodel import col

from merganser.errors import CommandError
from merganser.server.private_files import create_private_file_if_missing, replace_private_file
from merganser.server.store.common_facts import (
    KEY_FILE_FACT,
    has_other_servers,
    key_file_copy_hint,
    load_fact,
    register_or_replace_fact,
)
from merganser.settings.settings import Settings
from models.auth.credentials import SecretBoxKey
from models.runtime.secret_box import KEY_SIZE, SecretBox, generate_key
from models.store.columns import insert_with_conflict
from models.store.database import Database

OTHERS_PERMISSIONS = 0o077  # of group and others


def key_file_path(settings: Settings) -> Path:
    """The path of the key file. It has a line `name key` per key, the newest last."""
    return settings.encryption_keys_file or settings.data / "vault"


async def load_or_create_registered_secret_box(settings: Settings, store: Database) -> SecretBox:
    """Load the keys as a secret box; create the key file if the database needs none yet.

    The caller holds the lock of `lock_facts_if_postgres`. Otherwise two servers of an empty store
    would create two key files. Raises CommandError if a key is missing that stored secrets are
    encrypted with, or if the file has a key that other running servers don't know.
    """
    path, stored_fingerprints = key_file_path(settings), await load_key_fingerprints(store)
    if not path.exists():
        if stored_fingerprints:
            raise CommandError(
                f"The key file {path} is missing, and the database has secrets that are "
                "encrypted with it: restore it from a "
                f"backup{await key_file_copy_hint(store)}."
            )
        create_private_file_if_missing(path, key_file_text(dict([generate_key()])))
    for name in missing_or_different_key_names(path, stored_fingerprints):
        raise CommandError(
            f"The key file {path} does not have the key {name} that the database "
            f"requires: restore the file{await key_file_copy_hint(store)}."
        )
    secret_box = SecretBox(read_encryption_keys_by_name(path))
    unregistered_names = [name for name in secret_box.keys if name not in stored_fingerprints]
    if stored_fingerprints and unregistered_names and await has_other_servers(settings, store):
        raise CommandError(
            f"The key file {path} has the key {unregistered_names[0]}, which the "
            "other servers of this database don't know: stop them "
            f"first{await key_file_copy_hint(store)}."
        )
    await insert_missing_encryption_key_rows(store, secret_box)
    fingerprint = secret_box.key_fingerprint(secret_box.newest_key_name)
    fact = await load_fact(store, KEY_FILE_FACT)
    if fact is None or fact.digest != fingerprint:
        await register_or_replace_fact(store, KEY_FILE_FACT, fingerprint, str(path.absolute()))
    return secret_box


async def load_key_fingerprints(store: Database) -> dict[str, str]:
    """Load the fingerprints of the keys that the database needs, by key name."""
    statement = select(col(SecretBoxKey.name), col(SecretBoxKey.proof))
    return {row.name: row.proof for row in await store.read(statement)}


def missing_or_different_key_names(
    path: Path, fingerprints_by_name: Mapping[str, str]
) -> list[str]:
    """The names of needed keys that are not in the file, or differ from their fingerprint.

    Raises CommandError as `read_encryption_keys_by_name`.
    """
    secret_box = SecretBox(read_encryption_keys_by_name(path))
    return [
        name
        for name, fingerprint in fingerprints_by_name.items()
        if name not in secret_box.keys or secret_box.key_fingerprint(name) != fingerprint
    ]


def read_encryption_keys_by_name(path: Path) -> dict[str, bytes]:
    """Read the keys of the file by name.

    Raises CommandError if the file can't be read, is invalid, or is readable by other users.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except OSError as problem:
        raise CommandError(f"Cannot read {path}: {problem.strerror}.") from problem
    if mode & OTHERS_PERMISSIONS:
        raise CommandError(f"Other users can read {path} ({mode & 511:o}): run chmod 600 {path}")
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        keys = {name: bytes.fromhex(key) for name, key in lines}
    except ValueError:
        keys = {}
    if not keys or any(len(key) != KEY_SIZE for key in keys.values()):
        raise CommandError(f"{path} is not a key file: restore the right file.")
    return keys


def write_key_file(path: Path, keys: Mapping[str, bytes]) -> None:
    """Replace the content of the key file. Raises CommandError if it can't be written."""
    try:
        replace_private_file(path, key_file_text(keys))
    except OSError as problem:
        raise CommandError(f"Cannot write {path}: {problem.strerror}.") from problem


def key_file_text(keys: Mapping[str, bytes]) -> str:
    """Return the content of a key file: one line with name and key in hex for each key."""
    return "".join(f"{name} {key.hex()}\n" for name, key in keys.items())


async def insert_missing_encryption_key_rows(store: Database, secret_box: SecretBox) -> None:
    """Insert the keys into the database, before a secret is encrypted with them."""
    registered_names = {row.name for row in await store.read(select(col(SecretBoxKey.name)))}
    rows = [
        {"name": name, "proof": secret_box.key_fingerprint(name), "created_at": datetime.now(UTC)}
        for name in secret_box.keys
        if name not in registered_names
    ]
    if rows:
        async with store.write_session() as session:
            connection = await session.connection()
            insert = insert_with_conflict(connection.dialect.name, SecretBoxKey).values(rows)
            # another server may start now
            await connection.execute(insert.on_conflict_do_nothing())


async def delete_registered_keys(store: Database, key_names: Sequence[str]) -> None:
    """Delete keys from the database that no secret is encrypted with any more."""
    async with store.write_session() as session:
        await session.exec(delete(SecretBoxKey).where(col(SecretBoxKey.name).in_(key_names)))


async def load_key_creation_times(store: Database) -> dict[str, datetime]:
    """Load the creation time of each key, by key name."""
    statement = select(col(SecretBoxKey.name), col(SecretBoxKey.created_at))
    return {row.name: row.created_at for row in await store.read(statement)}
