"""Rotation of the keys that stored secrets are encrypted with."""

from dataclasses import dataclass, field, replace
from datetime import datetime

from merganser.server import key_file
from merganser.server.store.store_use import used_alone
from merganser.settings.settings import Settings
from models.runtime.environment import World
from models.runtime.secret_box import Vault, new_key
from resolvers.admin import secret_rotation
from resolvers.admin.secret_rotation import Progress


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the key file, without its bytes."""

    name: str
    made_at: datetime | None
    sealed: int  # stored secrets that are encrypted with it
    newest: bool


@dataclass(slots=True)
class Rotated:
    """The result of a key rotation."""

    name: str
    sealed: int = 0
    removed: list[str] = field(default_factory=list)  # names of keys without secrets
    closed: list[str] = field(default_factory=list)  # secrets that no key decrypts


async def listed(environment: World) -> list[Key]:
    """Load the keys with their number of secrets, the newest last."""
    at = await key_file.made_at(environment.database)
    many = await secret_rotation.counted(environment, environment.vault.keys)
    newest = environment.vault.newest
    return [Key(name, at.get(name), many[name], name == newest) for name in environment.vault.keys]


async def rotate(
    environment: World, settings: Settings, progress: Progress, *, keep_old: bool = False
) -> Rotated:
    """Create a key, encrypt all stored secrets with it, and remove keys without secrets.

    Raises CommandError if a server runs, since a server knows only the keys it started with. If
    the process is killed, all secrets stay readable and the next run completes the rotation: a
    key is added to the file before its first use, and removed after its last one.
    """
    async with used_alone(environment, settings, "make other keys"):
        path = key_file.path_of(settings)
        name, key = new_key()
        keys = {**key_file.read(path), name: key}
        key_file.write(path, keys)
        environment.fault("rotation")
        environment = replace(environment, vault=Vault(keys))
        await key_file.register(environment.database, environment.vault)
        environment.fault("rotation")
        came = await secret_rotation.reseal(environment, progress)
        done = Rotated(name, came.done, closed=came.closed)
        if not keep_old:
            many = await secret_rotation.counted(environment, keys)
            done.removed = [old for old in keys if not many[old] and old != name]
            await key_file.forget(environment.database, done.removed)
            environment.fault("rotation")
            key_file.write(path, {old: keys[old] for old in keys if old not in done.removed})
    return done
