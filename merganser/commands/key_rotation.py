"""Other keys for what is sealed in the store."""

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
    """A key, as far as one may know of it."""

    name: str
    made_at: datetime | None
    sealed: int  # texts in the store
    newest: bool


@dataclass(slots=True)
class Rotated:
    """What came of it."""

    name: str  # of the new key
    sealed: int = 0
    removed: list[str] = field(default_factory=list)  # keys that nothing needs any more
    closed: list[str] = field(default_factory=list)  # what no key opens


async def listed(world: World) -> list[Key]:
    """The keys, the newest last."""
    at = await key_file.made_at(world.database)
    many = await secret_rotation.counted(world, world.vault.keys)
    newest = world.vault.newest
    return [Key(name, at.get(name), many[name], name == newest) for name in world.vault.keys]


async def rotate(
    world: World, settings: Settings, progress: Progress, *, keep_old: bool = False
) -> Rotated:
    """Make a key, seal everything with it, and remove the keys that nothing is sealed with.

    Trouble while the store is served: a server knows the keys it started with. Killed at any
    point, all can be read as before, and the next run ends what this one has begun: a key is in
    the file before anything is sealed with it, and leaves it after the store needs it no longer.
    """
    async with used_alone(world, settings, "make other keys"):
        path = key_file.path_of(settings)
        name, key = new_key()
        keys = {**key_file.read(path), name: key}
        key_file.write(path, keys)
        world.fault("rotation")
        world = replace(world, vault=Vault(keys))
        await key_file.register(world.database, world.vault)
        world.fault("rotation")
        came = await secret_rotation.reseal(world, progress)
        done = Rotated(name, came.done, closed=came.closed)
        if not keep_old:
            many = await secret_rotation.counted(world, keys)
            done.removed = [old for old in keys if not many[old] and old != name]
            await key_file.forget(world.database, done.removed)
            world.fault("rotation")
            key_file.write(path, {old: keys[old] for old in keys if old not in done.removed})
    return done
