"""The key file, and the table of keys that stored secrets are encrypted with."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, select
from sqlmodel import col

from merganser.errors import Trouble
from merganser.server.private_files import once, replaced
from merganser.server.store.common_facts import (
    KEY_FILE,
    is_served_by_others,
    key_file_source,
    register_fact,
    registered,
)
from merganser.settings.settings import Settings
from models.auth.credentials import VaultKey
from models.runtime.secret_box import SIZE, Vault, new_key
from models.store.columns import insert_or
from models.store.database import Database

OTHERS = 0o077  # of group and others


def path_of(settings: Settings) -> Path:
    """The path of the key file. It has a line `name key` per key, the newest last."""
    return settings.vault or settings.data / "vault"


async def vault(settings: Settings, store: Database) -> Vault:
    """Load the keys as a secret box; create the key file if the database needs none yet.

    The caller holds `common_facts.one_at_a_time`, or two servers of an empty store would create
    two key files. Raises CommandError if a key is missing that stored secrets are encrypted with,
    or if the file has a key that other running servers don't know.
    """
    path, needed = path_of(settings), await proofs(store)
    if not path.exists():
        if needed:
            raise Trouble(
                f"the key file {path} is missing, and the store holds secrets sealed with it:"
                f" bring it back from where you keep it{await key_file_source(store)}"
            )
        once(path, _text(dict([new_key()])))
    for name in lacking(path, needed):
        raise Trouble(
            f"the key file {path} has not the key {name} that the store needs: bring the file"
            f" back{await key_file_source(store)}"
        )
    made = Vault(read(path))
    unknown = [name for name in made.keys if name not in needed]
    if needed and unknown and await is_served_by_others(settings, store):
        raise Trouble(
            f"the key file {path} has the key {unknown[0]}, which the other servers of this store"
            f" don't know: stop them first{await key_file_source(store)}"
        )
    await register(store, made)
    fingerprint = made.proof(made.newest)
    known = await registered(store, KEY_FILE)
    if known is None or known.digest != fingerprint:
        await register_fact(store, KEY_FILE, fingerprint, str(path.absolute()))
    return made


async def proofs(store: Database) -> dict[str, str]:
    """Load the fingerprints of the keys that the database needs, by key name."""
    statement = select(col(VaultKey.name), col(VaultKey.proof))
    return {row.name: row.proof for row in await store.read(statement)}


def lacking(path: Path, needed: Mapping[str, str]) -> list[str]:
    """The names of needed keys that are not in the file, or differ from their fingerprint.

    Raises CommandError as `read_keys`.
    """
    made = Vault(read(path))
    return [
        name
        for name, fingerprint in needed.items()
        if name not in made.keys or made.proof(name) != fingerprint
    ]


def read(path: Path) -> dict[str, bytes]:
    """Read the keys of the file by name.

    Raises CommandError if the file can't be read, is invalid, or is readable by other users.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except OSError as problem:
        raise Trouble(f"cannot read {path}: {problem.strerror}") from problem
    if mode & OTHERS:
        raise Trouble(f"others may read {path} ({mode & 0o777:o}): chmod 600 {path}")
    try:
        lines = [line.split() for line in text.splitlines() if line.strip()]
        keys = {name: bytes.fromhex(key) for name, key in lines}
    except ValueError:
        keys = {}
    if not keys or any(len(key) != SIZE for key in keys.values()):
        raise Trouble(f"{path} holds no keys of ours: bring back the right file")
    return keys


def write(path: Path, keys: Mapping[str, bytes]) -> None:
    """Replace the content of the key file. Raises CommandError if it can't be written."""
    try:
        replaced(path, _text(keys))
    except OSError as problem:
        raise Trouble(f"cannot write {path}: {problem.strerror}") from problem


def _text(keys: Mapping[str, bytes]) -> str:
    return "".join(f"{name} {key.hex()}\n" for name, key in keys.items())


async def register(store: Database, made: Vault) -> None:
    """Insert the keys into the database, before a secret is encrypted with them."""
    known = {row.name for row in await store.read(select(col(VaultKey.name)))}
    rows = [
        {"name": name, "proof": made.proof(name), "created_at": datetime.now(UTC)}
        for name in made.keys
        if name not in known
    ]
    if rows:
        async with store.write() as session:
            connection = await session.connection()
            new = insert_or(connection.dialect.name, VaultKey).values(rows)
            await connection.execute(new.on_conflict_do_nothing())  # another server may start now


async def forget(store: Database, names: Sequence[str]) -> None:
    """Delete keys from the database that no secret is encrypted with any more."""
    async with store.write() as session:
        await session.exec(delete(VaultKey).where(col(VaultKey.name).in_(names)))


async def made_at(store: Database) -> dict[str, datetime]:
    """Load the creation time of each key, by key name."""
    statement = select(col(VaultKey.name), col(VaultKey.created_at))
    return {row.name: row.created_at for row in await store.read(statement)}
