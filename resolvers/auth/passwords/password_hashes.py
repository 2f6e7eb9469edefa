"""Argon2id hashes of passwords, computed by resolvers/auth/passwords/hash_workers.py.

Hashes of other systems are checked here too (resolvers/auth/passwords/foreign_hashes.py), until
the first sign-in.
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

Check = Callable[[World, str | None, str], Awaitable[bool]]  # as `check` below

LONGEST = 256  # characters
LANES = 1  # of a hash: more would be threads beside the processes, for as much work


def checked(password: str, *, path: Sequence[str] = ("password",), least: int = 1) -> str:
    """The password, in the form we hash. Invalid where it cannot be one, or is too short."""
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
    """Whether it could be anybody's password."""
    half = any("\ud800" <= letter <= "\udfff" for letter in password)  # of a surrogate pair
    return 0 < len(password) <= LONGEST and "\0" not in password and not half


async def make(world: World, password: str) -> str:
    """The hash of a password, in PHC form, as `users.password` keeps it. Never inside a unit."""
    return await pool_of(world).run(True, hash_workers.make, _hasher(world), checked(password))


async def check(world: World, stored: str | None, password: str) -> bool:
    """Whether this is the password. Takes as long where there is none. Never inside a unit."""
    if not acceptable(password):
        return False
    written = _written(password)
    native, hasher = stored is None or foreign_hashes.is_native(stored), _hasher(world)
    return await pool_of(world).run(native, hash_workers.verify, hasher, stored, written, password)


def admitted(world: World) -> AbstractContextManager[None]:
    """A place for one who signs in. RateLimited where too many do, or a hash waits too long.

    To be had before anything is looked up for them: a flood costs no more than being told so.
    """
    return pool_of(world).admit()


async def close(world: World) -> None:
    """End the processes that hash."""
    await pool_of(world).processes.close()


def outdated(world: World, stored: str) -> bool:
    """Whether the hash is not ours, or costs less, or more, than what is set today."""
    return foreign_hashes.foreign(stored) or _hasher(world).check_needs_rehash(stored)


def _written(password: str) -> str:
    return unicodedata.normalize("NFC", password)  # as RFC 8265, section 4.2 has it: ü is ü


def _hasher(world: World) -> PasswordHasher:
    memory = world.options.argon2_memory
    return PasswordHasher(world.options.argon2_time, memory, LANES)


def pool_of(world: World) -> Pool:
    """A thread for single hashes, and a process for each core but one as far as memory allows.

    There is one process at least. What is left to all else is a core: a flood takes the others.
    """
    options = world.options
    fit = options.login_memory // (options.argon2_memory << 10) - 1
    return _pool(max(1, min(fit, (os.cpu_count() or 1) - 1)))


@cache
def _pool(processes: int) -> Pool:
    """One for the server, whatever it serves: it bounds memory and cores."""
    return Pool(processes)
