"""Find where mail for a recipient goes: to local accounts, to other servers, or nowhere.

Resolution and rewrites of addresses are in mail/recipients/address_resolution.py. The kind of the
address decides:

- MAILBOX: the mail is delivered to the account.
- FORWARD: the mail goes to each target. A local target is resolved too, even if it forwards
  itself; to other targets the mail is forwarded.
- DISCARD: the mail is accepted and dropped.
- LEARN_SPAM, LEARN_HAM: the spam filter is trained with it, if training is configured.
- RESOURCE: invitations book the resource (mail/resources). Other addresses don't forward to it.

Mail of a backup MX domain can be relayed: mail/recipients/backup_mx.py.

An account receives the mail once, and loops between addresses are ignored. A bounce to an SRS
address of this server goes to the original sender.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.addresses import srs
from mail.addresses.address_syntax import normalized_domain
from mail.envelope.dsn_parameters import DEFAULT_REPORTS, DsnRequest
from mail.envelope.local_recipient import LocalRecipient
from mail.envelope.resource_refusal import ONLY_INVITATIONS_TEXT, ResourceMailRefused
from mail.recipients import address_resolution, backup_mx, forward_targets
from mail.recipients.address_resolution import RewrittenToExternal
from mail.recipients.batch_resolution import (
    load_domain_ids_by_name,
    load_domains_and_backup_mx,
    load_receiving_address_rows,
)
from mail.recipients.forward_targets import ForwardEndpoint
from models.addresses.rewrites import RecipientRewrite
from models.addresses.tables import TRAINING_KINDS, AddressKind
from models.errors import Conflict, InvalidInput, NotFound, RateLimited, RequestError
from models.resources.tables import Resource
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.submission.tables import Submission

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
    is_local_retry: bool = False  # its target is an account here that takes no mail now
    stored_message_id: int | None = None  # the stored copy, which remembers its forwards
    domain_id: int | None = None  # of the account; its blobs stay in the domain it was created in

    @property
    def traced_domain_id(self) -> int:
        """The domain whose administrators see the forward in traces."""
        return self.tenant_id if self.domain_id is None else self.domain_id

    @property
    def is_returned_bounce(self) -> bool:
        """True if it is a bounce to an SRS address; its sender is not rewritten."""
        accepts_here = self.is_rewritten or self.is_backup_mx
        return self.address_id is None and self.user_id is None and not accepts_here


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
class AcceptedResource:
    """A resource that accepts invitations, by its address as given and as stored."""

    resource_id: int
    domain_id: int
    given_address: str
    stored_address: str


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
    resource: AcceptedResource | None = None

    @property
    def user_id(self) -> int | None:
        """The account of the address, if there is one."""
        return self.accounts[0].recipient.user_id if self.accounts else None

    @property
    def is_relayed_unchanged(self) -> bool:
        """True if the mail goes to the same address on another server."""
        return any(
            forward.is_backup_mx and self.address in forward.target_addresses
            for forward in self.forwards
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
    is_discarded: bool = False  # a target discards its mail

    @property
    def leads_nowhere(self) -> bool:
        """True if no target delivers, forwards or trains with the mail, and none is DISCARD."""
        is_handled = self.is_discarded or self.train_as_spam is not None
        return not (self.accounts or self.forwards or is_handled)


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
        row, rewrite = await address_resolution.resolve_with_rewrite(environment, address)
    except RewrittenToExternal as to:
        return await _accept_rewritten_external(environment, address, to)
    except NotFound as refusal:
        return _accept_for_backup_mx(
            address, refusal.ref, await backup_mx.require_relaying_domain_id(environment, refusal)
        )
    if row.kind is AddressKind.MAILBOX:
        return await _accept_account_or_relay(environment, row, address, rewrite)
    if row.kind is AddressKind.RESOURCE:
        return await _accept_resource(environment, row, address, envelope_sender)
    walk = _ForwardExpansion(seen_address_ids={row.id})
    await _add_expanded_targets(environment, walk, row, rewrite, 1)
    if not (walk.accounts or walk.forwards) and walk.refusals:
        raise walk.refusals[0]
    if walk.leads_nowhere:  # its targets are in a loop, or too deep in a chain of addresses
        raise MailLoop("The targets of the address form a loop.", path=["address"])
    people = [
        replace(account, recipient=replace(account.recipient, original_address=address))
        for account in walk.accounts.values()
    ]
    return AcceptedRecipient(
        address,
        people,
        walk.forwards,
        walk.train_as_spam,
        row.domain_id,
        autoreply_address=_autoreply_address(row, address),
    )


async def _accept_account_or_relay(
    environment: Environment, address_row: ColumnRow, address: str, rewritten_to: str
) -> AcceptedRecipient:
    """Accept mail for the account of an address, or for the servers this one is a backup of.

    Raises as `address_resolution.load_recipient_below_limits`.
    """
    if address_row.relayed:
        return _accept_for_backup_mx(address, rewritten_to, _tenant_id_or_zero(address_row))
    recipient = await address_resolution.load_row_recipient_below_limits(
        environment, address_row, address, rewritten_to
    )
    return AcceptedRecipient(address, [AcceptedAccount(recipient)])


async def _accept_resource(
    environment: Environment, address_row: ColumnRow, address: str, envelope_sender: str
) -> AcceptedRecipient:
    """Accept mail for a resource.

    Raises ResourceMailRefused for mail with the null sender, NotFound if the resource was deleted.
    """
    if not envelope_sender:
        raise ResourceMailRefused(ONLY_INVITATIONS_TEXT)
    statement = select(col(Resource.id)).where(col(Resource.address_id) == address_row.id)
    for row in await environment.database.read(statement):
        resource = AcceptedResource(
            row.id, address_row.domain_id, address, address_row.display_address
        )
        return AcceptedRecipient(address, domain_id=address_row.domain_id, resource=resource)
    raise NotFound(address, path=["address"])


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


async def _add_expanded_targets(
    environment: Environment,
    expansion: _ForwardExpansion,
    address_row: ColumnRow,
    address: str,
    depth: int,
) -> None:
    """Add the targets of an address that is not of an account. Raises NotFound, RateLimited."""
    if address_row.kind is AddressKind.DISCARD:
        expansion.is_discarded = True
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
    endpoints = [
        ForwardEndpoint(address, public_target, full_target)
        for public_target, full_target in pairs
        if "://" in public_target
    ]
    active_rows, queued_addresses, unreachable_addresses = await _resolve_targets(
        environment, [target for target in address_row.forward_to if "://" not in target]
    )
    expansion.refusals += [NotFound(target, path=["address"]) for target in unreachable_addresses]
    for target, target_row in active_rows.items():
        if (
            target_row.id not in expansion.seen_address_ids
            and depth < MAX_FORWARD_DEPTH
            and _has_room(expansion)
        ):
            expansion.seen_address_ids.add(target_row.id)
            await _add_target_account_or_refusal(
                environment,
                expansion,
                target_row,
                target,
                OutgoingForward(address, address_row.id, _tenant_id_or_zero(address_row), [target]),
            )
            if target_row.kind is AddressKind.RESOURCE:
                expansion.refusals.append(ResourceMailRefused(ONLY_INVITATIONS_TEXT))
            elif target_row.kind is not AddressKind.MAILBOX:
                await _add_expanded_targets(environment, expansion, target_row, target, depth + 1)
    if queued_addresses or endpoints:
        require_below_address_forward_limit(environment, address_row)
        expansion.forwards.append(
            OutgoingForward(
                address,
                address_row.id,
                _tenant_id_or_zero(address_row),
                queued_addresses[:MAX_DESTINATIONS],
                endpoints[:MAX_DESTINATIONS],
            )
        )


class _ResolvedTargets(NamedTuple):
    """Targets by how mail reaches them."""

    active_row_by_address: dict[str, ColumnRow]  # with an address record here
    queued_addresses: list[str]  # on other servers, or rewritten here
    unreachable_addresses: list[str]  # unknown or inactive


async def _resolve_targets(
    environment: Environment, target_addresses: Collection[str]
) -> _ResolvedTargets:
    """Find out which targets are addresses here, and which ones the queue delivers."""
    domain_names = {
        address: normalized_domain(address.rpartition("@")[2]) for address in target_addresses
    }
    local_domains, backup_mx_domains = (
        await load_domains_and_backup_mx(environment, set(domain_names.values()))
        if domain_names
        else ({}, set())
    )
    rows = await load_receiving_address_rows(
        environment, domain_names, domains_by_name=local_domains
    )
    handled_domains = {
        *local_domains,
        *await _load_fully_rewritten_domains(
            environment, {*domain_names.values()}.difference(local_domains)
        ),
    }
    handled_domains -= backup_mx_domains  # the queue decides which of these are local
    rows = {
        address: row
        for address, row in rows.items()
        if domain_names[address] not in backup_mx_domains
    }
    queued_addresses = list[str]()
    unreachable_addresses = [address for address, row in rows.items() if not row.active]
    for address, name in domain_names.items():
        if address not in rows:
            is_queued = name not in handled_domains or await _is_rewritten(environment, address)
            (queued_addresses if is_queued else unreachable_addresses).append(address)
    active_rows = {address: row for address, row in rows.items() if row.active}
    return _ResolvedTargets(active_rows, queued_addresses, unreachable_addresses)


async def _is_rewritten(environment: Environment, address: str) -> bool:
    """Return True if a rewrite leads from an address without a record to a recipient."""
    try:
        await address_resolution.resolve_with_rewrite(environment, address)
    except RewrittenToExternal:
        return True
    except NotFound:
        return False
    return True


async def _add_target_account_or_refusal(
    environment: Environment,
    expansion: _ForwardExpansion,
    address_row: ColumnRow,
    target: str,
    forward: OutgoingForward,
) -> None:
    """Add the account of a target. If it refuses for now, the queue delivers later."""
    if address_row.kind is not AddressKind.MAILBOX:
        return
    try:
        recipient = await address_resolution.load_row_recipient_below_limits(
            environment, address_row, target
        )
    except NotFound as refusal:
        expansion.refusals.append(refusal)
    except RequestError as refusal:  # the refusal can be temporary: the queue retries
        expansion.refusals.append(refusal)
        expansion.forwards.append(replace(forward, is_local_retry=True))
    else:
        expansion.accounts.setdefault(
            (recipient.user_id, recipient.mailbox_id), AcceptedAccount(recipient, forward)
        )


def _has_room(expansion: _ForwardExpansion) -> bool:
    """Return True if more destinations can be added."""
    return len(expansion.accounts) + len(expansion.forwards) < MAX_DESTINATIONS


def _tenant_id_or_zero(address_row: ColumnRow) -> int:
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
        raise RateLimited(
            "The address has reached its limit of forwarded mail.", retry_after=until - now
        )


async def _accept_srs_bounce(
    environment: Environment, address: str, envelope_sender: str
) -> AcceptedRecipient:
    """Accept a bounce to an SRS address. Raises NotFound for mail with an envelope sender."""
    local, _, domain = address.rpartition("@")
    name = normalized_domain(domain)
    domain_ids = (await load_domain_ids_by_name(environment, [name])).get(name)
    if envelope_sender or not (
        domain_ids or await _load_fully_rewritten_domains(environment, [name])
    ):
        raise NotFound(address, path=["address"])
    try:
        if queue_id := srs.verified_queue_id_or_none(environment, local):
            local = await _load_long_srs_local_part(environment, queue_id)
        origin = srs.verified_original_sender(environment, local)
    except InvalidInput as problem:
        raise NotFound(address, path=["address"]) from problem
    return AcceptedRecipient(
        address,
        forwards=[OutgoingForward(address, None, next(iter(domain_ids or ()), 0), [origin])],
    )


async def _load_long_srs_local_part(environment: Environment, queue_id: str) -> str:
    """Load the SRS local part of a queued message; empty if the message was deleted."""
    statement = select(col(Submission.envelope_from)).where(col(Submission.queue_id) == queue_id)
    rows = await environment.database.read(statement)
    return rows[0].envelope_from.rpartition("@")[0] if rows else ""


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
    statement = select(col(RecipientRewrite.domain)).where(
        col(RecipientRewrite.domain).in_(domain_names),
        col(RecipientRewrite.local) == "",
        col(RecipientRewrite.active),
    )
    return (
        {row.domain for row in await environment.database.read(statement)}
        if domain_names
        else set()
    )
