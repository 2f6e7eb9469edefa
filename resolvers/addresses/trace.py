"""Where mail for an address would go, step by step."""

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
    """One decision. `record` is the type, as the schema calls it, and the key of what decided."""

    stage: str
    input: str
    output: Sequence[str] = ()
    record: tuple[str, int] | None = None
    matched: str | None = None  # address or pattern


@dataclass
class Trace:
    """How far the way is known: the address by now, and what it led to."""

    address: str
    sender: str | None = None
    steps: list[Step] = field(default_factory=list)
    found: Any = None  # row of the address that takes the mail
    user: Any = None  # and of its account
    ended: bool = False
    outside: bool = False  # a rewrite may have led to others


Stage = Callable[[Context, Trace], Awaitable[None]]


async def trace(ctx: Context, address: str, sender: str | None = None) -> list[Step]:
    """What would become of mail for this address, as far as the viewer may know.

    With a `sender`, that of envelope and From alike, rules about senders are looked at too.

    What is not the viewer's looks like what is not there.
    """
    try:
        way = Trace(checked(address), sender)
    except Invalid:  # as who sends there is told
        return [Step("ADDRESS", address)]
    for stage in STAGES:
        if not way.ended:
            await stage(ctx, way)
    return way.steps


async def _rewrite(ctx: Context, way: Trace) -> None:
    """The recipient is replaced, once; of other domains only who sees all is told."""
    theirs = await domain_loaders.named(ctx, _domain(way.address))
    if theirs or ctx.viewer.role.includes(Role.ADMIN):
        found = await recipient_rewrites.rewritten(ctx.world, [way.address])
        for one in found.values():
            record = ("RecipientRewrite", one.id)
            way.steps.append(Step("RECIPIENT_REWRITE", way.address, [one.address], record))
            way.address = one.address
            way.outside = one.outside


async def _alias(ctx: Context, way: Trace) -> None:
    """The domain is a second name of another."""
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
    """The domain's mail is held for other servers: mail/recipients/backup_mx.py."""
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
    """The best of the addresses and patterns there are; one that is off refuses."""
    found = await resolve_all(ctx.world, [way.address], ctx.read)
    row = found.get(way.address)
    (seen,) = await address_loaders.by_ids(ctx, [row.id]) if row else [None]
    if seen is None and way.outside and not await is_ours(ctx.world, _domain(way.address)):
        way.ended = True  # to whom the rewrite says
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
    """By itself, now, if the sender is one whom that is for."""
    for one in found:
        if one and one.active_now:
            way.steps.append(Step("AUTOREPLY", way.address, [way.address], ("Autoreply", one.id)))


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


async def _account(ctx: Context, way: Trace) -> None:
    """The account that it delivers to; a disabled one refuses."""
    (user,) = await user_loaders.by_ids(ctx, [way.found.user_id])
    taken = user is not None and not user.disabled
    output = [user.username] if user is not None and taken else []
    record = ("User", user.id) if user is not None else None
    way.steps.append(Step("ACCOUNT", way.found.shown, output, record))
    way.user, way.ended = user, not taken


async def _sender(ctx: Context, way: Trace) -> None:
    """A rule about the sender decides whether it goes to Junk; another's is told without it."""
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
    """Whose rules are asked for."""

    user_id: int
    domain_id: int | None
    tags: Sequence[str]
    role: Role


async def _filters(ctx: Context, way: Trace) -> None:
    """Filters that may send it on or drop it, as far as the viewer sees them."""
    for row in await filter_loaders.all_of(ctx, way.found.user_id):
        if row.active and (row.targets or row.action.get("delete")):
            way.steps.append(Step("FILTER", way.found.shown, row.targets, ("Filter", row.id)))


async def _reply(ctx: Context, way: Trace) -> None:
    """The account answers."""
    _answered(way, await autoreplies.of_users(ctx, [way.user.id]))


# In the order in which mail goes through them: each appends its steps, and may end the way.
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
