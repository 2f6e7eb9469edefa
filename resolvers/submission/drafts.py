"""Send a stored draft, and make a message that is still held a draft again."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.authentication.results_removal import own_names, stripped
from mail.compose import message_builder
from mail.compose.submission_repair import Mended, mended
from mail.storage import draft_replacement, message_content, openpgp_encryption
from mail.storage.blobs.blob_writer import Gone, Kept
from mail.storage.draft_replacement import Earlier
from mail.storage.message_content import gathered
from mail.storage.message_insert import Letter, Place
from mail.storage.received_messages import read, stored
from models.errors import Conflict, Invalid, NotFound, Unavailable, check_limit, found
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.submission.tables import Submission
from resolvers.access import own
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import held_place
from resolvers.messages import loaders as message_loaders
from resolvers.messages import upload
from resolvers.messages.loaders import here
from resolvers.queue import rate_limits
from resolvers.submission import composition, file_attachments, identities, outgoing_scan
from resolvers.submission import create as submission_create
from resolvers.submission.create import SENT_NOT_KEPT, Sent
from resolvers.submission.outgoing_messages import Outgoing, addressees, send_time
from resolvers.submission.reply_references import Reference, ReferenceAction, answered
from resolvers.submission.sender_authorization import may_send_as
from resolvers.users.quota import limits as quota_limits

PATH = ["message"]
STAYS = "It is sent, but there is no folder Sent: it lies where it lay."


@dataclass(frozen=True, slots=True)
class Order:
    """The draft to send, the time, and whether its stored files are deleted."""

    message_id: int
    delete_files: bool = False  # the stored files of the draft
    send_time: datetime | None = None
    undo_window: timedelta | None = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A draft that is ready to be queued and moved to Sent."""

    row: Picked
    earlier: Earlier
    place: Place
    mail: submission_create.Ready


async def submit(ctx: Context, order: Order) -> tuple[Sent, dict[str, Any]]:
    """Send a draft, which becomes the copy in Sent under the same id, all or nothing.

    The message gets a new Date. Also returns the facts that `prepare_draft_restoration` needs to
    undo it. Raises Conflict if the message is no draft, NotFound, Invalid if it has no recipient
    or a wrong header, Forbidden if the account may not send as an author or the scanner rejects
    it, and RateLimited.
    """
    account = await composition.account_of(ctx, own(ctx))
    await quota_limits.may_write(ctx, account)
    ready, warnings = await _ready(ctx, account, order)
    try:
        key = await _store(ctx, account, ready, order, again=False)
    except Gone:
        key = await _store(ctx, account, ready, order, again=True)
    row = ready.row
    sent = Sent(
        await ctx.load(submission_create.by_ids, key),
        await ctx.load(message_loaders.by_ids, row.id),
        warnings,
    )
    return sent, {"message": row.id, "mailbox": row.mailbox_id, "seen": row.seen}


async def _ready(
    ctx: Context, account: Picked, order: Order
) -> tuple[_Ready, Sequence[tuple[str, str]]]:
    outgoing = Outgoing(send_time=order.send_time, undo_window=order.undo_window)
    row = await _row(ctx, order.message_id)
    if not row.draft:
        raise Conflict("this is no draft: only drafts are submitted", path=PATH)
    made = await _mended(ctx, row, send_time(ctx.world, outgoing) or ctx.world.now())
    grants = [await may_send_as(ctx, account, each, PATH) for each in _writers(made)]
    sender = made.writers[0]
    recipients = _recipients(ctx, made)
    await outgoing_scan.checked(ctx, account, made.raw, sender, recipients)
    letter = copy = await read(made.raw)
    warnings = list[tuple[str, str]]()
    box = await _folder(ctx, account, sender, grants[0])
    if box is None:
        (box,) = await mailbox_loaders.named(
            ctx, [(account.id, mailbox_loaders.Named(id=row.mailbox_id))]
        )
        box, warnings = found(box, path=PATH), [(SENT_NOT_KEPT, STAYS)]
    try:
        copy = await openpgp_encryption.put_in(ctx.world, made.raw, letter, account, box)
    except Unavailable as problem:
        raise Conflict(problem.message, path=PATH) from problem
    place = Place(
        account.id,
        box.id,
        ctx.world.now(),
        seen=True,
        envelope_from=sender,
        envelope_to=recipients,
        origin=ctx.origin,
    )
    home = None
    if submission_create.is_held(ctx.world, outgoing):
        home, place = place.mailbox_id, await held_place(ctx, place)
    earlier = await _earlier(ctx, row, draft=True)
    (copied,) = await submission_create.copies(ctx, account, [(sender, recipients)])
    mail = submission_create.Ready(
        letter, copy, sender, recipients, place, outgoing, copied, sent_mailbox_id=home
    )
    return _Ready(row, earlier, place, mail), warnings


async def _row(ctx: Context, key: int) -> Picked:
    """Read a message of the viewer's own account. Raises NotFound."""
    asked = select(*picked(Message)).where(
        col(Message.user_id) == own(ctx), here(), col(Message.id) == key
    )
    row: Picked = found(next(iter(await ctx.read(asked)), None), str(key), path=PATH)
    return row


async def _mended(ctx: Context, row: Picked, date: datetime) -> Mended:
    """Complete the header of a draft for sending, with this date.

    Raises Invalid if that is impossible.
    """
    (message,) = await message_content.read_sources(ctx.world, [row], ctx.read)
    raw = await gathered(message.whole())
    raw = stripped(raw, own_names(ctx.world.options))
    message_id = composition.new_message_id(ctx, row.from_address or "")
    try:
        return await asyncio.to_thread(mended, raw, date, message_id, redate=True)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint=wrong.constraint, path=PATH) from wrong


def _writers(made: Mended) -> list[str]:
    return [message_builder.address(each, PATH[0]) for each in dict.fromkeys(made.writers)]


def _recipients(ctx: Context, made: Mended) -> list[str]:
    """Return the recipients that the header names, each once. Raises Invalid if there are none."""
    each = dict[str, str]()
    for text, _, _ in addressees(made, PATH[0]):
        address = message_builder.address(text, PATH[0])
        each.setdefault(address.casefold(), address)
    most = ctx.world.options.max_recipients
    check_limit(len(each), most, f"more than {most} recipients", path=PATH)
    if not each:
        raise Invalid("nobody to send it to", constraint="required", path=PATH)
    return list(each.values())


async def _folder(
    ctx: Context, account: Picked, sender: str, grant: Picked | None
) -> Picked | None:
    """Return the mailbox for copies of this sender, or None if there is none."""
    identity = await identities.of_sender(ctx, account, sender, grant)
    names = [mailbox_loaders.Named(special_use=SpecialUse.SENT)]
    if identity and identity.mailbox_id is not None:
        names.insert(0, mailbox_loaders.Named(id=identity.mailbox_id))
    boxes = await mailbox_loaders.named(ctx, [(account.id, name) for name in names])
    return next((box for box in boxes if box is not None), None)


async def _earlier(ctx: Context, row: Picked, *, draft: bool) -> Earlier:
    (message,) = await message_content.read_sources(ctx.world, [row], ctx.read)
    plain = await upload.earlier(ctx, message)
    return Earlier(row.id, row.digest, plain.words, tuple(PATH), draft=draft, beyond=True)


async def _store(ctx: Context, account: Picked, ready: _Ready, order: Order, *, again: bool) -> int:
    kept = await submission_create.kept_of(ctx, account, ready.mail, again=again)
    with quota_limits.refusing(ctx):
        async with ctx.write(account.id, *ready.mail.copied.streams) as session:
            key = await ctx.world.join(session, lambda turn: _sent(turn, ctx, ready, kept))
            await _mark(ctx, session, ready.row)
            if order.delete_files:
                await file_attachments.remove(ctx, session, ready.row.id)
    return key


def _sent(turn: Turn, ctx: Context, ready: _Ready, both: tuple[Kept, Kept]) -> int:
    """Queue the message, replace the draft by the copy, and return the id of the submission."""
    owner, (kept, copy), mail = own(ctx), both, ready.mail
    submission_create.check_able(turn, owner)
    quota_limits.count_recipients(turn, owner, len(mail.recipients))
    placed = draft_replacement.replace(turn, mail.copy, copy, ready.place, ready.earlier)
    key = submission_create.queued(turn, ctx, mail, kept, placed)
    rate_limits.count(turn, owner)
    return key


async def _mark(ctx: Context, session: AsyncSession, row: Picked) -> None:
    """Flag the message that the draft replies to or forwards, if it still exists."""
    if row.reference_id is not None and row.reference_action:
        reference = Reference(row.reference_id, ReferenceAction(row.reference_action))
        await answered(ctx, session, reference)


@dataclass(frozen=True, slots=True)
class Back:
    """A sent message that becomes a draft again."""

    letter: Letter
    kept: Kept
    place: Place
    earlier: Earlier


async def taken_back(ctx: Context, before: Mapping[str, Any]) -> Back | None:
    """Prepare what an undo token restores, or None if the message was deleted."""
    draft = before.get("draft")
    if not draft:
        return None
    try:
        row = await _row(ctx, draft["message"])
    except NotFound:
        return None
    asked = select(*picked(Submission, {"id", "blob_id", "tenant_id"})).where(
        col(Submission.id) == before["submissions"][0], col(Submission.user_id) == own(ctx)
    )
    sent = found(next(iter(await ctx.read(asked)), None), path=["token"])
    whole = await message_content.submitted(ctx.world, sent.id, sent.blob_id)
    letter = await read(await gathered(whole.whole()))
    kept = await stored(ctx.world, sent.tenant_id, letter)
    place = Place(
        own(ctx),
        await _home(ctx, draft["mailbox"]),
        ctx.world.now(),
        seen=draft["seen"],
        draft=True,
        origin=ctx.origin,
    )
    return Back(letter, kept, place, await _earlier(ctx, row, draft=False))


async def _home(ctx: Context, mailbox_id: int) -> int:
    """Return the mailbox the draft was in if it still exists, else Drafts, else INBOX."""
    names = [
        mailbox_loaders.Named(id=mailbox_id),
        mailbox_loaders.Named(special_use=SpecialUse.DRAFTS),
        mailbox_loaders.Named(path="INBOX"),
    ]
    boxes = await mailbox_loaders.named(ctx, [(own(ctx), name) for name in names])
    box = found(next((box for box in boxes if box is not None), None), path=["token"])
    return int(box.id)


async def bring_back(ctx: Context, session: AsyncSession, back: Back) -> None:
    """Make the message a draft again, in the transaction that cancels the submission."""
    await ctx.world.join(
        session,
        lambda turn: draft_replacement.replace(
            turn, back.letter, back.kept, back.place, back.earlier
        ),
    )
