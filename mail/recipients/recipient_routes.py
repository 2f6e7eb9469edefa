"""Where mail for an address goes: to accounts here, on to others, or nowhere.

What an address is, and what it is rewritten to before, is in
mail/recipients/address_resolution.py. By its kind
its mail then

- goes to the account (MAILBOX),
- goes to each of its targets (FORWARD): one that is here is looked up in its turn, also where it
  forwards itself; to all others the mail is sent on,
- is taken, and dropped (DISCARD),
- is learned by the spam filter (LEARN_SPAM, LEARN_HAM), where there is one that learns.

Of a domain for which we are a backup MX it may go on to other servers:
mail/recipients/backup_mx.py.

An address comes to nobody twice, and circles are passed over. A bounce to an envelope sender that
we have written for mail sent on goes on to the first sender.
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

DEEPEST = 10  # addresses that forward, one behind the other
WIDEST = 200  # places that one address may come to


@dataclass(frozen=True, slots=True)
class Onward:
    """What is sent on in the name of an address of ours."""

    address: str  # ours
    address_id: int | None  # whose limit it counts against
    tenant_id: int
    targets: Sequence[str] = ()  # addresses
    via: Sequence[Via] = ()
    user_id: int | None = None  # whose limit it counts against
    rewritten: bool = False  # by an administrator: against nobody's
    wish: Wish = USUAL  # goes on with it
    relayed: bool = False  # to the servers that we are a backup of: mail/recipients/backup_mx.py
    message_id: int | None = None  # the copy that the account has, which remembers where it went

    @property
    def returns(self) -> bool:
        """Whether it is a bounce that finds back, to a sender that is its own already."""
        ours = self.rewritten or self.relayed
        return self.address_id is None and self.user_id is None and not ours


@dataclass(frozen=True, slots=True)
class Person:
    """An account that mail comes to, and the address by which it was forwarded there."""

    to: Recipient
    by: Onward | None = None


@dataclass(frozen=True, slots=True)
class Away:
    """An address, as given, whose mail was not taken, and our reply."""

    address: str
    reply: str


@dataclass(frozen=True, slots=True)
class Answering:
    """An address that forwards, and answers by itself."""

    address: str  # as given
    address_id: int
    domain_id: int | None
    tags: Sequence[str] = ()

    @property
    def user_id(self) -> None:
        """Of no account."""

    @property
    def tenant_id(self) -> int:
        """Whose bytes its answers are."""
        return self.domain_id or 0


@dataclass(frozen=True, slots=True)
class Taken:
    """An address that was accepted, and where its mail goes; with neither it is dropped."""

    address: str  # as given
    people: Sequence[Person] = ()
    onward: Sequence[Onward] = ()
    learn: bool | None = None  # as spam, or as good mail
    domain_id: int | None = None  # of an address whose mail is dropped
    queue_id: str = ""  # that is given to its message; "": it has none yet
    beside: Sequence[Away] = ()  # for whom the same message was not taken
    answering: Answering | None = None
    wish: Wish = USUAL  # of the sender, what is to be told

    @property
    def user_id(self) -> int | None:
        """Whose address it is, where it is one account's."""
        return self.people[0].to.user_id if self.people else None

    @property
    def leaves(self) -> bool:
        """Whether the mail goes to this very address, at other servers."""
        return any(each.relayed and self.address in each.targets for each in self.onward)


class Loop(Conflict):
    """The mail goes in circles."""


@dataclass
class _Walk:
    """What was found on the way from an address."""

    people: dict[tuple[int, int], Person] = field(default_factory=dict)
    onward: list[Onward] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    refusals: list[Refused] = field(default_factory=list)
    learn: bool | None = None


async def accept(world: World, address: str, sender: str) -> Taken:
    """Find out where mail from an envelope sender to this address goes.

    Raises as `addresses.recipient`; where an address forwards, only if none of its targets takes
    the mail. RateLimited where it has forwarded as much as it may in a day.
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
    """Let mail go on to the servers that we are a backup of."""
    return Taken(address, onward=[Onward(address, None, tenant_id, [there], relayed=True)])


def _answering(row: Picked, address: str) -> Answering | None:
    """Who answers: of addresses that forward to each other the one that was written to."""
    if not row.answers or row.kind is not AddressKind.FORWARD:
        return None
    return Answering(address, row.id, row.domain_id, row.tags)


async def _outside(world: World, address: str, to: Outside) -> Taken:
    """Send on what is rewritten to an address elsewhere; in a domain of ours it is nobody's."""
    if await is_ours(world, to.ref.rpartition("@")[2]):
        raise to
    name = normal_domain(address.rpartition("@")[2])
    tenant = next(iter((await homes(world, [name])).get(name, ())), 0)
    return Taken(address, onward=[Onward(address, None, tenant, [to.ref], rewritten=True)])


async def _follow(world: World, walk: _Walk, row: Picked, address: str, depth: int) -> None:
    """Take the targets of an address that is none of an account's."""
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
    ours -= held  # the queue knows which of these stay here
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
    if row.kind is not AddressKind.MAILBOX:
        return
    try:
        to = await address_resolution.account_of(world, row, target)
    except NotFound as refusal:
        walk.refusals.append(refusal)
    except Refused as refusal:  # there may be room later: the queue tries again
        walk.refusals.append(refusal)
        walk.onward.append(by)
    else:
        walk.people.setdefault((to.user_id, to.mailbox_id), Person(to, by))


def _room(walk: _Walk) -> bool:
    return len(walk.people) + len(walk.onward) < WIDEST


def _tenant(row: Picked) -> int:
    return int(row.domain_id or 0)


def check_limit(world: World, row: Picked) -> None:
    """RateLimited where the address has forwarded as much as it may."""
    most = world.options.forwards_daily if row.forwards_max is None else row.forwards_max
    until, now = row.forwarded_until, world.now()
    if most and row.forwarded >= most and until and until > now:
        raise RateLimited("this address has forwarded as much as it may", retry_after=until - now)


async def _bounce(world: World, address: str, sender: str) -> Taken:
    """Let a bounce find back; nobody else has a reason to write there."""
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
    """Whether we take the mail of this domain, be it that all of it is rewritten."""
    names = {normal_domain(domain)}
    return bool(await homes(world, names) or await _rewritten(world, names))


async def _rewritten(world: World, names: Collection[str]) -> set[str]:
    """Those of these domains all of whose mail is for others."""
    whole = select(col(RecipientRewrite.domain)).where(
        col(RecipientRewrite.domain).in_(names),
        col(RecipientRewrite.local) == "",
        col(RecipientRewrite.active),
    )
    return {row.domain for row in await world.database.read(whole)} if names else set()
