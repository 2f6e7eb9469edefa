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

from mail.addresses.address_syntax import (
    MAX_ADDRESS,
    normalize_and_validate_address,
    normalize_and_validate_domain,
    normalized_domain,
)
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.spam.sender_rules import (
    PLATFORM_SCOPE,
    SenderAction,
    SenderRule,
    scope_of_domain,
    scope_of_tag,
    scope_of_user,
)
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import is_in_parameter, prepare_cached
from models.users.roles import Role
from models.users.rule_makers import (
    Maker,
    RuleSubject,
    applies_to_user,
    is_active_maker,
    maker_columns,
)
from models.validation_constraints import ValidationConstraint

MAX_LABELS = 10  # labels in the domain of a subdomain pattern
SUBDOMAIN_PREFIX = "*."
ACCOUNT_RANK = 0  # rank of rules of the account itself
_COLUMNS = frozenset({"id", "scope", "pattern", "action"})


class RuleReceiver(Protocol):
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
class SenderRuleMatch:
    """A sender rule that matches a message, for one recipient."""

    id: int
    action: SenderAction
    rank: int  # 0 account, 1 tag, 2 domain, 3 platform
    matches_only_header: bool  # the envelope sender does not match


def checked_pattern(text: str, *, path: Sequence[str], index: int | None = None) -> str:
    """Return the pattern in its stored form. Raises InvalidInput if it is not a pattern."""
    pattern = text.strip()
    local, at, domain = pattern.rpartition("@")
    if at and local in ("", "*"):
        pattern, local, at = domain, "", ""
    try:
        if at and "*" not in local:
            return _comparable_address(normalize_and_validate_address(pattern))
        if not pattern.startswith(SUBDOMAIN_PREFIX):
            return normalize_and_validate_domain(pattern)
        name = normalize_and_validate_domain(pattern.removeprefix(SUBDOMAIN_PREFIX))
    except InvalidInput:
        words = "Must be an address, a domain, *@domain, or *.domain for all subdomains."
        raise InvalidInput(
            words, constraint=ValidationConstraint.PATTERN, path=path, index=index
        ) from None
    if name.count(".") >= MAX_LABELS:
        words = f"At most {MAX_LABELS} labels are allowed after {SUBDOMAIN_PREFIX}"
        raise InvalidInput(words, constraint=ValidationConstraint.MAX, path=path, index=index)
    return SUBDOMAIN_PREFIX + name


def patterns_matching_sender(address: str) -> list[str]:
    """Return all patterns that match a sender; [] if it is not an address."""
    local, _, domain = address.strip().rpartition("@")
    if not local or not domain or len(address) > MAX_ADDRESS or not _is_storable(address):
        return []
    comparable_address = _comparable_address(f"{local}@{domain}")
    local, _, domain = comparable_address.rpartition("@")
    bare = local.partition("+")[0]
    labels = domain.split(".")
    above = (labels[start:] for start in range(1, len(labels)))
    below = [SUBDOMAIN_PREFIX + ".".join(rest) for rest in above if len(rest) <= MAX_LABELS]
    return list(dict.fromkeys([comparable_address, f"{bare or local}@{domain}", domain, *below]))


def _comparable_address(address: str) -> str:
    """Return the address in lower case, with the domain in Unicode."""
    local, _, domain = address.rpartition("@")
    return f"{unicodedata.normalize('NFC', local.lower())}@{normalized_domain(domain)}"


def _is_storable(text: str) -> bool:
    """Return True if a database can store the text: no NUL, no lone surrogates."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)


@prepare_cached
def _select_rules(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the rules of these scopes with one of the `patterns`."""
    return (
        select(*select_columns(SenderRule, _COLUMNS), *maker_columns(SenderRule))
        .outerjoin(Maker, is_active_maker(SenderRule))
        .where(
            is_in_parameter(dialect, col(SenderRule.scope), "scopes", String),
            is_in_parameter(dialect, col(SenderRule.pattern), "patterns", String),
        )
    )


async def load_matching_rules(
    environment: Environment,
    receivers: Sequence[RuleReceiver],
    envelope_sender: str,
    from_address: str,
) -> list[list[SenderRuleMatch]]:
    """Return the rules that match a message, for each receiver in the same order.

    A rule matches by the envelope sender or by the first From address. One SQL statement for all
    receivers, none if both addresses are not valid. A rule of a domain, a tag or the platform does
    not apply to accounts that its maker can't administer.
    """
    envelope = patterns_matching_sender(envelope_sender)
    header = patterns_matching_sender(from_address)
    addresses = list(dict.fromkeys([*envelope, *header]))
    if not addresses or not receivers:
        return [[] for _ in receivers]
    ranks_by_receiver = [_ranks_by_scope(receiver) for receiver in receivers]
    parameters = {
        "scopes": sorted({name for names in ranks_by_receiver for name in names}),
        "patterns": addresses,
    }
    rows: dict[str, list[ColumnRow]] = {}
    for row in await environment.database.read_prepared(
        _select_rules(environment.database.dialect), parameters
    ):
        rows.setdefault(row.scope, []).append(row)
    return [
        [
            SenderRuleMatch(row.id, row.action, rank, row.pattern not in envelope)
            for receiver_scope, rank in names.items()
            for row in rows.get(receiver_scope, ())
            if rank == ACCOUNT_RANK
            or applies_to_user(row, RuleSubject(receiver.user_id, receiver.role))
        ]
        for receiver, names in zip(receivers, ranks_by_receiver, strict=True)
    ]


def _ranks_by_scope(receiver: RuleReceiver) -> dict[str, int]:
    """Return the scopes with rules for a receiver, and the rank of each."""
    domain = {} if receiver.domain_id is None else {scope_of_domain(receiver.domain_id): 2}
    tags = {scope_of_tag(tag.strip().casefold()): 1 for tag in receiver.tags}
    return {scope_of_user(receiver.user_id): ACCOUNT_RANK, **tags, **domain, PLATFORM_SCOPE: 3}
