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
from mail.addresses.address_syntax import normalized_domain
from mail.envelope.dsn_parameters import DEFAULT_REPORTS, DsnRequest
from mail.envelope.local_recipient import LocalRecipient
from mail.recipients import address_resolution, backup_mx, forward_targets
from mail.recipients.address_resolution import RewrittenToExternal
from mail.recipients.batch_resolution import (
    load_domain_ids_by_name,
    load_domains_and_backup_mx,
    resolve_addresses,
)
from mail.recipients.forward_targets import ForwardEndpoint
from models.addresses.rewrites import RecipientRewrite
from models.addresses.tables import TRAINING_KINDS, AddressKind
from models.errors import Conflict, InvalidInput, NotFound, RateLimited, RequestError
from models.runtime.environment import Environment
from models.store.columns import ColumnRow

MAX_FORWARD_DEPTH = 10  # forwarding addresses in a chain
MAX_DESTINATIONS = 200  # destinations of one address


@dataclass(frozen=True, slots=True)
class OutgoingForward:
    """A forward of mail in the name of a local address."""

    address: str  # the local address
    address_id: int | None  # whose limit it counts against
    tenant_id: int
    target_addresses: Sequence[str] = ()  # addresses
    endpoints: Sequence[ForwardEndpoint] = ()
    user_id: int | None = None  # whose limit it counts against
    is_rewritten: bool = False  # by an administrator; counts against no limit
    dsn_request: DsnRequest = DEFAULT_REPORTS  # for the next server
    is_backup_mx: bool = False  # to the servers this one is a backup of
    stored_message_id: int | None = None  # the stored copy, which remembers its forwards

    @property
    def is_returned_bounce(self) -> bool:
        """True if it is a bounce to an SRS address; its sender is not rewritten."""
        ours = self.is_rewritten or self.is_backup_mx
        return self.address_id is None and self.user_id is None and not ours


@dataclass(frozen=True, slots=True)
class AcceptedAccount:
    """An account that accepts mail, and the forward it was reached by."""

    recipient: LocalRecipient
    forwarded_by: OutgoingForward | None = None


@dataclass(frozen=True, slots=True)
class RejectedRecipient:
    """A recipient that was refused, as given, with the SMTP reply."""

    address: str
    smtp_reply: str


@dataclass(frozen=True, slots=True)
class AutoreplyAddress:
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
class AcceptedRecipient:
    """A recipient that was accepted, and where its mail goes. Without destination it is dropped."""

    address: str  # as given
    accounts: Sequence[AcceptedAccount] = ()
    forwards: Sequence[OutgoingForward] = ()
    train_as_spam: bool | None = None  # None: no training address
    domain_id: int | None = None  # set if the mail is dropped
    queue_id: str = ""  # of its message; "": not assigned yet
    rejected_recipients: Sequence[RejectedRecipient] = ()  # refused recipients of the same message
    autoreply_address: AutoreplyAddress | None = None
    dsn_request: DsnRequest = DEFAULT_REPORTS  # of the client

    @property
    def user_id(self) -> int | None:
        """The account of the address, if there is one."""
        return self.accounts[0].recipient.user_id if self.accounts else None

    @property
    def is_relayed_unchanged(self) -> bool:
        """True if the mail goes to the same address on another server."""
        return any(
            each.is_backup_mx and self.address in each.target_addresses for each in self.forwards
        )


class MailLoop(Conflict):
    """The mail is in a loop."""


@dataclass
class _ForwardExpansion:
    """The destinations found while the targets of an address are expanded."""

    accounts: dict[tuple[int, int], AcceptedAccount] = field(default_factory=dict)
    forwards: list[OutgoingForward] = field(default_factory=list)
    seen_address_ids: set[int] = field(default_factory=set)
    refusals: list[RequestError] = field(default_factory=list)
    train_as_spam: bool | None = None


async def accept_recipient(
    environment: Environment, address: str, envelope_sender: str
) -> AcceptedRecipient:
    """Return where mail from an envelope sender to this address goes.

    Raises as `address_resolution.load_recipient_below_limits`; for a forwarding address only if no
    target accepts the mail. Raises RateLimited at the daily limit of forwards.
    """
    if srs.is_srs(address.rpartition("@")[0]):
        return await _accept_srs_bounce(environment, address, envelope_sender)
    try:
        row, there = await address_resolution.resolve_with_rewrite(environment, address)
    except RewrittenToExternal as to:
        return await _accept_rewritten_external(environment, address, to)
    except NotFound as refusal:
        return _accept_for_backup_mx(
            address, refusal.ref, await backup_mx.require_relaying_domain_id(environment, refusal)
        )
    if row.kind is AddressKind.MAILBOX and row.relayed:
        return _accept_for_backup_mx(address, there, _tenant_id_of_address(row))
    if row.kind is AddressKind.MAILBOX:
        return AcceptedRecipient(
            address,
            [
                AcceptedAccount(
                    await address_resolution.load_row_recipient_below_limits(
                        environment, row, address, there
                    )
                )
            ],
        )
    walk = _ForwardExpansion(seen_address_ids={row.id})
    await _expand_targets(environment, walk, row, there, 1)
    if not (walk.accounts or walk.forwards) and walk.refusals:
        raise walk.refusals[0]
    people = [
        replace(one, recipient=replace(one.recipient, original_address=address))
        for one in walk.accounts.values()
    ]
    return AcceptedRecipient(
        address,
        people,
        walk.forwards,
        walk.train_as_spam,
        row.domain_id,
        autoreply_address=_autoreply_address(row, address),
    )


def _accept_for_backup_mx(address: str, rewritten_to: str, tenant_id: int) -> AcceptedRecipient:
    """Accept mail for the servers that this one is a backup of."""
    return AcceptedRecipient(
        address,
        forwards=[OutgoingForward(address, None, tenant_id, [rewritten_to], is_backup_mx=True)],
    )


def _autoreply_address(address_row: ColumnRow, address: str) -> AutoreplyAddress | None:
    """Return the automatic reply of a forwarding address, None if it has none.

    If forwards are chained, only the address of the recipient replies.
    """
    if not address_row.answers or address_row.kind is not AddressKind.FORWARD:
        return None
    return AutoreplyAddress(address, address_row.id, address_row.domain_id, address_row.tags)


async def _accept_rewritten_external(
    environment: Environment, address: str, rewrite: RewrittenToExternal
) -> AcceptedRecipient:
    """Forward mail that is rewritten to another server. Raises NotFound for a local domain."""
    if await is_local_domain(environment, rewrite.ref.rpartition("@")[2]):
        raise rewrite
    name = normalized_domain(address.rpartition("@")[2])
    tenant = next(iter((await load_domain_ids_by_name(environment, [name])).get(name, ())), 0)
    return AcceptedRecipient(
        address, forwards=[OutgoingForward(address, None, tenant, [rewrite.ref], is_rewritten=True)]
    )


async def _expand_targets(
    environment: Environment,
    expansion: _ForwardExpansion,
    address_row: ColumnRow,
    address: str,
    depth: int,
) -> None:
    """Add the targets of an address that is not of an account. Raises NotFound, RateLimited."""
    if address_row.kind is AddressKind.DISCARD:
        return
    if address_row.kind in TRAINING_KINDS and environment.options.rspamd_learn_url:
        expansion.train_as_spam = address_row.kind is AddressKind.LEARN_SPAM
        return
    if address_row.kind is not AddressKind.FORWARD:
        raise NotFound(address, path=["address"])
    pairs = zip(
        address_row.forward_to,
        forward_targets.targets_with_passwords(environment, address_row),
        strict=True,
    )
    endpoints = [ForwardEndpoint(address, shown, whole) for shown, whole in pairs if "://" in shown]
    local_rows, remote_addresses = await _resolve_targets(
        environment, [one for one in address_row.forward_to if "://" not in one]
    )
    for target, target_row in local_rows.items():
        if (
            target_row.active
            and target_row.id not in expansion.seen_address_ids
            and depth < MAX_FORWARD_DEPTH
            and _has_room(expansion)
        ):
            expansion.seen_address_ids.add(target_row.id)
            await _add_target_account_or_refusal(
                environment,
                expansion,
                target_row,
                target,
                OutgoingForward(
                    address, address_row.id, _tenant_id_of_address(address_row), [target]
                ),
            )
            if target_row.kind is not AddressKind.MAILBOX:
                await _expand_targets(environment, expansion, target_row, target, depth + 1)
    if remote_addresses or endpoints:
        require_below_address_forward_limit(environment, address_row)
        expansion.forwards.append(
            OutgoingForward(
                address,
                address_row.id,
                _tenant_id_of_address(address_row),
                remote_addresses[:MAX_DESTINATIONS],
                endpoints[:MAX_DESTINATIONS],
            )
        )


async def _resolve_targets(
    environment: Environment, target_addresses: Collection[str]
) -> tuple[dict[str, ColumnRow], list[str]]:
    """Return the rows of the local targets by address, and the targets on other servers.

    Unknown addresses in local domains are in neither.
    """
    domain_names = {
        address: normalized_domain(address.rpartition("@")[2]) for address in target_addresses
    }
    local_domains, backup_mx_domains = (
        await load_domains_and_backup_mx(environment, set(domain_names.values()))
        if domain_names
        else ({}, set())
    )
    rows = await resolve_addresses(environment, domain_names, domains_by_name=local_domains)
    ours = {
        *local_domains,
        *await _load_fully_rewritten_domains(
            environment, {*domain_names.values()}.difference(local_domains)
        ),
    }
    ours -= backup_mx_domains  # the queue decides which of these are local
    rows = {
        address: row
        for address, row in rows.items()
        if domain_names[address] not in backup_mx_domains
    }
    remote_addresses = [
        address
        for address, name in domain_names.items()
        if address not in rows and name not in ours
    ]
    return rows, remote_addresses


async def _add_target_account_or_refusal(
    environment: Environment,
    expansion: _ForwardExpansion,
    address_row: ColumnRow,
    target: str,
    forward: OutgoingForward,
) -> None:
    """Add the account of a target. If it refuses for now, the queue retries by the forward."""
    if address_row.kind is not AddressKind.MAILBOX:
        return
    try:
        to = await address_resolution.load_row_recipient_below_limits(
            environment, address_row, target
        )
    except NotFound as refusal:
        expansion.refusals.append(refusal)
    except RequestError as refusal:  # the refusal can be temporary: the queue retries
        expansion.refusals.append(refusal)
        expansion.forwards.append(forward)
    else:
        expansion.accounts.setdefault((to.user_id, to.mailbox_id), AcceptedAccount(to, forward))


def _has_room(expansion: _ForwardExpansion) -> bool:
    """Return True if more destinations can be added."""
    return len(expansion.accounts) + len(expansion.forwards) < MAX_DESTINATIONS


def _tenant_id_of_address(address_row: ColumnRow) -> int:
    """Return the tenant ID of an address, 0 if it has no domain."""
    return int(address_row.domain_id or 0)


def require_below_address_forward_limit(environment: Environment, address_row: ColumnRow) -> None:
    """Raise RateLimited if the address has reached its daily limit of forwards."""
    most = (
        environment.options.limits_forwards_per_day
        if address_row.forwards_per_day is None
        else address_row.forwards_per_day
    )
    until, now = address_row.forwarded_until, environment.now()
    if most and address_row.forwarded >= most and until and until > now:
        raise RateLimited("this address has forwarded as much as it may", retry_after=until - now)


async def _accept_srs_bounce(
    environment: Environment, address: str, envelope_sender: str
) -> AcceptedRecipient:
    """Accept a bounce to an SRS address. Raises NotFound for mail with an envelope sender."""
    local, _, domain = address.rpartition("@")
    name = normalized_domain(domain)
    places = (await load_domain_ids_by_name(environment, [name])).get(name)
    if envelope_sender or not (places or await _load_fully_rewritten_domains(environment, [name])):
        raise NotFound(address, path=["address"])
    try:
        origin = srs.verified_original_sender(environment, local)
    except InvalidInput as problem:
        raise NotFound(address, path=["address"]) from problem
    return AcceptedRecipient(
        address, forwards=[OutgoingForward(address, None, next(iter(places or ()), 0), [origin])]
    )


async def is_local_domain(environment: Environment, domain: str) -> bool:
    """Return True if this server accepts mail for the domain or rewrites all of it."""
    names = {normalized_domain(domain)}
    return bool(
        await load_domain_ids_by_name(environment, names)
        or await _load_fully_rewritten_domains(environment, names)
    )


async def _load_fully_rewritten_domains(
    environment: Environment, domain_names: Collection[str]
) -> set[str]:
    """Return the domains with a rewrite for all of their mail."""
    whole = select(col(RecipientRewrite.domain)).where(
        col(RecipientRewrite.domain).in_(domain_names),
        col(RecipientRewrite.local) == "",
        col(RecipientRewrite.active),
    )
    return {row.domain for row in await environment.database.read(whole)} if domain_names else set()
