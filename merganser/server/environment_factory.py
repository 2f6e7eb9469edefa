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
from mail.storage.blob_cache.blob_cache import BlobCache
from mail.storage.blob_cache.cache_folder import (
    BlobCacheFolder,
    ForeignFolder,
    store_id_from_url,
)
from mail.storage.blob_cache.cached_store import CachedStore, blob_cache_of_store
from mail.storage.blobs.object_stores import BucketStore, FolderStore, open_store
from mail.storage.blobs.tiered_store import TieredStore
from mail.throttling import ban_changes
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.event_bus import create_wakeups
from merganser.server.key_file import load_or_create_registered_secret_box
from merganser.server.observability.log_store import create_log_store
from merganser.server.private_files import create_private_file_if_missing
from merganser.server.store.common_facts import (
    BLOBS_FACT,
    COLD_BLOBS_FACT,
    lock_facts_if_postgres,
    mark_or_compare_object_store,
    register_secret_unless_other_server_differs,
)
from merganser.server.store.migration import load_unapplied_revisions, run_missing_migrations
from merganser.server.store.spare_file import SpareFile
from merganser.settings.settings import Settings
from models.files.damage_marks import wait_for_damage_marks
from models.logs.recorder import LogRecorder
from models.runtime.environment import Environment
from models.store.database import Database
from models.store.object_store import ObjectStoreProtocol
from models.store.outage_log import OUTAGES
from models.store.outages import StorageComponent, StorageUnavailable, skip_if_disk_full
from models.store.postgres.address import PostgresAddressError, is_postgres, parse_postgres_address
from models.users.roles import Role, Scope
from resolvers.admin import settings as admin_settings
from resolvers.auth import credential_cache
from resolvers.auth.authentication import wait_for_background_tasks
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.viewer import Viewer

NOT_MIGRATED = "The database is not ready: run `merganser init` first."


@asynccontextmanager
async def open_environment(
    settings: Settings, *, migrate: bool = False
) -> AsyncGenerator[Environment]:
    """Open the environment of this process, and close it at the end.

    With `migrate` the data folders are created and the database is migrated; otherwise raises
    CommandError if the database is not at the last migration. Also raises CommandError if the
    database, the object store, the key file or the secret can't be used.
    """
    if not migrate:
        if not _can_database_exist(settings):
            raise CommandError(NOT_MIGRATED)  # before any file is created
        async with _open_environment_on_disk_with_room(settings, migrate=False) as environment:
            yield environment
        return
    create_data_folders(settings)
    spare_file = SpareFile.from_settings(settings)
    spare_file.release_if_disk_is_full()
    try:
        async with _open_environment_on_disk_with_room(settings, migrate=True) as environment:
            yield environment
    finally:
        spare_file.refill()


@asynccontextmanager
async def _open_environment_on_disk_with_room(
    settings: Settings, *, migrate: bool
) -> AsyncGenerator[Environment]:
    """Open the environment as `open_environment` does, with the room that the disk has."""
    create_data_folders(settings)
    key = load_or_create_signing_secret(settings)
    async with open_database(settings) as store:
        with database_errors_as_command_errors(settings):
            if migrate:
                await run_missing_migrations(store)
                with skip_if_disk_full():
                    await store.refresh_planner_statistics()
            elif await load_unapplied_revisions(store):
                raise CommandError(NOT_MIGRATED)
            object_store = open_object_store(settings)
            OUTAGES.use_folders(_folders_by_component(settings, object_store))
            async with lock_facts_if_postgres(settings):
                secret_box = await load_or_create_registered_secret_box(settings, store)
                await register_secret_unless_other_server_differs(settings, store, key)
                await _mark_or_compare_object_stores(settings, store, object_store)
        process_wakeups = create_wakeups(settings, key)
        environment = Environment(
            store,
            object_store,
            signing_secret=key,
            secret_box=secret_box,
            options=settings.options(),
            wakeups=process_wakeups,
            logs=LogRecorder(create_log_store(settings, store)),
            reach_fault_point=fault_point_killer(settings.fault),
        )
        environment.refused_networks.replace_never_refused_addresses(
            proxies=[*settings.trusted_proxies, *settings.smtp_trusted_proxies]
        )
        credential_cache.follow_drops_of_other_processes(environment)
        try:
            with database_errors_as_command_errors(settings):
                admin_settings.log_unusable_settings(
                    await admin_settings.apply_stored_settings_and_list_invalid(environment)
                )
                await restore_mark.load_and_enter_incarnation(environment)
                await ban_changes.refresh_refused_networks_from_database(environment)
                await ban_changes.apply_server_addresses(environment)
            yield environment
        finally:
            # uses of credentials are stored in the background
            await wait_for_background_tasks(environment)
            await message_trace.write_pending_trace_steps(environment)
            await wait_for_damage_marks(object_store)
            await environment.logs.stop()
            await process_wakeups.close()
            await object_store.close()
            if blob_cache := blob_cache_of_store(object_store):
                await blob_cache.close()
            await close_readers()
            await password_hashes.close_workers(environment)


def _folders_by_component(settings: Settings, object_store: ObjectStoreProtocol) -> dict[str, Path]:
    """Return a folder on the disk of each component that has a disk of this machine."""
    folders: dict[str, Path] = {StorageComponent.DISK: settings.data}
    if not is_postgres(settings.database_url):
        folders[StorageComponent.STORE] = Path(str(make_url(settings.database_url).database)).parent
    hot = object_store.hot if isinstance(object_store, TieredStore) else object_store
    if isinstance(hot, FolderStore):
        folders[StorageComponent.BLOBS] = hot.folder
    return folders


async def _mark_or_compare_object_stores(
    settings: Settings, store: Database, objects: ObjectStoreProtocol
) -> None:
    """Compare the marks of the object stores with the database. Raises CommandError."""
    hot = objects.hot if isinstance(objects, TieredStore) else objects
    await mark_or_compare_object_store(store, hot, BLOBS_FACT, settings.object_store_url)
    if isinstance(objects, TieredStore) and settings.cold_object_store_url is not None:
        await mark_or_compare_object_store(
            store, objects.cold, COLD_BLOBS_FACT, settings.cold_object_store_url
        )


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncGenerator[Database]:
    """Open the database, and close it at the end. Raises CommandError if the URL is wrong."""
    with database_errors_as_command_errors(settings):
        store = Database(settings.database_url)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def database_errors_as_command_errors(settings: Settings) -> Generator[None]:
    """Raise errors of the database connection as CommandError with the URL and the reason."""
    try:
        yield
    except (DBAPIError, OSError, StorageUnavailable) as problem:
        cause = problem.__cause__ if isinstance(problem, StorageUnavailable) else None
        reason = _first_line(getattr(cause or problem, "orig", None) or cause or problem)
        location = checked_database_location(settings)
        raise CommandError(f"Cannot use the database {location}: {reason}.") from problem
    except PostgresAddressError as problem:
        raise CommandError(
            f"MERGANSER_DATABASE_URL is wrong: {problem}", exit_code=EXIT_USAGE
        ) from problem
    except ModuleNotFoundError as problem:
        text = f"A PostgreSQL database requires {problem.name}: pip install 'merganser[postgres]'"
        raise CommandError(text) from problem


def checked_database_url_without_password(settings: Settings) -> URL:
    """The database URL of the settings, without a password.

    Raises CommandError if it is no URL, or names an SQLite database in memory.
    """
    try:
        if is_postgres(settings.database_url):
            address = parse_postgres_address(settings.database_url)
            hosts = ",".join(f"{host.address or host.name}" for host in address.hosts)
            user, name = address.get("user") or None, address.get("dbname") or None
            return URL.create("postgresql", username=user, host=hosts, database=name)
        url = make_url(settings.database_url)
    except PostgresAddressError as problem:
        raise CommandError(
            f"MERGANSER_DATABASE_URL is wrong: {problem}", exit_code=EXIT_USAGE
        ) from problem
    except (ArgumentError, ValueError) as problem:
        raise CommandError("MERGANSER_DATABASE_URL is wrong: it is not a URL.") from problem
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise CommandError(
            "MERGANSER_DATABASE_URL is wrong: it must name a file, since an "
            "in-memory database is lost at the end."
        )
    return url


def checked_database_location(settings: Settings) -> str:
    """The database URL for people: without a password, and with each host and port of PostgreSQL.

    Raises CommandError as `checked_database_url_without_password`.
    """
    url = checked_database_url_without_password(settings)
    if is_postgres(settings.database_url):
        return parse_postgres_address(settings.database_url).public_text
    return url.render_as_string(hide_password=True)


def _first_line(problem: BaseException) -> str:
    """The first line of the error's message, or the name of its class."""
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)


def _can_database_exist(settings: Settings) -> bool:
    """True if the SQLite file exists, and for PostgreSQL. Opening an SQLite file creates it."""
    url = checked_database_url_without_password(settings)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()


def create_data_folders(settings: Settings) -> None:
    """Create the data folder and the folder of an SQLite file.

    Raises CommandError if one can't be created or is not writable.
    """
    url = checked_database_url_without_password(settings)
    folders = [settings.data]
    if url.get_backend_name() == "sqlite" and url.database:
        folders.append(Path(url.database).parent)
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise CommandError(
                f"Cannot create the folder {folder}: {problem.strerror}."
            ) from problem
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CommandError(
                f"No permission to write into the folder {folder}: give it to this user."
            )


def load_or_create_signing_secret(settings: Settings) -> bytes:
    """The secret that tokens and cursors are signed with.

    It is the setting, or else the content of the file `secret`, which is created at first.
    Raises CommandError if the file can't be read or is invalid.
    """
    if settings.signing_secret:
        return settings.signing_secret.get_secret_value().encode()
    path = settings.data / "secret"
    try:
        if not path.exists():
            create_private_file_if_missing(path, secrets.token_hex(32))
        return bytes.fromhex(path.read_text())
    except OSError as problem:
        raise CommandError(f"Cannot read {path}: {problem.strerror}.") from problem
    except ValueError as problem:
        raise CommandError(f"{path} has no valid secret: remove it, or restore it.") from problem


def open_object_store(settings: Settings) -> ObjectStoreProtocol:
    """Open the object store, with its cold tier if one is set.

    Objects of a remote store are read through the blob cache, if one is set. Raises CommandError
    if a store or the cache can't be opened.
    """
    hot_url, cold_url = settings.object_store_url, settings.cold_object_store_url
    hot = open_object_store_of_setting(hot_url, "MERGANSER_OBJECT_STORE_URL")
    cold = None
    if cold_url is not None:
        cold = open_object_store_of_setting(cold_url, "MERGANSER_COLD_OBJECT_STORE_URL")
    if isinstance(hot, BucketStore) or isinstance(cold, BucketStore):
        cache = _open_blob_cache(settings)
        if cache is not None:
            hot = _with_cache_if_remote(hot, cache, hot_url)
            cold = _with_cache_if_remote(cold, cache, cold_url or "") if cold else None
    return hot if cold is None else TieredStore(hot, cold)


def _with_cache_if_remote(
    store: ObjectStoreProtocol, cache: BlobCache, url: str
) -> ObjectStoreProtocol:
    if isinstance(store, BucketStore):
        return CachedStore(store, cache, store_id_from_url(url))
    return store


def _open_blob_cache(settings: Settings) -> BlobCache | None:
    """Open the blob cache; None if none is set. Raises CommandError if the folder is unusable."""
    folder = settings.blob_cache
    if folder is None:
        return None
    try:
        return BlobCache(BlobCacheFolder(folder, settings.blob_cache_size))
    except OSError as problem:
        raise CommandError(
            f"MERGANSER_BLOB_CACHE cannot be used: {folder}: {problem.strerror}."
        ) from problem
    except ForeignFolder as problem:
        raise CommandError(
            f"MERGANSER_BLOB_CACHE cannot be used: {folder} has other files. Name an empty folder."
        ) from problem


def open_object_store_of_setting(url: str, setting_name: str) -> ObjectStoreProtocol:
    """Open the object store at a URL. Raises CommandError that names the setting."""
    try:
        return open_store(url)
    except (OSError, ValueError, BaseError) as problem:
        raise CommandError(f"{setting_name} cannot be used: {_first_line(problem)}") from problem


def fault_point_killer(setting: str | None) -> Callable[[str], None]:
    """The function that is called at each fault point.

    With a setting "name:n" it kills the process at the nth pass of that fault point, for crash
    tests. Otherwise it does nothing.
    """
    if setting is None:
        return lambda _fault_name: None
    fault_name, _, nth = setting.partition(":")
    pass_counts = Counter[str]()

    def kill_at_nth_pass(name: str) -> None:
        pass_counts[name] += 1
        if name == fault_name and pass_counts[name] == int(nth):
            os.kill(os.getpid(), signal.SIGKILL)

    return kill_at_nth_pass


def root_context(environment: Environment) -> Context:
    """The context of an operator on the command line: role ROOT with all scopes."""
    return Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))


def user_context(environment: Environment, user_id: int) -> Context:
    """The context of a command that acts for a user: role USER with all scopes."""
    return Context(environment, Viewer(user_id, Role.USER, frozenset({Scope.FULL})))
