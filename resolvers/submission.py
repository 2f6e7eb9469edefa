"""Sending: a message, its copy, and the rows of the queue come to be in one unit of work."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlmodel import col

from mail import compose, encrypting, rewrites
from mail.compose import Draft
from mail.delivery import Letter, Place, place, read, stored
from mail.keeping import Gone, Kept
from mail.queue import entering
from mail.queue.entering import Handed, Sender
from mail.queue.settle import OPEN, announce
from models.columns import Picked, picked
from models.errors import Conflict, Forbidden, Invalid, NotFound, OverQuota, Problems, all_found
from models.journal import PLATFORM
from models.mailboxes import SpecialUse
from models.pages import Ask, Page, ordering
from models.queue import QUEUE, Delivery, DeliveryState
from models.submission import Submission, SubmissionState
from models.users import User
from models.world import Turn, World, ring
from resolvers import composing, listing, mailboxes, messages, userlimits
from resolvers.access import own, owners, visible
from resolvers.composing import Fields, How
from resolvers.context import Context
from resolvers.listing import Scan
from resolvers.references import answered, referred
from resolvers.sendable import may_send_as

SENT_NOT_KEPT = "NOT_SAVED_TO_SENT"
LONGEST_UNDO = timedelta(days=1)
CANCELLED = {
    "state": DeliveryState.CANCELLED,
    "next_at": None,
    "lease": None,
    "leased_until": None,
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipients, where they are not those of the header."""

    sender: str | None = None
    to: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Outgoing(Fields):
    """What a client wants sent."""

    envelope: Envelope = Envelope()
    mailbox: mailboxes.Named | None = None  # None: that of the identity, or Drafts for a draft
    upload_only: bool = False
    is_draft: bool = False
    send_time: datetime | None = None
    undo_window: timedelta | None = None
    meta_data: dict[str, Any] | None = None

    @property
    def stays(self) -> bool:
        """Whether it is stored only."""
        return self.upload_only or self.is_draft


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of it. `submission` is None where it was only stored."""

    submission: Picked | None
    message: Picked | None
    warnings: Sequence[tuple[str, str]] = ()  # code and text


@dataclass(frozen=True, slots=True)
class Copied:
    """Who gets a copy by rules: it is the tenant's, and no account is told of it."""

    tenant_id: int
    to: Sequence[str] = ()

    @property
    def streams(self) -> list[int]:
        """What is told of it, and so must be held."""
        return [PLATFORM] if self.to else []


@dataclass(frozen=True, slots=True)
class Written:
    """A message as it was built or handed in."""

    raw: bytes
    sender: str
    recipients: Sequence[str]
    box: Picked | None  # the folder for a copy; None: none is kept
    outgoing: Outgoing = Outgoing()


@dataclass(frozen=True, slots=True)
class _Ready:
    """A message as it will be stored and queued."""

    letter: Letter
    copy: Letter  # the same, or encrypted
    sender: str
    recipients: Sequence[str]
    place: Place | None  # None: there is no folder for a copy
    outgoing: Outgoing
    copied: Copied


async def send(ctx: Context, outgoing: Outgoing, problems: Problems | None = None) -> Sent:
    """Build a message, keep a copy, and queue it: all of it, or nothing.

    All that is wrong with its fields is told at once, with the `problems` found before; only a
    sender that is none comes alone, since the message is made in his name.
    Where the copy does not fit into the quota the message goes out all the same, with a warning.
    RateLimited where the account has written to as many as it may in 24 hours.
    """
    owner = own(ctx)
    account = await composing.account_of(ctx, owner)
    if not outgoing.stays:
        await userlimits.may_write(ctx, account)
    problems = problems or Problems()
    date = _send_time(ctx.world, outgoing) or ctx.world.now()
    checked = outgoing.is_draft or not outgoing.upload_only
    head = await composing.letterhead(ctx, account, outgoing, checked=checked)
    draft = await composing.draft_of(ctx, head, outgoing, How(date))
    with problems.caught():
        sender, recipients = await _envelope(ctx, account, draft, outgoing)
    with problems.caught():
        raw = await composing.built(draft)
    problems.settle()
    box = await _folder(ctx, outgoing, head.mailbox_id)
    written = Written(raw, sender, recipients, box, outgoing)
    submission_id, message_id = await store(ctx, account, written)
    saved = message_id is not None
    return Sent(
        await ctx.load(by_ids, submission_id) if submission_id else None,
        await ctx.load(messages.by_ids, message_id) if message_id else None,
        () if saved else ((SENT_NOT_KEPT, "It is sent, but there was no room for a copy."),),
    )


async def store(ctx: Context, account: Picked, written: Written) -> tuple[int | None, int | None]:
    """Keep a copy and queue it; the keys of submission and copy, None for what there is not."""
    raw, box, outgoing = written.raw, written.box, written.outgoing
    letter = copy = await read(raw)
    there = None
    if box is not None:
        there = _place(ctx, written, box)
        if not outgoing.is_draft:
            copy = await encrypting.put_in(ctx.world, raw, letter, account, box)
            letter = copy if outgoing.stays else letter
    copied = Copied(account.tenant_id)
    if not outgoing.stays:
        copied = await copies(ctx, account, written.sender, written.recipients)
    ready = _Ready(letter, copy, written.sender, written.recipients, there, outgoing, copied)
    try:
        return await _store(ctx, account, ready, again=False)
    except Gone:
        return await _store(ctx, account, ready, again=True)


def _send_time(world: World, outgoing: Outgoing) -> datetime | None:
    """When it is to be sent, where that is later."""
    at = outgoing.send_time
    return at if at and at > world.now() else None


async def _envelope(
    ctx: Context, account: Picked, draft: Draft, outgoing: Outgoing
) -> tuple[str, list[str]]:
    """Sender and recipients, each recipient once."""
    given, path = outgoing.envelope, "from"
    sender = draft.from_.address
    if given.sender is not None:
        path = "envelope"
        sender = compose.address(given.sender, path)
        await may_send_as(ctx, account, sender, [path, "from"])
    if given.to is not None:
        named = [(address, "envelope", nth) for nth, address in enumerate(given.to)]
    else:
        lists = {"to": draft.to, "cc": draft.cc, "bcc": draft.bcc}
        named = [
            (person.address, path, nth)
            for path, people in lists.items()
            for nth, person in enumerate(people)
        ]
    recipients: dict[str, str] = {}
    for text, where, nth in named:
        address = compose.address(text, where, nth)
        recipients.setdefault(address.casefold(), address)
    most = ctx.world.options.max_recipients
    if len(recipients) > most:
        raise Invalid(f"more than {most} recipients", constraint="max", path=["to"])
    if not recipients and not outgoing.stays:
        raise Invalid("nobody to send it to", constraint="required", path=["to"])
    return sender, list(recipients.values())


async def _folder(ctx: Context, outgoing: Outgoing, usual: int | None) -> Picked | None:
    """The folder of the copy, `usual` for its sender; NotFound for one that is named and gone."""
    if usual is not None and not outgoing.mailbox and not outgoing.is_draft:
        (row,) = await mailboxes.named(ctx, [(own(ctx), mailboxes.Named(id=usual))])
        if row is not None:
            return row
    use = SpecialUse.DRAFTS if outgoing.is_draft else SpecialUse.SENT
    name = outgoing.mailbox or mailboxes.Named(special_use=use)
    (row,) = await mailboxes.named(ctx, [(own(ctx), name)])
    if row is None and (outgoing.mailbox or outgoing.stays):
        raise NotFound(name.path or str(name.id or use), path=["mailbox"])
    return row


def _place(ctx: Context, written: Written, box: Picked) -> Place:
    """Where the copy goes, and how it lies there."""
    outgoing = written.outgoing
    return Place(
        own(ctx),
        box.id,
        ctx.world.now(),
        seen=True,
        draft=outgoing.is_draft,
        envelope_from=None if outgoing.stays else written.sender,
        envelope_to=() if outgoing.stays else written.recipients,
        meta_data=outgoing.meta_data,
        reference=referred(outgoing.reference),
        origin=ctx.origin,
    )


async def _store(
    ctx: Context, account: Picked, ready: _Ready, *, again: bool
) -> tuple[int | None, int | None]:
    """Write it all; the keys of submission and copy, None for what there is not."""
    kept = await stored(ctx.world, account.tenant_id, ready.letter, again=again)
    copy = kept
    if ready.copy is not ready.letter:
        copy = await stored(ctx.world, account.tenant_id, ready.copy, again=again)
    async with ctx.write(account.id, *ready.copied.streams) as session:
        keys = await ctx.world.join(session, lambda turn: _written(turn, ctx, ready, (kept, copy)))
        if ready.outgoing.reference and not ready.outgoing.stays:
            await answered(ctx, session, ready.outgoing.reference)
        ring(session, QUEUE)
    return keys


def _written(
    turn: Turn, ctx: Context, ready: _Ready, both: tuple[Kept, Kept]
) -> tuple[int | None, int | None]:
    kept, copy = both
    owner = own(ctx)
    check_able(turn, owner)
    if not ready.outgoing.stays:
        userlimits.count_recipients(turn, ctx, owner, len(ready.recipients))
    message_id = _copied(turn, ready, copy)
    if ready.outgoing.stays:
        return None, message_id
    return _queued(turn, ctx, ready, (kept, message_id)), message_id


def check_able(turn: Turn, owner: int) -> None:
    """Forbidden where the account is disabled or suspended."""
    able = select(col(User.id)).where(
        col(User.id) == owner, ~col(User.disabled), ~col(User.suspended)
    )
    if turn.connection.execute(able).scalar() is None:
        raise Forbidden("this account may not send")


def _copied(turn: Turn, ready: _Ready, kept: Kept) -> int | None:
    """Store the copy; None where it does not fit, unless to store it was all that was asked."""
    if ready.place is None:
        return None
    try:
        with turn.connection.begin_nested():
            return place(turn, ready.copy, kept, ready.place).message_id
    except OverQuota:
        if ready.outgoing.stays:
            raise
        return None  # its number in the journal went back; the submission takes it


def _queued(turn: Turn, ctx: Context, ready: _Ready, copy: tuple[Kept, int | None]) -> int:
    """Hand it to the queue, and to audits where no copy does so."""
    kept, message_id = copy
    at, state, undo_until = _when(turn.world, ready.outgoing)
    handed = entering.handed(
        turn,
        ready.letter,
        kept,
        ready.sender,
        ready.recipients,
        message_id=message_id,
        at=at,
        state=state,
        send_time=_send_time(turn.world, ready.outgoing),
        undo_until=undo_until,
    )
    key = hand_in(turn, ctx, handed, ready.copied)
    if message_id is None:
        entering.unkept(turn, (own(ctx), key), ready.letter, handed)
    return key


async def copies(ctx: Context, account: Picked, sender: str, recipients: Sequence[str]) -> Copied:
    """The copies of what an account sends; its unit holds their streams too."""
    to = await rewrites.copies_of_sent(ctx.world, sender, recipients)
    return Copied(account.tenant_id, to)


def hand_in(turn: Turn, ctx: Context, handed: Handed, copied: Copied) -> int:
    """Hand it to the queue in the name of the viewer, and its copies; its key."""
    key = entering.hand_in(turn, Sender(own(ctx), origin=ctx.origin), handed)
    if copied.to:
        copy = replace(handed, recipients=copied.to, message_id=None, copy_of=key)
        entering.hand_in(turn, Sender(None, copied.tenant_id), copy)
    return key


def _when(world: World, outgoing: Outgoing) -> tuple[datetime, SubmissionState, datetime | None]:
    """When it is first tried, the state until then, and how long it can be taken back."""
    now, later = world.now(), _send_time(world, outgoing)
    window = outgoing.undo_window or timedelta()
    if not timedelta() <= window <= LONGEST_UNDO:
        raise Invalid("from nothing to a day", constraint="range", path=["undoWindow"])
    undo_until = now + window if window else None
    if later:
        return max(later, undo_until or later), SubmissionState.SCHEDULED, undo_until
    if undo_until:
        return undo_until, SubmissionState.HELD_FOR_UNDO, undo_until
    return now, SubmissionState.QUEUED, None


async def cancel(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Take back what is not on its way yet: all of these submissions, or none.

    Recipients that were served, or are being served right now, stay as they are. Conflict where
    there is nothing left to take back.
    """
    now, keys = ctx.world.now(), list(dict.fromkeys(ids))
    streams = await owners(ctx, Submission, keys)
    copied = select(col(Submission.id)).where(col(Submission.copy_of).in_(keys)).limit(1)
    if await ctx.read(copied):
        streams.append(PLATFORM)
    async with ctx.write(*streams) as session:
        rows = {row.id: row for row in await by_ids(ctx, keys) if row}
        all_found(ids, rows)

        free = or_(col(Delivery.leased_until).is_(None), col(Delivery.leased_until) <= now)
        waits = col(Delivery.state).in_(OPEN), free

        def unit(turn: Turn) -> int | None:
            for key in keys:
                waiting = update(Delivery).where(col(Delivery.submission_id) == key, *waits)
                if not turn.connection.execute(waiting.values(**CANCELLED)).rowcount:
                    return key
                _copies_cancelled(turn, key, waits)
                announce(turn, rows[key].user_id, key, at=now)
            return None

        if (late := await ctx.world.join(session, unit)) is not None:
            raise Conflict("too late to take it back", path=["ids"], index=list(ids).index(late))
    again = await ctx.load_all(by_ids, ids)
    return [row for row in again if row]


def _copies_cancelled(turn: Turn, key: int, waits: Any) -> None:
    """Take back the copies of a submission too, where it reaches nobody."""
    left = select(col(Delivery.id)).where(
        col(Delivery.submission_id) == key, col(Delivery.state) != DeliveryState.CANCELLED
    )
    if turn.connection.execute(left.limit(1)).first():
        return
    copies = select(col(Submission.id)).where(col(Submission.copy_of) == key)
    for copy in turn.connection.execute(copies).scalars().all():
        theirs = update(Delivery).where(col(Delivery.submission_id) == copy, *waits)
        turn.connection.execute(theirs.values(**CANCELLED))
        announce(turn, PLATFORM, copy, at=turn.world.now())


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The viewer's submissions with these ids, in this order; None where there is none."""
    theirs = select(*picked(Submission)).where(visible(ctx, Submission))
    return await listing.by_keys(ctx, theirs, col(Submission.id), ids)


async def by_queue_ids(ctx: Context, queue_ids: list[str]) -> list[Picked | None]:
    """The viewer's submissions with these ids of the queue; None where there is none."""
    theirs = select(*picked(Submission)).where(visible(ctx, Submission))
    return await listing.by_keys(ctx, theirs, col(Submission.queue_id), queue_ids)


async def deliveries_of(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """The deliveries of these submissions, recipients in the order they were named."""
    asked = select(*picked(Delivery)).where(
        col(Delivery.submission_id).in_(ids), visible(ctx, Delivery)
    )
    theirs: Mapping[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(asked.order_by(col(Delivery.id))):
        theirs[row.submission_id].append(row)
    return [theirs[key] for key in ids]


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of a user's submissions, newest first; `states` empty: all."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    states: frozenset[SubmissionState] = frozenset()


def newest(states: frozenset[SubmissionState] = frozenset()) -> str:
    """The ordering that cursors of such a page belong to."""
    return ordering("submissions-", sorted(states))


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """These pages of users' submissions, each in reading order."""
    columns = frozenset({"id", "created_at"}).union(*(key.columns for key in keys))
    place = (col(Submission.created_at), col(Submission.id))
    scans = []
    for key in keys:
        rows = select(*picked(Submission, columns)).where(*_of(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=True))
    return await listing.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """How many submissions these lists have, in their order."""
    many = func.count().label("many")
    scans = [select(many).select_from(Submission).where(*_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await listing.together(ctx, scans)]


def _of(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(Submission.user_id) == key.user_id, visible(ctx, Submission)]
    return [*terms, col(Submission.state).in_(key.states)] if key.states else terms
