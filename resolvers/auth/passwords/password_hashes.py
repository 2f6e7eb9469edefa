"""Argon2id hashes of passwords, computed by the workers of hash_workers.py.

Imported hashes (foreign_hashes.py) are checked here too, until the first sign-in replaces them.
"""

import asyncio
import os
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TypeVar

from argon2 import PasswordHasher

from models.errors import InvalidInput, RateLimited
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint
from resolvers.auth.passwords import foreign_hashes, hash_workers
from resolvers.auth.passwords.hash_workers import HashWorkerPool

Result = TypeVar("Result")
# as `check_password` below
PasswordCheck = Callable[[Environment, str | None, str], Awaitable[bool]]

MAX_LENGTH = 256  # characters
ARGON2_LANES = 1  # more lanes would start threads beside the processes, for the same work


def validate_password(
    password: str, *, path: Sequence[str] = ("password",), min_length: int = 1
) -> str:
    """Return the password in normalized form.

    Raises InvalidInput if it is malformed or too short.
    """
    if not password:
        raise InvalidInput(
            "A password must not be empty.", constraint=ValidationConstraint.MIN, path=path
        )
    if len(password) > MAX_LENGTH:
        raise InvalidInput(
            f"The password has at most {MAX_LENGTH} characters.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    if not is_possible_password(password):
        raise InvalidInput(
            "The password must not contain NUL or unpaired surrogates.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    if len(normalized := _normalize(password)) < min_length:
        raise InvalidInput(
            f"The password must have at least {min_length} characters.",
            constraint=ValidationConstraint.MIN,
            path=path,
        )
    return normalized


def is_possible_password(password: str) -> bool:
    """True if the text can be a password: 1 to 256 characters, no NUL, no lone surrogate."""
    has_lone_surrogate = any("\ud800" <= character <= "\udfff" for character in password)
    return 0 < len(password) <= MAX_LENGTH and "\0" not in password and not has_lone_surrogate


async def hash_password(environment: Environment, password: str) -> str:
    """Return the hash of a password in PHC form. Must not be called inside a transaction.

    Raises InvalidInput if it can't be a password, RateLimited if the workers are busy.
    """
    return await worker_pool(environment).run_job(
        True, hash_workers.hash_password, _hasher(environment), validate_password(password)
    )


async def check_password(
    environment: Environment, password_hash: str | None, password: str
) -> bool:
    """True if this is the password of the stored hash. Takes as long if there is no stored hash.

    Raises RateLimited if the workers are busy. Must not be called inside a transaction.
    """
    if not is_possible_password(password):
        return False
    normalized = _normalize(password)
    releases_gil = password_hash is None or foreign_hashes.releases_gil(password_hash)
    hasher = _hasher(environment)
    return await worker_pool(environment).run_job(
        releases_gil, hash_workers.is_password_of_hash, hasher, password_hash, normalized, password
    )


async def retry_while_hash_workers_are_busy(function: Callable[[], Awaitable[Result]]) -> Result:
    """Run a function that hashes passwords; repeat it while sign-ins keep the workers busy.

    For commands and tasks, which no client waits for. The function must not have changed anything
    when it raises RateLimited.
    """
    while True:
        try:
            return await function()
        except RateLimited as busy:
            await asyncio.sleep(busy.retry_after.total_seconds())


def sign_in_slot(environment: Environment) -> AbstractContextManager[None]:
    """Take a place for a sign-in.

    Raises RateLimited if too many sign in or a hash would wait too long. Take it before the user is
    looked up: so a flood costs only its refusals.
    """
    return worker_pool(environment).sign_in_slot()


async def close_workers(environment: Environment) -> None:
    """End the hash processes."""
    await worker_pool(environment).processes.close()


def is_outdated(environment: Environment, password_hash: str) -> bool:
    """True if the hash is imported or was made with other costs than the settings have now."""
    return foreign_hashes.is_foreign_hash(password_hash) or _hasher(environment).check_needs_rehash(
        password_hash
    )


def _normalize(password: str) -> str:
    return unicodedata.normalize("NFC", password)  # RFC 8265, section 4.2


def _hasher(environment: Environment) -> PasswordHasher:
    memory = environment.options.argon2_memory_cost
    return PasswordHasher(environment.options.argon2_time_cost, memory, ARGON2_LANES)


def worker_pool(environment: Environment) -> HashWorkerPool:
    """Return the workers: a thread, and a process for each core but one as far as memory allows.

    There is at least one process. One core is left for other work during a flood.
    """
    options = environment.options
    processes_in_memory = options.password_hashing_memory // (options.argon2_memory_cost << 10) - 1
    return _create_pool(max(1, min(processes_in_memory, (os.cpu_count() or 1) - 1)))


@cache
def _create_pool(processes: int) -> HashWorkerPool:
    """Create the pool once per server process, since it bounds memory and cores."""
    return HashWorkerPool(processes)
