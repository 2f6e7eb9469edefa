"""Recipient rewrites and BCC rules.

A recipient is rewritten once, before it is resolved: by the rewrite of its address, else by that of
its domain. BCC rules then make copies: each rule of the address and each rule of its domain makes
one. A copy is not copied again.
"""

import hmac
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Select, String, bindparam, select, union_all
from sqlmodel import col

from mail.addresses.address_syntax import Normal, checked, checked_domain, normal, normal_domain
from mail.envelope.local_recipient import Recipient
from mail.queue.enqueue import Sender, hand_in, handed
from mail.recipients.address_resolution import instead, owner_of
from mail.storage.blobs.blob_writer import Kept
from mail.storage.header_prepend import before, first
from mail.storage.message_insert import Letter
from mail.storage.received_messages import with_bytes
from models.addresses.rewrites import BccDirection, BccRule, RecipientRewrite
from models.domains.tables import Domain, DomainAlias
from models.errors import Invalid
from models.events.journal import PLATFORM
from models.queue.tables import Delivery
from models.runtime.environment import Turn, World
from models.store.columns import Picked, picked
from models.store.prepared_statements import Prepared, among, number, prepared
from models.submission.tables import ARRIVED, Submission
from models.users.rule_makers import Account, Maker, covers, join_of_maker, maker_columns
from models.users.tables import User

log = logging.getLogger(__name__)

Accounts = Mapping[str, Sequence[Account]]  # the accounts that own each address

HEAD = 1 << 20  # bytes of a large message that are searched for COPY_FIELD
COPIED = b"X-Merganser-Copy"  # header field of a copy: HMAC of the original address
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_COPIED = re.compile(rb"(?im)^X-Merganser-Copy:[ \t]*([0-9a-f]{64})[ \t]*\r?$")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The replacement of an address and the rewrite that made it."""

    address: str
    id: int
    outside: bool  # the target can be on another server


@dataclass(frozen=True, slots=True)
class Copy:
    """The target of a copy, with its rule and the address that the mail was for."""

    address: str
    id: int
    of: str


def matched(text: str, *, path: str) -> Normal:
    """Return the address of a rule; the local part of a domain rule is empty. Raises Invalid."""
    text = text.strip()
    if text.startswith("@"):
        return Normal("", checked_domain(text[1:], path=path))
    if set("*+") & set(text.rpartition("@")[0]):
        words = "an address without label and pattern, or @domain"
        raise Invalid(words, constraint="pattern", path=[path])
    return normal(checked(text, path=path))


def replacement(text: str, of: Normal, *, path: str = "to") -> str:
    """Return a rewrite target: an address, or `@domain` for a domain rule. Raises Invalid."""
    text = text.strip()
    if not text.startswith("@"):
        if "*" in text or text.startswith("+"):
            raise Invalid("an address, not a pattern", constraint="pattern", path=[path])
        return checked(text, path=path)
    if of.local:
        words = "only a whole domain is replaced by @domain"
        raise Invalid(words, constraint="address", path=[path])
    return f"@{checked_domain(text[1:], path=path)}"


def circular(rules: Mapping[Normal, str]) -> bool:
    """Return True if rewrites that are followed repeatedly form a loop.

    An empty local part means all addresses of a domain.
    """
    ended = set[Normal]()
    for start in rules:
        way = dict[Normal, None]()
        at: Normal | None = start
        while at is not None and at not in ended:
            if at in way:
                return True
            way[at] = None
            at = _after(rules, at)
        ended.update(way)
    return False


def _after(rules: Mapping[Normal, str], at: Normal) -> Normal | None:
    """Return the address after one rewrite, None if it does not change."""
    target = rules.get(at) or rules.get(Normal("", at.domain))
    if target is None:
        return None
    found = normal(target)
    found = Normal(at.local, found.domain) if target.startswith("@") else found
    return None if found == at else found


@prepared
def _rewrites(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the active rewrites of `locals` in `domains`."""
    table = RecipientRewrite
    return select(*picked(table, ("id", "local", "domain", "target", "outside"))).where(
        among(dialect, col(table.domain), "domains", String),
        among(dialect, col(table.local), "locals", String),
        col(table.active),
    )


async def rewritten(world: World, addresses: Collection[str]) -> dict[str, Rewritten]:
    """Return the rewrites of these addresses by address, in one SQL statement."""
    if not addresses:
        return {}
    names = {address: normal(address) for address in addresses}
    asked = {
        "domains": sorted({name.domain for name in names.values()}),
        "locals": ["", *sorted({name.local for name in names.values()})],
    }
    rows = await world.database.find(_rewrites(world.database.dialect), asked)
    rules = {Normal(row.local, row.domain): row for row in rows}
    found = {}
    for address, name in names.items():
        row = rules.get(name) or rules.get(Normal("", name.domain))
        if row is not None and name.local:
            found[address] = Rewritten(instead(address, row.target), row.id, row.outside)
    return found


@prepared
def _copies(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the rules of one direction for addresses, with the domain name that matched."""
    own: Select[*tuple[Any, ...]] = select(
        col(Domain.id).label("domain_id"), col(Domain.name).label("named")
    ).where(among(dialect, col(Domain.name), "domains", String))
    second = select(col(DomainAlias.domain_id), col(DomainAlias.alias)).where(
        among(dialect, col(DomainAlias.alias), "domains", String)
    )
    there = union_all(own, second).subquery()
    return (
        select(
            col(BccRule.id),
            col(BccRule.local),
            col(BccRule.bcc_to),
            there.c.named,
            *maker_columns(BccRule),
        )
        .join(there, there.c.domain_id == col(BccRule.domain_id))
        .outerjoin(Maker, join_of_maker(BccRule))
        .where(
            col(BccRule.direction) == bindparam("direction"),
            among(dialect, col(BccRule.local), "locals", String),
            col(BccRule.active),
        )
        .order_by(col(BccRule.id))
    )


def _asked(direction: BccDirection, addresses: Iterable[str]) -> dict[str, Any]:
    """Return the parameters of the statement of BCC rules."""
    names = {normal(address) for address in addresses}
    return {
        "direction": direction,
        "domains": sorted({name.domain for name in names}),
        "locals": ["", *sorted({name.local for name in names})],
    }


def _chosen(rows: Sequence[Picked], of: Accounts, known: Collection[str]) -> list[Copy]:
    """Return the copies that rules make of the mail of these addresses, each target once.

    A rule applies only to accounts that its maker can administer.
    """
    names = {address: normal(address) for address in of}
    taken, found = {_same(address) for address in known}, []
    for row in rows:
        for address, name in names.items():
            fits = name.domain == row.named and row.local in ("", name.local)
            if fits and all(covers(row, account) for account in of[address]):
                if _same(row.bcc_to) not in taken:
                    taken.add(_same(row.bcc_to))
                    found.append(Copy(row.bcc_to, row.id, address))
                break
    return found


def _same(address: str) -> str:
    """Return the address in the form that duplicates are found by."""
    # not the normalized form: other servers can distinguish what it drops
    local, _, domain = address.rpartition("@")
    return f"{local.casefold()}@{normal_domain(domain)}"


async def copies(
    world: World, direction: BccDirection, of: Accounts, known: Collection[str] = ()
) -> list[Copy]:
    """Return who gets a copy of mail from or to these addresses, except the excluded ones.

    Each target is returned once. One SQL statement for any number of addresses.
    """
    return _chosen(await _rules(world, direction, of), of, known)


async def copies_of_sent(
    world: World, account_id: int, envelopes: Sequence[tuple[str, Collection[str]]]
) -> list[list[str]]:
    """Return who gets a copy of each message that an account sends.

    Envelopes are (sender, recipients) pairs. A rule must cover the sending account and the account
    that owns the sender address. One SQL statement if no rule applies.
    """
    senders = list(dict.fromkeys(sender for sender, _ in envelopes))
    rows = await _rules(world, BccDirection.SENDER, senders) if senders else ()
    of = await _senders(world, account_id, senders) if rows else {}
    return [
        [copy.address for copy in _chosen(rows, {sender: of[sender]}, recipients)] if rows else []
        for sender, recipients in envelopes
    ]


async def _senders(
    world: World, account_id: int, senders: Collection[str]
) -> dict[str, list[Account]]:
    """Return the accounts of each sender: the sending account and the owner of the address."""
    owners = {sender: {account_id, await owner_of(world, sender)} for sender in senders}
    ids = {owner for both in owners.values() for owner in both if owner}
    asked = select(col(User.id), col(User.role)).where(col(User.id).in_(ids))
    there = {row.id: Account(row.id, row.role) for row in await world.database.read(asked)}
    return {
        sender: [there[owner] for owner in both if owner in there]
        for sender, both in owners.items()
    }


async def _rules(world: World, direction: BccDirection, of: Iterable[str]) -> Sequence[Picked]:
    """Return the BCC rules that can apply to one of these addresses."""
    return await world.database.find(_copies(world.database.dialect), _asked(direction, of))


@dataclass(frozen=True, slots=True)
class Came:
    """A received message that BCC rules copy, with its envelope."""

    source: bytes | Path
    letter: Letter
    sender: str  # empty for the null path
    recipients: Sequence[str]  # envelope recipients; they get no copy
    submission_id: int = ARRIVED  # the submission of a local user


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy of a message that can be queued."""

    letter: Letter
    to: Sequence[str]
    of: Recipient


async def copies_of_received(world: World, came: Came, delivered: Sequence[Recipient]) -> None:
    """Enqueue the BCC copies of a delivered message. On return they are durable."""
    with ExitStack() as files:
        for copy in await copies_wanted(world, came, delivered, files):

            def unit(turn: Turn, kept: Kept, copy: Copied = copy) -> None:
                enter(turn, kept, came, copy)

            await with_bytes(world, copy.of.tenant_id, copy.letter, unit, PLATFORM)


async def copies_wanted(
    world: World, came: Came, delivered: Sequence[Recipient], files: ExitStack
) -> list[Copied]:
    """Return the BCC copies of a message that is delivered to these recipients.

    Copies keep the envelope sender. A message that is itself a copy of the same mail is not copied
    again, even after a detour through another server. No SQL statement if no recipient has rules.
    Temporary files are closed with `temporary_files`.
    """
    theirs = {to.instead or to.address: to for to in delivered if to.copied}
    if not theirs:
        return []
    accounts = {address: [Account(to.user_id, to.role)] for address, to in theirs.items()}
    found = await copies(world, BccDirection.RECIPIENT, accounts, came.recipients)
    if found and came.submission_id != ARRIVED:
        rows = await world.database.find(_KNOWN, {"submission": came.submission_id})
        taken = {_same(row.recipient) for row in rows}
        found = [copy for copy in found if _same(copy.address) not in taken]
    if not found:
        return []
    source, letter = came.source, came.letter
    head = await first(source, len(source) if isinstance(source, bytes) else HEAD)
    seen = set(_COPIED.findall(_HEADER_END.split(head, 1)[0]))
    made = []
    for of in dict.fromkeys(copy.of for copy in found):
        mark = _mark(world, of, came.letter)
        if mark not in seen:
            to = [copy.address for copy in found if copy.of == of]
            prefix = b"%s: %s\r\n" % (COPIED, mark)
            copy = await before(source, letter, prefix, files)
            made.append(Copied(copy, to, theirs[of]))
    return made


def enter(turn: Turn, kept: Kept, came: Came, copy: Copied) -> None:
    """Enqueue a BCC copy in the current transaction. Its bytes must be stored."""
    given = handed(turn, copy.letter, kept, came.sender, copy.to, copy_of=came.submission_id)
    hand_in(turn, Sender(None, copy.of.tenant_id), given)


_KNOWN = Prepared(
    select(col(Delivery.recipient))
    .join(Submission, col(Submission.id) == col(Delivery.submission_id))
    .where(
        (col(Submission.id) == number("submission"))
        | (col(Submission.copy_of) == number("submission"))
    )
)


def _mark(world: World, address: str, letter: Letter) -> bytes:
    """Return the HMAC that identifies a copy of a message for an address."""
    text = f"copy\n{'@'.join(normal(address))}\n{letter.facts.message_id or ''}"
    return hmac.digest(world.secret, text.encode(errors="surrogatepass"), "sha256").hex().encode()
