"""Resolve an address to its address record, account or sign-in user.

An address is resolved in this order. Each step looks in the address's own domain and, if that is an
alias domain, then in its target domain:

1. the address itself
2. the pattern with the longest fixed part; of two equal ones, `prefix*` before `*suffix`
3. the catch-all `*`

Last comes `local@*`, which is valid in all local domains. The label (`+…`) and the dots of the
local part are removed first; an unknown domain ends the resolution. If other delimiters than + are
configured, each step first looks for the whole local part and then for the one without label.
Expired addresses are ignored. A disabled address still decides, and refuses the mail: otherwise a
pattern would accept it. Sign-in uses only step 1.

For mail, a recipient rewrite is applied once before: that of the address, else that of its domain.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Select,
    String,
    and_,
    bindparam,
    case,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import aliased
from sqlmodel import col

from mail.addresses.address_syntax import ODD, _folded, forms, normal, patterns, username_key
from mail.addresses.subaddress import label_of
from mail.envelope.local_recipient import Recipient
from mail.limits import user_limits
from mail.limits.user_limits import ALLOWED, Reached
from models.addresses.rewrites import BccDirection, BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind
from models.autoreply import answering
from models.domains.tables import Domain, DomainAlias
from models.errors import NotFound, OverQuota, RateLimited
from models.filters.sieve_scripts import scripted
from models.filters.tables import filtered
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.spam.sender_rules import SenderRule
from models.store.columns import Instant, Picked, picked
from models.store.prepared_statements import Prepared, among, number, prepared
from models.users.rule_makers import Account, Maker, covers, join_of_maker, maker_columns
from models.users.tables import DelimiterAction, LimitKind, User

Read = Callable[[Select[*tuple[Any, ...]], Mapping[str, Any]], Awaitable[Sequence[Any]]]


def _places(named: Any) -> Select[int]:
    """SQL: the ID of the domain with this name, and of the one it is an alias of."""
    other = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == named, col(DomainAlias.active)
    )
    is_it = or_(col(Domain.name) == named, col(Domain.id).in_(other))
    return select(col(Domain.id)).where(is_it, col(Domain.active))


@prepared
def _addresses(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the unexpired address rows with one of the local parts and patterns in `best`."""
    named = bindparam("name", type_=String)
    home, there = aliased(Domain), _places(named)
    onward = select(col(Domain.id)).where(  # mail/recipients/backup_mx.py
        col(Domain.id).in_(there), col(Domain.backup_mx), ~col(Domain.relay_unknown_only)
    )
    own = col(home.name) == named
    return (
        select(*picked(Address), own.label("own"), onward.exists().label("relayed"))
        .join(home, col(home.id) == col(Address.domain_id), isouter=True)
        .where(
            among(dialect, col(Address.local), "best", String),
            or_(
                col(Address.domain_id).in_(there),
                and_(col(Address.domain_id).is_(None), there.exists()),
            ),
            or_(
                col(Address.expires_at).is_(None),
                col(Address.expires_at) > bindparam("now", type_=Instant),
            ),
        )
    )


@prepared
def _received(dialect: str) -> Any:
    """Select the same rows, and the rewrites of the address: those have a `target`."""
    rows: Select[*tuple[Any, ...]] = _addresses(dialect).made
    more = literal(None, String).label("target"), literal(None, Boolean).label("outside")
    found = rows.add_columns(*more).subquery()
    nothing = {name: null().label(name) for name in found.c.keys()}  # noqa: SIM118 - no mapping
    there = {name: getattr(RecipientRewrite, name) for name in ("id", "local", *REWRITTEN)}
    instead = select(*{**nothing, **there}.values()).where(
        col(RecipientRewrite.domain) == bindparam("name", type_=String),
        col(RecipientRewrite.local).in_([bindparam("local", type_=String), ""]),
        col(RecipientRewrite.active),
    )
    return union_all(select(found), instead)


REWRITTEN = ("target", "outside")  # of the rewrite row
_REWRITTEN_ACCOUNT = Prepared(
    select(col(User.role), *maker_columns(RecipientRewrite))
    .join(RecipientRewrite, col(RecipientRewrite.id) == number("rule"))
    .outerjoin(Maker, join_of_maker(RecipientRewrite))
    .where(col(User.id) == number("user"))
)
_COPIED = select(col(BccRule.id)).where(
    col(BccRule.direction) == BccDirection.RECIPIENT, col(BccRule.active)
)
_ENCRYPTED = or_(col(User.encrypt_messages), col(Mailbox.encrypt_messages))
# SQL: the OpenPGP key for messages that arrive in a mailbox; "" if encryption is enabled
# without a key: then messages can't be stored
KEY = case((_ENCRYPTED, func.coalesce(col(User.pub_key), "")))
_RULED = select(col(SenderRule.id)).exists()
_ACCOUNT = Prepared(
    select(
        col(User.id),
        col(User.tenant_id),
        col(User.used),
        col(User.received),
        col(User.received_max),
        col(User.received_until),
        col(User.received_told_until),
        col(User.storage_told_until),
        col(Mailbox.id).label("box"),
        KEY.label("key"),
        col(User.spam_level),
        col(User.targets),
        col(User.delimiter_action),
        col(User.domain_id),
        col(User.tls_enforce_in),
        col(User.role),
        _RULED.label("ruled"),
        ALLOWED.label("allowed"),
        answering(col(User.id)).label("answers"),
        _COPIED.exists().label("copied"),
        scripted(col(User.id)).label("scripted"),
        filtered(col(User.id)).label("filtered"),
        col(User.junk_score),
        col(User.reject_score),
    )
    .join(Mailbox, col(Mailbox.user_id) == col(User.id))
    .where(
        col(User.id) == number("user"),
        ~col(User.disabled),
        col(Mailbox.special_use) == SpecialUse.INBOX,
    )
)

_PLACES = select(col(Domain.id)).where(col(Domain.name) == bindparam("domain"))
_OTHERS = select(col(DomainAlias.domain_id)).where(
    col(DomainAlias.alias) == bindparam("domain"), col(DomainAlias.active)
)
_MAILBOX = and_(col(Address.active), col(Address.kind) == AddressKind.MAILBOX)
# SQL: the user ID of a login name, see `sign_in_parameters`. Only exact addresses
# count, also in disabled domains; a disabled address hides the same one of the alias target.
LOGIN = func.coalesce(
    select(case((_MAILBOX, col(Address.user_id))))
    .where(
        col(Address.local) == bindparam("local"),
        col(Address.domain_id).in_(_PLACES.union_all(_OTHERS)),
        or_(col(Address.expires_at).is_(None), col(Address.expires_at) > bindparam("now")),
    )
    .order_by(case((col(Address.domain_id).in_(_PLACES), 0), else_=1))
    .limit(1)
    .scalar_subquery(),
    select(col(User.id)).where(col(User.username_key) == bindparam("username")).scalar_subquery(),
)
_LOGIN = Prepared(select(col(User.id)).where(col(User.id) == LOGIN))


async def resolve(world: World, address: str) -> Picked:
    """Return the row of the address record that receives mail for an address. Raises NotFound.

    One SQL statement. Beside the columns of an address the row has `own`, False if it was found in
    the target of an alias domain.
    """
    sought, asked = _asked(world, address)
    found = await world.database.find(_addresses(world.database.dialect), asked)
    return _decided(address, sought.winner(found))


def _asked(world: World, address: str) -> tuple["Sought", dict[str, Any]]:
    """Return the lookup of an address and the parameters of the statement. Raises NotFound."""
    sought = Sought.of(world, address)
    if sought is None:
        raise NotFound(address, path=["address"])
    return sought, {"best": sought.best, "name": sought.name, "now": world.now()}


def _decided(address: str, winner: Picked | None) -> Picked:
    """Return the winning row. Raises NotFound if there is none or it is disabled."""
    if winner is None or not winner.active:
        raise NotFound(address, path=["address"])
    return winner


def instead(address: str, target: str) -> str:
    """Return the address after a rewrite. A target `@domain` keeps the local part as written."""
    return address.rpartition("@")[0] + target if target.startswith("@") else target


class Outside(NotFound):
    """A rewrite leads to this address, which is not local and can be on another server."""


async def reached(world: World, address: str) -> tuple[Picked, str]:
    """Return the address row that receives mail for the address, and the address after a rewrite.

    Raises NotFound; RewrittenToExternal if the target is not local and the rewrite allows that. One
    SQL statement without a rewrite, two with one.
    """
    sought, asked = _asked(world, address)
    local = sought.forms[-1]
    found = await world.database.find(_received(world.database.dialect), {**asked, "local": local})
    rewrites = {row.local: row for row in found if row.target is not None}
    winner = sought.winner(row for row in found if row.target is None)
    rewrite = rewrites.get(local) or rewrites.get("")
    if rewrite and await _covered(world, rewrite, winner):
        address = instead(address, rewrite.target)
        try:
            return await resolve(world, address), address
        except NotFound as refusal:
            elsewhere = Outside(address, path=["address"])
            raise (elsewhere if rewrite.outside else refusal) from None
    return _decided(address, winner), address


async def _covered(world: World, rewrite: Any, winner: Picked | None) -> bool:
    """Return True if the maker of the rewrite can administer the account, or there is none."""
    if winner is None or winner.user_id is None:
        return True
    given = {"user": winner.user_id, "rule": rewrite.id}
    rows = await world.database.find(_REWRITTEN_ACCOUNT, given)
    return all(covers(row, Account(winner.user_id, row.role)) for row in rows)


@dataclass(frozen=True, slots=True)
class Sought:
    """The local parts and patterns that an address is looked up by, best first."""

    name: str
    forms: list[str]
    best: list[str]

    @classmethod
    def of(cls, world: World, address: str) -> "Sought | None":
        """Return the lookup of an address, None if it can't exist."""
        if ODD.search(address):
            return None
        local, name = _folded(address)
        found = forms(local, world.options.delimiters)
        return cls(name, found, patterns(*found)) if found[0] else None

    def rank(self, row: Any) -> tuple[bool, int, bool]:
        """Return the sort key of an address row; the lowest one decides."""
        return row.domain_id is None, self.best.index(row.local), not row.own

    def winner(self, rows: Iterable[Any]) -> Any:
        """Return the row that decides, None if no row matches."""
        fit = (row for row in rows if row.domain_id is not None or row.local in self.forms)
        return min(fit, key=self.rank, default=None)


async def recipient(world: World, address: str) -> Recipient:
    """Return the account that receives mail for an address.

    Raises NotFound if there is none or it is disabled (a suspended account receives); OverQuota if
    the mailbox is full, RateLimited at the hourly limit. The first refusal in a while is reported
    to the account.
    """
    row, there = await reached(world, address)
    return await account_of(world, row, address, there)


async def account_of(world: World, to: Picked, address: str, there: str = "") -> Recipient:
    """Return the account that an address row delivers to; raises as `load_recipient`.

    `rewritten_to` is the address after a rewrite.
    """
    given = {
        "user": to.user_id,
        "platform": world.options.default_quota,
        "now": world.now(),
    }
    row = next(iter(await world.database.find(_ACCOUNT, given)), None)
    if row is None or to.kind is not AddressKind.MAILBOX:
        raise NotFound(address, path=["address"])
    if row.allowed and row.used >= row.allowed:
        full = Reached(LimitKind.STORAGE, row.used, row.allowed, refused=True)
        await _tell(world, row.id, full, row.storage_told_until)
        raise OverQuota(used=row.used, allowed=row.allowed)
    await _check_received(world, row)
    return Recipient(
        row.id,
        row.tenant_id,
        row.box,
        to.id,
        address,
        row.key,
        row.answers,
        row.spam_level,
        row.ruled,
        to.domain_id or row.domain_id,
        to.tags,
        there if there not in ("", address) else None,
        row.copied,
        row.scripted,
        row.filtered,
        row.tls_enforce_in,
        row.junk_score,
        row.reject_score,
        bool(row.targets),
        DelimiterAction(row.delimiter_action),
        label_of(there or address, to.local, world.options.delimiters),
        role=row.role,
    )


async def _check_received(world: World, row: Picked) -> None:
    """Raise RateLimited if the account has received its hourly limit."""
    most = world.options.received_hourly if row.received_max is None else row.received_max
    until, now = row.received_until, world.now()
    if most and row.received >= most and until and until > now:
        reached = Reached(LimitKind.RECEIVED, row.received, most, until, refused=True)
        await _tell(world, row.id, reached, row.received_told_until)
        raise RateLimited(user_limits.TOO_MUCH_MAIL, retry_after=until - now)


async def _tell(world: World, user_id: int, reached: Reached, told: datetime | None) -> None:
    """Report a reached limit to the account, unless that was done lately."""
    if not user_limits.still(world, told):  # in a flood only the first refusal writes
        await user_limits.refused(world, user_id, reached)


async def login_of(world: World, name: str) -> int | None:
    """Return the ID of the user with this username or address, None if there is none."""
    found = await world.database.find(_LOGIN, login_given(world, name))
    return found[0].id if found else None


def login_given(world: World, name: str) -> dict[str, Any]:
    """Return the parameters of SIGN_IN_USER_ID for a login name."""
    if ODD.search(name):
        return {"username": None, "local": None, "domain": None, "now": world.now()}
    local, domain = normal(name) if "@" in name else ("", "")
    return {
        "username": username_key(name),
        "local": local if local and "*" not in local else None,  # a pattern can't sign in
        "domain": domain,
        "now": world.now(),
    }


async def owner_of(world: World, address: str) -> int | None:
    """Return the ID of the account that can send as the address, None if there is none."""
    try:
        row = await resolve(world, address)
    except NotFound:
        return None
    return row.user_id if row.kind is AddressKind.MAILBOX and row.send_as else None
