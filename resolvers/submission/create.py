"""Send messages: store message, copy in Sent, and queue entries in one transaction."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, func, select
from sqlmodel import col

from mail.delivery import recipient_rewrites
from mail.envelope.dsn_parameters import ALL, Wish
from mail.queue import enqueue
from mail.queue.enqueue import Handed, Sender
from mail.storage import openpgp_encryption
from mail.storage.blobs.blob_writer import Gone, Kept
from mail.storage.message_insert import Item, Letter, Place, Placed, place_many
from mail.storage.received_messages import read, stored
from models.errors import Forbidden, Invalid, NotFound, OverQuota, Problems, Unavailable
from models.events.journal import PLATFORM
from models.files.tables import FileShare
from models.queue.tables import Delivery
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page, ordering
from models.store.prepared_statements import Prepared, number
from models.submission.tables import Submission, SubmissionState
from models.users.tables import User
from resolvers import pagination
from resolvers.access import own, records, visible
from resolvers.context import Batch, Context
from resolvers.files import shares as file_shares
from resolvers.mailboxes.special_mailboxes import held_place
from resolvers.messages import loaders as message_loaders
from resolvers.pagination import Scan
from resolvers.queue import rate_limits
from resolvers.submission import composition, outgoing_scan
from resolvers.submission.outgoing_messages import Envelope, Outgoing, Written, send_time, written
from resolvers.submission.reply_references import answered, referred
from resolvers.users.quota import limits as quota_limits

__all__ = ["Envelope", "Outgoing", "Written"]

SENT_NOT_KEPT = "NOT_SAVED_TO_SENT"
NO_ROOM = "It is sent, but there was no room for a copy."
NO_FOLDER = "It is sent, but there is no folder for a copy."
NO_KEY = "It is sent, but the key the copy would be encrypted to is of no use."
LONGEST_UNDO = timedelta(days=1)
_ONE = Prepared(
    select(*picked(Submission)).where(
        col(Submission.user_id) == number("viewer"), col(Submission.id) == number("id")
    )
)
_ABLE = Prepared(
    select(col(User.id)).where(
        col(User.id) == number("user"), ~col(User.disabled), ~col(User.suspended)
    )
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Which rows of sent messages are read for the response."""

    submissions: bool = True
    messages: bool = True


WHOLE = Shown()


@dataclass(frozen=True, slots=True)
class Sent:
    """The submission and stored copy of a sent message, with warnings as pairs of code and text.

    `submission` is None if the message was only stored. Both rows are None if they were not
    requested.
    """

    submission: Picked | None
    message: Picked | None
    warnings: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """The addresses that BCC rules of a tenant copy a message to.

    The copies belong to the tenant, and no account has an event of them.
    """

    tenant_id: int
    to: Sequence[str] = ()

    @property
    def streams(self) -> list[int]:
        """The streams that the transaction must lock because of the copies."""
        return [PLATFORM] if self.to else []


@dataclass(frozen=True, slots=True)
class Ready:
    """A message that is ready to be stored and queued."""

    letter: Letter
    copy: Letter  # for the sender; can be encrypted
    sender: str
    recipients: Sequence[str]
    place: Place | None  # None: no copy is stored
    outgoing: Outgoing
    copied: Copied
    wishes: Mapping[str, Wish] = field(default_factory=dict)
    why: str = NO_ROOM  # warning text if no copy is stored
    sent_mailbox_id: int | None = None  # of a held message: the mailbox of the copy after the hold


class _NoFolder(Exception):
    """Raised if the mailbox for a copy was deleted since it was looked up."""

    def __init__(self, mailbox_id: int) -> None:
        super().__init__(mailbox_id)
        self.mailbox_id = mailbox_id

    def without(self, ready: Ready) -> Ready:
        """Return the message without a copy if the copy was to be stored in the deleted mailbox."""
        if ready.place is None or ready.place.mailbox_id != self.mailbox_id:
            return ready
        return replace(ready, place=None, why=NO_FOLDER)


@dataclass(frozen=True, slots=True)
class _Done:
    """The ids of a stored submission and copy. Each is None if there is none."""

    submission_id: int | None
    message_id: int | None
    why: str


async def send(ctx: Context, outgoing: Outgoing, problems: Problems | None = None) -> Sent:
    """Build one message, store its copy and queue it. See `send_messages` for errors."""
    (sent,) = await send_all(ctx, outgoing, problems)
    return sent


async def send_all(
    ctx: Context, outgoing: Outgoing, problems: Problems | None = None, shown: Shown = WHOLE
) -> list[Sent]:
    """Build the messages of a request, store their copies and queue them: all or none.

    A request with `merge` has several messages. If a copy can't be stored, the message is sent
    with a warning. Raises Invalid for all wrong fields together with the errors already in
    `problems`, Forbidden if the account may not send or not as this sender or the scanner rejects
    the message, NotFound for a missing mailbox or file, and RateLimited if a limit on recipients
    or messages of the account, domain or platform is reached.
    """
    owner = own(ctx)
    account = await composition.account_of(ctx, owner)
    if not outgoing.stays:
        await quota_limits.may_write(ctx, account)
    batch = await written(ctx, account, outgoing, problems or Problems())
    done = await store_all(ctx, account, batch.messages, batch.shares)
    theirs = [one.submission_id if shown.submissions else None for one in done]
    copies = [one.message_id if shown.messages else None for one in done]
    sent, kept = await _rows(ctx, by_ids, theirs), await _rows(ctx, message_loaders.by_ids, copies)
    return [
        Sent(row, copy, () if one.message_id is not None else ((SENT_NOT_KEPT, one.why),))
        for one, row, copy in zip(done, sent, kept, strict=True)
    ]


async def _rows(
    ctx: Context, batch: Batch[int, Picked | None], keys: Sequence[int | None]
) -> list[Picked | None]:
    """Load the rows with these ids. A None among the ids gives None."""
    wanted = [key for key in keys if key is not None]
    found = iter(await ctx.load_all(batch, wanted) if wanted else ())
    return [None if key is None else next(found) for key in keys]


async def store(ctx: Context, account: Picked, written: Written) -> tuple[int | None, int | None]:
    """Store a copy of a message and queue it.

    Returns the ids of the submission and the copy, or None.

    Raises the errors of `store_submissions`.
    """
    (done,) = await store_all(ctx, account, [written])
    return done.submission_id, done.message_id


async def store_all(
    ctx: Context,
    account: Picked,
    written: Sequence[Written],
    shares: Sequence[FileShare] = (),
) -> list[_Done]:
    """Store copies of messages, queue the messages, and insert the shares, in one transaction.

    Raises Forbidden if the scanner rejects a message or the account may not send, OverQuota if a
    message that is only stored does not fit, and RateLimited.
    """
    leaving = [(one.sender, one.recipients) for one in written if not one.outgoing.stays]
    copied, ready, again = iter(await copies(ctx, account, leaving)), list[Ready](), False
    for one in written:
        theirs = Copied(account.tenant_id) if one.outgoing.stays else next(copied)
        ready.append(await _ready(ctx, account, one, theirs))
    while True:
        try:
            return await _store(ctx, account, ready, shares, again=again)
        except Gone:
            if again:
                raise
            again = True
        except _NoFolder as gone:
            ready = [gone.without(one) for one in ready]


async def _ready(ctx: Context, account: Picked, written: Written, copied: Copied) -> Ready:
    """Parse, scan and encrypt a message, and decide where its copy is stored.

    Raises Forbidden if the scanner rejects it. Raises Unavailable if a message that is only stored
    can't be encrypted; a copy is left out then.
    """
    raw, box, outgoing = written.raw, written.box, written.outgoing
    letter = copy = await read(raw)
    if written.readable is not None:
        raw, copy = written.readable, await read(written.readable)
    if not outgoing.stays:
        await outgoing_scan.checked(ctx, account, raw, written.sender, written.recipients)
    there, why = None, NO_FOLDER
    if box is not None:
        there, why = _place(ctx, written, box), NO_ROOM
        if not outgoing.is_draft:
            try:
                copy = await openpgp_encryption.put_in(ctx.world, raw, copy, account, box)
            except Unavailable:  # never store it unencrypted
                if outgoing.stays:
                    raise
                there, why = None, NO_KEY
            letter = copy if outgoing.stays else letter
    home = None
    if there is not None and is_held(ctx.world, outgoing):
        home, there = there.mailbox_id, await held_place(ctx, there)
    wishes = dict.fromkeys(written.recipients, ALL) if outgoing.request_dsn else written.wishes
    to = written.sender, written.recipients
    return Ready(letter, copy, *to, there, outgoing, copied, wishes, why, home)


def is_held(world: World, outgoing: Outgoing) -> bool:
    """True if the message is sent later: at a scheduled time, or after its undo window."""
    return not outgoing.stays and when(world, outgoing)[1] is not SubmissionState.QUEUED


def _place(ctx: Context, written: Written, box: Picked) -> Place:
    """Return the mailbox, flags and envelope that the copy is stored with."""
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
    ctx: Context,
    account: Picked,
    ready: Sequence[Ready],
    shares: Sequence[FileShare],
    *,
    again: bool,
) -> list[_Done]:
    """Store the blobs, and write all rows in one transaction."""
    kept = [await kept_of(ctx, account, one, again=again) for one in ready]
    streams = {stream for one in ready for stream in one.copied.streams}
    outgoing = ready[0].outgoing

    def unit(turn: Turn) -> list[_Done]:
        leaving = [one for one in ready if not one.outgoing.stays]
        check_able(turn, account.id)
        if leaving:
            many = sum(len(one.recipients) for one in leaving)
            quota_limits.count_recipients(turn, account.id, many)
        done = _written(turn, ctx, ready, kept)
        if leaving:
            rate_limits.count(turn, account.id, len(leaving))
        return done

    if not shares and not (outgoing.reference and not outgoing.stays):
        with quota_limits.refusing(ctx):
            return await ctx.apply(unit, account.id, *streams)
    with quota_limits.refusing(ctx):
        async with ctx.write(account.id, *streams) as session:
            await file_shares.add(ctx, session, shares)
            done = await ctx.world.join(session, unit)
            if outgoing.reference and not outgoing.stays:
                await answered(ctx, session, outgoing.reference)
    return done


async def kept_of(ctx: Context, account: Picked, ready: Ready, *, again: bool) -> tuple[Kept, Kept]:
    """Store the blobs of a message and of its copy.

    Raises BlobRowDeleted if a reused blob was just deleted.

    With `is_retry`, no stored blob is reused.
    """
    kept = copy = await stored(ctx.world, account.tenant_id, ready.letter, again=again)
    if ready.copy is not ready.letter:
        copy = await stored(ctx.world, account.tenant_id, ready.copy, again=again)
    return kept, copy


def _written(
    turn: Turn, ctx: Context, ready: Sequence[Ready], kept: Sequence[tuple[Kept, Kept]]
) -> list[_Done]:
    """Insert the copies, submissions and queue entries of prepared messages."""
    copies = _copied(turn, ready, [copy for _, copy in kept])
    leaving = [
        (one, whole, placed)
        for one, (whole, _), (placed, _) in zip(ready, kept, copies, strict=True)
        if not one.outgoing.stays
    ]
    keys = iter(queued_all(turn, ctx, leaving) if leaving else ())
    return [
        _Done(
            None if one.outgoing.stays else next(keys), placed.message_id if placed else None, why
        )
        for one, (placed, why) in zip(ready, copies, strict=True)
    ]


def check_able(turn: Turn, owner: int) -> None:
    """Raise Forbidden if the account is disabled or suspended."""
    if not turn.fetched(_ABLE, user=owner):
        raise Forbidden("this account may not send")


def _copied(
    turn: Turn, ready: Sequence[Ready], kept: Sequence[Kept]
) -> list[tuple[Placed | None, str]]:
    """Insert the copies. Returns each stored copy, or None with the text of the warning.

    Raises _CopyMailboxGone if a mailbox was just deleted; the transaction must be rolled back.
    Raises OverQuota or NotFound if a message that is only stored can't be stored.
    """
    there = [
        (one.copy, safe, one.place) for one, safe in zip(ready, kept, strict=True) if one.place
    ]
    try:
        placed = iter(_placed(turn, there, least=any(one.outgoing.stays for one in ready)))
    except NotFound as gone:
        if ready[0].outgoing.stays:
            raise
        raise _NoFolder(there[0][2].mailbox_id) from gone
    return [(next(placed), NO_ROOM) if one.place else (None, one.why) for one in ready]


def _placed(turn: Turn, items: Sequence[Item], *, least: bool) -> list[Placed | None]:
    """Insert messages; None for each that does not fit the quota.

    With `must_fit`, raises OverQuota.
    """
    if not items:
        return []
    try:
        return [*place_many(turn, items)]
    except OverQuota:  # raised before anything is written
        if least:
            raise
        if len(items) == 1:
            return [None]
    return [one for item in items for one in _placed(turn, [item], least=least)]


def queued(turn: Turn, ctx: Context, ready: Ready, kept: Kept, placed: Placed | None) -> int:
    """Queue one message and return the id of its submission. `copy` is its copy.

    The caller counts it for the rate limits.
    """
    (key,) = queued_all(turn, ctx, [(ready, kept, placed)])
    return key


def queued_all(
    turn: Turn, ctx: Context, leaving: Sequence[tuple[Ready, Kept, Placed | None]]
) -> list[int]:
    """Queue messages of one account and return the ids of their submissions.

    A message without a copy is copied to the audits of the account here.
    """
    handed = [_handed(turn, *one) for one in leaving]
    keys = _handed_in(turn, ctx, handed, [ready.copied for ready, _, _ in leaving])
    for (ready, _, placed), what, key in zip(leaving, handed, keys, strict=True):
        if placed is None:
            enqueue.unkept(turn, (own(ctx), key), ready.letter, what)
    return keys


def _handed(turn: Turn, ready: Ready, kept: Kept, placed: Placed | None) -> Handed:
    at, state, undo_until = when(turn.world, ready.outgoing)
    return enqueue.handed(
        turn,
        ready.letter,
        kept,
        ready.sender,
        ready.recipients,
        placed=placed if ready.copy is ready.letter else None,
        message_id=placed.message_id if placed else None,
        at=at,
        state=state,
        send_time=send_time(turn.world, ready.outgoing),
        undo_until=undo_until,
        sent_mailbox_id=ready.sent_mailbox_id if placed else None,
        priority=ready.outgoing.priority,
        wishes=ready.wishes,
        ours=True,
    )


async def copies(
    ctx: Context, account: Picked, envelopes: Sequence[tuple[str, Collection[str]]]
) -> list[Copied]:
    """Read the addresses that BCC rules copy each message to, in the order of the envelopes.

    The transaction that queues a message must lock the streams of its copies too.
    """
    found = await recipient_rewrites.copies_of_sent(ctx.world, account.id, envelopes)
    return [Copied(account.tenant_id, to) for to in found]


def hand_in(turn: Turn, ctx: Context, handed: Handed, copied: Copied) -> int:
    """Queue a submission of the viewer and its copies by BCC rules, and return its id.

    Counts one message for the rate limits. Call it inside `quota_limits.raise_rate_limited`.
    """
    (key,) = _handed_in(turn, ctx, [handed], [copied])
    rate_limits.count(turn, own(ctx))
    return key


def _handed_in(
    turn: Turn, ctx: Context, handed: Sequence[Handed], copied: Sequence[Copied]
) -> list[int]:
    tenant = copied[0].tenant_id
    keys = enqueue.hand_in_all(turn, Sender(own(ctx), tenant, ctx.origin), handed)
    copies = [
        replace(one, recipients=to.to, via=(), message_id=None, copy_of=key)
        for one, to, key in zip(handed, copied, keys, strict=True)
        if to.to
    ]
    if copies:
        enqueue.hand_in_all(turn, Sender(None, tenant), copies)
    return keys


def when(world: World, outgoing: Outgoing) -> tuple[datetime, SubmissionState, datetime | None]:
    """Return the time of the first attempt, the state until then, and the end of the undo window.

    Raises Invalid if the undo window is longer than a day.
    """
    now, later = world.now(), send_time(world, outgoing)
    window = outgoing.undo_window or timedelta()
    if not timedelta() <= window <= LONGEST_UNDO:
        raise Invalid("from nothing to a day", constraint="range", path=["undoWindow"])
    undo_until = now + window if window else None
    if later:
        return max(later, undo_until or later), SubmissionState.SCHEDULED, undo_until
    if undo_until:
        return undo_until, SubmissionState.HELD_FOR_UNDO, undo_until
    return now, SubmissionState.QUEUED, None


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the viewer's submissions, in the order of the ids; None for an unknown id."""
    if len(ids) == 1:
        return [next(iter(await ctx.find(_ONE, id=ids[0])), None)]
    theirs = select(*picked(Submission)).where(visible(ctx, Submission))
    return await pagination.by_keys(ctx, theirs, col(Submission.id), ids)


async def seen_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the submissions that the viewer sees, in the order of the ids; None for any other id.

    Administrators see those of the accounts that they manage.
    """
    theirs = select(*picked(Submission)).where(records(ctx, Submission))
    return await pagination.by_keys(ctx, theirs, col(Submission.id), ids)


async def by_queue_ids(ctx: Context, queue_ids: list[str]) -> list[Picked | None]:
    """Load the viewer's submissions by queue id, in that order; None for an unknown id."""
    theirs = select(*picked(Submission)).where(visible(ctx, Submission))
    return await pagination.by_keys(ctx, theirs, col(Submission.queue_id), queue_ids)


async def deliveries_of(ctx: Context, ids: list[int]) -> list[list[Picked]]:
    """Load the queue entries of each submission, in the order of its recipients."""
    asked = select(*picked(Delivery)).where(
        col(Delivery.submission_id).in_(ids), records(ctx, Delivery)
    )
    theirs: Mapping[int, list[Picked]] = defaultdict(list)
    for row in await ctx.read(asked.order_by(col(Delivery.id))):
        theirs[row.submission_id].append(row)
    return [theirs[key] for key in ids]


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of a user's submissions, newest first. `states` None selects all."""

    user_id: int
    ask: Ask
    columns: frozenset[str]
    states: frozenset[SubmissionState] | None = None


def newest(states: frozenset[SubmissionState] | None = None) -> str:
    """Return the name of the ordering that cursors of such a page belong to."""
    return ordering("submissions-", None if states is None else ("states", *sorted(states)))


async def pages(ctx: Context, keys: list[OfUser]) -> list[Page[Picked]]:
    """Load pages of submissions, each in reading order."""
    columns = frozenset({"id", "created_at"}).union(*(key.columns for key in keys))
    place = (col(Submission.created_at), col(Submission.id))
    scans = []
    for key in keys:
        rows = select(*picked(Submission, columns)).where(*_of(ctx, key))
        scans.append(Scan(rows, key.ask, place, falling=True))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[OfUser]) -> list[int]:
    """Count the submissions of each list, in the order of the keys."""
    many = func.count().label("many")
    scans = [select(many).select_from(Submission).where(*_of(ctx, key)) for key in keys]
    return [row.many for (row,) in await pagination.together(ctx, scans)]


def _of(ctx: Context, key: OfUser) -> list[ColumnElement[bool]]:
    terms = [col(Submission.user_id) == key.user_id, records(ctx, Submission)]
    return [*terms, col(Submission.state).in_(key.states)] if key.states is not None else terms
