"""The work of hashing, in processes of their own: threads would share the interpreter's lock.

What runs in them is light: it knows Argon2 and the hashes of other systems, no store.
"""

import asyncio
import base64
from collections.abc import Callable, Generator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from models.apart import Apart
from models.errors import RateLimited
from resolvers import hashes

WAITING = 16  # for each process; more are sent away: they would wait for seconds
NICE = 5  # a third of the weight: a flood must not starve the rest, nor a busy machine sign-ins

Given = ParamSpec("Given")
Outcome = TypeVar("Outcome")


class Places:
    """So many at once, and nobody waits for a place."""

    def __init__(self, most: int) -> None:
        self.most = self.free = most

    @contextmanager
    def one(self) -> Generator[None]:
        """Have a place for the block. RateLimited where all are taken."""
        if self.free <= 0:
            raise RateLimited("too many are signing in", retry_after=timedelta(seconds=2))
        self.free -= 1
        try:
            yield
        finally:
            self.free += 1


class Pool:
    """So many processes, and the places for those who use them or wait."""

    def __init__(self, processes: int) -> None:
        size = processes + WAITING * processes
        self.processes = Apart(processes, nice=NICE)
        self.waiting = Places(size)
        self.signing_in = Places(size)  # told from the others before anything is looked up

    async def run(
        self, work: Callable[Given, Outcome], *args: Given.args, **more: Given.kwargs
    ) -> Outcome:
        """Do `work` in a process. RateLimited where too many wait already."""
        with self.waiting.one():
            try:
                return await asyncio.wrap_future(self.processes.submit(work, *args, **more))
            except BrokenProcessPool:  # a process was ended from outside; the next ones are new
                return await asyncio.wrap_future(self.processes.submit(work, *args, **more))


def make(ready: PasswordHasher, password: str) -> str:
    """The hash of a password, in PHC form."""
    return ready.hash(password)


def verify(ready: PasswordHasher, stored: str | None, written: str, typed: str) -> bool:
    """Whether this is the password, which hashes of others were made of as it was typed.

    Takes as long where there is none.
    """
    if stored is not None and hashes.foreign(stored):
        return any(hashes.verify(form, stored) for form in dict.fromkeys((written, typed)))
    try:
        return ready.verify(stored or _nobodys(ready), written) and stored is not None
    except VerifyMismatchError:
        return False


def _nobodys(ready: PasswordHasher) -> str:
    """A hash that no password has: what those without one are compared with."""
    salt, digest = (
        base64.b64encode(bytes(size)).decode().rstrip("=")
        for size in (ready.salt_len, ready.hash_len)
    )
    cost = f"m={ready.memory_cost},t={ready.time_cost},p={ready.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${digest}"
