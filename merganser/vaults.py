"""The file of keys that secrets in the store are sealed with."""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from merganser.files import once
from merganser.settings import Settings
from merganser.trouble import Trouble
from models.auth import VaultKey
from models.database import Database
from models.vault import SIZE, Vault, new_key

OTHERS = 0o077  # rights of anybody else


def path_of(settings: Settings) -> Path:
    """Where the keys lie: a line each, `name key`, the newest last."""
    return settings.vault or settings.data / "vault"


async def vault(settings: Settings, store: Database) -> Vault:
    """The keys, made at first. Trouble where one is missing that the store was sealed with."""
    path = path_of(settings)
    proofs = {
        row.name: row.proof
        for row in await store.read(select(col(VaultKey.name), col(VaultKey.proof)))
    }
    if not path.exists():
        if proofs:
            raise Trouble(
                f"the key file {path} is missing, and the store holds secrets sealed with it:"
                " bring it back from where you keep it"
            )
        name, key = new_key()
        once(path, f"{name} {key.hex()}\n")
    made = Vault(read(path))
    for name, proof in proofs.items():
        if name not in made.keys or made.proof(name) != proof:
            raise Trouble(f"the key file {path} has not the key {name} that the store needs")
    await _register(store, made, proofs.keys() ^ made.keys.keys())
    return made


def read(path: Path) -> dict[str, bytes]:
    """The keys of the file. Trouble where it cannot be read, or others may read it."""
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


async def _register(store: Database, made: Vault, names: set[str]) -> None:
    if names:
        async with store.write() as session:
            session.add_all(
                VaultKey(name=name, proof=made.proof(name), created_at=datetime.now(UTC))
                for name in sorted(names)
            )
