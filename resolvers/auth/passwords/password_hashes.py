"""Argon2id hashes of passwords, computed by the workers of hash_workers.py.

Imported hashes (foreign_hashes.py) are checked here too, until the first sign-in replaces them.
"""

import os
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache

from argon2 import PasswordHasher

from models.errors import Invalid
from models.runtime.environment import World
from resolvers.auth.passwords import foreign_hashes, hash_workers
from resolvers.auth.passwords.hash_workers import Pool

Check = Callable[[World, str | None, str], Awaitable[bool]]  # as `check_password` below

LONGEST = 256  # characters
LANES = 1  # more lanes would start threads beside the processes, for the same work


def checked(password: str, *, path: Sequence[str] = ("password",), least: int = 1) -> str:
    """Return the password in normalized form. Raises Invalid if it is malformed or too short."""
    if not password:
        raise Invalid("a password cannot be empty", constraint="min", path=path)
    if len(password) > LONGEST:
        raise Invalid(f"at most {LONGEST} characters", constraint="max", path=path)
    if not acceptable(password):
        raise Invalid("no NUL, and whole characters only", constraint="pattern", path=path)
    if len(written := _written(password)) < least:
        raise Invalid(f"at least {least} characters", constraint="min", path=path)
    return written


def acceptable(password: str) -> bool:
    """True if the text can be a password: 1 to 256 characters, no NUL, no lone surrogate."""
    half = any("\ud800" <= letter <= "\udfff" for letter in password)
    return 0 < len(password) <= LONGEST and "\0" not in password and not half


async def make(world: World, password: str) -> str:
    """Return the hash of a password in PHC form. Must not be called inside a transaction.

    Raises Invalid if it can't be a password, RateLimited if the workers are busy.
    """
    return await pool_of(world).run(True, hash_workers.make, _hasher(world), checked(password))


async def check(world: World, stored: str | None, password: str) -> bool:
    """True if this is the password of the stored hash. Takes as long if there is no stored hash.

    Raises RateLimited if the workers are busy. Must not be called inside a transaction.
    """
    if not acceptable(password):
        return False
    written = _written(password)
    native, hasher = stored is None or foreign_hashes.is_native(stored), _hasher(world)
    return await pool_of(world).run(native, hash_workers.verify, hasher, stored, written, password)


def admitted(world: World) -> AbstractContextManager[None]:
    """Take a place for a sign-in.

    Raises RateLimited if too many sign in or a hash would wait too long. Take it before the user is
    looked up: so a flood costs only its refusals.
    """
    return pool_of(world).admit()


async def close(world: World) -> None:
    """End the hash processes."""
    await pool_of(world).processes.close()


def outdated(world: World, stored: str) -> bool:
    """True if the hash is imported or was made with other costs than the settings have now."""
    return foreign_hashes.foreign(stored) or _hasher(world).check_needs_rehash(stored)


def _written(password: str) -> str:
    return unicodedata.normalize("NFC", password)  # RFC 8265, section 4.2


def _hasher(world: World) -> PasswordHasher:
    memory = world.options.argon2_memory
    return PasswordHasher(world.options.argon2_time, memory, LANES)


def pool_of(world: World) -> Pool:
    """Return the workers: a thread, and a process for each core but one as far as memory allows.

    There is at least one process. One core is left for other work during a flood.
    """
    options = world.options
    fit = options.login_memory // (options.argon2_memory << 10) - 1
    return _pool(max(1, min(fit, (os.cpu_count() or 1) - 1)))


@cache
def _pool(processes: int) -> Pool:
    """Create the pool once per server process, since it bounds memory and cores."""
    return Pool(processes)
