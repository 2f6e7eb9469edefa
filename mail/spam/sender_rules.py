"""Which rules about senders hold for a message: what deliveries ask.

A pattern is stored in one form, whatever its spelling, and matches:

| pattern             | also written                        | senders                              |
|---------------------|-------------------------------------|--------------------------------------|
| `news@shop.example` |                                     | that address, with any label or none |
| `news+x@shop.example` |                                   | that address, with this label        |
| `shop.example`      | `*@shop.example`, `@shop.example`   | all of the domain, none below it     |
| `*.shop.example`    | `*@*.shop.example`                  | all of the domains below it          |

Case counts nowhere, and domains are compared in Unicode. Dots of the local part count: unlike
our own addresses, `a.b` and `ab` may be two people elsewhere.
"""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Select, String, select
from sqlmodel import col

from mail.addresses.address_syntax import LONGEST, checked, checked_domain, normal_domain
from models.errors import Invalid
from models.runtime.environment import World
from models.spam.sender_rules import EVERYBODY, SenderAction, SenderRule, of_domain, of_tag, of_user
from models.store.columns import Picked, picked
from models.store.prepared_statements import among, prepared
from models.users.roles import Role
from models.users.rule_makers import Account, Maker, covers, join_of_maker, maker_columns

DEEP = 10  # labels of a domain whose subdomains are meant
BELOW = "*."
OWN = 0  # the rank of rules of the account
_READ = frozenset({"id", "place", "pattern", "action"})


class Receiver(Protocol):
    """Who receives a message, as far as rules ask."""

    @property
    def user_id(self) -> int:
        """The account."""

    @property
    def domain_id(self) -> int | None:
        """The domain of the address written to; of an address without one the account's."""

    @property
    def role(self) -> Role:
        """Of the account."""

    @property
    def tags(self) -> Collection[str]:
        """Of the account and of the address, in any case."""


@dataclass(frozen=True, slots=True)
class Match:
    """A rule that a message matches, for one of its recipients."""

    id: int
    action: SenderAction
    rank: int  # the lower, the more specific its place: account, tag, domain, everybody
    by_header: bool  # it matches the From header alone


def checked_pattern(text: str, *, path: Sequence[str], index: int | None = None) -> str:
    """The pattern in the form that is stored; Invalid where it is none."""
    pattern = text.strip()
    local, at, domain = pattern.rpartition("@")
    if at and local in ("", "*"):
        pattern, local, at = domain, "", ""
    try:
        if at and "*" not in local:
            return _address(checked(pattern))
        if not pattern.startswith(BELOW):
            return checked_domain(pattern)
        name = checked_domain(pattern.removeprefix(BELOW))
    except Invalid:
        words = "an address, a domain, *@domain, or *.domain for all below it"
        raise Invalid(words, constraint="pattern", path=path, index=index) from None
    if name.count(".") >= DEEP:
        words = f"at most {DEEP} labels behind {BELOW}"
        raise Invalid(words, constraint="max", path=path, index=index)
    return BELOW + name


def patterns(address: str) -> list[str]:
    """All patterns that match this sender; none where it is no address, as that of a bounce."""
    local, _, domain = address.strip().rpartition("@")
    if not local or not domain or len(address) > LONGEST or not _plain(address):
        return []
    whole = _address(f"{local}@{domain}")
    local, _, domain = whole.rpartition("@")
    bare = local.partition("+")[0]
    labels = domain.split(".")
    above = (labels[start:] for start in range(1, len(labels)))
    below = [BELOW + ".".join(rest) for rest in above if len(rest) <= DEEP]
    return list(dict.fromkeys([whole, f"{bare or local}@{domain}", domain, *below]))


def _address(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{unicodedata.normalize('NFC', local.lower())}@{normal_domain(domain)}"


def _plain(text: str) -> bool:
    """Whether a store takes it: no NUL, and no half of a character."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)


@prepared
def _matching(dialect: str) -> Select[*tuple[Any, ...]]:
    return (
        select(*picked(SenderRule, _READ), *maker_columns(SenderRule))
        .outerjoin(Maker, join_of_maker(SenderRule))
        .where(
            among(dialect, col(SenderRule.place), "places", String),
            among(dialect, col(SenderRule.pattern), "patterns", String),
        )
    )


async def rules_of(
    world: World, recipients: Sequence[Receiver], sender: str, from_address: str
) -> list[list[Match]]:
    """The rules that a message matches, for each of its recipients in their order.

    `sender` is that of the envelope, `from_address` the first of the From header: a rule that
    fits either matches. One statement for all recipients, whose pairs of place and pattern are
    looked up in an index; none where neither is an address. A rule for a domain, a tag or all
    skips accounts that its maker may not administer.
    """
    envelope, header = patterns(sender), patterns(from_address)
    wanted = list(dict.fromkeys([*envelope, *header]))
    if not wanted or not recipients:
        return [[] for _ in recipients]
    each = [_places(one) for one in recipients]
    asked = {"places": sorted({name for names in each for name in names}), "patterns": wanted}
    rows: dict[str, list[Picked]] = {}
    for row in await world.database.find(_matching(world.database.dialect), asked):
        rows.setdefault(row.place, []).append(row)
    return [
        [
            Match(row.id, row.action, rank, row.pattern not in envelope)
            for place, rank in names.items()
            for row in rows.get(place, ())
            if rank == OWN or covers(row, Account(to.user_id, to.role))
        ]
        for to, names in zip(recipients, each, strict=True)
    ]


def _places(to: Receiver) -> dict[str, int]:
    """Where rules for a recipient stand, and how specific each place is."""
    domain = {} if to.domain_id is None else {of_domain(to.domain_id): 2}
    tags = {of_tag(tag.strip().casefold()): 1 for tag in to.tags}
    return {of_user(to.user_id): OWN, **tags, **domain, EVERYBODY: 3}
