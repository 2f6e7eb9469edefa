"""Handing a stored message on: as it is, to new recipients."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlmodel import col

from mail.compose import message_builder
from mail.queue.enqueue import Handed
from mail.recipients import address_resolution
from mail.recipients.forward_targets import Via, opened
from mail.storage import audit_copies
from mail.storage.audit_copies import SHOWN
from mail.storage.message_content import gathered
from models.errors import Conflict, Forbidden, Invalid, NotFound, check_limit
from models.files.blobs import MessageBlob
from models.filters.tables import Filter
from models.messages.tables import Message
from models.runtime.environment import Turn
from models.store.columns import Picked, picked
from models.users.roles import Scope
from models.users.tables import User
from resolvers.access import own, visible
from resolvers.addresses.targets import RELAYS, SECRET
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.messages import content
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.loaders import here
from resolvers.submission import composition, outgoing_scan, send_on_behalf
from resolvers.submission import create as submission_create
from resolvers.submission.reply_references import FORWARDED
from resolvers.users.quota import limits as quota_limits

HOPS = 30  # Received fields; a message with so many goes in circles
PATH = ["addresses"]
FORWARDED_BY_OTHERS = "message forward"  # as the security log of the owner calls it
RELAY, PAGE = "relay", "http"  # types of targets beside addresses, as WildDuck names them


@dataclass(frozen=True, slots=True)
class Wanted:
    """To whom: to `addresses`, else to the original `target` of this number, or to all."""

    addresses: Sequence[str] | None = None
    target: int | None = None  # from 1


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message goes: an address, a relay or a page."""

    seq: int  # from 1: of the original ones its number among them
    shown: str  # without a password
    whole: str = field(repr=False)

    @property
    def via(self) -> bool:
        """Whether it is a relay or a page."""
        return "://" in self.shown

    @property
    def type(self) -> str:
        """What it is called."""
        if not self.via:
            return "mail"
        return RELAY if self.shown.partition("://")[0] in RELAYS else PAGE


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The submission, and to whom it goes, each once; nobody: there is none."""

    submission: Picked | None
    targets: Sequence[Target]


async def forward_any(ctx: Context, message_id: int, wanted: Wanted) -> Forwarded:
    """Do what `forward` does, for administrators also in the name of the message's owner.

    If they name addresses, the owner is told by a message: its content leaves the account.
    """
    owner = await send_on_behalf.owner_of(ctx, message_id)
    scopes = frozenset({Scope.SUBMIT, Scope.MAIL_READ})
    async with send_on_behalf.sending(ctx, owner, "messageForward", scopes) as theirs:
        done = await forward(theirs, message_id, wanted)
        if theirs is not ctx and owner is not None and wanted.addresses is not None:
            to = [target.shown for target in done.targets]
            event = Event(FORWARDED_BY_OTHERS, owner, detail={"to": to})
            async with ctx.write(owner) as session:
                await security_log.note(ctx, session, event)
        return done


async def forward(ctx: Context, message_id: int, wanted: Wanted) -> Forwarded:
    """Queue a message, byte for byte, in the name of the account's main address.

    The viewer must be allowed to read it: without the scope MAIL_READ, raises Forbidden. It gets
    the keyword $Forwarded unless another account shares it.
    NotFound; Conflict for a draft, and for what has gone through so many servers that it goes in
    circles; RateLimited as for what is sent; what `sentscan.checked` refuses. To its original
    targets only its owner sends it: Forbidden; as `_original`.
    """
    ctx.viewer.require_scope(Scope.MAIL_READ)
    owner = own(ctx)
    if wanted.target is not None and wanted.addresses is not None:
        words = "the number of an original target, or addresses: not both"
        raise Invalid(words, constraint="exclusive", path=["target"])
    row = await _message(ctx, message_id)
    account = await composition.account_of(ctx, owner)
    await quota_limits.may_write(ctx, account)
    if wanted.addresses is not None:
        targets = await _addresses(ctx, owner, wanted.addresses)
    else:
        targets = await _original(ctx, owner, row, wanted.target)
    if not targets:
        return Forwarded(None, [])
    sender = (await composition.main_address(ctx, account)).address
    await _check(ctx, message_id, account, (sender, targets))
    return await _queued(ctx, row, account, (sender, targets))


async def _check(
    ctx: Context, message_id: int, account: Picked, envelope: tuple[str, Sequence[Target]]
) -> None:
    """Refuse what goes in circles, and what scanners refuse."""
    stored = await content.one(ctx, message_id)
    if stored is None:
        raise NotFound(str(message_id), path=["message"])
    fields = await content.header_fields(stored)
    if sum(field.key.casefold() == "received" for field in fields) >= HOPS:
        text = f"it has gone through {HOPS} servers: it goes in circles"
        raise Conflict(text, path=["message"])
    if outgoing_scan.looks(ctx):
        sender, targets = envelope
        to = [each.shown for each in targets if not each.via]
        await outgoing_scan.checked(ctx, account, await gathered(stored.whole()), sender, to)


async def _queued(
    ctx: Context, row: Picked, account: Picked, envelope: tuple[str, Sequence[Target]]
) -> Forwarded:
    owner, (sender, targets) = account.id, envelope
    recipients = [each.shown for each in targets if not each.via]
    by = next(iter(row.envelope_to), sender)  # by which it came to the account
    via = [Via(by, each.shown, each.whole) for each in targets if each.via]
    (copied,) = await submission_create.copies(ctx, account, [(sender, recipients)])

    def unit(turn: Turn) -> int:
        submission_create.check_able(turn, owner)
        quota_limits.count_recipients(turn, owner, len(targets))
        needs = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id) == row.id)
        blobs = list(turn.connection.execute(needs).scalars())
        if row.blob_id not in blobs:  # it has gone meanwhile, or is another draft
            raise NotFound(str(row.id), path=["message"])
        at, known = turn.world.now(), row.message_id
        handed = Handed(
            *(sender, recipients, row.size, row.blob_id, blobs, row.id),
            at=at,
            via=via,
            header_id=known,
        )
        key = submission_create.hand_in(turn, ctx, handed, copied)
        facts = {name: getattr(row, name) for name in SHOWN}
        to = [each.shown for each in targets]
        facts |= {"envelope_from": sender, "envelope_to": to, "received_at": at}
        audit_copies.sent(turn, owner, key, facts, blobs)
        return key

    with quota_limits.refusing(ctx):
        async with ctx.write(owner, *copied.streams) as session:
            key = await ctx.world.join(session, unit)
            kept = await row_changes.chosen(session, [row.id])
            mine = [each for each in kept if each.user_id == owner]  # another's stays as it is
            await flags.change(ctx, session, mine, row_changes.Changes.of({}, add=[FORWARDED]))
    sent = await ctx.load(submission_create.by_ids, key)
    if sent is None:
        raise NotFound(str(key), path=["message"])
    return Forwarded(sent, targets)


async def _message(ctx: Context, key: int) -> Picked:
    mine = (visible(ctx, Message), here(), col(Message.id) == key)
    names = {"id", "user_id", "draft", "encrypted", "forwarded_to", *SHOWN}
    row = next(iter(await ctx.read(select(*picked(Message, names)).where(*mine))), None)
    if row is None:
        raise NotFound(str(key), path=["message"])
    if row.draft:
        raise Conflict("a draft is sent, not forwarded", path=["message"])
    return row


async def _addresses(ctx: Context, owner: int, given: Sequence[str]) -> list[Target]:
    """The addresses, each once. Invalid where one is none, or the account's own."""
    most = ctx.world.options.max_recipients
    check_limit(len(given), most, f"more than {most} recipients", path=PATH)
    if not given:
        raise Invalid("nobody to send it to", constraint="required", path=PATH)
    found: dict[str, str] = {}
    for nth, text in enumerate(given):
        address = message_builder.address(text, PATH[0], nth)
        if await address_resolution.owner_of(ctx.world, address) == owner:
            words = "this is your own address: messageCopy copies"
            raise Invalid(words, constraint="self", path=PATH, index=nth)
        found.setdefault(address.casefold(), address)
    return [Target(nth, address, address) for nth, address in enumerate(found.values(), 1)]


def original(ctx: Context, row: Picked) -> list[Target]:
    """Where a message was sent on to as it came, for its owner alone; without passwords.

    Of the row `user_id` and `forwarded_to` are read.
    """
    if row.user_id != ctx.viewer.user_id:
        return []
    return [Target(nth, shown, shown) for nth, shown in enumerate(row.forwarded_to or (), 1)]


async def _original(ctx: Context, owner: int, row: Picked, nth: int | None) -> list[Target]:
    """Where a message was sent on to as it came: all, or the one of this number; maybe nobody.

    Conflict where the account has what it forwards encrypted, and it is not, and for a relay
    whose password the account and its filters have no more.
    """
    if nth is not None and nth < 1:
        raise Invalid("targets are numbered from 1", constraint="min", path=["target"])
    if row.user_id != owner:
        text = "to its original targets only its owner sends it: say addresses"
        raise Forbidden(text, path=["message"])
    found = [one for one in original(ctx, row) if nth in (None, one.seq)]
    if not found:
        return []
    asked = select(*picked(User, {"id", "relays", "encrypt_forwarded"})).where(
        col(User.id) == owner
    )
    (account,) = await ctx.read(asked)
    if account.encrypt_forwarded and not row.encrypted:
        text = "what this account forwards is encrypted, and it is not: say addresses"
        raise Conflict(text, path=["message"])
    known = await _relays(ctx, account)
    made = []
    for one in found:
        shown, whole = one.shown, known.get(one.shown, one.shown)
        if whole == shown and SECRET in shown:
            text = f"the password of {shown} is not known any more"
            raise Conflict(text, path=["message"] if nth is None else ["target"])
        if "://" in shown or await address_resolution.owner_of(ctx.world, shown) != owner:
            made.append(replace(one, whole=whole))  # an address that is its own by now is none
    return made


async def _relays(ctx: Context, account: Picked) -> dict[str, str]:
    """The relays of an account, and of its filters, with their passwords."""
    theirs = select(col(Filter.id), col(Filter.relays)).where(
        col(Filter.user_id) == account.id, col(Filter.relays).is_not(None)
    )
    found = dict[str, str]()
    for each in [*await ctx.read(theirs), account]:
        found |= opened(ctx.world, each.id, each.relays)
    return found
