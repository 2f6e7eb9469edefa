"""Forward a stored message unchanged to new recipients."""

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

HOPS = 30  # Received fields; with so many it is a mail loop
PATH = ["addresses"]
FORWARDED_BY_OTHERS = "message forward"  # in the security log of the owner
RELAY, PAGE = "relay", "http"  # names of target types that WildDuck uses


@dataclass(frozen=True, slots=True)
class Wanted:
    """The recipients of a forward: addresses, or one or all original targets."""

    addresses: Sequence[str] | None = None
    target: int | None = None  # from 1


@dataclass(frozen=True, slots=True)
class Target:
    """An address, relay or web address that a message is forwarded to."""

    seq: int  # from 1, among the original targets
    shown: str  # without a password
    whole: str = field(repr=False)

    @property
    def via(self) -> bool:
        """True if it is a relay or a web address."""
        return "://" in self.shown

    @property
    def type(self) -> str:
        """The type of the target: "mail", "relay" or "http"."""
        if not self.via:
            return "mail"
        return RELAY if self.shown.partition("://")[0] in RELAYS else PAGE


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The submission and its targets, each once. Without targets there is no submission."""

    submission: Picked | None
    targets: Sequence[Target]


async def forward_any(ctx: Context, message_id: int, wanted: Wanted) -> Forwarded:
    """Forward a message in the name of its owner, also as an administrator of the owner.

    If an administrator names addresses, the owner gets a security log entry and a message, since
    content leaves the account. Raises the errors of `forward_message`.
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

    Without the scope MAIL_READ, raises Forbidden. The message gets the keyword $Forwarded unless
    another account shares it. Raises NotFound; Conflict for a draft and for a mail loop;
    RateLimited; and Forbidden if the scanner rejects it, or if someone else than the owner
    forwards to the original targets.
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
    """Raise Conflict for a mail loop, and Forbidden if the scanner rejects the message."""
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
    by = next(iter(row.envelope_to), sender)  # the address by which the account received it
    via = [Via(by, each.shown, each.whole) for each in targets if each.via]
    (copied,) = await submission_create.copies(ctx, account, [(sender, recipients)])

    def unit(turn: Turn) -> int:
        submission_create.check_able(turn, owner)
        quota_limits.count_recipients(turn, owner, len(targets))
        needs = select(col(MessageBlob.blob_id)).where(col(MessageBlob.message_id) == row.id)
        blobs = list(turn.connection.execute(needs).scalars())
        if row.blob_id not in blobs:  # it was deleted or replaced meanwhile
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
            mine = [
                each for each in kept if each.user_id == owner
            ]  # a message of another account is not flagged
            await flags.change(ctx, session, mine, row_changes.Changes.of({}, add=[FORWARDED]))
    sent = await ctx.load(submission_create.by_ids, key)
    if sent is None:
        raise NotFound(str(key), path=["message"])
    return Forwarded(sent, targets)


async def _message(ctx: Context, key: int) -> Picked:
    """Read a visible message. Raises NotFound, and Conflict if it is a draft."""
    mine = (visible(ctx, Message), here(), col(Message.id) == key)
    names = {"id", "user_id", "draft", "encrypted", "forwarded_to", *SHOWN}
    row = next(iter(await ctx.read(select(*picked(Message, names)).where(*mine))), None)
    if row is None:
        raise NotFound(str(key), path=["message"])
    if row.draft:
        raise Conflict("a draft is sent, not forwarded", path=["message"])
    return row


async def _addresses(ctx: Context, owner: int, given: Sequence[str]) -> list[Target]:
    """Return the addresses as destinations, each once.

    Raises Invalid if one is no address or the account's own.
    """
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
    """Return the targets that a message was forwarded to when it arrived, without passwords.

    The list is empty unless the viewer is the owner. Reads `user_id` and `forwarded_to` of the
    row.
    """
    if row.user_id != ctx.viewer.user_id:
        return []
    return [Target(nth, shown, shown) for nth, shown in enumerate(row.forwarded_to or (), 1)]


async def _original(ctx: Context, owner: int, row: Picked, nth: int | None) -> list[Target]:
    """Return the original targets with passwords, all or the one of this number; can be empty.

    Raises Conflict if the account encrypts what it forwards and the message is not encrypted, or
    if the password of a relay is no longer stored.
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
            made.append(
                replace(one, whole=whole)
            )  # skips an address that belongs to the account by now
    return made


async def _relays(ctx: Context, account: Picked) -> dict[str, str]:
    """Read the relays of an account and its filters: full URL by the form without a password."""
    theirs = select(col(Filter.id), col(Filter.relays)).where(
        col(Filter.user_id) == account.id, col(Filter.relays).is_not(None)
    )
    found = dict[str, str]()
    for each in [*await ctx.read(theirs), account]:
        found |= opened(ctx.world, each.id, each.relays)
    return found
