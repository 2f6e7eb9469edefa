"""Back up a store while its servers run.

The database is copied first, then the objects that the copy names. This order is complete:

- A server writes an object, and syncs it to the disk, before a transaction names it in a row. So
  every object that the copied database names exists when the copy is made.
- A server deletes an object only after a transaction has removed its last row, and
  `backup_restore_window` later (7 days by default). So it still exists when it is copied, unless
  the backup takes longer than this window.
- The name of an object is never used again for other bytes. So a copy that an earlier backup made
  under this name has the same bytes, and is not made again.

In the other order, objects that were stored between the two steps would be missing: under load,
always. An object that is missing although the live database still names it is damage. An object
that the live database no longer names was purged while the backup ran.

The manifest is written last, after the files and objects were verified. A backup that was
interrupted has no manifest.
"""

import asyncio
import hashlib
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlmodel import col

from mail.backup import postgres_copy, retention, sqlite_copy
from mail.backup.errors import BackupError
from mail.backup.manifest import BackupManifest, StoreIdentity
from mail.backup.object_copy import CopiedObjects, ObjectCopy
from mail.backup.object_list import describe_file
from mail.backup.sqlite_copy import CopyFacts
from mail.backup.target import DATABASE_SUFFIX, OBJECTS_SUFFIX, BackupTarget
from mail.backup.verification import find_damage
from mail.backup.work_folder import locked_work_folder
from mail.storage.blob_cache.cached_store import store_without_cache
from mail.storage.blobs.garbage_collector import load_object_names_in_use
from mail.storage.blobs.tiered_store import HOT_NAME, browsable_stores_by_name
from models.files.blobs import Blob, MessageBlob
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User

MAX_NAMED_MESSAGES = 100  # lost messages that a report names
NAMES_PER_STATEMENT = 500
WORK_FOLDER_NAME = ".backup"
ReportProgress = Callable[[str, int, int | None], None]  # subject, done, total


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """What to back up, and where to."""

    id: str  # of the new backup, from `backup_id`; above those in the target
    target: BackupTarget
    database_url: str
    version: str  # of Merganser
    scratch_folder: Path  # has room for a copy of the database, if the target is a bucket
    reads_objects: bool = False  # verify by hashes instead of sizes
    keep_count: int | None = None  # complete backups that stay in the target; None: all
    has_keys: bool = False
    require_unchanged_keys: Callable[[], None] = lambda: None  # raises BackupError
    delete_key_copies: Callable[[Sequence[str]], None] = lambda _: None  # of deleted backups

    @property
    def work_folder(self) -> Path:
        """The folder of temporary files: on the disk of the target if this is a folder."""
        if self.target.folder is not None:
            return self.target.folder / WORK_FOLDER_NAME
        digest = hashlib.sha256(self.target.location.encode()).hexdigest()
        return self.scratch_folder / f"{WORK_FOLDER_NAME}-{digest[:16]}"


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """The new backup, the messages with lost objects, and what became of the earlier backups."""

    manifest: BackupManifest
    lost_messages: Sequence[str]
    deleted_ids: Sequence[str]
    problems: Sequence[str]  # sentences about damaged earlier backups


async def back_up(
    environment: Environment, order: BackupOrder, report_progress: ReportProgress
) -> BackupSummary:
    """Make a backup. Raises BackupError if it can't be made, or if its verification fails.

    Lost objects of the store, and damage of earlier backups, don't fail it: the summary names them.
    """
    began_at = environment.now()
    with locked_work_folder(order.work_folder) as folder:
        run = _BackupRun(environment, order, folder, report_progress)
        earlier = await run.load_earlier_manifests()
        facts = await run.copy_database()
        environment.reach_fault_point("copied")
        identity = StoreIdentity(
            facts.store, facts.incarnation, facts.beat, facts.object_store_marks
        )
        _require_same_store(order.target, earlier, identity)
        copied = await run.copy_objects(earlier, facts.object_count)
        environment.reach_fault_point("objects")
        purged_names = await run.remove_purged_names(copied)
        manifest = BackupManifest(
            id=order.id,
            version=order.version,
            dialect=environment.database.dialect,
            revision=facts.revision,
            began_at=began_at.isoformat(),
            ended_at=environment.now().isoformat(),
            identity=identity,
            database=await asyncio.to_thread(describe_file, run.database_path),
            objects=await asyncio.to_thread(describe_file, run.list_path),
            object_count=copied.object_count,
            object_bytes=copied.object_bytes,
            copied_count=copied.copied_count,
            copied_bytes=copied.copied_bytes,
            missing_objects=tuple(sorted(copied.lost_names)),
            purged_objects=tuple(sorted(purged_names)),
            has_keys=order.has_keys,
        )
        await run.store_verify_and_complete(manifest)
        environment.reach_fault_point("completed")
        deleted_ids = await run.delete_old_backups()
    lost_messages = await name_messages_of_objects(environment, manifest.missing_objects)
    return BackupSummary(manifest, lost_messages, deleted_ids, run.problems)


@dataclass(frozen=True, slots=True)
class _BackupRun:
    """The steps of one backup, with its files in a temporary folder."""

    environment: Environment
    order: BackupOrder
    folder: Path
    report_progress: ReportProgress
    problems: list[str] = field(default_factory=list)

    @property
    def database_path(self) -> Path:
        return self.folder / "database"

    @property
    def names_path(self) -> Path:
        return self.folder / "names"

    @property
    def list_path(self) -> Path:
        return self.folder / "objects"

    async def load_earlier_manifests(self) -> Sequence[BackupManifest]:
        """Read the manifests of the target, the oldest first, and record the damaged ones.

        Raises BackupError if the target has a backup of a later time. `--keep` would delete the new
        one, and a restore would not choose it.
        """
        backup_target, manifests = self.order.target, []
        ids = await backup_target.list_ids()
        if ids and ids[-1] >= self.order.id:
            raise BackupError(
                f"{backup_target.location} has the backup {ids[-1]}, which is later than the clock "
                "of this machine: set the clock, or name another target."
            )
        for id_ in ids:
            try:
                manifests.append(await backup_target.read_manifest(id_))
            except BackupError as problem:
                self.problems.append(str(problem))
        return manifests

    async def delete_old_backups(self) -> Sequence[str]:
        """Delete the backups beyond the number to keep, and return their IDs."""
        if self.order.keep_count is None:
            return []
        try:
            return await retention.delete_old_backups(
                self.order.target,
                self.order.keep_count,
                self.folder,
                self.environment.now(),
                self.order.delete_key_copies,
            )
        except BackupError as problem:
            self.problems.append(f"Old backups were not deleted: {problem}")
            return []

    async def copy_database(self) -> CopyFacts:
        """Copy the database, and write the list of the objects that the copy names."""
        database = self.environment.database
        if database.dialect != "sqlite":
            self.report_progress("Dumping the database", 0, None)
            return await postgres_copy.dump_database(
                database, self.order.database_url, self.database_path, self.names_path
            )
        source, is_cancelled = Path(str(database.engine.url.database)), threading.Event()
        loop = asyncio.get_running_loop()

        def report_pages(done_count: int, total: int) -> None:
            loop.call_soon_threadsafe(
                self.report_progress, "Copying the database", done_count, total
            )

        copy = asyncio.create_task(
            asyncio.to_thread(
                sqlite_copy.copy_database, source, self.database_path, report_pages, is_cancelled
            )
        )
        try:
            await asyncio.shield(copy)
        except asyncio.CancelledError:
            is_cancelled.set()
            await asyncio.gather(copy, return_exceptions=True)  # before its folder is deleted
            raise
        return await asyncio.to_thread(
            sqlite_copy.write_named_objects, self.database_path, self.names_path
        )

    async def copy_objects(
        self, earlier: Sequence[BackupManifest], object_count: int
    ) -> CopiedObjects:
        """Copy the objects that the target does not have, and write the list of all objects."""
        known_list = await self._fetch_newest_list(earlier)
        source = store_without_cache(self.environment.object_store)
        copy = ObjectCopy(
            source, browsable_stores_by_name(source).get(HOT_NAME), self.order.target, self.folder
        )
        return await copy.copy_all(
            self.names_path,
            known_list,
            self.list_path,
            object_count=object_count,
            report_objects=lambda done_count, total: self.report_progress(
                "Copying objects", done_count, total
            ),
        )

    async def _fetch_newest_list(self, earlier: Sequence[BackupManifest]) -> Path | None:
        """Return the newest list of objects that is not damaged; None if there is none."""
        for manifest in reversed(earlier):
            try:
                return await self.order.target.fetch_file(
                    manifest.id, OBJECTS_SUFFIX, manifest.objects, self.folder
                )
            except BackupError as problem:
                self.problems.append(str(problem))
        return None

    async def remove_purged_names(self, copied: CopiedObjects) -> Sequence[str]:
        """Remove the lost objects that the live database no longer names, and return them."""
        used_names = set[str]()
        for at in range(0, len(copied.lost_names), NAMES_PER_STATEMENT):
            names = copied.lost_names[at : at + NAMES_PER_STATEMENT]
            used_names |= await load_object_names_in_use(self.environment, names)
        purged_names = [name for name in copied.lost_names if name not in used_names]
        copied.lost_names[:] = [name for name in copied.lost_names if name in used_names]
        return purged_names

    async def store_verify_and_complete(self, manifest: BackupManifest) -> None:
        """Store the files, verify files and objects, then write the manifest.

        Raises BackupError if something is missing or damaged. Damaged copies are deleted, so that
        the next backup makes them again.
        """
        backup_target = self.order.target
        # the list is also verified below, so it is stored as a copy
        verified_list = self.folder / "verified-objects"
        await asyncio.to_thread(shutil.copyfile, self.list_path, verified_list)
        await backup_target.store_file(manifest.id, DATABASE_SUFFIX, self.database_path)
        await backup_target.store_file(manifest.id, OBJECTS_SUFFIX, self.list_path)
        damage = await find_damage(
            backup_target,
            manifest,
            verified_list,
            reads_objects=self.order.reads_objects,
            report_objects=lambda done_count, total: self.report_progress(
                "Verifying", done_count, total
            ),
        )
        if damage.problems:
            await backup_target.objects.delete(damage.damaged_copies)
            raise BackupError(
                f"The backup is incomplete: {' '.join(damage.problems[:MAX_NAMED_MESSAGES])} "
                "Run the command again: it copies what is missing."
            )
        self.order.require_unchanged_keys()
        self.environment.reach_fault_point("stored")
        await backup_target.write_manifest(manifest)


def _require_same_store(
    backup_target: BackupTarget, earlier: Sequence[BackupManifest], identity: StoreIdentity
) -> None:
    """Raise BackupError if the target has backups of another store."""
    for manifest in earlier:
        marks = manifest.identity.object_store_marks
        if marks.get("blobs") != identity.object_store_marks.get("blobs"):
            raise BackupError(
                f"{backup_target.location} has backups of another store: name another target."
            )


async def name_messages_of_objects(
    environment: Environment, object_names: Sequence[str]
) -> Sequence[str]:
    """Return a text for each message that has one of the objects, at most 100."""
    texts: list[str] = []
    for at in range(0, len(object_names), NAMES_PER_STATEMENT):
        statement = (
            select(col(Blob.name), col(Message.id), col(Message.subject), col(User.username))
            .join(MessageBlob, col(MessageBlob.blob_id) == col(Blob.id))
            .join(Message, col(Message.id) == col(MessageBlob.message_id))
            .join(User, col(User.id) == col(Message.user_id))
            .where(col(Blob.name).in_(object_names[at : at + NAMES_PER_STATEMENT]))
            .order_by(col(User.username), col(Message.id))
            .limit(MAX_NAMED_MESSAGES - len(texts))
        )
        texts += [
            f"messages/{row.id} of {row.username} ({row.subject!r}): object {row.name}"
            for row in await environment.database.read(statement)
        ]
        if len(texts) == MAX_NAMED_MESSAGES:
            break
    return texts
