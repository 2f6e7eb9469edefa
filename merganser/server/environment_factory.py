"""The world as the settings describe it, opened for one command and closed behind it."""

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
    """The world, with its store ready: migrated here, or else Trouble where it is not."""
    if not migrate and not _there(settings):
        raise Trouble(UNREADY)  # and nothing is made that nobody asked for
    make_folder(settings)
    key = secret(settings)
    async with database(settings) as store:
        with reached(settings):
            if migrate:
                await upgrade(store)
                await store.refresh_statistics()
            elif await lacking(store):
                raise Trouble(UNREADY)
            large = blobs(settings)
            async with one_at_a_time(settings):
                sealing = await vault(settings, store)
                await compare_secret(settings, store, key)
                await _compare_blobs(settings, store, large)
        bells = wakeups(settings, key)
        world = World(
            store,
            large,
            secret=key,
            vault=sealing,
            options=settings.options(),
            wakeups=bells,
            fault=fault(settings.fault),
        )
        credential_cache.guard(world)
        try:
            with reached(settings):
                admin_settings.warn(await admin_settings.refresh(world))
                await restore_mark.load(world)
            yield world
        finally:
            await settle(world)  # uses of credentials are noted behind the requests
            await message_trace.settle(world)
            await bells.close()
            await large.close()
            await close_readers()
            await password_hashes.close(world)


async def _compare_blobs(settings: Settings, store: Database, objects: Store) -> None:
    hot = objects.hot if isinstance(objects, Tiers) else objects
    await compare_blobs(store, hot, BLOBS, settings.blobs)
    if isinstance(objects, Tiers) and settings.cold_blobs is not None:
        await compare_blobs(store, objects.cold, COLD_BLOBS, settings.cold_blobs)


@asynccontextmanager
async def database(settings: Settings) -> AsyncGenerator[Database]:
    """The store's engine, closed at the end."""
    with reached(settings):
        store = Database(settings.store)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def reached(settings: Settings) -> Generator[None]:
    """Say in one sentence that the store cannot be reached, and why."""
    try:
        yield
    except (DBAPIError, OSError, StoreUnavailable) as problem:
        cause = problem.__cause__ if isinstance(problem, StoreUnavailable) else None
        reason = _first(getattr(cause or problem, "orig", None) or cause or problem)
        where = url_of(settings).render_as_string(hide_password=True)
        raise Trouble(f"cannot use the store {where}: {reason}") from problem
    except AddressError as problem:
        raise Trouble(f"MERGANSER_STORE is wrong: {problem}", code=MISUSED) from problem
    except ModuleNotFoundError as problem:
        text = f"a PostgreSQL store needs {problem.name}: pip install 'merganser[postgres]'"
        raise Trouble(text) from problem


def url_of(settings: Settings) -> URL:
    """The store's address. Trouble where it names no place that lasts."""
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
    """The first line of what it says, or else its name."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _there(settings: Settings) -> bool:
    """Whether there may be a store: opening an SQLite file makes it."""
    url = url_of(settings)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()


def make_folder(settings: Settings) -> None:
    """The folder for all that is ours; also that of an SQLite store elsewhere."""
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
    """The key that signs what we hand out: set, or kept in a file that is made once."""
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
    """The store of large bytes, or both as one. Trouble where one cannot be opened."""
    hot = store_at(settings.blobs, "MERGANSER_BLOBS")
    if settings.cold_blobs is None:
        return hot
    return Tiers(hot, store_at(settings.cold_blobs, "MERGANSER_COLD_BLOBS"))


def store_at(url: str, setting: str) -> Store:
    """The store of large bytes that a setting names. Trouble where it cannot be opened."""
    try:
        return open_store(url)
    except (OSError, ValueError, BaseError) as problem:
        raise Trouble(f"{setting} cannot be used: {_first(problem)}") from problem


def fault(setting: str | None) -> Callable[[str], None]:
    """What ends the process at the nth passing of a place: crash tests ask for it."""
    if setting is None:
        return lambda _place: None
    where, _, nth = setting.partition(":")
    passed = Counter[str]()

    def pass_by(place: str) -> None:
        passed[place] += 1
        if place == where and passed[place] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)

    return pass_by


def owner(world: World) -> Context:
    """What an operation is handed that whoever owns the machine asks for."""
    return Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))


def on_behalf(world: World, user_id: int) -> Context:
    """What an operation is handed that is done for a user."""
    return Context(world, Viewer(user_id, Role.USER, frozenset({Scope.MASTER})))
