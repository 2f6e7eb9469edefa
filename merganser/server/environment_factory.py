"""Open the environment of a process as its settings describe it, and close it at the end."""

import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from obstore.exceptions import BaseError
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from mail.maintenance import restore_mark
from mail.mime import close_readers
from mail.storage import message_trace
from mail.storage.blobs.object_stores import open_store
from mail.storage.blobs.tiered_store import Tiers
from merganser.errors import MISUSED, Trouble
from merganser.server.event_bus import wakeups
from merganser.server.key_file import vault
from merganser.server.private_files import once
from merganser.server.store.common_facts import (
    BLOBS,
    COLD_BLOBS,
    compare_blobs,
    compare_secret,
    one_at_a_time,
)
from merganser.server.store.migration import lacking, upgrade
from merganser.settings.settings import Settings
from models.runtime.environment import World
from models.store.database import Database
from models.store.object_store import Store
from models.store.outages import StoreUnavailable
from models.store.postgres.address import AddressError, is_postgres, parse_postgres_address
from models.users.roles import Role, Scope
from resolvers.admin import settings as admin_settings
from resolvers.auth import credential_cache
from resolvers.auth.authentication import settle
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context, Viewer

UNREADY = "the store is not ready: run `merganser init` first"


@asynccontextmanager
async def opened(settings: Settings, *, migrate: bool = False) -> AsyncGenerator[World]:
    """Open the environment of this process, and close it at the end.

    With `migrate` the data folders are created and the database is migrated; otherwise raises
    CommandError if the database is not at the last migration. Also raises CommandError if the
    database, the object store, the key file or the secret can't be used.
    """
    if not migrate and not _there(settings):
        raise Trouble(UNREADY)  # before any file is created
    make_folder(settings)
    key = secret(settings)
    async with database(settings) as store:
        with reached(settings):
            if migrate:
                await upgrade(store)
                await store.refresh_statistics()
            elif await lacking(store):
                raise Trouble(UNREADY)
            object_store = blobs(settings)
            async with one_at_a_time(settings):
                secret_box = await vault(settings, store)
                await compare_secret(settings, store, key)
                await _compare_blobs(settings, store, object_store)
        process_wakeups = wakeups(settings, key)
        environment = World(
            store,
            object_store,
            secret=key,
            vault=secret_box,
            options=settings.options(),
            wakeups=process_wakeups,
            fault=fault(settings.fault),
        )
        credential_cache.guard(environment)
        try:
            with reached(settings):
                admin_settings.warn(await admin_settings.refresh(environment))
                await restore_mark.load(environment)
            yield environment
        finally:
            await settle(environment)  # uses of credentials are stored in the background
            await message_trace.settle(environment)
            await process_wakeups.close()
            await object_store.close()
            await close_readers()
            await password_hashes.close(environment)


async def _compare_blobs(settings: Settings, store: Database, objects: Store) -> None:
    """Compare the marks of the object stores with the database. Raises CommandError."""
    hot = objects.hot if isinstance(objects, Tiers) else objects
    await compare_blobs(store, hot, BLOBS, settings.blobs)
    if isinstance(objects, Tiers) and settings.cold_blobs is not None:
        await compare_blobs(store, objects.cold, COLD_BLOBS, settings.cold_blobs)


@asynccontextmanager
async def database(settings: Settings) -> AsyncGenerator[Database]:
    """Open the database, and close it at the end. Raises CommandError if the URL is wrong."""
    with reached(settings):
        store = Database(settings.store)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def reached(settings: Settings) -> Generator[None]:
    """Raise errors of the database connection as CommandError with the URL and the reason."""
    try:
        yield
    except (DBAPIError, OSError, StoreUnavailable) as problem:
        cause = problem.__cause__ if isinstance(problem, StoreUnavailable) else None
        reason = _first(getattr(cause or problem, "orig", None) or cause or problem)
        url = url_of(settings).render_as_string(hide_password=True)
        raise Trouble(f"cannot use the store {url}: {reason}") from problem
    except AddressError as problem:
        raise Trouble(f"MERGANSER_STORE is wrong: {problem}", code=MISUSED) from problem
    except ModuleNotFoundError as problem:
        text = f"a PostgreSQL store needs {problem.name}: pip install 'merganser[postgres]'"
        raise Trouble(text) from problem


def url_of(settings: Settings) -> URL:
    """The database URL of the settings, without a password.

    Raises CommandError if it is no URL, or names an SQLite database in memory.
    """
    try:
        if is_postgres(settings.store):
            address = parse_postgres_address(settings.store)
            hosts = ",".join(f"{host.address or host.name}" for host in address.hosts)
            user, name = address.get("user") or None, address.get("dbname") or None
            return URL.create("postgresql", username=user, host=hosts, database=name)
        url = make_url(settings.store)
    except AddressError as problem:
        raise Trouble(f"MERGANSER_STORE is wrong: {problem}", code=MISUSED) from problem
    except (ArgumentError, ValueError) as problem:
        raise Trouble("MERGANSER_STORE is wrong: it cannot be read as a URL") from problem
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise Trouble("MERGANSER_STORE is wrong: name a file, or all is lost at the end")
    return url


def _first(problem: BaseException) -> str:
    """The first line of the error's message, or the name of its class."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _there(settings: Settings) -> bool:
    """True if the SQLite file exists, and for PostgreSQL. Opening an SQLite file creates it."""
    url = url_of(settings)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()


def make_folder(settings: Settings) -> None:
    """Create the data folder and the folder of an SQLite file.

    Raises CommandError if one can't be created or is not writable.
    """
    url = url_of(settings)
    folders = [settings.data]
    if url.get_backend_name() == "sqlite" and url.database:
        folders.append(Path(url.database).parent)
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise Trouble(f"cannot make the folder {folder}: {problem.strerror}") from problem
        if not os.access(folder, os.W_OK | os.X_OK):
            raise Trouble(f"may not write into the folder {folder}: give it to this user")


def secret(settings: Settings) -> bytes:
    """The secret that tokens and cursors are signed with.

    It is the setting, or else the content of the file `secret`, which is created at first.
    Raises CommandError if the file can't be read or is invalid.
    """
    if settings.secret:
        return settings.secret.get_secret_value().encode()
    path = settings.data / "secret"
    try:
        if not path.exists():
            once(path, secrets.token_hex(32))
        return bytes.fromhex(path.read_text())
    except OSError as problem:
        raise Trouble(f"cannot read {path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise Trouble(f"{path} holds no secret of ours: remove it, or set it right") from problem


def blobs(settings: Settings) -> Store:
    """Open the object store, with its cold tier if one is set.

    Raises CommandError if one of them can't be opened.
    """
    hot = store_at(settings.blobs, "MERGANSER_BLOBS")
    if settings.cold_blobs is None:
        return hot
    return Tiers(hot, store_at(settings.cold_blobs, "MERGANSER_COLD_BLOBS"))


def store_at(url: str, setting: str) -> Store:
    """Open the object store at a URL. Raises CommandError that names the setting."""
    try:
        return open_store(url)
    except (OSError, ValueError, BaseError) as problem:
        raise Trouble(f"{setting} cannot be used: {_first(problem)}") from problem


def fault(setting: str | None) -> Callable[[str], None]:
    """The function that is called at each fault point.

    With a setting "name:n" it kills the process at the nth pass of that fault point, for crash
    tests. Otherwise it does nothing.
    """
    if setting is None:
        return lambda _place: None
    fault_name, _, nth = setting.partition(":")
    passed = Counter[str]()

    def pass_by(place: str) -> None:
        passed[place] += 1
        if place == fault_name and passed[place] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)

    return pass_by


def owner(environment: World) -> Context:
    """The context of an operator on the command line: role ROOT with all scopes."""
    return Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))


def on_behalf(environment: World, user_id: int) -> Context:
    """The context of a command that acts for a user: role USER with all scopes."""
    return Context(environment, Viewer(user_id, Role.USER, frozenset({Scope.MASTER})))
