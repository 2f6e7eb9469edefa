"""`merganser restore`: fill an empty database and object store from a backup."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import inspect, make_url

from mail.backup import restore_run
from mail.backup.backup_run import name_messages_of_objects
from mail.backup.errors import BackupError
from mail.backup.manifest import BackupManifest
from mail.backup.object_copy import ObjectTransfer
from mail.backup.postgres_copy import require_program, restore_dump
from mail.backup.restore_run import LostChanges, NewerObjects, RestoredObjects
from mail.backup.target import DATABASE_SUFFIX, OBJECTS_SUFFIX, BackupTarget, sync_and_rename
from mail.backup.work_folder import locked_work_folder
from mail.consistency import ConsistencyReport, check_consistency
from mail.maintenance.restore_mark import begin_incarnation_after_consistent_restore
from merganser.commands.backup.key_copies import restore_key_files
from merganser.errors import CommandError
from merganser.server.environment_factory import (
    create_data_folders,
    database_errors_as_command_errors,
    fault_point_killer,
    open_database,
    open_environment,
    open_object_store,
)
from merganser.server.store import store_lock
from merganser.server.store.migration import last_revision
from merganser.server.store.store_use import use_database_exclusively
from merganser.settings.settings import Settings
from models.runtime.leases import free_orphaned_leases
from models.store.postgres.address import is_postgres

PURPOSE = "restore"
WORK_FOLDER_NAME = ".restore"
REASON = "merganser restore"  # of the new incarnation
ReportProgress = Callable[[str, int, int | None], None]  # subject, done, total


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What to restore: by default the newest backup."""

    source: BackupTarget
    backup_id: str | None = None
    keys_folder: Path | None = None
    keeps_objects: bool = False
    is_quick: bool = False  # the check reads no stored bytes
    holds_queue: bool = False


@dataclass(frozen=True, slots=True)
class RestoreSummary:
    """What was restored, what is missing, and the report of the check."""

    manifest: BackupManifest
    objects: RestoredObjects
    lost_changes: LostChanges
    newer_objects: NewerObjects
    lost_messages: Sequence[str]
    waiting_recipient_count: int  # in the queue, and not held
    report: ConsistencyReport


async def restore_store(
    settings: Settings, order: RestoreOrder, report_progress: ReportProgress
) -> RestoreSummary:
    """Restore a backup, begin a new incarnation, and check the store.

    Raises CommandError, before an object or the database is written, if a server runs, if the
    database has tables, if the object store has objects, or if the key file is missing. The same
    holds for a backup that is damaged, of another kind of database, or of a newer version.
    """
    create_data_folders(settings)
    reach_fault_point = fault_point_killer(settings.fault)
    with locked_work_folder(_database_folder(settings) / WORK_FOLDER_NAME) as folder:
        async with store_lock.lock_database_exclusively(settings.database_url, PURPOSE):
            manifest, object_list = await _require_restorable_and_fetch_object_list(
                settings, order, folder
            )
            objects = await _restore_keys_and_objects(
                settings, order, manifest, object_list, report_progress
            )
            reach_fault_point("objects")
            report_progress("Restoring the database", 0, None)
            await _restore_database(settings, order, manifest, folder)
            reach_fault_point("restored")  # from now on a server can start
        async with (
            open_environment(settings, migrate=True) as environment,
            use_database_exclusively(environment, settings, PURPOSE),
        ):
            await environment.run_transaction(free_orphaned_leases)
            lost_changes = await restore_run.load_lost_changes(environment)
            await begin_incarnation_after_consistent_restore(environment, REASON)
            newer_objects = await restore_run.count_newer_objects(
                environment, manifest, object_list
            )
            waiting_recipient_count = await restore_run.count_waiting_unheld_recipients(environment)
            report = await check_consistency(
                environment, reads_blobs=not order.is_quick, progress=report_progress
            )
            lost_names = names_of_lost_objects(manifest, objects)
            lost_messages = await name_messages_of_objects(environment, lost_names)
    return RestoreSummary(
        manifest,
        objects,
        lost_changes,
        newer_objects,
        lost_messages,
        waiting_recipient_count,
        report,
    )


def names_of_lost_objects(manifest: BackupManifest, objects: RestoredObjects) -> Sequence[str]:
    """The objects that the restored database names, and that the backup does not have."""
    return sorted({*objects.lost_names, *manifest.missing_objects, *manifest.purged_objects})


def _database_folder(settings: Settings) -> Path:
    """The folder of the database file; for PostgreSQL the data folder."""
    path = _sqlite_path_or_none(settings)
    return settings.data if path is None else path.parent


def _sqlite_path_or_none(settings: Settings) -> Path | None:
    if is_postgres(settings.database_url):
        return None
    # a symbolic link stays: the database is on the disk that it names
    return Path(str(make_url(settings.database_url).database)).resolve()


async def _require_restorable_and_fetch_object_list(
    settings: Settings, order: RestoreOrder, folder: Path
) -> tuple[BackupManifest, Path]:
    """Return the manifest and the list of objects. Raises CommandError or BackupError."""
    await _require_empty_database(settings)
    manifest = await restore_run.choose_backup(order.source, order.backup_id)
    dialect = "postgresql" if is_postgres(settings.database_url) else "sqlite"
    if manifest.dialect != dialect:
        raise CommandError(
            f"The backup {manifest.id} has a database of {manifest.dialect}, and "
            f"MERGANSER_DATABASE_URL names one of {dialect}: `merganser export` and `import` move "
            "accounts between them."
        )
    if manifest.revision > last_revision():
        raise CommandError(
            f"The backup {manifest.id} was made by version {manifest.version}, which is newer: "
            "install this version or a later one."
        )
    if dialect == "postgresql":
        require_program("pg_restore")
    object_list = await order.source.fetch_file(
        manifest.id, OBJECTS_SUFFIX, manifest.objects, folder
    )
    size = await order.source.file_size(manifest.id, DATABASE_SUFFIX)
    if size != manifest.database.size:
        raise BackupError(
            f"The database of the backup {manifest.id} is missing, or has another size."
        )
    return manifest, object_list


async def _require_empty_database(settings: Settings) -> None:
    """Raise CommandError if the SQLite file exists, or the PostgreSQL database has tables."""
    path = _sqlite_path_or_none(settings)
    if path is not None:
        if path.exists():
            raise CommandError(
                f"The database {path} exists: move it away, or set MERGANSER_DATABASE_URL."
            )
        return
    async with open_database(settings) as database:
        with database_errors_as_command_errors(settings):
            async with database.engine.connect() as connection:
                tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    if tables:
        raise CommandError(
            "The database has tables: restore into an empty one, and set MERGANSER_DATABASE_URL."
        )


async def _restore_keys_and_objects(
    settings: Settings,
    order: RestoreOrder,
    manifest: BackupManifest,
    object_list: Path,
    report_progress: ReportProgress,
) -> RestoredObjects:
    """Restore the key files and the objects, if the object stores are empty or may be kept."""
    # a restored object should not fill the cache of a remote store
    store = open_object_store(settings.model_copy(update={"blob_cache": None}))
    try:
        await restore_run.claim_object_stores(store, manifest, keeps_objects=order.keeps_objects)
        restore_key_files(settings, order.keys_folder, manifest.id)
        transfer = ObjectTransfer(order.source.objects, store, object_list.parent)
        return await restore_run.restore_objects(
            transfer,
            object_list,
            object_count=manifest.object_count,
            keeps_objects=order.keeps_objects,
            report_objects=lambda done_count, total: report_progress(
                "Restoring objects", done_count, total
            ),
        )
    finally:
        await store.close()


async def _restore_database(
    settings: Settings, order: RestoreOrder, manifest: BackupManifest, folder: Path
) -> None:
    """Verify the hash of the database copy, and put it in its place.

    No server can use the database before it is complete, and its queue is held if that is ordered.
    """
    copy = await order.source.fetch_file(manifest.id, DATABASE_SUFFIX, manifest.database, folder)
    path = _sqlite_path_or_none(settings)
    complete = partial(
        restore_run.complete_database, revision=manifest.revision, holds_queue=order.holds_queue
    )
    if path is None:
        await restore_dump(copy, settings.database_url)
        fault_point_killer(settings.fault)("dump")
        async with open_database(settings) as database:
            await database.run_transaction(complete)
        return
    url = make_url(settings.database_url).set(database=str(copy))
    copy_settings = settings.model_copy(update={"database_url": url.render_as_string()})
    async with open_database(copy_settings) as database:
        await database.run_transaction(complete)
    if copy.with_name(f"{copy.name}-wal").exists():  # closing it would have removed the file
        raise BackupError(f"The database copy {copy} can't be written: its disk may be full.")
    fault_point_killer(settings.fault)("dump")
    for suffix in ("-wal", "-shm"):  # of a removed database: they would damage the new one
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    sync_and_rename(copy, path)
