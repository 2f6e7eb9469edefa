"""Find where mail for a recipient goes: to local accounts, to other servers, or nowhere.

Resolution and rewrites of addresses are in mail/recipients/address_resolution.py. The kind of the
address decides:

- MAILBOX: the mail is delivered to the account.
- FORWARD: the mail goes to each target. A local target is resolved too, even if it forwards
  itself; to other targets the mail is forwarded.
- DISCARD: the mail is accepted and dropped.
- LEARN_SPAM, LEARN_HAM: the spam filter is trained with it, if training is configured.

Mail of a backup MX domain can be relayed: mail/recipients/backup_mx.py.

An account receives the mail once, and loops between addresses are ignored. A bounce to an SRS
address of this server goes to the original sender.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlmodel import col

from mail.addresses import srs
from mail.addresses.address_syntax import normal_domain
from mail.envelope.dsn_parameters import USUAL, Wish
from mail.envelope.local_recipient import Recipient
from mail.recipients import address_resolution, backup_mx, forward_targets
from mail.recipients.address_resolution import Outside
from mail.recipients.batch_resolution import homes, homes_and_held, resolve_all
from mail.recipients.forward_targets import Via
from models.addresses.rewrites import RecipientRewrite
from models.addresses.tables import LEARNING, AddressKind
from models.errors import Conflict, Invalid, NotFound, RateLimited, Refused
from models.runtime.environment import World
from models.store.columns import Picked

DEEPEST = 10  # forwarding addresses in a chain
WIDEST = 200  # destinations of one address


@dataclass(frozen=True, slots=True)
class Onward:
    """A forward of mail in the name of a local address."""

    address: str  # the local address
    address_id: int | None  # whose limit it counts against
    tenant_id: int
    targets: Sequence[str] = ()  # addresses
    via: Sequence[Via] = ()
    user_id: int | None = None  # whose limit it counts against
    rewritten: bool = False  # by an administrator; counts against no limit
    wish: Wish = USUAL  # for the next server
    relayed: bool = False  # to the servers this one is a backup of
    message_id: int | None = None  # the stored copy, which remembers its forwards

    @property
    def returns(self) -> bool:
        """True if it is a bounce to an SRS address; its sender is not rewritten."""
        ours = self.rewritten or self.relayed
        return self.address_id is None and self.user_id is None and not ours


@dataclass(frozen=True, slots=True)
class Person:
    """An account that accepts mail, and the forward it was reached by."""

    to: Recipient
    by: Onward | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """A recipient that was refused, as given, with the SMTP reply."""

    address: str
    reply: str


@dataclass(frozen=True, slots=True)
class Answering:
    """A forwarding address that sends automatic replies."""

    address: str  # as given
    address_id: int
    domain_id: int | None
    tags: Sequence[str] = ()

    @property
    def user_id(self) -> None:
        """None: it belongs to no account."""

    @property
    def tenant_id(self) -> int:
        """The tenant that the replies are stored for."""
        return self.domain_id or 0


@dataclass(frozen=True, slots=True)
class Taken:
    """A recipient that was accepted, and where its mail goes. Without destination it is dropped."""

    address: str  # as given
    people: Sequence[Person] = ()
    onward: Sequence[Onward] = ()
    learn: bool | None = None  # None: no training address
    domain_id: int | None = None  # set if the mail is dropped
    queue_id: str = ""  # of its message; "": not assigned yet
    beside: Sequence[Away] = ()  # refused recipients of the same message
    answering: Answering | None = None
    wish: Wish = USUAL  # of the client

    @property
    def user_id(self) -> int | None:
        """The account of the address, if there is one."""
        return self.people[0].to.user_id if self.people else None

    @property
    def leaves(self) -> bool:
        """True if the mail goes to the same address on another server."""
        return any(each.relayed and self.address in each.targets for each in self.onward)


class Loop(Conflict):
    """The mail is in a loop."""


@dataclass
class _Walk:
    """The destinations found while the targets of an address are expanded."""

    people: dict[tuple[int, int], Person] = field(default_factory=dict)
    onward: list[Onward] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    refusals: list[Refused] = field(default_factory=list)
    learn: bool | None = None


async def accept(world: World, address: str, sender: str) -> Taken:
    """Return where mail from an envelope sender to this address goes.

    Raises as `address_resolution.load_recipient`; for a forwarding address only if no target
    accepts the mail. Raises RateLimited at the daily limit of forwards.
    """
    if srs.is_ours(address.rpartition("@")[0]):
        return await _bounce(world, address, sender)
    try:
        row, there = await address_resolution.reached(world, address)
    except Outside as to:
        return await _outside(world, address, to)
    except NotFound as refusal:
        return _relayed(address, refusal.ref, await backup_mx.home_of_unknown(world, refusal))
    if row.kind is AddressKind.MAILBOX and row.relayed:
        return _relayed(address, there, _tenant(row))
    if row.kind is AddressKind.MAILBOX:
        return Taken(
            address, [Person(await address_resolution.account_of(world, row, address, there))]
        )
    walk = _Walk(seen={row.id})
    await _follow(world, walk, row, there, 1)
    if not (walk.people or walk.onward) and walk.refusals:
        raise walk.refusals[0]
    people = [replace(one, to=replace(one.to, original=address)) for one in walk.people.values()]
    return Taken(
        address,
        people,
        walk.onward,
        walk.learn,
        row.domain_id,
        answering=_answering(row, address),
    )


def _relayed(address: str, there: str, tenant_id: int) -> Taken:
    """Accept mail for the servers that this one is a backup of."""
    return Taken(address, onward=[Onward(address, None, tenant_id, [there], relayed=True)])


def _answering(row: Picked, address: str) -> Answering | None:
    """Return the automatic reply of a forwarding address, None if it has none.

    If forwards are chained, only the address of the recipient replies.
    """
    if not row.answers or row.kind is not AddressKind.FORWARD:
        return None
    return Answering(address, row.id, row.domain_id, row.tags)


async def _outside(world: World, address: str, to: Outside) -> Taken:
    """Forward mail that is rewritten to another server. Raises NotFound for a local domain."""
    if await is_ours(world, to.ref.rpartition("@")[2]):
        raise to
    name = normal_domain(address.rpartition("@")[2])
    tenant = next(iter((await homes(world, [name])).get(name, ())), 0)
    return Taken(address, onward=[Onward(address, None, tenant, [to.ref], rewritten=True)])


async def _follow(world: World, walk: _Walk, row: Picked, address: str, depth: int) -> None:
    """Add the targets of an address that is not of an account. Raises NotFound, RateLimited."""
    if row.kind is AddressKind.DISCARD:
        return
    if row.kind in LEARNING and world.options.rspamd_learn:
        walk.learn = row.kind is AddressKind.LEARN_SPAM
        return
    if row.kind is not AddressKind.FORWARD:
        raise NotFound(address, path=["address"])
    pairs = zip(row.targets, forward_targets.whole(world, row), strict=True)
    via = [Via(address, shown, whole) for shown, whole in pairs if "://" in shown]
    named = {one: normal_domain(one.rpartition("@")[2]) for one in row.targets if "://" not in one}
    places, held = await homes_and_held(world, set(named.values())) if named else ({}, set())
    found = await resolve_all(world, named, places=places)
    ours = {*places, *await _rewritten(world, {*named.values()}.difference(places))}
    ours -= held  # the queue decides which of these are local
    found = {one: here for one, here in found.items() if named[one] not in held}
    away = [one for one, name in named.items() if one not in found and name not in ours]
    for target, here in found.items():
        if here.active and here.id not in walk.seen and depth < DEEPEST and _room(walk):
            walk.seen.add(here.id)
            await _take(world, walk, here, target, Onward(address, row.id, _tenant(row), [target]))
            if here.kind is not AddressKind.MAILBOX:
                await _follow(world, walk, here, target, depth + 1)
    if away or via:
        check_limit(world, row)
        walk.onward.append(Onward(address, row.id, _tenant(row), away[:WIDEST], via[:WIDEST]))


async def _take(world: World, walk: _Walk, row: Picked, target: str, by: Onward) -> None:
    """Add the account of a target. If it refuses for now, the queue retries by the forward."""
    if row.kind is not AddressKind.MAILBOX:
        return
    try:
        to = await address_resolution.account_of(world, row, target)
    except NotFound as refusal:
        walk.refusals.append(refusal)
    except Refused as refusal:  # the refusal can be temporary: the queue retries
        walk.refusals.append(refusal)
        walk.onward.append(by)
    else:
        walk.people.setdefault((to.user_id, to.mailbox_id), Person(to, by))


def _room(walk: _Walk) -> bool:
    """Return True if more destinations can be added."""
    return len(walk.people) + len(walk.onward) < WIDEST


def _tenant(row: Picked) -> int:
    """Return the tenant ID of an address, 0 if it has no domain."""
    return int(row.domain_id or 0)


def check_limit(world: World, row: Picked) -> None:
    """Raise RateLimited if the address has reached its daily limit of forwards."""
    most = world.options.forwards_daily if row.forwards_max is None else row.forwards_max
    until, now = row.forwarded_until, world.now()
    if most and row.forwarded >= most and until and until > now:
        raise RateLimited("this address has forwarded as much as it may", retry_after=until - now)


async def _bounce(world: World, address: str, sender: str) -> Taken:
    """Accept a bounce to an SRS address. Raises NotFound for mail with an envelope sender."""
    local, _, domain = address.rpartition("@")
    name = normal_domain(domain)
    places = (await homes(world, [name])).get(name)
    if sender or not (places or await _rewritten(world, [name])):
        raise NotFound(address, path=["address"])
    try:
        origin = srs.origin(world, local)
    except Invalid as problem:
        raise NotFound(address, path=["address"]) from problem
    return Taken(address, onward=[Onward(address, None, next(iter(places or ()), 0), [origin])])


async def is_ours(world: World, domain: str) -> bool:
    """Return True if this server accepts mail for the domain or rewrites all of it."""
    names = {normal_domain(domain)}
    return bool(await homes(world, names) or await _rewritten(world, names))


async def _rewritten(world: World, names: Collection[str]) -> set[str]:
    """Return the domains with a rewrite for all of their mail."""
    whole = select(col(RecipientRewrite.domain)).where(
        col(RecipientRewrite.domain).in_(names),
        col(RecipientRewrite.local) == "",
        col(RecipientRewrite.active),
    )
    return {row.domain for row in await world.database.read(whole)} if names else set()
