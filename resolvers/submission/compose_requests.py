"""Ask the mail clients of an account to open a compose window, and deliver such requests."""

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlmodel import col

from mail.compose import draft_validation
from mail.compose.message_draft import (
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
    require_found,
    require_within_limit,
)
from models.events.event_types import EventType
from models.events.journal import Change
from models.files.tables import FileAttachmentMode
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth.credential_cache import cache_of_database
from resolvers.auth.log_actors import load_log_actor
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import FollowRequest
from resolvers.context import Context
from resolvers.files import shares as file_shares
from resolvers.files import stored_files
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.pagination import read_by_keys
from resolvers.submission import composition, file_attachments
from resolvers.submission.composition import MessageFields
from resolvers.submission.file_attachments import UrlFromPath
from resolvers.submission.identities import loaders as identity_loaders
from resolvers.submission.message_source import source_id_and_relation_or_none
from resolvers.submission.send_on_behalf import IMPERSONATE_GUARD, context_as_user
from resolvers.users.selection import require_managed_user

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


async def create_compose_request_for_listeners(
    ctx: Context, new_request: NewComposeRequest
) -> CreatedComposeRequest:
    """Store a compose request and notify the clients of the account. It expires after ten minutes.

    An administrator who may act as a user can do this for that user. Raises ServiceUnavailable
    (USER_OFFLINE) if the account has no listening client; then nothing is stored. Raises NotFound
    if a file, identity or mailbox does not exist, InvalidInput if a field is wrong, and
    LimitReached if the account has 100 open requests.
    """
    user_id, domain = user_id_or_viewer(ctx, new_request.user_id), None
    owner_ctx = ctx
    if user_id != ctx.viewer.user_id:
        ctx.viewer.require(IMPERSONATE_GUARD)
        domain = (await require_managed_user(ctx, user_id)).domain_id
        owner_ctx = context_as_user(ctx, user_id)
    content, shares = await _validated_content_and_file_links(owner_ctx, new_request)
    identity = new_request.fields.identity
    mailbox_id = await _require_mailbox_id_if_given(owner_ctx, new_request.mailbox_ref)
    request_id, now = ctx.environment.new_id(), ctx.environment.now()
    async with ctx.write_session(user_id) as session:
        if owner_ctx is not ctx:
            owner_ctx = context_as_user(ctx, user_id)  # in this unit
        row = {
            "id": request_id,
            "user_id": user_id,
            "identity_id": identity,
            "mailbox_id": mailbox_id,
            "content": content,
            "requested_by": (await load_log_actor(session, ctx.viewer)).name,
            "created_at": now,
            "expires_at": now + LIFETIME,
        }
        listener_count = await ctx.environment.run_in_session(
            session,
            lambda transaction: _require_listeners_and_insert_request(transaction, user_id, row),
        )
        await file_shares.insert_shares(owner_ctx, session, shares)
        await ctx.record_change(session, user_id, EventType.COMPOSE_REQUESTED, [request_id])
        if owner_ctx is not ctx:
            entry = NewAuditLogEntry("composeRequestCreate", "User", user_id, domain)
            await audit_log.insert_audit_log_entries(ctx, session, entry)
    statement = select(*select_columns(ComposeRequest)).where(col(ComposeRequest.id) == request_id)
    return CreatedComposeRequest(
        require_found(next(iter(await ctx.read(statement)), None)), listener_count
    )


def user_id_or_viewer(ctx: Context, user_id: int | None) -> int:
    """Return the given user, or the viewer if none is given."""
    return require_user_id(ctx) if user_id is None else user_id


def _require_listeners_and_insert_request(
    transaction: DatabaseTransaction, user_id: int, request_row: dict[str, Any]
) -> int:
    """Insert a compose request, delete expired ones, and return the number of listening clients.

    Raises ServiceUnavailable with USER_OFFLINE if no client listens, and LimitReached if too many
    are open.
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
        text = "No client of the user is open that could show the request."
        raise ServiceUnavailable(text, code=ErrorCode.USER_OFFLINE)
    open_count: int = transaction.connection.execute(
        select(func.count())
        .select_from(ComposeRequest)
        .where(col(ComposeRequest.user_id) == user_id)
    ).scalar_one()
    if open_count >= MAX_OPEN_REQUESTS:
        raise LimitReached(
            f"At most {MAX_OPEN_REQUESTS} compose requests can be open at a time.",
            limit=MAX_OPEN_REQUESTS,
            used=open_count,
        )
    transaction.connection.execute(insert(ComposeRequest), request_row)
    return listener_count


async def _require_mailbox_id_if_given(
    ctx: Context, mailbox_ref: mailbox_loaders.MailboxSelector | None
) -> int | None:
    if mailbox_ref is None:
        return None
    (row,) = await mailbox_loaders.load_visible_by_selectors(
        ctx, [(require_user_id(ctx), mailbox_ref)]
    )
    return int(
        require_found(row, str(mailbox_ref.path or mailbox_ref.id or ""), path=["mailbox"]).id
    )


class _ValidatedContent(NamedTuple):
    """The stored content of a compose window, and the new links to files."""

    content: dict[str, Any]
    file_links: list[Any]


async def _validated_content_and_file_links(
    ctx: Context, new_request: NewComposeRequest
) -> _ValidatedContent:
    """Validate the fields and return the stored content of the window with the new links to files.

    Raises InvalidInput for all wrong fields together, and NotFound for a missing identity or file.
    """
    fields, problems = new_request.fields, ErrorCollector()
    _collect_field_problems(ctx, fields, problems)
    problems.raise_collected()
    if fields.identity is not None:
        (sender,) = await identity_loaders.load_visible_identities_by_id(ctx, [fields.identity])
        if sender is None or sender.user_id != require_user_id(ctx):
            raise NotFound(str(fields.identity), path=["identity"])
    links = await file_attachments.prepare_links_of_unattached_files(
        ctx, fields.files, new_request.url_from_path
    )
    filled = await composition.with_source_content(ctx, fields)
    text, html = file_attachments.append_links(filled.text, filled.html, links)
    attached_file_ids = [
        file.file_id for file in fields.files if file.mode is FileAttachmentMode.ATTACH
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
        "source": source_id_and_relation_or_none(fields.source),
    }
    return _ValidatedContent(content, [link.share for link in links])


def _collect_field_problems(ctx: Context, fields: MessageFields, problems: ErrorCollector) -> None:
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
            text = f"At most {max_addresses} addresses are allowed."
            require_within_limit(len(addresses or ()), max_addresses, text, path=[name])
            for index, mailbox_address in enumerate(addresses or ()):
                draft_validation.normalize_and_validate_address_with_index(
                    mailbox_address.address, name, index
                )
                draft_validation.validate_single_line_text(
                    mailbox_address.name or "", [name], MAX_NAME_BYTES
                )
    with problems.collecting():
        draft_validation.validate_single_line_text(
            fields.subject or "", ["subject"], MAX_SUBJECT_BYTES
        )
    with problems.collecting():
        draft_validation.validate_text_size_and_characters(
            fields.text or "", ["text"], MAX_TEXT_BYTES
        )
    with problems.collecting():
        draft_validation.validate_text_size_and_characters(
            fields.html or "", ["html"], MAX_HTML_WITH_IMAGES_BYTES
        )
    with problems.collecting():
        file_attachments.require_valid_file_attachments(fields.files)
    with problems.collecting():
        if fields.source and (fields.source.attachments or fields.source.includes_message):
            text = "`attachments` can't be set: the client attaches those of the original message."
            path = ["original", "attachments"]
            raise InvalidInput(text, constraint=ValidationConstraint.UNSUPPORTED, path=path)


def _name_address_pairs(addresses: Sequence[NamedAddress]) -> list[list[str | None]]:
    return [[person.name, person.address] for person in addresses]


async def load_own_open_compose_requests_by_id(
    ctx: Context, request_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the viewer's requests, in the order of the ids; None for one that is expired."""
    open_requests = select(*select_columns(ComposeRequest)).where(
        is_own_or_shared(ctx, ComposeRequest),
        col(ComposeRequest.expires_at) > ctx.environment.now(),
    )
    return await read_by_keys(ctx, open_requests, col(ComposeRequest.id), request_ids)


async def follow_compose_requests(
    ctx: Context, after_id: int | None = None
) -> AsyncGenerator[ColumnRow]:
    """Yield new compose requests of the viewer, each once, in the order of their commits.

    With `after_id`, first yield the open requests that were committed after that one. The client
    counts as listening until the generator is closed.
    """
    user_id = require_user_id(ctx)
    # read first: a request that counts this client as listener is committed after this position
    position = await stream_reader.load_last_stream_positions(ctx)
    async with _register_listener(ctx):
        earlier_ids = await _request_ids_in_commit_order(ctx, user_id, position[user_id])
        # there are not more open ones, and each can be read from the journal and from the table
        seen_ids = deque(earlier_ids, maxlen=MAX_OPEN_REQUESTS)
        if after_id is not None:
            for row in await _load_requests_committed_after(ctx, after_id, earlier_ids):
                seen_ids.append(row.id)
                yield row
        async for batch in stream_reader.follow_changes(ctx, FollowRequest(position, EVENT_TYPES)):
            if batch.resync_reason:  # open requests are still stored after their events are deleted
                rows: Sequence[ColumnRow | None] = await _read_own_open_requests(ctx)
            elif keys := [event.object_id for event in batch.events]:
                rows = await load_own_open_compose_requests_by_id(ctx, keys)
            else:
                rows = []
            for request_row in rows:
                if request_row is not None and request_row.id not in seen_ids:
                    seen_ids.append(request_row.id)
                    yield request_row


async def _request_ids_in_commit_order(ctx: Context, user_id: int, last_position: int) -> list[int]:
    """Return the IDs of the requests among the last events of a user up to a position.

    An ID is taken before the transaction of its request, so IDs are not in the order of commits.
    """
    oldest = last_position - ctx.environment.options.subscriptions_max_lag_events
    statement = select(col(Change.ids)).where(
        col(Change.stream_id) == user_id,
        col(Change.type).in_(EVENT_TYPES),
        col(Change.last).between(oldest, last_position),
    )
    rows = await ctx.read(statement.order_by(col(Change.last)))
    return [request_id for row in rows for request_id in row.ids]


async def _load_requests_committed_after(
    ctx: Context, after_id: int, earlier_ids: Sequence[int]
) -> Sequence[ColumnRow]:
    """Return the open requests after a request. `earlier_ids` are in the order of commits.

    If the events of requests are no longer kept, those with a higher ID count as later.
    """
    start = earlier_ids.index(after_id) + 1 if after_id in earlier_ids else 0
    later_ids = list(earlier_ids[start:][-MAX_OPEN_REQUESTS:])
    without_event = [
        row
        for row in await _read_own_open_requests(ctx)
        if row.id > after_id and row.id not in earlier_ids
    ]
    later = await load_own_open_compose_requests_by_id(ctx, later_ids) if later_ids else []
    return [*filter(None, later), *without_event]


async def _read_own_open_requests(ctx: Context) -> Sequence[ColumnRow]:
    """Read the viewer's compose requests that have not expired, the oldest first."""
    statement = select(*select_columns(ComposeRequest)).where(
        is_own_or_shared(ctx, ComposeRequest),
        col(ComposeRequest.expires_at) > ctx.environment.now(),
    )
    return await ctx.read(statement.order_by(col(ComposeRequest.id)).limit(MAX_OPEN_REQUESTS))


@asynccontextmanager
async def _register_listener(ctx: Context) -> AsyncGenerator[None]:
    """Register a listening client of the viewer in the database until the context ends."""
    environment = ctx.environment
    holder = await leases.ensure_process_registered(environment)
    row = {"id": environment.new_id(), "user_id": require_user_id(ctx), "holder": holder}
    is_this_listener = col(ComposeListener.id) == row["id"]

    def insert_listener(transaction: DatabaseTransaction) -> None:
        dead = delete(ComposeListener).where(
            col(ComposeListener.user_id) == row["user_id"],
            ~leases.is_registered(col(ComposeListener.holder)),
        )
        transaction.connection.execute(dead)
        insert_if_missing(transaction)

    def insert_if_missing(transaction: DatabaseTransaction) -> None:
        """Insert the row of the listener if it is missing."""
        if not transaction.connection.execute(
            select(col(ComposeListener.id)).where(is_this_listener)
        ).first():
            transaction.connection.execute(insert(ComposeListener), row)

    async def remove_listener() -> None:
        await environment.run_transaction(
            lambda turn: turn.connection.execute(delete(ComposeListener).where(is_this_listener))
        )

    await environment.run_transaction(insert_listener)
    environment.process.restore_leases.append(insert_if_missing)
    try:
        yield
    finally:
        environment.process.restore_leases.remove(insert_if_missing)
        cache_of_database(environment.database).run_in_background(remove_listener())
