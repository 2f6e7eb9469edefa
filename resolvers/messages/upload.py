"""Storing of uploaded messages, complete or composed from fields; one can replace a draft."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import compress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.authentication.results_removal import own_names, stripped, without_own_results
from mail.compose import message_builder
from mail.mime.header_encoding import Named as Person
from mail.search import index_worker
from mail.storage import draft_replacement, message_content, openpgp_encryption
from mail.storage.blobs.blob_writer import Gone, Kept
from mail.storage.blobs.message_layout import Piece
from mail.storage.draft_replacement import PATH, Earlier
from mail.storage.message_content import Stored
from mail.storage.message_insert import QUOTA, Letter, Place, Placed, place
from mail.storage.received_messages import read, stored
from models.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    OverQuota,
    Problems,
    check_limit,
    found,
)
from models.mailboxes.shares import ALL, Rights, ShareRight
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.context import Context
from resolvers.files import uploads
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import Named, find
from resolvers.mailboxes.owners import holding, owners
from resolvers.messages import loaders as message_loaders
from resolvers.messages.loaders import here
from resolvers.submission import composition, file_attachments, reply_references
from resolvers.submission.attachments import Chosen
from resolvers.submission.composition import Fields, How, Previous
from resolvers.submission.send_on_behalf import another
from resolvers.users.selection import Users


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to store: complete (`raw`, `upload_id`, `received_source`), or from `fields`.

    `raw` is text or base64. With `fields` that refer to a message, and as a replacement of a draft,
    it is always a draft.
    """

    mailbox: Named
    raw: str | None = None
    upload_id: int | None = None
    received: bytes | Path | None = None  # already received, within the limits
    fields: Fields | None = None
    seen: bool = True
    flagged: bool = False
    draft: bool = False
    received_at: datetime | None = None
    meta_data: dict[str, Any] | None = None
    replaces: int | None = None  # the draft that it replaces
    keep: Chosen | None = None  # attachments of that draft, besides those in `fields`


@dataclass(frozen=True, slots=True)
class Done:
    """The stored message.

    `dropped_recipient_numbers` lists those in `to` without a complete address.
    """

    message: Picked | None
    replaced: bool = False
    dropped: Sequence[int] = ()


async def permit(ctx: Context, mailbox: Named, size: int) -> None:
    """Check that the viewer can store this many bytes in the mailbox, before they are received.

    Raises Forbidden, NotFound or OverQuota.
    """
    message_loaders.changeable(ctx)
    box = await find(ctx, mailbox, ShareRight.INSERT)
    given = {"user": box.user_id, "platform": ctx.world.options.default_quota}
    row = found(next(iter(await ctx.read(QUOTA, given)), None))
    if row.allowed and row.used + size > row.allowed:
        with mailbox_rights.discreet(ctx, box.user_id):
            raise OverQuota(used=row.used, allowed=row.allowed)


async def store(ctx: Context, new: NewMessage, problems: Problems | None = None) -> Done:
    """Store the message.

    Raises OverQuota or NotFound, and Conflict or Stale for a draft that is replaced. All problems
    of the fields are raised together, with the `problems` found before.
    """
    problems = problems or Problems()
    user_id = own(ctx)
    mailbox = await find(ctx, new.mailbox, ShareRight.INSERT)
    account = await composition.account_of(ctx, user_id)
    previous = await _previous(ctx, new, mailbox)
    if new.fields:
        file_attachments.check(new.fields.files, "files")
    new, dropped = _finished(new)
    if new.fields and not new.draft:
        _check_people(ctx, new.fields)
    with problems.caught():
        source = await _source(ctx, account, new, previous)
    problems.settle()
    letter = await read(source)
    to = _there(
        ctx, new, mailbox, await ctx.load(mailbox_rights.rights, (mailbox.user_id, mailbox.id))
    )
    before = await earlier(ctx, previous.message) if previous else None
    home = (
        account
        if mailbox.user_id == user_id
        else await composition.account_of(ctx, mailbox.user_id)
    )
    if not to.draft:
        letter = await openpgp_encryption.put_in(ctx.world, source, letter, home, mailbox)
    kept = await stored(ctx.world, home.tenant_id, letter)
    files = [file.file_id for file in new.fields.files] if new.fields else []
    try:
        placed = await _place(ctx, letter, kept, (to, before), files)
    except Gone:
        kept = await stored(ctx.world, home.tenant_id, letter, again=True)
        placed = await _place(ctx, letter, kept, (to, before), files)
    row = await ctx.load(message_loaders.by_ids, placed.message_id)
    return Done(row, before is not None, dropped)


async def store_for(
    ctx: Context, new: NewMessage, users: Users, problems: Problems | None = None
) -> tuple[list[Picked], Sequence[int]]:
    """Store a message in the mailbox of each of these users: of all or of none.

    Only administrators can do this for other users. A message from fields is composed in the name
    of each user, without references and stored files, which administrators can't read. A draft can
    be replaced for one user only. Returns the messages, and the numbers of dropped recipients.
    Raises NotFound if a user lacks the mailbox, and OverQuota.
    """
    rows, problems = await owners(ctx, users, "users"), problems or Problems()
    if len(rows) == 1 and (new.fields or new.replaces is not None or new.keep):
        return await _store_as(ctx, rows[0], new, problems)
    if new.replaces is not None or new.keep:
        text = "a draft is replaced in one account: select one user"
        raise Invalid(text, constraint="exclusive", path=["users"])
    if new.fields:
        _check_people(ctx, new.fields)
    new, dropped = _finished(new)
    mailboxes = await ctx.load_all(mailbox_loaders.named, [(row.id, new.mailbox) for row in rows])
    for row, mailbox in zip(rows, mailboxes, strict=True):
        if mailbox is None:
            raise NotFound(f"{row.username}: {new.mailbox}", path=["mailbox"])
    problems.settle()
    pairs = zip(rows, mailboxes, strict=True)
    there = [(row, mailbox, _there(ctx, new, mailbox)) for row, mailbox in pairs if mailbox]
    try:
        keys = await _place_all(ctx, new, there, users, again=False)
    except Gone:
        keys = await _place_all(ctx, new, there, users, again=True)
    return [row for row in await ctx.load_all(message_loaders.by_ids, keys) if row], dropped


async def _store_as(
    ctx: Context, row: Picked, new: NewMessage, problems: Problems
) -> tuple[list[Picked], Sequence[int]]:
    """Store a message as this user. It is logged if the viewer is another user."""
    async with ctx.together():
        done = await store(_as(ctx, row.id), new, problems)
        if row.id != ctx.viewer.user_id:
            async with ctx.write(row.id) as session:
                log = admin_log.Done("messageUpload", "User", row.id, row.domain_id)
                await admin_log.note(ctx, session, log)
        ctx.forget()
        key = [done.message.id] if done.message else []
        return [one for one in await ctx.load_all(message_loaders.by_ids, key) if one], done.dropped


def _as(ctx: Context, user_id: int) -> Context:
    """Return a context in which this user composes a message. It can't read mail or files."""
    return ctx if user_id == ctx.viewer.user_id else another(ctx, user_id)


async def _mail(
    ctx: Context, new: NewMessage, account: Picked | None
) -> tuple[bytes | Path, Letter]:
    """Return the source of a message, complete or composed by this user, and the parsed message."""
    if account is not None:
        ctx = _as(ctx, account.id)
        account = await composition.account_of(ctx, account.id)
    source = await _source(ctx, account, new, None)
    return source, await read(source)


async def _place_all(
    ctx: Context,
    new: NewMessage,
    there: Sequence[tuple[Picked, Picked, Place]],  # user, mailbox, placement
    users: Users,
    *,
    again: bool,
) -> list[int]:
    whole = None if new.fields else await _mail(ctx, new, None)
    ready, done = list[tuple[Letter, Kept, Place]](), set[tuple[int, str]]()
    for account, mailbox, to in there:
        source, clear = whole or await _mail(ctx, new, account)
        letter = clear
        if not to.draft:
            letter = await openpgp_encryption.put_in(ctx.world, source, clear, account, mailbox)
        blob = (account.tenant_id, letter.root.digest)
        kept = await stored(ctx.world, blob[0], letter, again=again and blob not in done)
        done.add(blob)
        ready.append((letter if whole and letter is clear else _light(letter), kept, to))

    def unit(turn: Turn) -> list[int]:
        return [place(turn, letter, kept, to).message_id for letter, kept, to in ready]

    async with holding(ctx, users, "messageUpload") as held:
        return await ctx.world.join(held.session, unit)


def _light(letter: Letter) -> Letter:
    """Return a parsed message without its bytes, which are stored already."""
    return replace(letter, root=Piece(letter.root.digest, b""), pieces=(), keeping={})


def _there(ctx: Context, new: NewMessage, box: Any, may: Rights = ALL) -> Place:
    """Return the placement in the mailbox.

    Flags that the rights exclude are left out (RFC 4314, section 4).
    """
    return Place(
        box.user_id,
        box.id,
        new.received_at or ctx.world.now(),
        seen=new.seen and ShareRight.SEEN in may,
        flagged=new.flagged and ShareRight.WRITE in may,
        draft=new.draft and ShareRight.WRITE in may,
        meta_data=new.meta_data if ShareRight.WRITE in may else None,
        reference=reply_references.referred(new.fields.reference if new.fields else None),
        origin=ctx.origin,
    )


async def _place(
    ctx: Context,
    letter: Letter,
    kept: Kept,
    there: tuple[Place, Earlier | None],
    files: Sequence[int] = (),
) -> Placed:
    to, before = there

    def unit(turn: Turn) -> Placed:
        if before:
            placed = draft_replacement.replace(turn, letter, kept, to, before)
        else:
            placed = place(turn, letter, kept, to)
        if files and to.draft:
            file_attachments.remember(turn, placed.message_id, files)
        return placed

    async with ctx.write(to.user_id) as session:
        if to.user_id != own(ctx):  # the share may have ended
            await find(ctx, Named(id=to.mailbox_id), ShareRight.INSERT)
        with mailbox_rights.discreet(ctx, to.user_id):
            return await ctx.world.join(session, unit)


def _check_people(ctx: Context, fields: Fields) -> None:
    """Raise LimitReached for too many recipients or Reply-To addresses."""
    most = ctx.world.options.max_recipients
    used = sum(len(people or ()) for people in (fields.to, fields.cc, fields.bcc))
    check_limit(used, most, f"more than {most} recipients", path=["to"])
    check_limit(len(fields.reply_to or ()), most, f"more than {most} addresses", path=["replyTo"])


def _finished(new: NewMessage) -> tuple[NewMessage, list[int]]:
    """Return the message without recipients with an incomplete address, and their numbers."""
    fields = new.fields
    if new.replaces is not None or (fields and fields.reference):
        new = replace(new, draft=True)
    if not fields or not fields.to:
        return new, []
    whole = [_addressed(person) for person in fields.to]
    to = list(compress(fields.to, whole))
    dropped = [nth for nth, fits in enumerate(whole) if not fits]
    return replace(new, fields=replace(fields, to=to)), dropped


def _addressed(person: Person) -> bool:
    try:
        message_builder.address(person.address, "to")
    except Invalid:
        return False
    return True


async def _previous(ctx: Context, new: NewMessage, box: Picked) -> Previous | None:
    """Return the viewer's draft to replace. Raises NotFound, or Conflict if it is no draft."""
    if new.replaces is None:
        if new.keep:
            raise Invalid(
                "attachments are kept of a draft that is replaced: name it in replacePrevious",
                constraint="required",
                path=["keepAttachments"],
            )
        return None
    if box.user_id != own(ctx):
        raise Forbidden("a draft stays with its account", path=["mailbox"])
    statement = select(*picked(Message)).where(
        col(Message.user_id) == own(ctx), here(), col(Message.id) == new.replaces
    )
    row = found(next(iter(await ctx.read(statement)), None), str(new.replaces), path=PATH)
    if not row.draft:
        raise Conflict("only a draft can be replaced", path=PATH)
    (message,) = await message_content.read_sources(ctx.world, [row], ctx.read)
    return Previous(message, new.keep)


async def earlier(ctx: Context, message: Stored) -> Earlier:
    """Return the draft to replace, with the search words it had when it was read."""
    row = message.row
    words = await index_worker.words_of(ctx.world, row, message)
    return Earlier(row.id, row.digest, words)


async def _source(
    ctx: Context, account: Picked | None, new: NewMessage, previous: Previous | None
) -> bytes | Path:
    """Return the bytes of the message. Raises InvalidInput unless exactly one source is given.

    `account` is the author if the message is composed from fields.
    """
    raw = "rawUpload" if new.upload_id is not None else "raw"
    ways = (new.raw, new.upload_id, new.received, new.fields)
    given = sum(way is not None for way in ways)
    if given != 1:
        text = "give raw, rawUpload, or fields to write it from: one of them"
        raise Invalid(text, constraint="exclusive" if given else "required", path=[raw])
    if new.received is not None:
        return await without_own_results(ctx.world.options, new.received)
    if new.fields is not None and account is not None:
        date = new.received_at or ctx.world.now()
        head = await composition.letterhead(ctx, account, new.fields, checked=new.draft)
        draft = await composition.draft_of(ctx, head, new.fields, How(date, previous))
        return await composition.built(draft)
    if new.keep:
        raise Invalid(
            "a whole message has its attachments",
            constraint="exclusive",
            path=["keepAttachments"],
        )
    return await whole(ctx, new.raw, new.upload_id)


async def whole(ctx: Context, raw: str | None, upload_id: int | None) -> bytes:
    """Return a complete message, given as text or base64 or uploaded before.

    Raises InvalidInput.
    """
    path = ["rawUpload" if upload_id is not None else "raw"]
    if upload_id is not None:
        content = await uploads.read_upload(ctx, upload_id)
    else:
        content = decoded(raw or "")
    limit = ctx.world.options.message_max
    if not content.strip():
        raise Invalid("the message is empty", constraint="required", path=path)
    check_limit(len(content), limit, f"a message has at most {limit} bytes", path=path)
    return stripped(content, own_names(ctx.world.options))


def decoded(text: str) -> bytes:
    """Return the bytes of a message, given as text with any line ends or as base64.

    A message begins with a field name and a colon, which base64 never contains. Raises
    InvalidInput.
    """
    if ":" not in text:
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError) as problem:
            raise Invalid(
                "neither a message nor base64", constraint="encoding", path=["raw"]
            ) from problem
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()
