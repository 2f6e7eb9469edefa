"""The address trace: how mail for an address would be processed, step by step."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_address
from mail.recipients.address_resolution import find_applied_rewrite
from mail.recipients.batch_resolution import load_receiving_address_rows
from mail.recipients.recipient_routes import is_local_domain
from mail.spam import verdict as spam_verdict
from mail.spam.sender_rules import load_matching_rules
from mail.spam.verdict import SpamFacts, VerdictReason
from models.addresses.tables import AddressKind
from models.addresses.trace_stages import TraceStage
from models.domains.tables import Domain, DomainAlias
from models.errors import InvalidInput
from models.resources.tables import Resource
from models.store.columns import ColumnRow
from models.users.roles import Role
from models.users.tables import UserTag
from resolvers.addresses import loaders as address_loaders
from resolvers.autoreply import autoreplies
from resolvers.autoreply.autoreplies import AutoreplyState
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.filters import loaders as filter_loaders
from resolvers.resources.loaders import is_visible_resource
from resolvers.spam import sender_rules
from resolvers.users import loaders as user_loaders


@dataclass(frozen=True, slots=True)
class AddressTraceStep:
    """One decision. `record` is the GraphQL type and the id of the record that decided."""

    stage: TraceStage
    input: str
    output: Sequence[str] = ()
    record: tuple[str, int] | None = None
    matched: str | None = None  # address or catch-all


@dataclass
class AddressTraceState:
    """The state of an address trace: the current address and the steps found before."""

    address: str
    sender: str | None = None
    steps: list[AddressTraceStep] = field(default_factory=list)
    address_row: Any = None  # the address that receives the mail
    user_row: Any = None  # the user of that address
    is_ended: bool = False
    was_rewritten_outside: bool = False  # a rewrite can have changed the domain to a remote one


AddressTraceStage = Callable[[Context, AddressTraceState], Awaitable[None]]


async def trace_address(
    ctx: Context, address: str, sender: str | None = None
) -> list[AddressTraceStep]:
    """Return the steps that mail for this address would take, as far as the viewer can see them.

    With a `sender`, used for envelope and From, sender rules are checked too. Records that the
    viewer can't see are treated as if they did not exist.
    """
    try:
        state = AddressTraceState(normalize_and_validate_address(address), sender)
    except InvalidInput:  # the same step as for an unknown address
        return [AddressTraceStep(TraceStage.ADDRESS, address)]
    for stage in STAGES:
        if not state.is_ended:
            await stage(ctx, state)
    return state.steps


async def _trace_recipient_rewrite(ctx: Context, state: AddressTraceState) -> None:
    """Apply the recipient rewrite.

    Only an ADMIN sees rewrites of domains that the viewer does not administer.
    """
    administered_domain = await domain_loaders.find_administered_domain(
        ctx, _domain_part(state.address)
    )
    if administered_domain or ctx.viewer.role.includes(Role.ADMIN):
        rewritten = await find_applied_rewrite(ctx.environment, state.address)
        if rewritten is None:
            return
        record = ("RecipientRewrite", rewritten.rewrite_id)
        state.steps.append(
            AddressTraceStep(
                TraceStage.RECIPIENT_REWRITE, state.address, [rewritten.address], record
            )
        )
        state.address = rewritten.address
        state.was_rewritten_outside = rewritten.allows_external


async def _trace_alias_domain(ctx: Context, state: AddressTraceState) -> None:
    """Replace an alias domain by its target domain."""
    local, _, name = state.address.rpartition("@")
    statement = (
        select(col(DomainAlias.id), col(Domain.name))
        .join(Domain, col(Domain.id) == col(DomainAlias.domain_id))
        .where(
            col(DomainAlias.alias) == name,
            col(DomainAlias.active),
            col(Domain.active),
            domain_loaders.is_administered_domain(ctx),
        )
    )
    for row in await ctx.read(statement):
        target_address = f"{local}@{row.name}"
        state.steps.append(
            AddressTraceStep(
                TraceStage.ALIAS_DOMAIN, state.address, [target_address], ("AliasDomain", row.id)
            )
        )
        state.address = target_address


async def _end_trace_at_backup_mx(ctx: Context, state: AddressTraceState) -> None:
    """End the trace if this server relays the domain's mail as backup MX.

    See mail/recipients/backup_mx.py.
    """
    domain = await domain_loaders.find_administered_domain(ctx, _domain_part(state.address))
    if domain is None or not (domain.active and domain.backup_mx):
        return
    address_row = (
        await load_receiving_address_rows(ctx.environment, [state.address], ctx.read)
    ).get(state.address)
    is_relayed = domain.relay_all_recipients
    if address_row is not None:
        is_active_mailbox = address_row.active and address_row.kind is AddressKind.MAILBOX
        is_relayed = is_active_mailbox and not domain.relay_unknown_only
    if is_relayed:
        state.steps.append(
            AddressTraceStep(
                TraceStage.BACKUP_MX, state.address, [state.address], ("Domain", domain.id)
            )
        )
        state.is_ended = True


async def _trace_receiving_address(ctx: Context, state: AddressTraceState) -> None:
    """Find the address or catch-all that receives the mail. An inactive address ends the trace."""
    rows_by_address = await load_receiving_address_rows(ctx.environment, [state.address], ctx.read)
    row = rows_by_address.get(state.address)
    (visible_row,) = (
        await address_loaders.load_visible_addresses_by_id(ctx, [row.id]) if row else [None]
    )
    if (
        visible_row is None
        and state.was_rewritten_outside
        and not await is_local_domain(ctx.environment, _domain_part(state.address))
    ):
        state.is_ended = True  # the rewrite sends it to a remote recipient
        return
    if visible_row is None:
        state.steps.append(AddressTraceStep(TraceStage.ADDRESS, state.address))
        state.is_ended = True
        return
    output: Sequence[str] = ()
    if visible_row.active:
        output = (
            visible_row.forward_to
            if visible_row.kind is AddressKind.FORWARD
            else [visible_row.display_address]
        )
        output = () if visible_row.kind is AddressKind.DISCARD else output
    step = AddressTraceStep(
        TraceStage.ADDRESS,
        state.address,
        output,
        ("Address", visible_row.id),
        visible_row.display_address,
    )
    state.steps.append(step)
    if visible_row.active and visible_row.kind is AddressKind.RESOURCE:
        await _add_resource_step(ctx, state, visible_row)
    state.address_row, state.is_ended = (
        visible_row,
        not visible_row.active or visible_row.kind is not AddressKind.MAILBOX,
    )
    if visible_row.active and visible_row.answers:
        _add_active_autoreply_steps(
            state,
            await autoreplies.load_visible_autoreplies_by_forward_address(ctx, [visible_row.id]),
        )


async def _add_resource_step(
    ctx: Context, state: AddressTraceState, address_row: ColumnRow
) -> None:
    """Add the step of the resource that answers invitations to its address."""
    statement = select(col(Resource.id)).where(
        col(Resource.address_id) == address_row.id, is_visible_resource(ctx)
    )
    for row in await ctx.read(statement):
        text = address_row.display_address
        state.steps.append(
            AddressTraceStep(TraceStage.RESOURCE, text, [text], ("Resource", row.id))
        )


def _add_active_autoreply_steps(
    state: AddressTraceState, autoreplies_found: Sequence[AutoreplyState | None]
) -> None:
    """Add a step for each autoreply that is active now."""
    for autoreply in autoreplies_found:
        if autoreply and autoreply.active_now:
            state.steps.append(
                AddressTraceStep(
                    TraceStage.AUTOREPLY,
                    state.address,
                    [state.address],
                    ("Autoreply", autoreply.id),
                )
            )


def _domain_part(address: str) -> str:
    return address.rpartition("@")[2]


async def _trace_receiving_user(ctx: Context, state: AddressTraceState) -> None:
    """Find the user that receives the mail. A user that is not active ends the trace."""
    (user,) = await user_loaders.load_visible_users_by_id(ctx, [state.address_row.user_id])
    is_accepted = user is not None and user.active
    output = [user.username] if user is not None and is_accepted else []
    record = ("User", user.id) if user is not None else None
    state.steps.append(
        AddressTraceStep(TraceStage.USER, state.address_row.display_address, output, record)
    )
    state.user_row, state.is_ended = user, not is_accepted


async def _trace_sender_rule(ctx: Context, state: AddressTraceState) -> None:
    """Add the sender rule that decides between INBOX and Junk.

    The step has no record if the viewer can't see the rule.
    """
    if not state.sender:
        return
    statement = select(col(UserTag.tag)).where(col(UserTag.user_id) == state.user_row.id)
    tags = [row.tag for row in await ctx.read(statement)]
    domain_id = state.address_row.domain_id or state.user_row.domain_id
    receiver = _SenderRuleReceiver(
        state.user_row.id, domain_id, [*state.address_row.tags, *tags], state.user_row.role
    )
    (matching_rules,) = await load_matching_rules(
        ctx.environment, [receiver], state.sender, state.sender
    )
    verdict = spam_verdict.compute_verdict(SpamFacts(), matching_rules, state.user_row.spam_level)
    if verdict.reason is not VerdictReason.RULE or verdict.rule_id is None:
        return
    (rule,) = await sender_rules.load_visible_rules_by_id(ctx, [verdict.rule_id])
    record = ("SenderRule", rule.id) if rule else None
    output = ["Junk" if verdict.is_spam else "INBOX"]
    step = AddressTraceStep(
        TraceStage.SENDER_RULE, state.sender, output, record, rule.pattern if rule else None
    )
    state.steps.append(step)


class _SenderRuleReceiver(NamedTuple):
    """The user whose sender rules are read."""

    user_id: int
    domain_id: int | None
    tags: Sequence[str]
    role: Role


async def _trace_redirecting_or_deleting_filters(ctx: Context, state: AddressTraceState) -> None:
    """Add the active filters that redirect or delete messages, as far as the viewer sees them."""
    for row in await filter_loaders.load_visible_filters_of_user(ctx, state.address_row.user_id):
        if row.active and (row.forward_to or row.action.get("delete")):
            state.steps.append(
                AddressTraceStep(
                    TraceStage.FILTER,
                    state.address_row.display_address,
                    row.forward_to,
                    ("Filter", row.id),
                )
            )


async def _trace_user_autoreply(ctx: Context, state: AddressTraceState) -> None:
    """Add the autoreply of the user."""
    _add_active_autoreply_steps(
        state, await autoreplies.load_visible_autoreplies_by_user(ctx, [state.user_row.id])
    )


# In processing order. Each stage appends its steps and can end the trace.
STAGES: Sequence[AddressTraceStage] = (
    _trace_recipient_rewrite,
    _trace_alias_domain,
    _end_trace_at_backup_mx,
    _trace_receiving_address,
    _trace_receiving_user,
    _trace_sender_rule,
    _trace_redirecting_or_deleting_filters,
    _trace_user_autoreply,
)
