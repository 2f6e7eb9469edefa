"""Store imported messages and settings in an account, batch by batch."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.archives.json_lines import (
    AccountRecord,
    InvalidRecordError,
    MessageRecord,
    parse_timestamp,
)
from mail.archives.source_message import SourceMessage, UnusableMessageError
from mail.archives.zip_format import DamagedArchiveError
from mail.authentication.results_removal import own_authserv_ids, remove_results
from mail.mailboxes import paths
from mail.storage import message_insert, received_messages
from mail.storage.blobs.blob_writer import BlobRowDeleted, StoredMessageBlobs
from mail.storage.blobs.compression import content_digest
from mail.storage.message_insert import (
    InsertedMessage,
    InsertKind,
    MessagePlacement,
    StorableMessage,
)
from mail.text.storable_text import make_storable
from models.errors import Conflict, InvalidInput, LimitReached, NotFound, RequestError
from models.mailboxes.tables import HOLDING_USES, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.spam.sender_rules import SenderAction
from models.store.columns import ColumnRow, select_columns
from models.users.roles import UserPermission
from models.users.tables import User
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueNamespace, NewKeyValue
from resolvers.autoreply import autoreplies
from resolvers.context import Context
from resolvers.filters import sieve_script_mutations, sieve_scripts, transfer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import metadata
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.update import MailboxUpdate
from resolvers.messages import labels
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.labels import LabelChange
from resolvers.spam import sender_rule_mutations
from resolvers.spam.sender_rule_mutations import NewSenderRules, RuleOwner
from resolvers.submission import identity_mutations
from resolvers.submission.identity_mutations import IdentityChanges
from resolvers.transfer import import_mailboxes
from resolvers.users import custom_data
from resolvers.users import update as user_update
from resolvers.users.selection import VIEWER_ONLY
from resolvers.users.update import UserChanges

MAX_BATCH_MESSAGES = 32
MAX_BATCH_BYTES = 4 << 20  # a larger message has a batch of its own
MAX_REPORTED_ITEMS = 200  # skipped items listed in the result
MAX_ITEM_NAME_LENGTH = 300  # characters
SIMPLE_SETTINGS = ("name", "language", "retention", "spam_level", "meta_data")
NO_RETENTION_LIMIT = timedelta(0)


@dataclass(slots=True)
class ImportOutcome:
    """The result of an import over all its runs. Its fields are stored in the checkpoint."""

    stored: int = 0
    known: int = 0  # already in the mailbox
    skipped: list[list[str]] = field(default_factory=list)  # item and reason
    untold: int = 0  # skipped items that are not listed

    def add_skipped(self, item: str, reason: str) -> None:
        """Add an item that is not imported, with the reason."""
        if len(self.skipped) < MAX_REPORTED_ITEMS:
            self.skipped.append([make_storable(item[:MAX_ITEM_NAME_LENGTH]), reason])
        else:
            self.untold += 1


@dataclass(slots=True)
class RunningImport:
    """A running import into one account."""

    ctx: Context  # its viewer is the user of the account
    user: ColumnRow  # id, tenant_id
    target_path: str | None  # one mailbox for all; None: the paths of the source
    first_new_id: int  # messages with lower IDs existed before the import
    mailbox_ids: dict[str, int]  # mailboxes by path
    outcome: ImportOutcome
    skips_known: bool = True
    subscribes: bool = True  # to new mailboxes
    digests_by_mailbox: dict[int, Counter[bytes]] = field(default_factory=dict)  # shortened digests


@dataclass(frozen=True, slots=True)
class ImportableMessage:
    """A parsed message with its target mailbox and flags."""

    source: SourceMessage
    message: StorableMessage
    mailbox_id: int
    flags: Sequence[str]
    meta_data: dict[str, Any] | None = None
    insert_kind: InsertKind = InsertKind.ADDED_BY_USER


@dataclass(slots=True)
class SourceReader:
    """A source of messages that is read in batches, and the problem that stopped it."""

    remaining: Iterator[SourceMessage]
    problem: str | None = None

    def read_batch(self) -> list[SourceMessage]:
        """Return the next messages; none at the end or after a problem. Runs in a thread."""
        found: list[SourceMessage] = []
        weight = 0
        while self.problem is None and len(found) < MAX_BATCH_MESSAGES and weight < MAX_BATCH_BYTES:
            try:
                one = next(self.remaining, None)
            except DamagedArchiveError as problem:
                self.problem = str(problem)
                break
            if one is None:
                break
            found.append(one)
            weight += len(one.raw or b"")
        return found


async def begin_import(
    ctx: Context, user_id: int, target_path: str | None, first_new_id: int
) -> RunningImport:
    """Begin an import into the account of this user, who is the viewer."""
    columns = {"id", "tenant_id", "permissions"}
    ((user),) = await ctx.read(
        select(*select_columns(User, columns)).where(col(User.id) == user_id)
    )
    permissions = frozenset(each for each in UserPermission if each in user.permissions)
    ctx = replace(ctx, viewer=replace(ctx.viewer, permissions=permissions))
    return RunningImport(
        ctx,
        user,
        target_path,
        first_new_id,
        await import_mailboxes.load_mailbox_ids_by_path(ctx, user_id),
        ImportOutcome(),
    )


async def prepare_message(
    running: RunningImport, source: SourceMessage, message: StorableMessage | None = None
) -> ImportableMessage | None:
    """Return a message ready to be stored; None if it is in the mailbox already or is skipped.

    Pass `message` if the source was parsed before. Skipped messages are added to the outcome.
    """
    try:
        if source.raw is None:
            raise UnusableMessageError(source.reason)
        flag_changes = row_changes.FlagChanges.from_flag_names({}, added=source.flags)
        if len(flag_changes.add) > flags.MAX_KEYWORDS:
            raise UnusableMessageError(f"more than {flags.MAX_KEYWORDS} keywords")
        record = source.record
        meta = custom_data.validate_custom_data(record.meta_data, ["metaData"]) if record else None
        target_path = running.target_path or source.folder
        box = await import_mailboxes.get_or_create_mailbox(
            running.ctx, running.mailbox_ids, target_path, subscribe=running.subscribes
        )
    except (UnusableMessageError, RequestError) as problem:
        running.outcome.add_skipped(source.name, str(problem))
        return None
    message = message or await parse_message(running.ctx.environment, source.raw)
    if running.skips_known:
        known_digests = await _load_digests_of_mailbox(running, box)
        for digest in {
            shorten_digest(message.digest),
            shorten_digest(message.received_digest or message.digest),
        }:
            if known_digests[digest]:
                known_digests[digest] -= 1  # a message that exists twice is known twice
                running.outcome.known += 1
                return None
    return ImportableMessage(source, message, box, flag_changes.touched_flag_names, meta)


async def parse_message(environment: Environment, raw_message: bytes) -> StorableMessage:
    """Parse a message, without the Authentication-Results fields in this server's name.

    `received_digest` is the digest before the removal: a message that this server exported has
    such fields.
    """
    cleaned = remove_results(raw_message, own_authserv_ids(environment.options))
    parsed_message = await received_messages.read_message(cleaned)
    return (
        parsed_message
        if cleaned is raw_message
        else replace(parsed_message, received_digest=content_digest(raw_message))
    )


async def _load_digests_of_mailbox(running: RunningImport, mailbox_id: int) -> Counter[bytes]:
    """Return the shortened digests of the messages that were in the mailbox before the import."""
    if mailbox_id not in running.digests_by_mailbox:
        statement = select(col(Message.digest)).where(
            col(Message.mailbox_id) == mailbox_id, col(Message.id) < running.first_new_id
        )
        running.digests_by_mailbox[mailbox_id] = Counter(
            shorten_digest(row.digest) for row in await running.ctx.read(statement)
        )
    return running.digests_by_mailbox[mailbox_id]


def shorten_digest(digest: str) -> bytes:
    """Return the first 16 bytes of a digest, so that a million of them fit into memory."""
    return bytes.fromhex(digest[:32])


async def store_blobs(
    running: RunningImport, messages: Sequence[ImportableMessage], *, rewrite_blobs: bool = False
) -> list[StoredMessageBlobs]:
    """Store the blobs of these messages before the transaction that inserts them."""
    tenant, world = running.user.tenant_id, running.ctx.environment
    return [
        await received_messages.store_blobs(world, tenant, each.message, store_again=rewrite_blobs)
        for each in messages
    ]


async def store_with_blobs(
    running: RunningImport,
    messages: Sequence[ImportableMessage],
    store: Callable[[Sequence[StoredMessageBlobs]], Awaitable[None]],
) -> None:
    """Store the blobs of messages, then call `store`; once more if a blob row was deleted."""
    try:
        await store(await store_blobs(running, messages))
    except BlobRowDeleted:
        await store(await store_blobs(running, messages, rewrite_blobs=True))


async def insert_messages(
    running: RunningImport,
    session: AsyncSession,
    messages: Sequence[ImportableMessage],
    stored_blobs: Sequence[StoredMessageBlobs],
) -> list[InsertedMessage]:
    """Insert messages with all their flags, and return them. Raises OverQuota, BlobRowDeleted."""
    new = await running.ctx.environment.run_in_session(
        session,
        lambda transaction: insert_in_transaction(running, transaction, messages, stored_blobs),
    )
    await _set_deleted_flag_and_expiry(running, session, messages, new)
    return new


def insert_in_transaction(
    running: RunningImport,
    transaction: DatabaseTransaction,
    messages: Sequence[ImportableMessage],
    stored_blobs: Sequence[StoredMessageBlobs],
) -> list[InsertedMessage]:
    """Insert messages in a synchronous transaction, without the deleted flag and the expiry."""
    inserted: list[InsertedMessage] = []
    pairs = zip(messages, stored_blobs, strict=True)
    for insert_kind, group in groupby(pairs, key=lambda pair: pair[0].insert_kind):
        items = [
            message_insert.InsertItem(each.message, blobs, _placement_of_message(running, each))
            for each, blobs in group
        ]
        inserted += message_insert.insert_messages(transaction, items, kind=insert_kind)
    return inserted


def _placement_of_message(running: RunningImport, message: ImportableMessage) -> MessagePlacement:
    """Return the mailbox, flags and envelope under which a message is inserted."""
    found, record = message.source, message.source.record
    return MessagePlacement(
        running.user.id,
        message.mailbox_id,
        found.received_at or running.ctx.environment.now(),
        seen="\\Seen" in message.flags,
        flagged="\\Flagged" in message.flags,
        answered="\\Answered" in message.flags,
        draft="\\Draft" in message.flags,
        keywords=row_changes.columns_from_flag_names(message.flags)["keywords"],
        envelope_from=found.sender,
        envelope_to=record.recipients if record else (),
        meta_data=message.meta_data,
    )


async def _set_deleted_flag_and_expiry(
    running: RunningImport,
    session: AsyncSession,
    messages: Sequence[ImportableMessage],
    inserted: Sequence[InsertedMessage],
) -> None:
    """Set what messages cannot be inserted with: the deleted flag and the expiry."""
    states: dict[int, dict[str, Any]] = {}
    for each, inserted_message in zip(messages, inserted, strict=True):
        record = each.source.record
        if "\\Deleted" in each.flags or record:
            states[inserted_message.message_id] = row_changes.columns_from_flag_names(
                each.flags
            ) | _expiry_columns(record)
    rows = await row_changes.load_rows_in_transaction(session, list(states)) if states else []
    for with_expiry in (False, True):  # of one call all have the same columns
        changed_rows = [row for row in rows if ("expires" in states[row.id]) is with_expiry]
        if changed_rows:
            await flags.set_columns_of_each(running.ctx, session, changed_rows, states)


def _expiry_columns(record: MessageRecord | None) -> dict[str, Any]:
    return {"expires": record.expires} if record else {}


async def create_mailboxes(
    running: RunningImport, account: AccountRecord, *, with_annotations: bool
) -> None:
    """Create the missing mailboxes of an account record, with annotations if wanted.

    Mailboxes that can't be created are added to the skipped items.
    """
    boxes = sorted(account.mailboxes, key=lambda box: paths.tree_sort_key(box["path"]))
    for box in boxes if running.target_path is None else ():
        try:
            path = await _create_mailbox(running, box)
        except RequestError as problem:
            running.outcome.add_skipped(f"folder {box['path']}", problem.message)
            if isinstance(problem, LimitReached):
                break  # the limit holds for all of them
        else:
            if box.get("encryptMessages") is True:
                await _turn_on_encryption(running, path)
            if with_annotations and isinstance(box.get("metadata"), dict):
                await _set_annotations(running, path, box["metadata"])


async def _create_mailbox(running: RunningImport, record: Mapping[str, Any]) -> str:
    """Create the mailbox of a record, and return its path. Raises Refused."""
    path = paths.validate_path(record["path"])
    if path in running.mailbox_ids:
        return path
    new = NewMailboxes(
        [path],
        is_hidden=record.get("hidden") is True,
        retention=_retention_from_seconds(record.get("retention")),
        is_subscribed=record.get("subscribed") is not False,
    )
    use = _special_use_from_value(record.get("specialUse"))
    try:
        created = await mailbox_loaders.create_mailboxes(running.ctx, replace(new, special_use=use))
    except Conflict as problem:
        created = await mailbox_loaders.create_mailboxes(running.ctx, new)
        running.outcome.add_skipped(f"role {use} of folder {path}", problem.message)
    snoozed = created[-1].special_use in HOLDING_USES
    running.mailbox_ids[path] = running.mailbox_ids["INBOX"] if snoozed else created[-1].id
    return path


async def _turn_on_encryption(running: RunningImport, path: str) -> None:
    """Turn on the encryption of a mailbox. A refusal is added to the skipped items."""
    try:
        update = MailboxUpdate([MailboxSelector(path=path)], {"encrypt_messages": True})
        await mailbox_update.update_mailboxes(running.ctx, update)
    except RequestError as problem:
        running.outcome.add_skipped(f"encryption of folder {path}", problem.message)


async def _set_annotations(
    running: RunningImport, path: str, annotations: Mapping[str, Any]
) -> None:
    """Set the annotations of a mailbox. Refusals are added to the skipped items."""
    for key, value in annotations.items():
        try:
            if not isinstance(value, str):
                raise InvalidInput("no text", constraint="type", path=["value"])
            await metadata.set_annotation(running.ctx, MailboxSelector(path=path), (key, value))
        except RequestError as problem:
            running.outcome.add_skipped(f"annotation {key} of folder {path}", problem.message)
            if isinstance(problem, LimitReached):
                break


def _special_use_from_value(value: Any) -> SpecialUse | None:
    return next((use for use in SpecialUse if use.value == value), None)


def _retention_from_seconds(seconds: Any) -> timedelta:
    """Return the retention of a mailbox; unlimited if the value is missing or invalid."""
    if not isinstance(seconds, int) or not 0 <= seconds < 1 << 40:
        return NO_RETENTION_LIMIT
    return timedelta(seconds=seconds)


async def import_settings(running: RunningImport, account: AccountRecord) -> None:
    """Import the user's settings, key-values, labels and sender rules, as far as possible."""
    for name in SIMPLE_SETTINGS:
        if account.settings.get(name) is not None:
            await _import_setting(running, name, account.settings[name])
    if isinstance(account.settings.get("pub_key"), str):
        await _import_setting(running, "pub_key", account.settings["pub_key"])
    if account.settings.get("encrypt_messages") is True:
        await _import_setting(running, "encrypt_messages", True)
    for entries, import_entry in (
        (account.key_values, _import_key_value),
        (account.labels, _import_label),
        (account.sender_rules, _import_sender_rule),
    ):
        for entry in entries:
            if not await import_entry(running, entry):
                break


async def import_identities_and_filters(running: RunningImport, account: AccountRecord) -> None:
    """Import identities, filters, autoreply and scripts, which need the mailboxes."""
    for entry in account.identities:
        if not await _import_identity(running, entry):
            break
    for entry in account.filters:
        if not await _import_filter(running, entry):
            break
    if account.autoreply:
        await _import_autoreply(running, account.autoreply)
    for entry in account.scripts:
        if not await _import_sieve_script(running, entry):
            break


async def _import_filter(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import a filter. Returns False if the limit on filters is reached."""
    name = f"filter {str(record.get('name') or '')[:100]}".strip()
    try:
        for target in await transfer.import_filter(running.ctx, record, running.mailbox_ids):
            running.outcome.add_skipped(name, f"{target} is left out: a file has no passwords")
    except RequestError as problem:
        running.outcome.add_skipped(name, str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_autoreply(running: RunningImport, record: Mapping[str, Any]) -> None:
    """Import the autoreply. It is turned off if one of its addresses does not exist."""
    try:
        facts = autoreplies.parse_exported_autoreply(record)
        try:
            await autoreplies.set_autoreplies(running.ctx, VIEWER_ONLY, facts)
        except NotFound as problem:
            running.outcome.add_skipped("addresses of the automatic answer", problem.message)
            await autoreplies.set_autoreplies(
                running.ctx, VIEWER_ONLY, {**facts, "addresses": [], "enabled": False}
            )
    except (RequestError, InvalidRecordError) as problem:
        running.outcome.add_skipped("automatic answer", str(problem))


async def _import_sieve_script(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import a Sieve script. Returns False if the limit is reached.

    An existing script of this name is not changed.
    """
    name, content = record.get("name"), record.get("content")
    if not isinstance(name, str) or not isinstance(content, str):
        running.outcome.add_skipped("script", "not what it must be")
        return True
    existing = await sieve_scripts.load_by_names(running.ctx, [(running.user.id, name)])
    if existing[0] is not None:
        if existing[0].content != content:
            running.outcome.add_skipped(f"script {name}", "there is another script of this name")
        return True
    try:
        activate = record.get("active") is True and not await sieve_scripts.has_active_script(
            running.ctx, running.user.id
        )
        await sieve_script_mutations.put_script(
            running.ctx, VIEWER_ONLY, name, content, activates=activate
        )
    except LimitReached as full:
        running.outcome.add_skipped(f"script {name}", full.message)
        return False
    except RequestError as problem:
        running.outcome.add_skipped(f"script {name}", problem.all_errors[0].message)
    return True


IDENTITY_FIELDS = {  # column and type by the name in the record
    "name": ("name", str),
    "replyTo": ("reply_to", str),
    "signatureText": ("signature_text", str),
    "signatureHtml": ("signature_html", str),
    "default": ("preferred", bool),
    "bcc": ("bcc", list),
}


async def _import_identity(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import an identity. Returns False if the limit on identities is reached."""
    address, path = record.get("address"), record.get("sentMailbox")
    try:
        values = {}
        for name, (column, kind) in IDENTITY_FIELDS.items():
            if (value := record.get(name)) is not None:
                values[column] = value
                if not isinstance(value, kind):
                    raise InvalidInput("not what it must be", constraint="type", path=[name])
        if not isinstance(address, str) or not all(
            isinstance(one, str) for one in values.get("bcc", ())
        ):
            raise InvalidInput("no address", constraint="type", path=["address"])
        box = (
            MailboxSelector(path=path)
            if isinstance(path, str) and path in running.mailbox_ids
            else None
        )
        if path is not None and box is None:
            running.outcome.add_skipped(f"folder for copies of {address}", "there is none such")
        await identity_mutations.set_own_identity(
            running.ctx, address, IdentityChanges(values, box, changes_mailbox=box is not None)
        )
    except RequestError as problem:
        running.outcome.add_skipped(f"identity {address}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_sender_rule(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import a sender rule. Returns False if the limit on rules is reached."""
    pattern, action, comment = (record.get(name) for name in ("pattern", "action", "comment"))
    try:
        if not isinstance(pattern, str) or action not in set(SenderAction):
            raise InvalidInput("no pattern, or no action", constraint="type", path=["pattern"])
        comment_text = comment if isinstance(comment, str) else None
        new = NewSenderRules(SenderAction(action), [pattern], comment_text, sets_comment=True)
        await sender_rule_mutations.create_sender_rules(
            running.ctx, RuleOwner(user_id=running.user.id), new
        )
    except RequestError as problem:
        running.outcome.add_skipped(f"rule about {pattern}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_label(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import a label. Returns False if the limit on labels is reached."""
    keyword, name, color = (record.get(part) for part in ("keyword", "name", "color"))
    try:
        if not (isinstance(keyword, str) and isinstance(name, str)):
            raise InvalidInput("no keyword, or no name", constraint="type", path=["keyword"])
        shade = color if isinstance(color, str) else None
        await labels.set_label(running.ctx, keyword, LabelChange(name, shade, changes_color=True))
    except RequestError as problem:
        running.outcome.add_skipped(f"label {keyword}", str(problem))
        return not isinstance(problem, LimitReached)
    return True


async def _import_setting(running: RunningImport, name: str, value: Any) -> None:
    """Set one setting of the user. A refusal is added to the skipped items."""
    kinds = {"retention": int, "spam_level": int, "meta_data": dict, "encrypt_messages": bool}
    try:
        if not isinstance(value, kinds.get(name, str)):
            raise InvalidInput("not what it must be", constraint="type", path=[name])
        if name == "pub_key":
            patch = UserChanges(pub_key=str(value))
        elif name == "meta_data":
            patch = UserChanges({name: custom_data.validate_custom_data(value, [name])})
        else:
            patch = UserChanges(
                {name: _retention_from_seconds(value) if name == "retention" else value}
            )
        await user_update.update_users(running.ctx, VIEWER_ONLY, patch)
    except RequestError as problem:
        running.outcome.add_skipped(f"setting {name}", problem.message)


async def _import_key_value(running: RunningImport, record: Mapping[str, Any]) -> bool:
    """Import a key-value. Returns False if the limit on key-values is reached."""
    store, key, value = (record.get(name) for name in ("store", "key", "value"))
    try:
        if not (isinstance(store, str) and isinstance(key, str) and isinstance(value, str)):
            raise InvalidInput("no key, store or value", constraint="type", path=["key"])
        expires = parse_timestamp(record.get("expires"))
        ttl = None if expires is None else expires - running.ctx.environment.now()
        await key_values.set_value(
            running.ctx, KeyValueNamespace(running.user.id, store), key, NewKeyValue(value, ttl)
        )
    except (RequestError, InvalidRecordError) as problem:
        running.outcome.add_skipped(f"value {key}", str(problem))
        return not isinstance(problem, LimitReached)
    return True
