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

For mail, a recipient rewrite is applied once before: that of the address, else that of the address
without label unless the whole one is an address of its own, else that of its domain.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

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

from mail.addresses.address_syntax import (
    UNSTORABLE,
    folded_parts,
    normalized_address,
    patterns_matching_local_parts,
    undotted_local_parts_to_look_up,
    username_key,
)
from mail.addresses.rule_addresses import local_parts_of_rules, rule_addresses
from mail.addresses.subaddress import subaddress_label_or_empty
from mail.envelope.local_recipient import LocalRecipient
from mail.limits import user_limits
from mail.limits.user_limits import STORAGE_QUOTA, ReachedLimit
from models.addresses.rewrites import BccDirection, BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind
from models.autoreply import is_autoreply_active
from models.domains.tables import Domain, DomainAlias
from models.errors import NotFound, OverQuota, RateLimited
from models.filters.sieve_scripts import has_active_script
from models.filters.tables import has_active_filter
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.spam.sender_rules import SenderRule
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.users.rule_makers import (
    Maker,
    RuleSubject,
    applies_to_user,
    is_active_maker,
    maker_columns,
)
from models.users.tables import LimitKind, SubaddressAction, User

ReadStatement = Callable[[Select[*tuple[Any, ...]], Mapping[str, Any]], Awaitable[Sequence[Any]]]


def _domain_ids_sql(domain_name: Any) -> Select[int]:
    """SQL: the ID of the domain with this name, and of the one it is an alias of."""
    other = select(col(DomainAlias.domain_id)).where(
        col(DomainAlias.alias) == domain_name, col(DomainAlias.active)
    )
    is_it = or_(col(Domain.name) == domain_name, col(Domain.id).in_(other))
    return select(col(Domain.id)).where(is_it, col(Domain.active))


@prepare_cached
def _select_addresses(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the unexpired address rows with one of the local parts and patterns in `best`."""
    domain_name = bindparam("name", type_=String)
    home_domain, domain_ids = aliased(Domain), _domain_ids_sql(domain_name)
    backup_domain_ids = select(col(Domain.id)).where(  # mail/recipients/backup_mx.py
        col(Domain.id).in_(domain_ids), col(Domain.backup_mx), ~col(Domain.relay_unknown_only)
    )
    is_own_domain = col(home_domain.name) == domain_name
    return (
        select(
            *select_columns(Address),
            is_own_domain.label("is_own_domain"),
            backup_domain_ids.exists().label("relayed"),
        )
        .join(home_domain, col(home_domain.id) == col(Address.domain_id), isouter=True)
        .where(
            is_in_parameter(dialect, col(Address.local), "best", String),
            or_(
                col(Address.domain_id).in_(domain_ids),
                and_(col(Address.domain_id).is_(None), domain_ids.exists()),
            ),
            or_(
                col(Address.expires_at).is_(None),
                col(Address.expires_at) > bindparam("now", type_=UtcDateTime),
            ),
        )
    )


@prepare_cached
def _select_addresses_and_rewrites(dialect: str) -> Any:
    """Select the same rows, and the rewrites of the address: those have a `target`."""
    rows: Select[*tuple[Any, ...]] = _select_addresses(dialect).statement
    more = literal(None, String).label("target"), literal(None, Boolean).label("outside")
    addresses_and_rewrites = rows.add_columns(*more).subquery()
    nothing = {name: null().label(name) for name in addresses_and_rewrites.c.keys()}  # noqa: SIM118 - no mapping
    rewrite_columns = {
        name: getattr(RecipientRewrite, name) for name in ("id", "local", *REWRITE_COLUMNS)
    }
    instead = select(*{**nothing, **rewrite_columns}.values()).where(
        col(RecipientRewrite.domain) == bindparam("name", type_=String),
        col(RecipientRewrite.local).in_(
            [bindparam("complete", type_=String), bindparam("unlabelled", type_=String), ""]
        ),
        col(RecipientRewrite.active),
    )
    return union_all(select(addresses_and_rewrites), instead)


REWRITE_COLUMNS = ("target", "outside")  # of the rewrite row
_SELECT_REWRITE_MAKER = PreparedStatement(
    select(col(User.role), *maker_columns(RecipientRewrite))
    .join(RecipientRewrite, col(RecipientRewrite.id) == integer_parameter("rule"))
    .outerjoin(Maker, is_active_maker(RecipientRewrite))
    .where(col(User.id) == integer_parameter("user"))
)
_HAS_BCC_RULES = select(col(BccRule.id)).where(
    col(BccRule.direction) == BccDirection.RECIPIENT, col(BccRule.active)
)
_IS_ENCRYPTED = or_(col(User.encrypt_messages), col(Mailbox.encrypt_messages))
# SQL: the OpenPGP key for messages that arrive in a mailbox; "" if encryption is enabled
# without a key: then messages can't be stored
ENCRYPTION_KEY = case((_IS_ENCRYPTED, func.coalesce(col(User.openpgp_public_key), "")))
_HAS_SENDER_RULES = select(col(SenderRule.id)).exists()
_SELECT_ACCOUNT = PreparedStatement(
    select(
        col(User.id),
        col(User.tenant_id),
        col(User.used),
        col(User.received),
        col(User.received_per_hour),
        col(User.received_until),
        col(User.received_notified_until),
        col(User.storage_notified_until),
        col(Mailbox.id).label("box"),
        ENCRYPTION_KEY.label("key"),
        col(User.spam_level),
        col(User.forward_to),
        col(User.subaddress_action),
        col(User.domain_id),
        col(User.require_inbound_tls),
        col(User.role),
        _HAS_SENDER_RULES.label("ruled"),
        STORAGE_QUOTA.label("allowed"),
        is_autoreply_active(col(User.id)).label("answers"),
        _HAS_BCC_RULES.exists().label("copied"),
        has_active_script(col(User.id)).label("scripted"),
        has_active_filter(col(User.id)).label("filtered"),
        col(User.junk_score),
        col(User.reject_score),
    )
    .join(Mailbox, col(Mailbox.user_id) == col(User.id))
    .where(
        col(User.id) == integer_parameter("user"),
        col(User.active),
        col(Mailbox.special_use) == SpecialUse.INBOX,
    )
)

_DOMAIN_ID = select(col(Domain.id)).where(col(Domain.name) == bindparam("domain"))
_ALIASED_DOMAIN_ID = select(col(DomainAlias.domain_id)).where(
    col(DomainAlias.alias) == bindparam("domain"), col(DomainAlias.active)
)
_IS_MAILBOX_ADDRESS = and_(col(Address.active), col(Address.kind) == AddressKind.MAILBOX)
# SQL: the user ID of a login name, see `sign_in_parameters`. Only exact addresses
# count, also in disabled domains; a disabled address hides the same one of the alias target.
SIGN_IN_USER_ID = func.coalesce(
    select(case((_IS_MAILBOX_ADDRESS, col(Address.user_id))))
    .where(
        col(Address.local) == bindparam("local"),
        col(Address.domain_id).in_(_DOMAIN_ID.union_all(_ALIASED_DOMAIN_ID)),
        or_(col(Address.expires_at).is_(None), col(Address.expires_at) > bindparam("now")),
    )
    .order_by(case((col(Address.domain_id).in_(_DOMAIN_ID), 0), else_=1))
    .limit(1)
    .scalar_subquery(),
    select(col(User.id)).where(col(User.username_key) == bindparam("username")).scalar_subquery(),
)
_SELECT_SIGN_IN_USER = PreparedStatement(
    select(col(User.id)).where(col(User.id) == SIGN_IN_USER_ID)
)


async def require_receiving_address_row(environment: Environment, address: str) -> ColumnRow:
    """Return the row of the address record that receives mail for an address. Raises NotFound.

    One SQL statement. Beside the columns of an address the row has `is_own_domain`, False if it
    was found in the target of an alias domain.
    """
    lookup, parameters = _lookup_and_parameters(environment, address)
    rows = await environment.database.read_prepared(
        _select_addresses(environment.database.dialect), parameters
    )
    return _require_active_winner(address, lookup.row_with_precedence(rows))


def _lookup_and_parameters(
    environment: Environment, address: str
) -> tuple["AddressLookup", dict[str, Any]]:
    """Return the lookup of an address and the parameters of the statement. Raises NotFound."""
    lookup = AddressLookup.from_address(environment, address)
    if lookup is None:
        raise NotFound(address, path=["address"])
    return lookup, {"best": lookup.candidates, "name": lookup.domain, "now": environment.now()}


def _require_active_winner(address: str, winner: ColumnRow | None) -> ColumnRow:
    """Return the winning row. Raises NotFound if there is none or it is disabled."""
    if winner is None or not winner.active:
        raise NotFound(address, path=["address"])
    return winner


def rewritten_address(address: str, rewrite_target: str) -> str:
    """Return the address after a rewrite. A target `@domain` keeps the local part as written."""
    return (
        address.rpartition("@")[0] + rewrite_target
        if rewrite_target.startswith("@")
        else rewrite_target
    )


@dataclass(frozen=True, slots=True)
class RewrittenAddress:
    """The address after a rewrite, and the rewrite."""

    address: str
    rewrite_id: int
    allows_external: bool  # the target can be on another server


class RewrittenToExternal(NotFound):
    """A rewrite leads to this address, which is not local and can be on another server."""


class ResolvedAddress(NamedTuple):
    """The row that receives mail for an address, and the address after a rewrite."""

    row: ColumnRow
    address: str


async def resolve_with_rewrite(environment: Environment, address: str) -> ResolvedAddress:
    """Return the address row that receives mail for the address, and the address after a rewrite.

    Raises NotFound; RewrittenToExternal if the target is not local and the rewrite allows that. One
    SQL statement without a rewrite, two with one, three if the address has an account.
    """
    winner, rewrite = await _load_winner_and_rewrite(environment, address)
    if rewrite is None:
        return ResolvedAddress(_require_active_winner(address, winner), address)
    try:
        row = await require_receiving_address_row(environment, rewrite.address)
    except NotFound as refusal:
        elsewhere = RewrittenToExternal(rewrite.address, path=["address"])
        raise (elsewhere if rewrite.allows_external else refusal) from None
    return ResolvedAddress(row, rewrite.address)


async def find_applied_rewrite(environment: Environment, address: str) -> RewrittenAddress | None:
    """Return the rewrite that delivery applies to an address, None if there is none.

    The target need not receive mail.
    """
    try:
        _, rewrite = await _load_winner_and_rewrite(environment, address)
    except NotFound:
        return None
    return rewrite


async def _load_winner_and_rewrite(
    environment: Environment, address: str
) -> tuple[ColumnRow | None, RewrittenAddress | None]:
    """Return the row that decides about the address itself, and the rewrite that has precedence.

    A rewrite whose maker can't administer the account of that row is skipped. Raises NotFound if
    the address can't exist.
    """
    lookup, parameters = _lookup_and_parameters(environment, address)
    forms = lookup.local_part_forms
    rows = await environment.database.read_prepared(
        _select_addresses_and_rewrites(environment.database.dialect),
        {**parameters, "complete": forms[0], "unlabelled": forms[-1]},
    )
    rewrites = {row.local: row for row in rows if row.target is not None}
    winner = lookup.row_with_precedence(row for row in rows if row.target is None)
    local_parts = local_parts_of_rules(forms, winner.local if winner else None)
    rewrite = next((rewrites[part] for part in [*local_parts, ""] if part in rewrites), None)
    if not rewrite or not await _can_rewrite_maker_administer_account(environment, rewrite, winner):
        return winner, None
    new_address = rewritten_address(address, rewrite.target)
    return winner, RewrittenAddress(new_address, rewrite.id, rewrite.outside)


async def _can_rewrite_maker_administer_account(
    environment: Environment, rewrite_row: Any, winner: ColumnRow | None
) -> bool:
    """Return True if the maker of the rewrite can administer the account, or there is none."""
    if winner is None or winner.user_id is None:
        return True
    parameters = {"user": winner.user_id, "rule": rewrite_row.id}
    rows = await environment.database.read_prepared(_SELECT_REWRITE_MAKER, parameters)
    return all(applies_to_user(row, RuleSubject(winner.user_id, row.role)) for row in rows)


@dataclass(frozen=True, slots=True)
class AddressLookup:
    """The local parts and patterns that an address is looked up by, best first."""

    domain: str
    local_part_forms: list[str]
    candidates: list[str]

    @classmethod
    def from_address(cls, environment: Environment, address: str) -> "AddressLookup | None":
        """Return the lookup of an address, None if it can't exist."""
        if UNSTORABLE.search(address):
            return None
        local, name = folded_parts(address)
        local_parts = undotted_local_parts_to_look_up(
            local, environment.options.addresses_subaddress_delimiters
        )
        return (
            cls(name, local_parts, patterns_matching_local_parts(*local_parts))
            if local_parts[0]
            else None
        )

    def sort_key(self, address_row: Any) -> tuple[bool, int, bool]:
        """Return the sort key of an address row; the lowest one decides."""
        return (
            address_row.domain_id is None,
            self.candidates.index(address_row.local),
            not address_row.is_own_domain,
        )

    def row_with_precedence(self, address_rows: Iterable[Any]) -> Any:
        """Return the row that decides, None if no row matches."""
        matching_rows = (
            row
            for row in address_rows
            if row.domain_id is not None or row.local in self.local_part_forms
        )
        return min(matching_rows, key=self.sort_key, default=None)


async def load_recipient_below_limits(environment: Environment, address: str) -> LocalRecipient:
    """Return the account that receives mail for an address.

    Raises NotFound if there is none or it is not active (a suspended account receives);
    OverQuota if the mailbox is full, RateLimited at the hourly limit. The first refusal in a
    while is reported to the account.
    """
    row, rewrite = await resolve_with_rewrite(environment, address)
    return await load_row_recipient_below_limits(environment, row, address, rewrite)


async def load_row_recipient_below_limits(
    environment: Environment, address_row: ColumnRow, address: str, rewritten_to: str = ""
) -> LocalRecipient:
    """Return the account that an address row delivers to; raises as `load_recipient_below_limits`.

    `rewritten_to` is the address after a rewrite.
    """
    parameters = {
        "user": address_row.user_id,
        "platform": environment.options.users_default_quota,
        "now": environment.now(),
    }
    row = next(iter(await environment.database.read_prepared(_SELECT_ACCOUNT, parameters)), None)
    if row is None or address_row.kind is not AddressKind.MAILBOX:
        raise NotFound(address, path=["address"])
    if row.allowed and row.used >= row.allowed:
        full = ReachedLimit(LimitKind.STORAGE, row.used, row.allowed, is_refusal=True)
        await _report_limit_unless_reported(environment, row.id, full, row.storage_notified_until)
        raise OverQuota(used=row.used, limit=row.allowed)
    await _require_below_received_limit_or_report(environment, row)
    return LocalRecipient(
        row.id,
        row.tenant_id,
        row.box,
        address_row.id,
        address,
        row.key,
        row.answers,
        row.spam_level,
        row.ruled,
        address_row.domain_id or row.domain_id,
        address_row.tags,
        rewritten_to if rewritten_to not in ("", address) else None,
        row.copied,
        row.scripted,
        row.filtered,
        row.require_inbound_tls,
        row.junk_score,
        row.reject_score,
        bool(row.forward_to),
        SubaddressAction(row.subaddress_action),
        subaddress_label_or_empty(
            rewritten_to or address,
            address_row.local,
            environment.options.addresses_subaddress_delimiters,
        ),
        role=row.role,
        rule_addresses=(
            rule_addresses(
                rewritten_to or address,
                environment.options.addresses_subaddress_delimiters,
                address_row.local,
            )
            if row.copied
            else ()
        ),
    )


async def _require_below_received_limit_or_report(
    environment: Environment, account_row: ColumnRow
) -> None:
    """Raise RateLimited if the account has received its hourly limit."""
    most = (
        environment.options.limits_received_per_hour
        if account_row.received_per_hour is None
        else account_row.received_per_hour
    )
    until, now = account_row.received_until, environment.now()
    if most and account_row.received >= most and until and until > now:
        reached = ReachedLimit(
            LimitKind.RECEIVED, account_row.received, most, until, is_refusal=True
        )
        await _report_limit_unless_reported(
            environment, account_row.id, reached, account_row.received_notified_until
        )
        raise RateLimited(user_limits.TOO_MUCH_MAIL, retry_after=until - now)


async def _report_limit_unless_reported(
    environment: Environment, user_id: int, limit: ReachedLimit, reported_until: datetime | None
) -> None:
    """Report a reached limit to the account, unless that was done lately."""
    if not user_limits.is_already_reported(
        environment, reported_until
    ):  # in a flood only the first refusal writes
        await user_limits.report_refusal_once_per_period(environment, user_id, limit)


async def find_sign_in_user_id(environment: Environment, login_name: str) -> int | None:
    """Return the ID of the user with this username or address, None if there is none."""
    rows = await environment.database.read_prepared(
        _SELECT_SIGN_IN_USER, sign_in_parameters(environment, login_name)
    )
    return rows[0].id if rows else None


def sign_in_parameters(environment: Environment, login_name: str) -> dict[str, Any]:
    """Return the parameters of SIGN_IN_USER_ID for a login name."""
    if UNSTORABLE.search(login_name):
        return {"username": None, "local": None, "domain": None, "now": environment.now()}
    local, domain = normalized_address(login_name) if "@" in login_name else ("", "")
    return {
        "username": username_key(login_name),
        "local": local if local and "*" not in local else None,  # a pattern can't sign in
        "domain": domain,
        "now": environment.now(),
    }
