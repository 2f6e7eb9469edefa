"""The address trace: how mail for an address would be processed, step by step."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import checked
from mail.delivery import recipient_rewrites
from mail.recipients.batch_resolution import resolve_all
from mail.recipients.recipient_routes import is_ours
from mail.spam import verdict as spam_verdict
from mail.spam.sender_rules import rules_of
from mail.spam.verdict import Known, Reason
from models.addresses.tables import AddressKind
from models.domains.tables import Domain, DomainAlias
from models.errors import Invalid
from models.users.roles import Role
from models.users.tables import UserTag
from resolvers.addresses import loaders as address_loaders
from resolvers.autoreply import autoreplies
from resolvers.autoreply.autoreplies import Standing
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.filters import loaders as filter_loaders
from resolvers.spam import sender_rules
from resolvers.users import loaders as user_loaders


@dataclass(frozen=True, slots=True)
class Step:
    """One decision. `record` is the GraphQL type and the id of the record that decided."""

    stage: str
    input: str
    output: Sequence[str] = ()
    record: tuple[str, int] | None = None
    matched: str | None = None  # address or catch-all


@dataclass
class Trace:
    """The state of an address trace: the current address and what was found so far."""

    address: str
    sender: str | None = None
    steps: list[Step] = field(default_factory=list)
    found: Any = None  # the address that receives the mail
    user: Any = None  # the user of that address
    ended: bool = False
    outside: bool = False  # a rewrite can have changed the domain to a remote one


Stage = Callable[[Context, Trace], Awaitable[None]]


async def trace(ctx: Context, address: str, sender: str | None = None) -> list[Step]:
    """Return the steps that mail for this address would take, as far as the viewer can see them.

    With a `sender`, used for envelope and From, sender rules are checked too. Records that the
    viewer can't see are treated as if they did not exist.
    """
    try:
        way = Trace(checked(address), sender)
    except Invalid:  # the same step as for an unknown address
        return [Step("ADDRESS", address)]
    for stage in STAGES:
        if not way.ended:
            await stage(ctx, way)
    return way.steps


async def _rewrite(ctx: Context, way: Trace) -> None:
    """Apply the recipient rewrite.

    Only an ADMIN sees rewrites of domains that the viewer does not administer.
    """
    theirs = await domain_loaders.named(ctx, _domain(way.address))
    if theirs or ctx.viewer.role.includes(Role.ADMIN):
        found = await recipient_rewrites.rewritten(ctx.world, [way.address])
        for one in found.values():
            record = ("RecipientRewrite", one.id)
            way.steps.append(Step("RECIPIENT_REWRITE", way.address, [one.address], record))
            way.address = one.address
            way.outside = one.outside


async def _alias(ctx: Context, way: Trace) -> None:
    """Replace an alias domain by its target domain."""
    local, _, name = way.address.rpartition("@")
    asked = (
        select(col(DomainAlias.id), col(Domain.name))
        .join(Domain, col(Domain.id) == col(DomainAlias.domain_id))
        .where(
            col(DomainAlias.alias) == name,
            col(DomainAlias.active),
            col(Domain.active),
            domain_loaders.visible_domains(ctx),
        )
    )
    for row in await ctx.read(asked):
        to = f"{local}@{row.name}"
        way.steps.append(Step("DOMAIN_ALIAS", way.address, [to], ("DomainAlias", row.id)))
        way.address = to


async def _backup(ctx: Context, way: Trace) -> None:
    """End the trace if this server relays the domain's mail as backup MX.

    See mail/recipients/backup_mx.py.
    """
    home = await domain_loaders.named(ctx, _domain(way.address))
    if home is None or not (home.active and home.backup_mx):
        return
    found = (await resolve_all(ctx.world, [way.address], ctx.read)).get(way.address)
    goes_on = home.relay_all_recipients
    if found is not None:
        account = found.active and found.kind is AddressKind.MAILBOX
        goes_on = account and not home.relay_unknown_only
    if goes_on:
        way.steps.append(Step("BACKUP_MX", way.address, [way.address], ("Domain", home.id)))
        way.ended = True


async def _address(ctx: Context, way: Trace) -> None:
    """Find the address or catch-all that receives the mail. An inactive address ends the trace."""
    found = await resolve_all(ctx.world, [way.address], ctx.read)
    row = found.get(way.address)
    (seen,) = await address_loaders.by_ids(ctx, [row.id]) if row else [None]
    if seen is None and way.outside and not await is_ours(ctx.world, _domain(way.address)):
        way.ended = True  # the rewrite sends it to a remote recipient
        return
    if seen is None:
        way.steps.append(Step("ADDRESS", way.address))
        way.ended = True
        return
    output: Sequence[str] = ()
    if seen.active:
        output = seen.targets if seen.kind is AddressKind.FORWARD else [seen.shown]
        output = () if seen.kind is AddressKind.DISCARD else output
    step = Step("ADDRESS", way.address, output, ("Address", seen.id), seen.shown)
    way.steps.append(step)
    way.found, way.ended = seen, not seen.active or seen.kind is not AddressKind.MAILBOX
    if seen.active and seen.answers:
        _answered(way, await autoreplies.of_addresses(ctx, [seen.id]))


def _answered(way: Trace, found: Sequence[Standing | None]) -> None:
    """Add a step for each autoreply that is active now."""
    for one in found:
        if one and one.active_now:
            way.steps.append(Step("AUTOREPLY", way.address, [way.address], ("Autoreply", one.id)))


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


async def _account(ctx: Context, way: Trace) -> None:
    """Find the user that receives the mail. A disabled user ends the trace."""
    (user,) = await user_loaders.by_ids(ctx, [way.found.user_id])
    taken = user is not None and not user.disabled
    output = [user.username] if user is not None and taken else []
    record = ("User", user.id) if user is not None else None
    way.steps.append(Step("ACCOUNT", way.found.shown, output, record))
    way.user, way.ended = user, not taken


async def _sender(ctx: Context, way: Trace) -> None:
    """Add the sender rule that decides between INBOX and Junk.

    The step has no record if the viewer can't see the rule.
    """
    if not way.sender:
        return
    asked = select(col(UserTag.tag)).where(col(UserTag.user_id) == way.user.id)
    tags = [row.tag for row in await ctx.read(asked)]
    domain_id = way.found.domain_id or way.user.domain_id
    receiver = _Receiver(way.user.id, domain_id, [*way.found.tags, *tags], way.user.role)
    (rules,) = await rules_of(ctx.world, [receiver], way.sender, way.sender)
    verdict = spam_verdict.decided(Known(), rules, way.user.spam_level)
    if verdict.reason is not Reason.RULE or verdict.rule_id is None:
        return
    (rule,) = await sender_rules.by_ids(ctx, [verdict.rule_id])
    record = ("SenderRule", rule.id) if rule else None
    output = ["Junk" if verdict.is_spam else "INBOX"]
    step = Step("SENDER_RULE", way.sender, output, record, rule.pattern if rule else None)
    way.steps.append(step)


class _Receiver(NamedTuple):
    """The user whose sender rules are read."""

    user_id: int
    domain_id: int | None
    tags: Sequence[str]
    role: Role


async def _filters(ctx: Context, way: Trace) -> None:
    """Add the active filters that redirect or delete messages, as far as the viewer sees them."""
    for row in await filter_loaders.all_of(ctx, way.found.user_id):
        if row.active and (row.targets or row.action.get("delete")):
            way.steps.append(Step("FILTER", way.found.shown, row.targets, ("Filter", row.id)))


async def _reply(ctx: Context, way: Trace) -> None:
    """Add the autoreply of the user."""
    _answered(way, await autoreplies.of_users(ctx, [way.user.id]))


# In processing order. Each stage appends its steps and can end the trace.
STAGES: Sequence[Stage] = (
    _rewrite,
    _alias,
    _backup,
    _address,
    _account,
    _sender,
    _filters,
    _reply,
)
