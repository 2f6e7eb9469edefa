"""Mutations of caches and pending writes, and the one that unpacks an exported account."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.blobs.types import STORE_DESCRIPTION
from graph.cache.types import CACHE_COST, UNRESPONSIVE_NODES_DESCRIPTION
from graph.files.types import FileContent
from graph.submission.compose_inputs import ContentEncoding, decode_attachment_content
from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_views import View
from graph.types.references import UserSelection, user_selector_from_selection, value_or_none
from graph.types.scalars import BigInt, ByteSize, Duration
from mail.storage.blobs.tiered_store import HOT_NAME
from models.users.roles import Role, Scope
from resolvers.cache import bundles, maintenance
from resolvers.cache.bundles import BundleSource, BundleTarget, UnpackedMailbox
from resolvers.cache.maintenance import CacheChange
from resolvers.users.selection import UserSelector

WRITE_GUARD: dict[str, Any] = {"role": Role.ROOT, "scope": Scope.FULL}
# other processes write to the database before the transaction of a stored payload could commit
NOT_ATOMIC = AtomicExclusion("A change of caches", forbids_idempotency_key=True)
UNPACK_NOT_ATOMIC = AtomicExclusion("Unpacking a bundle", forbids_idempotency_key=True)


@strawberry.input(description="Input of cacheFlush.")
class CacheFlushInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose pending writes are counted. All pending writes are written in any case. "
        "Default: all pending writes are counted, also those without a user.",
        default=UNSET,
    )


@strawberry.input(description="Input of cacheClean.")
class CacheCleanInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose credentials, password checks and parsed messages are removed, and objects "
        "that their messages, files or exports have. Default: all entries, also those without a "
        "user.",
        default=UNSET,
    )
    days: int = attribute_field(
        "Number of days for which a removed entry was not used, from 0 to 36,500; another number "
        "is the error VALIDATION. 0 removes all entries.",
        default=0,
    )


@strawberry.input(description="Input of cacheRemove.")
class CacheRemoveInput(Options):
    users: UserSelection = attribute_field(
        "Users whose credentials, password checks and parsed messages are removed, and objects "
        "that their messages, files or exports have. `patterns` selects users by name."
    )


@strawberry.input(description="Input of cacheRescan.")
class CacheRescanInput(Options):
    path: str | None = attribute_field(
        "Beginning of the paths of the objects whose cached files are verified, at most 512 "
        "characters, such as `a7/`. Foreign files are removed only if it is not given. Default: "
        "all objects.",
        default=UNSET,
    )
    max_age: Duration | None = attribute_field(
        "Highest age of a cached file since it was stored, at least 0 seconds. Older files are "
        "removed even if they are undamaged. Default: undamaged files are kept at any age.",
        default=UNSET,
    )


@strawberry.input(description="Input of cacheUnpack.")
class CacheUnpackInput(Options):
    bundle_name: str = attribute_field(
        "Name of the folder that is created for the bundle: 1 to 100 characters of A-Z, a-z, 0-9 "
        "and ._@+=,- that don't begin with a dot."
    )
    bundle: FileContent = attribute_field(
        "File of a userExport in any format: an own complete upload, or text in the given "
        "encoding. Text has at most 50 MiB by default, else the error is LIMIT_REACHED. A bundle "
        "has at most 10,000 messages with 1 GiB together."
    )
    encoding: ContentEncoding = attribute_field(
        "Encoding of `bundle.text`.", default=ContentEncoding.UTF8
    )
    store: str = attribute_field(STORE_DESCRIPTION, default=HOT_NAME)
    path: str = attribute_field(
        "Path of the folder below `admin/` in which the folder of the bundle is created, such as "
        "`admin/restore`. It has parts of A-Z, a-z, 0-9 and ._@+=,- that don't begin with a dot. "
        "It need not exist."
    )


@strawberry.type(description="Payload of cacheClean and cacheRemove.")
class CachePayload(MutationPayload):
    entry_count: int = attribute_field(
        "Number of cached entries that were removed on all nodes. With `validateOnly`: number "
        "that would be removed.",
        default=0,
    )
    size: ByteSize = attribute_field(
        "Size of the removed entries in bytes. It is estimated for values in memory, except DNS "
        "answers. With `validateOnly`: of those that would be removed.",
        default=ByteSize(0),
    )
    unresponsive_nodes: list[str] = attribute_field(
        UNRESPONSIVE_NODES_DESCRIPTION, default_factory=list
    )


@strawberry.type(description="Payload of cacheFlush.")
class CacheFlushPayload(MutationPayload):
    entry_count: int = attribute_field(
        "Number of writes that were pending on all nodes, of the selected users. With "
        "`validateOnly`: that are pending.",
        default=0,
    )
    size: ByteSize = attribute_field(
        "Estimated size in bytes of the pending writes that `entryCount` counts.",
        default=ByteSize(0),
    )
    lost_count: int = attribute_field(
        "Number of pending writes that could not be written, because the database or the log store "
        "failed. They are lost, and counted in the metrics.",
        default=0,
    )
    unresponsive_nodes: list[str] = attribute_field(
        UNRESPONSIVE_NODES_DESCRIPTION, default_factory=list
    )


@strawberry.type(description="Payload of cacheRescan.")
class CacheRescanPayload(MutationPayload):
    entry_count: int = attribute_field(
        "Number of files that the mutation removed, on all nodes together. 0 with `validateOnly`, "
        "which reads no file.",
        default=0,
    )
    size: ByteSize = attribute_field(
        "Size in bytes of the removed files. 0 with `validateOnly`, which reads no file.",
        default=ByteSize(0),
    )
    incomplete_nodes: list[str] = attribute_field(
        "Nodes (`host:port`) whose rescan is incomplete, because it stopped after 20 seconds or "
        "the folder could not be read. After a stop, rescan in parts, with `path`.",
        default_factory=list,
    )
    unresponsive_nodes: list[str] = attribute_field(
        UNRESPONSIVE_NODES_DESCRIPTION, default_factory=list
    )


@strawberry.type(description="Mailbox of an unpacked bundle.")
class BundleMailbox(View):
    row_type = UnpackedMailbox

    path: str = attribute_field("Path of the mailbox, with `/` between its levels.")
    uid_validity: BigInt | None = attribute_field(
        "IMAP UIDVALIDITY (RFC 9051) at the time of the export. Null: the bundle does not tell it."
    )
    uid_next: BigInt | None = attribute_field(
        "IMAP UIDNEXT (RFC 9051) at the time of the export. Null: the bundle does not tell it."
    )
    message_count: BigInt = attribute_field(
        "Number of messages that the bundle has for this mailbox, without damaged ones."
    )


@strawberry.type(description="Payload of cacheUnpack.")
class CacheUnpackPayload(MutationPayload):
    mailboxes: list[BundleMailbox] = attribute_field(
        "Mailboxes of the bundle, at most 10,000. Empty if the mutation failed.",
        default_factory=list,
    )
    files: list[str] = attribute_field(
        "Paths of the stored objects in the object store: `messages.jsonl` with a line for each "
        "message, `account.json` with the account record if the bundle has one, and the messages "
        "below `mail/`. With `validateOnly`: those that would be stored.",
        default_factory=list,
    )
    skipped_count: BigInt = attribute_field(
        "Number of entries of the bundle that are not stored. They are damaged, missing, larger "
        "than MERGANSER_MESSAGE_MAX_SIZE, or are not messages. More than 10,000 are the error "
        "VALIDATION.",
        default=0,
    )


def _users(selection: UserSelection | None) -> UserSelector | None:
    return user_selector_from_selection(selection) if selection else None


def _extend_deadline(info: Info, seconds: float) -> None:
    if deadline := getattr(info.context, "field_deadline", None):
        deadline.extend(seconds)


def _payload_of_removal(change: CacheChange) -> CachePayload:
    return CachePayload(
        entry_count=change.count,
        size=ByteSize(change.size),
        unresponsive_nodes=list(change.unresponsive_nodes),
    )


@strawberry.type
class CacheMutation:
    @mutation(
        "Writes the pending writes of all processes and nodes to the database and the log store, "
        "and returns when they are durable. Use it before a backup. Each is also written without "
        "it, within about a second. With `validateOnly` they are only counted. LIMIT_REACHED if a "
        "list in `users` has more than 1,000 items (by default). LIMIT_REACHED also if `ids` and "
        "`usernames` together name more than 1,000 users (by default).",
        atomic_exclusion=NOT_ATOMIC,
        cost=CACHE_COST,
        **WRITE_GUARD,
    )
    async def cache_flush(self, info: Info, input: CacheFlushInput) -> CacheFlushPayload:
        _extend_deadline(info, maintenance.FLUSH_TIMEOUT)
        change = await maintenance.flush_pending_writes_and_write_audit_log(
            info.context, _users(input.users)
        )
        return CacheFlushPayload(
            entry_count=change.count,
            size=ByteSize(change.size),
            lost_count=change.lost_count,
            unresponsive_nodes=list(change.unresponsive_nodes),
        )

    @mutation(
        "Removes cached values that were not used for a number of days, on all nodes. They are "
        "objects of blob caches, credentials, password checks, DNS answers, parsed messages and "
        "rows of lists. Pending writes stay. No data is lost, and no session ends: the values are "
        "read again when they are needed. LIMIT_REACHED if a list in `users` has more than 1,000 "
        "items (by default). LIMIT_REACHED also if `ids` and `usernames` together name more than "
        "1,000 users (by default).",
        atomic_exclusion=NOT_ATOMIC,
        cost=CACHE_COST,
        **WRITE_GUARD,
    )
    async def cache_clean(self, info: Info, input: CacheCleanInput) -> CachePayload:
        _extend_deadline(info, maintenance.REMOVE_TIMEOUT)
        change = await maintenance.remove_unused_values_and_write_audit_log(
            info.context, "cacheClean", _users(input.users), input.days
        )
        return _payload_of_removal(change)

    @mutation(
        "Removes the cached values of the selected users on all nodes, however recently they were "
        "used. They are credentials, password checks, parsed messages, and the objects of their "
        "messages, files and exports. The rows of lists of all users are removed too, and not "
        "counted. Pending writes stay. No data is lost, and no session ends. "
        "LIMIT_REACHED if a list in `users` has more than 1,000 items (by default). LIMIT_REACHED "
        "also if `ids` and `usernames` together name more than 1,000 users (by default).",
        atomic_exclusion=NOT_ATOMIC,
        cost=CACHE_COST,
        **WRITE_GUARD,
    )
    async def cache_remove(self, info: Info, input: CacheRemoveInput) -> CachePayload:
        _extend_deadline(info, maintenance.REMOVE_TIMEOUT)
        selector = user_selector_from_selection(input.users)
        change = await maintenance.remove_unused_values_and_write_audit_log(
            info.context, "cacheRemove", selector, 0
        )
        return _payload_of_removal(change)

    @mutation(
        "Verifies the files of the blob caches of all nodes: it removes damaged, foreign and old "
        "files, and corrects the recorded size of the caches. On each node it stops after 20 "
        "seconds. With `validateOnly` nothing is read, and the counts are 0.",
        atomic_exclusion=NOT_ATOMIC,
        cost=CACHE_COST,
        **WRITE_GUARD,
    )
    async def cache_rescan(self, info: Info, input: CacheRescanInput) -> CacheRescanPayload:
        _extend_deadline(info, maintenance.RESCAN_TIMEOUT)
        change = await maintenance.rescan_blob_caches_and_write_audit_log(
            info.context, value_or_none(input.path) or "", value_or_none(input.max_age)
        )
        return CacheRescanPayload(
            entry_count=change.count,
            size=ByteSize(change.size),
            incomplete_nodes=list(change.incomplete_nodes),
            unresponsive_nodes=list(change.unresponsive_nodes),
        )

    @mutation(
        "Unpacks a bundle (the file of a userExport), to inspect or recover an account, and "
        "returns the mailboxes of the bundle. The messages are stored as objects of an object "
        "store, all or none. Their folder is `bundleName`, which is created in the folder `path` "
        "below `admin/`. Damaged entries of the bundle are skipped, and counted in `skippedCount`. "
        "No account is changed. If the mutation succeeds, the upload with the bundle is deleted. "
        "CONFLICT if the folder `bundleName` already has objects. LIMIT_REACHED if the bundle has "
        "more than 10,000 messages, or if its unpacked messages have more than 1 GiB together.",
        atomic_exclusion=UNPACK_NOT_ATOMIC,
        cost=CACHE_COST,
        **WRITE_GUARD,
    )
    async def cache_unpack(self, info: Info, input: CacheUnpackInput) -> CacheUnpackPayload:
        _extend_deadline(info, bundles.UNPACK_SECONDS)
        target = BundleTarget(input.store, input.path, input.bundle_name)
        if input.bundle.upload:
            upload = input.bundle.upload.value
            source = BundleSource(upload_id=global_ids.decode("Upload", upload, path=["bundle"]))
        else:
            text = input.bundle.text.value if input.bundle.text else ""
            encoding = ContentEncoding(input.encoding)
            source = BundleSource(decode_attachment_content(text, encoding, ["bundle"]))
        bundle = await bundles.store_bundle_objects_and_delete_upload(info.context, source, target)
        return CacheUnpackPayload(
            mailboxes=[BundleMailbox.from_row(row) for row in bundle.mailboxes],
            files=bundle.paths,
            skipped_count=BigInt(bundle.skipped_count),
        )
