"""Find the sender rules that match a message.

A pattern is stored in one form, however it is written, and matches:

| pattern             | also written                        | senders                              |
|---------------------|-------------------------------------|--------------------------------------|
| `news@shop.example` |                                     | that address, with any label or none |
| `news+x@shop.example` |                                   | that address, with this label        |
| `shop.example`      | `*@shop.example`, `@shop.example`   | the domain without its subdomains    |
| `*.shop.example`    | `*@*.shop.example`                  | all subdomains of the domain         |

Case is ignored, and domains are compared in Unicode. Dots of the local part are significant: on
other servers `a.b` and `ab` can be different users.
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

DEEP = 10  # labels in the domain of a subdomain pattern
BELOW = "*."
OWN = 0  # rank of rules of the account itself
_READ = frozenset({"id", "place", "pattern", "action"})


class Receiver(Protocol):
    """The recipient of a message as sender rules see it."""

    @property
    def user_id(self) -> int:
        """The account."""

    @property
    def domain_id(self) -> int | None:
        """The domain of the recipient address, or of the account if the address has none."""

    @property
    def role(self) -> Role:
        """The role of the account."""

    @property
    def tags(self) -> Collection[str]:
        """The tags of the account and of the address, in any case."""


@dataclass(frozen=True, slots=True)
class Match:
    """A sender rule that matches a message, for one recipient."""

    id: int
    action: SenderAction
    rank: int  # 0 account, 1 tag, 2 domain, 3 platform
    by_header: bool  # the envelope sender does not match


def checked_pattern(text: str, *, path: Sequence[str], index: int | None = None) -> str:
    """Return the pattern in its stored form. Raises Invalid if it is not a pattern."""
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
    """Return all patterns that match a sender; [] if it is not an address."""
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
    """Return the address in lower case, with the domain in Unicode."""
    local, _, domain = address.rpartition("@")
    return f"{unicodedata.normalize('NFC', local.lower())}@{normal_domain(domain)}"


def _plain(text: str) -> bool:
    """Return True if a database can store the text: no NUL, no lone surrogates."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)


@prepared
def _matching(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the rules of `places` with one of the `patterns`."""
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
    """Return the rules that match a message, for each receiver in the same order.

    A rule matches by the envelope sender or by the first From address. One SQL statement for all
    receivers, none if both addresses are not valid. A rule of a domain, a tag or the platform does
    not apply to accounts that its maker can't administer.
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
    """Return the places with rules for a receiver, and the rank of each."""
    domain = {} if to.domain_id is None else {of_domain(to.domain_id): 2}
    tags = {of_tag(tag.strip().casefold()): 1 for tag in to.tags}
    return {of_user(to.user_id): OWN, **tags, **domain, EVERYBODY: 3}
