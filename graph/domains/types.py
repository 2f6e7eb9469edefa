"""GraphQL types and queries of domains and alias domains."""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.auth.password_policy import PasswordPolicy
from graph.domains.dkim_keys import DkimKey
from graph.queue.rate_limits import RateLimit
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Info, field, query
from graph.types.input_conditions import Conditions
from graph.types.object_views import Made, View
from graph.types.references import (
    DomainAliasRef,
    DomainRef,
    UserRef,
    domain_named,
    given,
    items_of,
    plain,
    user_of,
)
from graph.types.row_mapping import Shape, columns, identified, link, listed, shaped
from graph.types.scalars import BigInt, ByteSize
from mail.domains.dns_advice import DnsState
from models.spam.sender_rules import SenderAction
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.auth.passwords import password_policy
from resolvers.domains import aliases, dkim_keys, dns_records
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.dns_records import Question
from resolvers.domains.listing import OfDomain
from resolvers.domains.loaders import DomainWhere
from resolvers.queue import rate_limits
from resolvers.routing import loaders as routing_loaders
from resolvers.spam import sender_rules
from resolvers.spam.sender_rules import OfDomain as OfDomainRules
from resolvers.users.quota.quota_allocation import effective

if TYPE_CHECKING:
    from graph.addresses.types import Address
    from graph.routing.types import RelayHost
    from graph.spam.sender_rules import SenderRule
    from graph.users.types import User


DNS_COST = 20
OURS: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}


def _left(limit: int, used: int) -> int | None:
    """Return how many more a limit allows; None if there is no limit (0)."""
    return max(limit - used, 0) if limit else None


def _next(highest: int, quota: int, allocated: int) -> int | None:
    """Return the highest quota in bytes that a new user of a domain can get; None = unlimited."""
    limits = [limit for limit in (highest or None, _left(quota, allocated)) if limit is not None]
    return min(limits, default=None)


def _of(name: str) -> Any:
    """Return a GraphQL type of a module that imports this one."""
    module = {
        "Address": "graph.addresses.types",
        "SenderRule": "graph.spam.sender_rules",
        "User": "graph.users.types",
    }[name]
    return getattr(sys.modules[module], name)


@strawberry.type(description="What the users of a domain store together.")
class DomainStorage(View):
    bytes: ByteSize = leaf("In use.")
    messages: BigInt = leaf("Messages in all folders.")


@strawberry.type(description="What DNS should say.")
class DnsRecord(View):
    type: str = leaf("Such as MX or TXT.")
    name: str = leaf("Whole name, as DNS has it.")
    value: str = leaf('What it should be; begins with "not configured" where there is nothing yet.')
    purpose: str = leaf("What it is for.")
    state: DnsState = leaf("As looked up.")
    found: list[str] = leaf("What DNS has there, as far as it is about this.")
    problem: str | None = leaf("Why the state is UNKNOWN.")

    made: ClassVar[Mapping[str, Made]] = {
        **{
            name: Made(("advice",), lambda advice, name=name: getattr(advice, name))
            for name in ("type", "name", "value", "purpose")
        },
        "state": Made(("judged",), lambda judged: judged.state),
        "found": Made(("judged",), lambda judged: list(judged.found)),
        "problem": Made(("judged",), lambda judged: judged.problem),
    }


@strawberry.type(description="Mail domain.")
class Domain(Shape):
    name: str = leaf("Unicode form.")
    description: str | None = leaf("Text for people.")
    active: bool = leaf("Takes mail; its users sign in all the same.")
    tags: list[str] = leaf("Labels.")
    max_addresses: int = leaf("Addresses allowed, those of accounts among them, 0 = any number.")
    max_users: int = leaf("Accounts allowed, 0 = any number.")
    max_user_quota: ByteSize = leaf("Highest per user, 0 = unlimited.")
    max_new_user_quota: ByteSize | None = leaf(
        "Highest for the next one; null = unlimited, 0 = nothing is left."
    )
    quota: ByteSize = leaf("For all users together, 0 = unlimited.")
    quota_allocated: ByteSize = leaf("Given out.")
    address_count: int = leaf("Addresses, those of accounts among them.")
    addresses_left: int | None = leaf("How many more; null = any number.")
    user_count: int = leaf("Accounts.")
    users_left: int | None = leaf("How many more; null = any number.")
    backup_mx: bool = leaf("Only relayed to the primary server.")
    relay_all_recipients: bool = leaf("Relayed also for unknown recipients.")
    relay_unknown_only: bool = leaf("Local users here, others relayed.")
    relay_host: Annotated["RelayHost", strawberry.lazy("graph.routing.types")] | None = link(
        "relay_host_id",
        routing_loaders.relay_hosts,
        shaped("graph.routing.types", "RelayHost"),
        description="Way out for mail of its senders, as an ADMIN sees it; null = by itself.",
    )
    global_address_list: bool = leaf("Users see each other in the address register.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(domain_loaders.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Domain"),
        "max_new_user_quota": Made(("max_user_quota", "quota", "quota_allocated"), _next),
        "addresses_left": Made(("max_addresses", "address_count"), _left),
        "users_left": Made(("max_users", "user_count"), _left),
    }

    @field("What users without a quota of their own have, 0 = unlimited.", "default_user_quota")
    async def default_user_quota(self, info: Info) -> ByteSize:
        return ByteSize(effective(info.context.world, self.row, None))

    @field(
        "defaultUserQuota, but no more than maxNewUserQuota; null = unlimited, 0 = nothing left.",
        "default_user_quota",
        "max_user_quota",
        "quota",
        "quota_allocated",
    )
    async def default_new_user_quota(self, info: Info) -> ByteSize | None:
        max_quota = self.max_new_user_quota
        default = effective(info.context.world, self.row, None) or None
        limits = [ByteSize(size) for size in (max_quota, default) if size is not None]
        return min(limits, default=None)

    @field(
        "What passwords of its users must have when they are set.",
        "password_min",
        "password_classes",
    )
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.of(password_policy.of(info.context.world, self.row))

    @field("How much its users may send together; null = what the settings say.", "id", **OURS)
    async def rate_limit(self, info: Info) -> RateLimit | None:
        return RateLimit.maybe(await info.context.load(rate_limits.by_ids, self.row.id))

    @field("In use.", **OURS)
    async def storage(self, info: Info) -> DomainStorage:
        return DomainStorage.of(await info.context.load(domain_listing.totals, self.row.id))

    @field("Accounts, by user name.", **OURS)
    async def users(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["User", strawberry.lazy("graph.users.types")]]:
        user_type, requested_page = (
            _of("User"),
            page_asked("domain-users", first, after, last, before),
        )
        page_key = OfDomain(self.row.id, requested_page, columns(info, user_type))
        return await connected(
            info,
            user_type,
            await info.context.load(domain_listing.users, page_key),
            lambda row: Cursor(requested_page.ordering, row.username_key, row.id),
            lambda: info.context.load(domain_listing.count_users, page_key),
        )

    @field("What accepts mail there.", **OURS)
    async def addresses(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["Address", strawberry.lazy("graph.addresses.types")]]:
        address_type, requested_page = (
            _of("Address"),
            page_asked("domain-addresses", first, after, last, before),
        )
        page_key = OfDomain(self.row.id, requested_page, columns(info, address_type))
        return await connected(
            info,
            address_type,
            await info.context.load(domain_listing.addresses, page_key),
            lambda row: Cursor(requested_page.ordering, row.local, row.id),
            lambda: info.context.load(domain_listing.count_addresses, page_key),
        )

    @field("Other names, by name.", **OURS)
    async def aliases(
        self, info: Info
    ) -> list[Annotated["DomainAlias", strawberry.lazy("graph.domains.types")]]:
        rows = await info.context.load(aliases.of_domains, self.row.id)
        return await listed(info, DomainAlias, rows)

    @field("In charge, by user name.", **OURS)
    async def admins(
        self, info: Info
    ) -> list[Annotated["User", strawberry.lazy("graph.users.types")]]:
        rows = await info.context.load(domain_listing.admins, self.row.id)
        admins: list[User] = await listed(info, _of("User"), rows)
        return admins

    @field("Senders whose mail is never spam, or always, by pattern.", **OURS)
    async def sender_rules(
        self,
        info: Info,
        action: SenderAction | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["SenderRule", strawberry.lazy("graph.spam.sender_rules")]]:
        rule_type, list_ordering = _of("SenderRule"), ordering("domain-sender-rules", plain(action))
        requested_page = page_asked(list_ordering, first, after, last, before)
        page_key = OfDomainRules(
            self.row.id, requested_page, columns(info, rule_type), plain(action)
        )
        return await connected(
            info,
            rule_type,
            await info.context.load(sender_rules.of_domains, page_key),
            lambda row: Cursor(requested_page.ordering, row.pattern, row.id),
            lambda: info.context.load(sender_rules.counts_of_domains, page_key),
        )

    @field("The key in use: RSA, if there is one.", "name", **OURS)
    async def dkim_key(self, info: Info) -> DkimKey | None:
        return DkimKey.maybe(await info.context.load(dkim_keys.of_domains, self.row.name))

    @field(
        "MX, SPF, DKIM, DMARC, MTA-STS, TLS-RPT, TLSA, and what programs look for. With check they "
        "are looked up, within four seconds for all that are asked for at once.",
        "name",
        "backup_mx",
        cost=DNS_COST,
        **OURS,
    )
    async def dns_records(self, info: Info, check: bool = False) -> list[DnsRecord]:
        request = Question.of(self.row, check=check)
        return [
            DnsRecord.of(record) for record in await info.context.load(dns_records.records, request)
        ]


@strawberry.type(description="Second name of a domain: mail for it is mail for the domain.")
class DomainAlias(Shape):
    alias: str = leaf("Unicode form.")
    domain: Domain = link(
        "domain_id", domain_loaders.by_ids, Domain.maybe, description="What it stands for."
    )
    active: bool = leaf("False = it takes no mail.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(aliases.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("DomainAlias")}


@strawberry.input(description="Which domains.")
class DomainFilter(Conditions):
    query: str | None = leaf("Partial match of name or description.", default=UNSET)
    active: bool | None = leaf("On or off.", default=UNSET)
    backup_mx: bool | None = leaf("Only relayed, or not.", default=UNSET)
    administered_by: UserRef | None = leaf("That this user is in charge of.", default=UNSET)
    not_administered_by: UserRef | None = leaf("That this user is not in charge of.", default=UNSET)
    tags: list[str] | None = leaf("With any of these labels.", default=UNSET)

    async def where(self, info: Info) -> DomainWhere:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no domain.
        """

        async def resolve_user_id(ref: UserRef | None) -> int | None:
            if not ref:
                return None
            row = await user_of(info, ref)
            return row.id if row else 0

        return DomainWhere(
            query=self.query or None,
            active=plain(self.active),
            backup_mx=plain(self.backup_mx),
            administered_by=await resolve_user_id(self.administered_by),
            not_administered_by=await resolve_user_id(self.not_administered_by),
            tags=items_of(self.tags),
        )


@strawberry.type
class DomainQuery:
    @query("One domain, by id or by its own name.", scope=Scope.READ, **OURS)
    async def domain(self, info: Info, by: DomainRef) -> Domain | None:
        ref = domain_named(by, path="by")
        if ref.id is None:
            return Domain.maybe(await domain_loaders.named(info.context, ref.name or ""))
        (row,) = await domain_loaders.administered_by_ids(info.context, [ref.id])
        return Domain.maybe(row)

    @query("Those the viewer administers, by name.", scope=Scope.READ, **OURS)
    async def domains(
        self,
        info: Info,
        filter: DomainFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Domain]:
        where = await filter.where(info) if filter else DomainWhere()
        list_ordering = ordering("domain", None if where == DomainWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            Domain,
            await domain_loaders.pages(info.context, where, requested_page, columns(info, Domain)),
            lambda row: Cursor(requested_page.ordering, row.name, row.id),
            lambda: domain_loaders.count(info.context, where),
        )

    @query("One second name of a domain.", scope=Scope.READ, **OURS)
    async def domain_alias(self, info: Info, by: DomainAliasRef) -> DomainAlias | None:
        if by.id:
            key = global_ids.decode("DomainAlias", by.id.value, path="by")
            (row,) = await aliases.by_ids(info.context, [key])
            return DomainAlias.maybe(row)
        return DomainAlias.maybe(await aliases.named(info.context, given(by.alias) or ""))

    @query(
        "Second names, by name; query matches alias or domain in part.", scope=Scope.READ, **OURS
    )
    async def domain_aliases(
        self,
        info: Info,
        query: str | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DomainAlias]:
        search_text = query or None
        requested_page = page_asked(
            ordering("domain-alias", search_text), first, after, last, before
        )
        return await connected(
            info,
            DomainAlias,
            await aliases.pages(
                info.context, search_text, requested_page, columns(info, DomainAlias)
            ),
            lambda row: Cursor(requested_page.ordering, row.alias, row.id),
            lambda: aliases.count(info.context, search_text),
        )
