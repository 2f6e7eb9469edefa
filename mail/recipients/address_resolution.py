"""Whose address is that?

The order in which an address is resolved, best first, each in the address's own domain and,
where that is an alias, then in the domain it stands for:

1. the address itself
2. the pattern with the longest fixed part; of two alike, `prefix*` before `*suffix`
3. `*`, everything in the domain

and last `local@*`, which holds in all domains that are ours. Labels (`+…`) and dots of the
local part are removed before, an unknown domain ends it. Where other signs than + begin labels,
an address may hold them all the same: then in each of these steps first the whole local part is
looked for, and behind it the one without label. An address that has ended is none; one that is
switched off decides all the same, and refuses: what it kept out would else come in by a pattern.
Login takes the first row only.

For mail a rewrite comes before all of it, once: that of the address, else that of its domain.
"""

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import idna
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

from mail.addresses.subaddress import label_of
from mail.limits import user_limits
from mail.limits.user_limits import ALLOWED, Reached
from models.addresses.rewrites import BccDirection, BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind
from models.autoreply import answering
from models.domains.tables import Domain, DomainAlias
from models.errors import Invalid, NotFound, OverQuota, RateLimited
from models.filters.sieve_scripts import scripted
from models.filters.tables import filtered
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.spam.sender_rules import SenderRule
from models.store.columns import Instant, Picked, picked
from models.store.prepared_statements import Prepared, among, number, prepared
from models.users.roles import Role
from models.users.rule_makers import Account, Maker, covers, join_of_maker, maker_columns
from models.users.tables import DelimiterAction, LimitKind, User

STATIC = 32  # letters beside the "*" of a pattern, at most
LONGEST = 320  # letters of an address (RFC 3696, erratum 1690)
_LONGEST_DOMAIN = 1024  # letters, in any form: what is longer is not looked at
DELIMITERS = "+-_=#"  # what may begin a label

_USERNAME = re.compile(r"[a-z0-9-]+([._=:][a-z0-9-]+)*(@[a-z0-9-]+([._=:][a-z0-9-]+)*)?")
_LOCAL = re.compile(r"[^\s@<>()\[\]\\,;:\"\x00-\x1f\x7f\ud800-\udfff]{1,64}")
ODD = re.compile("[\0\ud800-\udfff]")  # what no store takes, and so nobody has
_LABEL = re.compile(r"(?!-)[^\W_]([\w-]*[^\W_])?", re.UNICODE)

Read = Callable[[Select[*tuple[Any, ...]], Mapping[str, Any]], Awaitable[Sequence[Any]]]


class Normal(NamedTuple):
    """The form in which addresses are compared, and in which they are stored for it."""

    local: str  # without label and dots
    domain: str  # in Unicode


def normal(address: str) -> Normal:
    """`A.da+news@XN--BCHER-KVA.example` is `ada` at `bücher.example`, here and everywhere."""
    local, domain = _folded(address)
    return Normal(local.partition("+")[0].replace(".", ""), domain)


def _folded(address: str) -> tuple[str, str]:
    """The address in lower case, with label and dots, and its domain in normal form."""
    local, _, domain = unicodedata.normalize("NFC", address.strip().lower()).rpartition("@")
    return local, normal_domain(domain)


def normal_domain(name: str) -> str:
    """The domain in lower case, each of its labels in Unicode (IDNA 2008)."""
    name = unicodedata.normalize("NFC", name.strip().lower())
    name = (name if name.isascii() else _mapped(name)).rstrip(".")
    return ".".join(_decoded(label) for label in name.split("."))


def _mapped(name: str) -> str:
    """The name as the wire will know it: without this, "ﬁ" and "fi" were two domains of one."""
    try:
        return idna.uts46_remap(name, std3_rules=False)
    except idna.IDNAError:
        return name


def _decoded(label: str) -> str:
    try:
        return idna.decode(label) if label.startswith("xn--") else label
    except idna.IDNAError:
        return label  # nobody's, and so it is not found


def username_key(name: str) -> str:
    """A user name as compared: lower case, without the dots left of any "@".

    One that looks like an address is compared like one: without label, the domain in Unicode.
    """
    name = unicodedata.normalize("NFC", name.strip().lower())
    if "@" in name:
        return "@".join(normal(name))
    return name.replace(".", "")


def checked_username(name: str, *, path: Sequence[str] = ("username",)) -> str:
    """The user name in lower case; Invalid where it is none."""
    name = unicodedata.normalize("NFC", name.strip().lower())
    if len(name) > 128 or not _USERNAME.fullmatch(name):  # noqa: PLR2004 - as documented
        raise Invalid(
            "a user name has 1 to 128 of a-z, 0-9 and -, in groups joined by one of . _ = :",
            constraint="pattern",
            path=path,
        )
    return name


def checked(address: str, *, path: str = "address") -> str:
    """The address as its owner writes it, NFC, the domain in Unicode; Invalid where it is none."""
    local, at, domain = unicodedata.normalize("NFC", address.strip()).rpartition("@")
    fits = (
        at
        and len(address) <= LONGEST
        and _LOCAL.fullmatch(local)
        and ".." not in local
        and not local.startswith(".")
        and not local.endswith(".")
    )
    if not fits:
        raise Invalid("not a mail address", constraint="address", path=[path])
    return f"{local}@{checked_domain(domain, path=path)}"


def checked_domain(name: str, *, path: str = "domain") -> str:
    """The domain in normal form; Invalid where it cannot be one."""
    domain = _fitting(name) if len(name) <= _LONGEST_DOMAIN else None
    if domain is None:
        raise Invalid("not a domain name", constraint="domain", path=[path])
    return domain


@lru_cache(4096)
def _fitting(name: str) -> str | None:
    domain = normal_domain(name)
    labels = domain.split(".")
    fits = all(_LABEL.fullmatch(label) and label[:4] != "xn--" for label in labels)
    if len(domain) > 255 or not fits:  # noqa: PLR2004
        return None
    try:
        if len(ascii_domain(domain)) > 253:  # noqa: PLR2004 - RFC 1035, section 2.3.4
            return None
    except idna.IDNAError:
        return None
    return domain


def ascii_domain(domain: str) -> str:
    """The domain as the wire has it; raises idna.IDNAError where there is no such form."""
    if domain.isascii():
        if any(len(label) > 63 for label in domain.split(".")):  # noqa: PLR2004 - RFC 1035
            raise idna.IDNAError("label too long")
        return domain
    return idna.encode(domain, uts46=True).decode()


def forms(local: str, delimiters: str) -> list[str]:
    """Local parts, without dots, that mail for this one may be for: the whole first.

    No address holds a +: behind it there is always a label, where it begins one.
    """
    local = local.replace(".", "")
    if "+" in delimiters:
        local = local.partition("+")[0]
    places = [at for sign in delimiters if (at := local.find(sign)) > 0]
    return [local, local[: min(places)]] if places else [local]


def patterns(*locals_: str) -> list[str]:
    """What matches these, best first: themselves, then the longer fixed part, prefix first."""
    found = list(locals_)
    for fixed in range(min(max(map(len, locals_)), STATIC), 0, -1):
        for local in locals_:
            if len(local) >= fixed:
                found += [f"{local[:fixed]}*", f"*{local[-fixed:]}"]
    return list(dict.fromkeys([*found, "*"]))


def _places(named: Any) -> Select[int]:
    """SQL: the domain of a name, and the one it stands for."""
    other = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == named, col(DomainAlias.active)
    )
    is_it = or_(col(Domain.name) == named, col(Domain.id).in_(other))
    return select(col(Domain.id)).where(is_it, col(Domain.active))


@prepared
def _addresses(dialect: str) -> Select[*tuple[Any, ...]]:
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
    """The same rows, and the rewrites that hold for the address: those have a `target`."""
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


REWRITTEN = ("target", "outside")  # of a rewrite
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
# SQL: the OpenPGP key to which what arrives in a folder is encrypted; "" where that is asked for
# without a key: then nothing is stored
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
# To compare a user's id with, its parameters are `login_given`. Of an address only itself
# counts, also where the domain takes no mail; one that is switched off hides its alias's.
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
    """The row of the address that takes mail for `address`, or NotFound.

    One statement, however many patterns stand in the table. The row has `own` beside the columns
    of an address: False where it was found in the domain that an alias stands for.
    """
    sought, asked = _asked(world, address)
    found = await world.database.find(_addresses(world.database.dialect), asked)
    return _decided(address, sought.winner(found))


def _asked(world: World, address: str) -> tuple["Sought", dict[str, Any]]:
    """What the address is looked up by, and the parameters of the statement; NotFound."""
    sought = Sought.of(world, address)
    if sought is None:
        raise NotFound(address, path=["address"])
    return sought, {"best": sought.best, "name": sought.name, "now": world.now()}


def _decided(address: str, winner: Picked | None) -> Picked:
    if winner is None or not winner.active:
        raise NotFound(address, path=["address"])
    return winner


def instead(address: str, target: str) -> str:
    """What stands for an address: the target, or its own local part, as written, at `@domain`."""
    return address.rpartition("@")[0] + target if target.startswith("@") else target


class Outside(NotFound):
    """A rewrite leads to this address, which is nobody's here, and may be elsewhere."""


async def reached(world: World, address: str) -> tuple[Picked, str]:
    """The row that takes mail for the address, and the address after a rewrite; or NotFound.

    Outside where the rewrite may lead to others. One statement where nothing is rewritten, two
    where something is.
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
    """True if the rewrite holds for the account whose address this is, if it is an account's."""
    if winner is None or winner.user_id is None:
        return True
    given = {"user": winner.user_id, "rule": rewrite.id}
    rows = await world.database.find(_REWRITTEN_ACCOUNT, given)
    return all(covers(row, Account(winner.user_id, row.role)) for row in rows)


@dataclass(frozen=True, slots=True)
class Sought:
    """What mail for an address is looked up by: local parts and patterns, the best first."""

    name: str  # of the domain
    forms: list[str]
    best: list[str]

    @classmethod
    def of(cls, world: World, address: str) -> "Sought | None":
        """What this address is looked up by; None where it can be nobody's."""
        if ODD.search(address):
            return None
        local, name = _folded(address)
        found = forms(local, world.options.delimiters)
        return cls(name, found, patterns(*found)) if found[0] else None

    def rank(self, row: Any) -> tuple[bool, int, bool]:
        """How far behind the best this row, which is alive, comes."""
        return row.domain_id is None, self.best.index(row.local), not row.own

    def winner(self, rows: Iterable[Any]) -> Any:
        """The row that decides; None where none fits."""
        fit = (row for row in rows if row.domain_id is not None or row.local in self.forms)
        return min(fit, key=self.rank, default=None)


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whose mail it is, and where it goes."""

    user_id: int
    tenant_id: int
    mailbox_id: int  # INBOX
    address_id: int
    address: str  # as given
    key: str | None = None  # OpenPGP, to which what comes is encrypted; None: it is not
    answers: bool = False  # by itself, now
    spam_level: int = 50
    ruled: bool = False  # there are rules about senders, of whomsoever
    domain_id: int | None = None  # of the address, or else of the account
    tags: Sequence[str] = ()  # of the address
    instead: str | None = None  # the address after a rewrite
    copied: bool = (
        False  # there are rules that may have it copied: mail/delivery/recipient_rewrites.py
    )
    scripted: bool = False  # a script of the account runs: mail/delivery/delivery_plan.py
    filtered: bool = False  # it has filters: mail/delivery/filter_execution.py
    tls_only: bool = False  # no mail from elsewhere without TLS
    junk_score: float | None = None  # None: the usual one, of mail/spam/verdict.py
    reject_score: float | None = None
    forwards: bool = False  # what comes is sent on to targets: mail/delivery/account_forwards.py
    delimiter_action: DelimiterAction = DelimiterAction.NONE  # what this does:
    label: str = ""  # of the address
    original: str | None = None  # the address that was asked for first, where that is another
    role: Role = Role.USER  # of the account


async def recipient(world: World, address: str) -> Recipient:
    """Who receives mail for `address`.

    NotFound where nobody does, also for a disabled user (a suspended one receives);
    OverQuota where the mailbox is full, RateLimited where as much came as may in an hour. The
    first of these in a while is told to the account.
    """
    row, there = await reached(world, address)
    return await account_of(world, row, address, there)


async def account_of(world: World, to: Picked, address: str, there: str = "") -> Recipient:
    """Who receives mail for an address whose row this is; raises as `recipient`.

    `there` is the address after a rewrite.
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
    most = world.options.received_hourly if row.received_max is None else row.received_max
    until, now = row.received_until, world.now()
    if most and row.received >= most and until and until > now:
        reached = Reached(LimitKind.RECEIVED, row.received, most, until, refused=True)
        await _tell(world, row.id, reached, row.received_told_until)
        raise RateLimited(user_limits.TOO_MUCH_MAIL, retry_after=until - now)


async def _tell(world: World, user_id: int, reached: Reached, told: datetime | None) -> None:
    if not user_limits.still(world, told):  # of a flood only the first costs anything
        await user_limits.refused(world, user_id, reached)


async def login_of(world: World, name: str) -> int | None:
    """The user who signs in as `name`: a user name, or an address; None where nobody does."""
    found = await world.database.find(_LOGIN, login_given(world, name))
    return found[0].id if found else None


def login_given(world: World, name: str) -> dict[str, Any]:
    """The values of the parameters of LOGIN for this name."""
    if ODD.search(name):
        return {"username": None, "local": None, "domain": None, "now": world.now()}
    local, domain = normal(name) if "@" in name else ("", "")
    return {
        "username": username_key(name),
        "local": local if local and "*" not in local else None,  # a pattern is nobody's name
        "domain": domain,
        "now": world.now(),
    }


async def owner_of(world: World, address: str) -> int | None:
    """The user who may send as `address`; None where it is nobody's, or not to be sent as."""
    try:
        row = await resolve(world, address)
    except NotFound:
        return None
    return row.user_id if row.kind is AddressKind.MAILBOX and row.send_as else None
