"""Passwords: Argon2id, in threads of their own and a few at a time.

Hashes of other systems are checked here too (resolvers/hashes.py), until the first sign-in.
"""

import asyncio
import base64
import os
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import cache
from threading import BoundedSemaphore, get_native_id
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from models.errors import Invalid, RateLimited
from models.world import World
from resolvers import hashes

LONGEST = 256  # characters
LANES = 1  # of a hash: more would be more threads than those of the pool, for as much work
WAITING = 32  # for each thread; more are sent away: they would wait for seconds
NICE = 19  # the rest of the process goes first: a flood of sign-ins must not starve it

Outcome = TypeVar("Outcome")


def _behind() -> None:
    """Let this thread, and those that Argon2 begins in it, run when the others have nothing."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, get_native_id(), NICE)  # on Linux: of the thread alone


class Pool:
    """So many threads, and the places for those who use them or wait."""

    def __init__(self, threads: int) -> None:
        self.size = threads + WAITING * threads
        self.threads = ThreadPoolExecutor(threads, "password", _behind)
        self.places = BoundedSemaphore(self.size)

    async def run(self, work: Callable[[], Outcome]) -> Outcome:
        """Do `work` in a thread. RateLimited where too many wait already."""
        if not self.places.acquire(blocking=False):
            raise RateLimited("too many are signing in", retry_after=timedelta(seconds=2))
        job = self.threads.submit(work)
        job.add_done_callback(lambda _: self.places.release())  # also of one given up in the queue
        return await asyncio.wrap_future(job)


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
    ready, written = _hasher(world), checked(password)
    return await pool_of(world).run(lambda: ready.hash(written))


async def imported(world: World, stored: str, *, path: Sequence[str] = ("password",)) -> str:
    """A hash of another system, once it is sure that we can check it. Never inside a unit."""
    return await pool_of(world).run(lambda: hashes.checked(stored, path=path))


async def check(world: World, stored: str | None, password: str) -> bool:
    """Whether this is the password. Takes as long where there is none. Never inside a unit."""
    ready, written = _hasher(world), _written(password)
    if not acceptable(password):
        return False

    def verify() -> bool:
        if stored is not None and hashes.foreign(stored):  # made of what was typed, as it was typed
            return any(hashes.verify(form, stored) for form in dict.fromkeys((written, password)))
        try:
            return ready.verify(stored or _nobodys(ready), written) and stored is not None
        except VerifyMismatchError:
            return False

    return await pool_of(world).run(verify)


def outdated(world: World, stored: str) -> bool:
    """Whether the hash is not ours, or costs less, or more, than what is set today."""
    return hashes.foreign(stored) or _hasher(world).check_needs_rehash(stored)


def _written(password: str) -> str:
    return unicodedata.normalize("NFC", password)  # as RFC 8265, section 4.2 has it: ü is ü


def _hasher(world: World) -> PasswordHasher:
    memory = world.options.argon2_memory
    return PasswordHasher(world.options.argon2_time, memory, LANES)


def _nobodys(ready: PasswordHasher) -> str:
    """A hash that no password has: what those without one are compared with."""
    salt, digest = (
        base64.b64encode(bytes(size)).decode().rstrip("=")
        for size in (ready.salt_len, ready.hash_len)
    )
    cost = f"m={ready.memory_cost},t={ready.time_cost},p={ready.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"


def pool_of(world: World) -> Pool:
    """As many threads as there are cores, and as memory is set aside for; one at least."""
    options = world.options
    fit = options.login_memory // (options.argon2_memory << 10)
    return _pool(max(1, min(fit, os.cpu_count() or 1)))


@cache
def _pool(threads: int) -> Pool:
    """One for the process, whatever it serves: it bounds memory and cores."""
    return Pool(threads)
