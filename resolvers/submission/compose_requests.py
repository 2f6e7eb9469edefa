"""Ask the mail clients of an account to open a compose window, and deliver such requests."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlmodel import col

from mail.compose import message_builder
from mail.compose.message_builder import (
    MAX_HTML_WITH_IMAGES_BYTES,
    MAX_NAME_BYTES,
    MAX_SUBJECT_BYTES,
    MAX_TEXT_BYTES,
    Priority,
)
from mail.mime.header_encoding import NamedAddress
from models.errors import (
    ErrorCode,
    ErrorCollector,
    InvalidInput,
    LimitReached,
    NotFound,
    ServiceUnavailable,
    check_limit,
    require_found,
)
from models.events.event_types import EventType
from models.files.tables import FileAttachmentMode
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_visible, require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import cache_of_database
from resolvers.auth.security_log import load_actor_id_and_name
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.files import shares as file_shares
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.pagination import read_by_keys
from resolvers.submission import composition, file_attachments, identities
from resolvers.submission.composition import MessageFields
from resolvers.submission.file_attachments import UrlFromPath
from resolvers.submission.message_source import source_columns
from resolvers.submission.send_on_behalf import IMPERSONATE_GUARD, context_as_user
from resolvers.users.selection import load_managed_user

LIFETIME = timedelta(minutes=10)  # after that a request is expired
MAX_OPEN_REQUESTS = 100  # of one account
EVENT_TYPES = frozenset({EventType.COMPOSE_REQUESTED})


@dataclass(frozen=True, slots=True)
class NewComposeRequest:
    """The content of a compose window and the account that it is opened for."""

    fields: MessageFields
    mailbox_ref: mailbox_loaders.MailboxSelector | None = None
    user_id: int | None = None  # None: the viewer
    url_from_path: UrlFromPath = str


@dataclass(frozen=True, slots=True)
class CreatedComposeRequest:
    """A stored compose request and the number of clients that listen for it."""

    request: ColumnRow
    listener_count: int


async def create_compose_request(ctx: Context, new: NewComposeRequest) -> CreatedComposeRequest:
    """Store a compose request and notify the clients of the account. It expires after ten minutes.

    An administrator who may act as a user can do this for that user. Raises USER_OFFLINE if the
    account has no listening client; then nothing is stored. Raises NotFound if a file, identity or
    mailbox does not exist, Invalid if a field is wrong, and LimitReached if the account has 100
    open requests.
    """
    user_id, domain = user_id_or_viewer(ctx, new.user_id), None
    owner_ctx = ctx
    if user_id != ctx.viewer.user_id:
        ctx.viewer.require(IMPERSONATE_GUARD)
        domain = (await load_managed_user(ctx, user_id)).domain_id
        owner_ctx = context_as_user(ctx, user_id)
    content, shares = await _build_content(owner_ctx, new)
    identity = new.fields.identity
    mailbox_id = await _mailbox_id_from_ref(owner_ctx, new.mailbox_ref)
    request_id, now = ctx.environment.new_id(), ctx.environment.now()
    async with ctx.write_session(user_id) as session:
        if owner_ctx is not ctx:
            owner_ctx = context_as_user(ctx, user_id)  # in this unit
        row = {
            "id": request_id,
            "user_id": user_id,
            "identity_id": identity,
            "mailbox_id": mailbox_id,
            "written": content,
            "requested_by": (await load_actor_id_and_name(session, ctx.viewer))[1],
            "created_at": now,
            "expires_at": now + LIFETIME,
        }
        listener_count = await ctx.environment.run_in_session(
            session, lambda transaction: _insert_and_count_listeners(transaction, user_id, row)
        )
        await file_shares.insert_shares(owner_ctx, session, shares)
        await ctx.record_change(session, user_id, EventType.COMPOSE_REQUESTED, [request_id])
        if owner_ctx is not ctx:
            entry = NewAuditLogEntry("composeRequest", "User", user_id, domain)
            await audit_log.log_changes(ctx, session, entry)
    statement = select(*select_columns(ComposeRequest)).where(col(ComposeRequest.id) == request_id)
    return CreatedComposeRequest(
        require_found(next(iter(await ctx.read(statement)), None)), listener_count
    )


def user_id_or_viewer(ctx: Context, user_id: int | None) -> int:
    """Return the given user, or the viewer if none is given."""
    return require_user_id(ctx) if user_id is None else user_id


def _insert_and_count_listeners(
    transaction: DatabaseTransaction, user_id: int, row: dict[str, Any]
) -> int:
    """Insert a compose request, delete expired ones, and return the number of listening clients.

    Raises Unavailable with USER_OFFLINE if no client listens, and LimitReached if too many are
    open.
    """
    now = transaction.environment.now()
    delete_expired = delete(ComposeRequest).where(
        col(ComposeRequest.user_id) == user_id, col(ComposeRequest.expires_at) <= now
    )
    transaction.connection.execute(delete_expired)
    is_listener = (
        col(ComposeListener.user_id) == user_id,
        leases.is_registered(col(ComposeListener.holder)),
    )
    listener_count: int = transaction.connection.execute(
        select(func.count()).select_from(ComposeListener).where(*is_listener)
    ).scalar_one()
    if not listener_count:
        text = "the user has no client open that could show it"
        raise ServiceUnavailable(text, code=ErrorCode.USER_OFFLINE)
    open_count: int = transaction.connection.execute(
        select(func.count())
        .select_from(ComposeRequest)
        .where(col(ComposeRequest.user_id) == user_id)
    ).scalar_one()
    if open_count >= MAX_OPEN_REQUESTS:
        raise LimitReached(
            f"at most {MAX_OPEN_REQUESTS} at a time", limit=MAX_OPEN_REQUESTS, used=open_count
        )
    transaction.connection.execute(insert(ComposeRequest), row)
    return listener_count


async def _mailbox_id_from_ref(
    ctx: Context, mailbox_ref: mailbox_loaders.MailboxSelector | None
) -> int | None:
    if mailbox_ref is None:
        return None
    (row,) = await mailbox_loaders.load_by_selectors(ctx, [(require_user_id(ctx), mailbox_ref)])
    return int(
        require_found(row, str(mailbox_ref.path or mailbox_ref.id or ""), path=["mailbox"]).id
    )


async def _build_content(ctx: Context, new: NewComposeRequest) -> tuple[dict[str, Any], list[Any]]:
    """Validate the fields and return the stored content of the window with the new links to files.

    Raises Invalid for all wrong fields together, and NotFound for a missing identity or file.
    """
    fields, problems = new.fields, ErrorCollector()
    _check_fields(ctx, fields, problems)
    problems.raise_collected()
    if fields.identity is not None:
        (sender,) = await identities.load_visible_identities_by_id(ctx, [fields.identity])
        if sender is None or sender.user_id != require_user_id(ctx):
            raise NotFound(str(fields.identity), path=["identity"])
    links = await file_attachments.prepare_links(ctx, fields.files, new.url_from_path)
    filled = await composition.add_source_content(ctx, fields)
    text, html = file_attachments.append_links(filled.text, filled.html, links)
    attached_file_ids = [
        one.file_id for one in fields.files if one.mode is FileAttachmentMode.ATTACH
    ]
    for nth, row in enumerate(
        await ctx.load_many(stored_files.load_own_files_by_id, attached_file_ids)
    ):
        if row is None:
            path = [file_attachments.FIELD_NAME, str(nth), "file"]
            raise NotFound(str(attached_file_ids[nth]), path=path, index=nth)
    content = {
        "to": _name_address_pairs(filled.to or ()),
        "cc": _name_address_pairs(filled.cc or ()),
        "bcc": _name_address_pairs(fields.bcc),
        "reply_to": _name_address_pairs(fields.reply_to or ()),
        "subject": filled.subject,
        "text": text,
        "html": html,
        "files": attached_file_ids,
        "priority": Priority(fields.priority).value,
        "source": source_columns(fields.source),
    }
    return content, [one.share for one in links]


def _check_fields(ctx: Context, fields: MessageFields, problems: ErrorCollector) -> None:
    """Add an error to `problems` for each field that is wrong."""
    address_lists = {
        "to": fields.to,
        "cc": fields.cc,
        "bcc": fields.bcc,
        "replyTo": fields.reply_to,
    }
    max_addresses = ctx.environment.options.submission_max_recipients
    for name, addresses in address_lists.items():
        with problems.collecting():
            text = f"more than {max_addresses} addresses"
            check_limit(len(addresses or ()), max_addresses, text, path=[name])
            for index, mailbox_address in enumerate(addresses or ()):
                message_builder.validate_address(mailbox_address.address, name, index)
                message_builder.validate_line(mailbox_address.name or "", [name], MAX_NAME_BYTES)
    with problems.collecting():
        message_builder.validate_line(fields.subject or "", ["subject"], MAX_SUBJECT_BYTES)
    with problems.collecting():
        message_builder.validate_text(fields.text or "", ["text"], MAX_TEXT_BYTES)
    with problems.collecting():
        message_builder.validate_text(fields.html or "", ["html"], MAX_HTML_WITH_IMAGES_BYTES)
    with problems.collecting():
        file_attachments.check_file_attachment_settings(fields.files)
    with problems.collecting():
        if fields.source and (fields.source.attachments or fields.source.includes_message):
            text = "the client attaches what the message referred to has"
            path = ["source", "attachments"]
            raise InvalidInput(text, constraint=ValidationConstraint.UNSUPPORTED, path=path)


def _name_address_pairs(addresses: Sequence[NamedAddress]) -> list[list[str | None]]:
    return [[person.name, person.address] for person in addresses]


async def load_own_compose_requests_by_id(
    ctx: Context, request_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the viewer's requests, in the order of the ids; None for one that is expired."""
    open_requests = select(*select_columns(ComposeRequest)).where(
        is_visible(ctx, ComposeRequest), col(ComposeRequest.expires_at) > ctx.environment.now()
    )
    return await read_by_keys(ctx, open_requests, col(ComposeRequest.id), request_ids)


async def follow_compose_requests(
    ctx: Context, after_id: int | None = None
) -> AsyncGenerator[ColumnRow]:
    """Yield new compose requests of the viewer.

    With `after_id`, first yield the open requests that are newer than that id. The client counts
    as listening until the generator is closed.
    """
    require_user_id(ctx)
    async with _register_listener(ctx):
        position = await stream_reader.load_last_stream_positions(ctx)
        last_id = after_id or 0
        if after_id is not None:
            for row in await _read_requests_after(ctx, after_id):
                last_id = row.id
                yield row
        async for batch in stream_reader.follow_changes(ctx, FollowRequest(position, EVENT_TYPES)):
            keys = [event.object_id for event in batch.events]
            if batch.resync_reason:  # open requests are still stored after their events are deleted
                rows: Sequence[ColumnRow | None] = await _read_requests_after(ctx, last_id)
            else:
                rows = (
                    await load_own_compose_requests_by_id(ctx, list(dict.fromkeys(keys)))
                    if keys
                    else []
                )
            for one in rows:
                if one is not None:
                    last_id = max(last_id, one.id)
                    yield one


async def _read_requests_after(ctx: Context, after_id: int) -> Sequence[ColumnRow]:
    statement = select(*select_columns(ComposeRequest)).where(
        is_visible(ctx, ComposeRequest),
        col(ComposeRequest.expires_at) > ctx.environment.now(),
        col(ComposeRequest.id) > after_id,
    )
    return await ctx.read(statement.order_by(col(ComposeRequest.id)).limit(MAX_OPEN_REQUESTS))


@asynccontextmanager
async def _register_listener(ctx: Context) -> AsyncGenerator[None]:
    """Register a listening client of the viewer in the database until the context ends."""
    environment = ctx.environment
    holder = await leases.ensure_registered(environment)
    row = {"id": environment.new_id(), "user_id": require_user_id(ctx), "holder": holder}
    is_this_listener = col(ComposeListener.id) == row["id"]

    def register(transaction: DatabaseTransaction) -> None:
        dead = delete(ComposeListener).where(
            col(ComposeListener.user_id) == row["user_id"],
            ~leases.is_registered(col(ComposeListener.holder)),
        )
        transaction.connection.execute(dead)
        insert_if_missing(transaction)

    def insert_if_missing(transaction: DatabaseTransaction) -> None:
        if not transaction.connection.execute(
            select(col(ComposeListener.id)).where(is_this_listener)
        ).first():
            transaction.connection.execute(insert(ComposeListener), row)

    async def unregister() -> None:
        await environment.run_transaction(
            lambda turn: turn.connection.execute(delete(ComposeListener).where(is_this_listener))
        )

    await environment.run_transaction(register)
    environment.process.restore_leases.append(insert_if_missing)
    try:
        yield
    finally:
        environment.process.restore_leases.remove(insert_if_missing)
        cache_of_database(environment.database).run_in_background(unregister())
