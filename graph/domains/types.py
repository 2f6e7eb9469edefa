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
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View
from graph.types.references import (
    DomainAliasRef,
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_user_or_viewer,
    maybe_value,
    optional_tuple,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt, ByteSize
from mail.domains.dns_advice import DnsState
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose
from models.spam.sender_rules import SenderAction
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.auth.passwords import password_policy
from resolvers.domains import aliases, dkim_keys, dns_records
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.dns_records import DnsRecordsKey
from resolvers.domains.listing import DomainMembersPageKey
from resolvers.domains.loaders import DomainConditions, DomainOrder
from resolvers.queue import rate_limits
from resolvers.routing import loaders as routing_loaders
from resolvers.spam import sender_rules
from resolvers.spam.sender_rules import DomainRuleListing as OfDomainRules
from resolvers.users.quota.quota_allocation import effective_quota

if TYPE_CHECKING:
    from graph.addresses.types import Address
    from graph.routing.types import RelayHost
    from graph.spam.sender_rules import SenderRule
    from graph.users.types import User


DNS_COST = 20
DOMAIN_ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}


def _none_if_unlimited(limit: int) -> int | None:
    """Return a stored limit; None if it is unlimited (0)."""
    return limit or None


def _remaining_count(limit: int, used: int) -> int | None:
    """Return how many more a limit allows; None if there is no limit (0)."""
    return max(limit - used, 0) if limit else None


def _max_quota_of_new_user(
    max_user_quota: int, domain_quota: int, allocated_quota: int
) -> int | None:
    """Return the highest quota in bytes that a new user of a domain can get; None = unlimited."""
    limits = [
        limit
        for limit in (max_user_quota or None, _remaining_count(domain_quota, allocated_quota))
        if limit is not None
    ]
    return min(limits, default=None)


def _graphql_type_by_name(type_name: str) -> Any:
    """Return a GraphQL type of a module that imports this one."""
    module = {
        "Address": "graph.addresses.types",
        "SenderRule": "graph.spam.sender_rules",
        "User": "graph.users.types",
    }[type_name]
    return getattr(sys.modules[module], type_name)


@strawberry.type(description="What the users of a domain store together.")
class DomainStorage(View):
    size: ByteSize = attribute_field("Bytes that the users of the domain store.")
    message_count: BigInt = attribute_field("Messages in all mailboxes of the domain's users.")


@strawberry.type(description="What DNS should say.")
class DnsRecord(View):
    type: DnsRecordKind = attribute_field("Type of the record.")
    name: str = attribute_field("Whole name, as DNS has it.")
    value: str | None = attribute_field(
        "Value that the record should have. Null if the server lacks a setting for it: `problem` "
        "says what to configure."
    )
    purpose: DnsRecordPurpose = attribute_field("What the record is for.")
    state: DnsState = attribute_field("As looked up.")
    found: list[str] = attribute_field("What DNS has there, as far as it is about this.")
    problem: str | None = attribute_field(
        "Reason for the state UNKNOWN, and what to configure if `value` is null."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{
            name: DerivedField(("advice",), lambda advice, name=name: getattr(advice, name))
            for name in ("type", "name", "value", "purpose")
        },
        "state": DerivedField(("judged",), lambda judged: judged.state),
        "found": DerivedField(("judged",), lambda judged: list(judged.found)),
        "problem": DerivedField(("judged",), lambda judged: judged.problem),
    }


@strawberry.type(description="Mail domain.")
class Domain(NodeView):
    name: str = attribute_field("Unicode form.")
    description: str | None = attribute_field("Text for people.")
    active: bool = attribute_field("Takes mail; its users sign in all the same.")
    tags: list[str] = attribute_field("Labels.")
    max_addresses: int | None = attribute_field(
        "Highest number of addresses, including those of accounts. Null: unlimited."
    )
    max_users: int | None = attribute_field("Highest number of accounts. Null: unlimited.")
    max_user_quota: ByteSize | None = attribute_field(
        "Highest quota of an account, in bytes. Null: unlimited."
    )
    max_new_user_quota: ByteSize | None = attribute_field(
        "Highest for the next one; null = unlimited, 0 = nothing is left."
    )
    quota: ByteSize | None = attribute_field(
        "Quota of all accounts of the domain together, in bytes. Null: unlimited."
    )
    default_user_quota_inherited: bool = attribute_field(
        "True: `defaultUserQuota` is the default of the platform."
    )
    quota_allocated: ByteSize = attribute_field("Given out.")
    address_count: int = attribute_field("Addresses, those of accounts among them.")
    addresses_left: int | None = attribute_field("How many more; null = any number.")
    user_count: int = attribute_field("Accounts.")
    users_left: int | None = attribute_field("How many more; null = any number.")
    backup_mx: bool = attribute_field("Only relayed to the primary server.")
    relay_all_recipients: bool = attribute_field("Relayed also for unknown recipients.")
    relay_unknown_only: bool = attribute_field("Local users here, others relayed.")
    relay_host: Annotated["RelayHost", strawberry.lazy("graph.routing.types")] | None = link(
        "relay_host_id",
        routing_loaders.load_relay_hosts_by_id,
        lazy_view_factory("graph.routing.types", "RelayHost"),
        description="Way out for mail of its senders, as an ADMIN sees it; null = by itself.",
    )
    global_address_list: bool = attribute_field("Users see each other in the address register.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(domain_loaders.load_visible_domains_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Domain"),
        **{
            name: DerivedField((name,), _none_if_unlimited)
            for name in ("max_addresses", "max_users", "max_user_quota", "quota")
        },
        "default_user_quota_inherited": DerivedField(
            ("default_user_quota",), lambda quota: quota is None
        ),
        "max_new_user_quota": DerivedField(
            ("max_user_quota", "quota", "quota_allocated"), _max_quota_of_new_user
        ),
        "addresses_left": DerivedField(("max_addresses", "address_count"), _remaining_count),
        "users_left": DerivedField(("max_users", "user_count"), _remaining_count),
    }

    @field(
        "Quota of accounts without their own quota, in bytes. Null: unlimited.",
        "default_user_quota",
    )
    async def default_user_quota(self, info: Info) -> ByteSize | None:
        quota = effective_quota(info.context.environment, self.row, None)
        return ByteSize(quota) if quota else None

    @field(
        "defaultUserQuota, but no more than maxNewUserQuota; null = unlimited, 0 = nothing left.",
        "default_user_quota",
        "max_user_quota",
        "quota",
        "quota_allocated",
    )
    async def default_new_user_quota(self, info: Info) -> ByteSize | None:
        max_quota = self.max_new_user_quota
        default = effective_quota(info.context.environment, self.row, None) or None
        limits = [ByteSize(size) for size in (max_quota, default) if size is not None]
        return min(limits, default=None)

    @field(
        "What passwords of its users must have when they are set.",
        "password_min",
        "password_classes",
    )
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.from_policy(
            password_policy.policy_of_domain(info.context.environment, self.row)
        )

    @field(
        "How much its users may send together; null = what the settings say.",
        "id",
        **DOMAIN_ADMIN_GUARD,
    )
    async def rate_limit(self, info: Info) -> RateLimit | None:
        return RateLimit.from_row_or_none(
            await info.context.load(rate_limits.load_limits_by_owner, self.row.id)
        )

    @field("In use.", **DOMAIN_ADMIN_GUARD)
    async def storage(self, info: Info) -> DomainStorage:
        return DomainStorage.from_row(
            await info.context.load(
                domain_listing.load_storage_of_administered_domains, self.row.id
            )
        )

    @field("Accounts, by user name.", **DOMAIN_ADMIN_GUARD)
    async def users(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["User", strawberry.lazy("graph.users.types")]]:
        user_type, requested_page = (
            _graphql_type_by_name("User"),
            page_request("domain-users", first, after, last, before),
        )
        page_key = DomainMembersPageKey(
            self.row.id, requested_page, selected_columns(info, user_type)
        )
        return await connection_of_page(
            info,
            user_type,
            await info.context.load(domain_listing.load_user_pages_by_domain, page_key),
            lambda row: Cursor(requested_page.ordering, row.username_key, row.id),
            lambda: info.context.load(domain_listing.count_users_by_domain, page_key),
        )

    @field("What accepts mail there.", **DOMAIN_ADMIN_GUARD)
    async def addresses(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["Address", strawberry.lazy("graph.addresses.types")]]:
        address_type, requested_page = (
            _graphql_type_by_name("Address"),
            page_request("domain-addresses", first, after, last, before),
        )
        page_key = DomainMembersPageKey(
            self.row.id, requested_page, selected_columns(info, address_type)
        )
        return await connection_of_page(
            info,
            address_type,
            await info.context.load(domain_listing.load_address_pages_by_domain, page_key),
            lambda row: Cursor(requested_page.ordering, row.local, row.id),
            lambda: info.context.load(domain_listing.count_addresses_by_domain, page_key),
        )

    @field("Domain aliases of the domain, ordered by name.", **DOMAIN_ADMIN_GUARD)
    async def aliases(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["DomainAlias", strawberry.lazy("graph.domains.types")]]:
        requested_page = page_request("domain-aliases", first, after, last, before)
        page_key = DomainMembersPageKey(
            self.row.id, requested_page, selected_columns(info, DomainAlias)
        )
        return await connection_of_page(
            info,
            DomainAlias,
            await info.context.load(domain_listing.load_alias_pages_by_domain, page_key),
            lambda row: Cursor(requested_page.ordering, row.alias, row.id),
            lambda: info.context.load(domain_listing.count_aliases_by_domain, page_key),
        )

    @field("Accounts that administer the domain, ordered by user name.", **DOMAIN_ADMIN_GUARD)
    async def admins(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["User", strawberry.lazy("graph.users.types")]]:
        user_type, requested_page = (
            _graphql_type_by_name("User"),
            page_request("domain-admins", first, after, last, before),
        )
        page_key = DomainMembersPageKey(
            self.row.id, requested_page, selected_columns(info, user_type)
        )
        return await connection_of_page(
            info,
            user_type,
            await info.context.load(domain_listing.load_admin_pages_by_domain, page_key),
            lambda row: Cursor(requested_page.ordering, row.username_key, row.id),
            lambda: info.context.load(domain_listing.count_admins_by_domain, page_key),
        )

    @field("Senders whose mail is never spam, or always, by pattern.", **DOMAIN_ADMIN_GUARD)
    async def sender_rules(
        self,
        info: Info,
        action: SenderAction | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["SenderRule", strawberry.lazy("graph.spam.sender_rules")]]:
        rule_type, list_ordering = (
            _graphql_type_by_name("SenderRule"),
            ordering_name("domain-sender-rules", value_or_none(action)),
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = OfDomainRules(
            self.row.id, requested_page, selected_columns(info, rule_type), value_or_none(action)
        )
        return await connection_of_page(
            info,
            rule_type,
            await info.context.load(sender_rules.load_rule_pages_by_domain, page_key),
            lambda row: Cursor(requested_page.ordering, row.pattern, row.id),
            lambda: info.context.load(sender_rules.count_rules_by_domain, page_key),
        )

    @field("The key in use: RSA, if there is one.", "name", **DOMAIN_ADMIN_GUARD)
    async def dkim_key(self, info: Info) -> DkimKey | None:
        return DkimKey.from_row_or_none(
            await info.context.load(dkim_keys.load_current_keys_by_domain, self.row.name)
        )

    @field(
        "MX, SPF, DKIM, DMARC, MTA-STS, TLS-RPT, TLSA, and what programs look for. With check they "
        "are looked up, within four seconds for all that are asked for at once.",
        "name",
        "backup_mx",
        cost=DNS_COST,
        **DOMAIN_ADMIN_GUARD,
    )
    async def dns_records(self, info: Info, check: bool = False) -> list[DnsRecord]:
        request = DnsRecordsKey.from_row(self.row, checks_dns=check)
        return [
            DnsRecord.from_row(record)
            for record in await info.context.load(
                dns_records.load_expected_records_by_domain, request
            )
        ]


@strawberry.type(description="Second name of a domain: mail for it is mail for the domain.")
class DomainAlias(NodeView):
    alias: str = attribute_field("Unicode form.")
    domain: Domain = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="What it stands for.",
    )
    active: bool = attribute_field("False = it takes no mail.")
    created_at: datetime = attribute_field("Creation.")

    load_batch = staticmethod(aliases.load_visible_aliases_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("DomainAlias")}


@strawberry.input(description="Selects domain aliases.")
class DomainAliasFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Part of the alias or of the name of its domain.", default=UNSET
    )


@strawberry.input(description="Which domains.")
class DomainFilter(ConditionsInput):
    query: str | None = attribute_field("Partial match of name or description.", default=UNSET)
    active: bool | None = attribute_field("On or off.", default=UNSET)
    backup_mx: bool | None = attribute_field("Only relayed, or not.", default=UNSET)
    administered_by: UserRef | None = attribute_field(
        "That this user is in charge of.", default=UNSET
    )
    not_administered_by: UserRef | None = attribute_field(
        "That this user is not in charge of.", default=UNSET
    )
    tags: list[str] | None = attribute_field("With any of these labels.", default=UNSET)

    async def resolve_conditions(self, info: Info) -> DomainConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no domain.
        """

        async def resolve_user_id(ref: UserRef | None) -> int | None:
            if not ref:
                return None
            row = await load_user_or_viewer(info, ref)
            return row.id if row else 0

        return DomainConditions(
            query=self.query or None,
            active=value_or_none(self.active),
            backup_mx=value_or_none(self.backup_mx),
            administered_by=await resolve_user_id(self.administered_by),
            not_administered_by=await resolve_user_id(self.not_administered_by),
            tags=optional_tuple(self.tags),
        )


@strawberry.type
class DomainQuery:
    @query("One domain, by id or by its own name.", scope=Scope.READ, **DOMAIN_ADMIN_GUARD)
    async def domain(self, info: Info, by: DomainRef) -> Domain | None:
        ref = domain_selector_from_ref(by, path="by")
        if ref.id is None:
            return Domain.from_row_or_none(
                await domain_loaders.find_administered_domain(info.context, ref.name or "")
            )
        (row,) = await domain_loaders.load_administered_domains_by_id(info.context, [ref.id])
        return Domain.from_row_or_none(row)

    @query("Lists the domains that the viewer administers.", scope=Scope.READ, **DOMAIN_ADMIN_GUARD)
    async def domains(
        self,
        info: Info,
        filter: DomainFilter | None = UNSET,
        order_by: DomainOrder = DomainOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Domain]:
        conditions = await filter.resolve_conditions(info) if filter else DomainConditions()
        list_ordering = ordering_name(
            f"domains-{order_by}", None if conditions == DomainConditions() else conditions
        )
        list_order = domain_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Domain,
            await domain_loaders.read_domain_page(
                info.context, conditions, requested_page, selected_columns(info, Domain), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: domain_loaders.count_domains(info.context, conditions),
        )

    @query("One second name of a domain.", scope=Scope.READ, **DOMAIN_ADMIN_GUARD)
    async def domain_alias(self, info: Info, by: DomainAliasRef) -> DomainAlias | None:
        if by.id:
            key = global_ids.decode("DomainAlias", by.id.value, path="by")
            (row,) = await aliases.load_visible_aliases_by_id(info.context, [key])
            return DomainAlias.from_row_or_none(row)
        return DomainAlias.from_row_or_none(
            await aliases.find_alias(info.context, maybe_value(by.alias) or "")
        )

    @query(
        "Domain aliases of the domains that the viewer administers, ordered by name.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
    )
    async def domain_aliases(
        self,
        info: Info,
        filter: DomainAliasFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DomainAlias]:
        search_text = (filter.query or None) if filter else None
        requested_page = page_request(
            ordering_name("domain-alias", search_text), first, after, last, before
        )
        return await connection_of_page(
            info,
            DomainAlias,
            await aliases.read_alias_page(
                info.context, search_text, requested_page, selected_columns(info, DomainAlias)
            ),
            lambda row: Cursor(requested_page.ordering, row.alias, row.id),
            lambda: aliases.count_aliases(info.context, search_text),
        )
