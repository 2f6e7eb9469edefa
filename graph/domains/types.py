"""GraphQL types and queries of domains and alias domains."""

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.addresses.filters import AddressFilter
from graph.auth.password_policy import PasswordPolicy
from graph.domains.dkim_keys import DkimKey
from graph.domains.dns_record_type import DnsRecord
from graph.domains.domain_lists import load_connection_of_owned_rows
from graph.domains.filters import AliasDomainFilter
from graph.identity_providers.types import IdentityProvider
from graph.queue.rate_limits import RateLimit
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField, View
from graph.types.references import value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import BigInt, ByteSize
from graph.users.filters import UserFilter
from models.spam.sender_rules import SenderAction
from models.store.keyset_pages import ordering_name
from models.users.roles import Role
from resolvers.auth.passwords import password_policy
from resolvers.domains import aliases, dkim_keys, dns_records
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.aliases import AliasDomainOrder
from resolvers.domains.dns_records import DnsRecordsKey
from resolvers.domains.listing import DomainAddressOrder, DomainPageKey, DomainUserOrder
from resolvers.identity_providers.loaders import load_visible_providers_by_domain_id
from resolvers.queue import rate_limits
from resolvers.routing import loaders as routing_loaders
from resolvers.spam import sender_rules
from resolvers.spam.sender_rules import (
    DomainRuleListing,
    SenderRuleConditions,
    SenderRuleOrder,
)
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


@strawberry.input(description="Conditions on the sender rules of a domain. All must hold.")
class DomainSenderRuleFilter(ConditionsInput):
    action: SenderAction | None = attribute_field(
        "Returns only sender rules with this action.", default=UNSET
    )
    query: str | None = attribute_field(
        "Returns only rules with this text in pattern or comment (case and accents are ignored).",
        default=UNSET,
    )

    def to_conditions(self) -> SenderRuleConditions:
        """Convert the filter to conditions of the resolvers."""
        return SenderRuleConditions(action=value_or_none(self.action), query=self.query or None)


@strawberry.type(description="Storage that the accounts of a domain use together.")
class DomainStorage(View):
    size: ByteSize = attribute_field("Bytes that messages and custom data of the accounts take.")
    message_count: BigInt = attribute_field("Number of messages in all mailboxes of the accounts.")


@strawberry.type(description=("Mail domain of the platform."))
class Domain(NodeView):
    name: str = attribute_field("Name of the domain in Unicode form.")
    description: str | None = attribute_field(
        "Note about the domain by administrators. Users who see the domain can read it. Null: none."
    )
    active: bool = attribute_field(
        "False: mail to the domain and its alias domains is refused, and its addresses give no "
        "right to send. Its users can sign in."
    )
    tags: list[str] = attribute_field("Tags of the domain, for the filter of a list. At most 100.")
    max_addresses: int | None = attribute_field(
        "Highest number of addresses, including those of accounts. Null: unlimited."
    )
    max_users: int | None = attribute_field("Highest number of accounts. Null: unlimited.")
    max_user_quota: ByteSize | None = attribute_field(
        "Highest quota of an account, in bytes. Null: unlimited."
    )
    max_new_user_quota: ByteSize | None = attribute_field(
        "Highest quota in bytes that a new account can get. Null: unlimited. 0: no storage is left."
    )
    quota: ByteSize | None = attribute_field(
        "Quota for all accounts of the domain together, in bytes. Null: unlimited."
    )
    default_user_quota_inherited: bool = attribute_field(
        "True: `defaultUserQuota` is the default of the platform."
    )
    quota_allocated: ByteSize = attribute_field(
        "Sum of the quotas of all accounts with the main address in the domain, own or inherited, "
        "in bytes. Accounts with unlimited storage count as 0."
    )
    address_count: int = attribute_field(
        "Number of addresses in the domain, including those of accounts."
    )
    addresses_left: int | None = attribute_field(
        "Number of addresses that can still be created. Null: unlimited."
    )
    user_count: int = attribute_field("Number of accounts with the main address in the domain.")
    users_left: int | None = attribute_field(
        "Number of accounts that can still be created. Null: unlimited."
    )
    backup_mx: bool = attribute_field(
        "True: the server is a backup MX of the domain. Mail for accounts is not stored, but "
        "relayed by a transport, the configured next hop, or else to the preferred MX hosts. If "
        "`relayUnknownOnly` is true, it is stored. Forwarding, discarding, training and resource "
        "addresses work as usual."
    )
    relay_all_recipients: bool = attribute_field(
        "True: the backup MX relays mail for recipients that the server does not know, too. False: "
        "it refuses such mail."
    )
    relay_unknown_only: bool = attribute_field(
        "True: the backup MX stores mail for known recipients, and relays only the rest."
    )
    relay_host: Annotated["RelayHost", strawberry.lazy("graph.routing.types")] | None = link(
        "relay_host_id",
        routing_loaders.load_relay_hosts_by_id,
        lazy_view_factory("graph.routing.types", "RelayHost"),
        description=(
            "Relay host for mail with an envelope sender in the domain, not in its alias domains, "
            "unless a transport matches the recipient. Null: there is none, or the caller is not "
            "an ADMIN."
        ),
    )
    global_address_list: bool = attribute_field(
        "True: contact suggestions of accounts with the main address in the domain contain the "
        "other active ones."
    )
    created_at: datetime = attribute_field("Time when the domain was created.")
    updated_at: datetime | None = attribute_field("Time of the domain's last change or creation.")

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
        "Quota of accounts of the domain without their own quota, in bytes: that of the domain, "
        "else the default of the platform. Null: unlimited.",
        "default_user_quota",
    )
    async def default_user_quota(self, info: Info) -> ByteSize | None:
        quota = effective_quota(info.context.environment, self.row, None)
        return ByteSize(quota) if quota else None

    @field(
        "Quota in bytes to suggest for a new account: the smaller one of `defaultUserQuota` and "
        "`maxNewUserQuota`. `userCreate` without a quota does not lower `defaultUserQuota`, and "
        "is refused if `defaultUserQuota` is too high. Null: unlimited. 0: no storage is left.",
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
        "Rules for new passwords of the accounts of the domain. The domain's own values have "
        "precedence over those of the platform.",
        "password_min",
        "password_classes",
    )
    async def password_policy(self, info: Info) -> PasswordPolicy:
        return PasswordPolicy.from_policy(
            password_policy.policy_of_domain(info.context.environment, self.row)
        )

    @field(
        "OpenID Connect provider at which the users of the domain sign in. Null: there is none, "
        "or the caller does not administer the domain.",
        "id",
        **DOMAIN_ADMIN_GUARD,
    )
    async def identity_provider(self, info: Info) -> IdentityProvider | None:
        row = await info.context.load(load_visible_providers_by_domain_id, self.row.id)
        return IdentityProvider.from_row_or_none(row)

    @field(
        "Messages that all accounts of the domain together can send in a period. Null: the "
        "default of the settings applies, or the caller does not administer the domain.",
        "id",
        **DOMAIN_ADMIN_GUARD,
    )
    async def rate_limit(self, info: Info) -> RateLimit | None:
        return RateLimit.from_row_or_none(
            await info.context.load(rate_limits.load_limits_by_owner, self.row.id)
        )

    @field(
        "True if the domain has no rate limit of its own and inherits that of the settings. Null: "
        "the caller does not administer the domain.",
        "id",
        **DOMAIN_ADMIN_GUARD,
    )
    async def rate_limit_inherited(self, info: Info) -> bool | None:
        return await info.context.load(rate_limits.load_inheritance_by_domain, self.row.id)

    @field(
        "Storage that accounts with the main address in the domain use together. 0 if the caller "
        "does not administer the domain.",
        **DOMAIN_ADMIN_GUARD,
    )
    async def storage(self, info: Info) -> DomainStorage:
        return DomainStorage.from_row(
            await info.context.load(
                domain_listing.load_storage_of_administered_domains, self.row.id
            )
        )

    @field(
        ("Accounts with the main address in the domain. Empty unless the caller administers it."),
        **DOMAIN_ADMIN_GUARD,
    )
    async def users(
        self,
        info: Info,
        filter: UserFilter | None = UNSET,
        order_by: DomainUserOrder = DomainUserOrder.USERNAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["User", strawberry.lazy("graph.users.types")]]:
        view = _graphql_type_by_name("User")
        list_order = domain_listing.USER_LIST_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else None
        list_ordering = ordering_name(f"domain-users-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = DomainPageKey(
            self.row.id, requested_page, list_order, selected_columns(info, view), conditions
        )
        return await load_connection_of_owned_rows(
            info,
            view,
            page_key,
            domain_listing.load_user_pages_by_domain,
            domain_listing.count_users_by_domain,
        )

    @field(
        "Addresses in the domain, including those of accounts and resources. Empty if the caller "
        "does not administer the domain.",
        **DOMAIN_ADMIN_GUARD,
    )
    async def addresses(
        self,
        info: Info,
        filter: AddressFilter | None = UNSET,
        order_by: DomainAddressOrder = DomainAddressOrder.LOCAL_PART_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["Address", strawberry.lazy("graph.addresses.types")]]:
        view = _graphql_type_by_name("Address")
        list_order = domain_listing.ADDRESS_LIST_ORDERS[order_by]
        conditions = await filter.resolve_conditions_or_match_nothing(info) if filter else None
        list_ordering = ordering_name(f"domain-addresses-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = DomainPageKey(
            self.row.id, requested_page, list_order, selected_columns(info, view), conditions
        )
        return await load_connection_of_owned_rows(
            info,
            view,
            page_key,
            domain_listing.load_address_pages_by_domain,
            domain_listing.count_addresses_by_domain,
        )

    @field(
        ("Alias domains of the domain, active or not. Empty unless the caller administers it."),
        **DOMAIN_ADMIN_GUARD,
    )
    async def aliases(
        self,
        info: Info,
        filter: AliasDomainFilter | None = UNSET,
        order_by: AliasDomainOrder = AliasDomainOrder.ALIAS_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["AliasDomain", strawberry.lazy("graph.domains.types")]]:
        list_order = aliases.LIST_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else None
        list_ordering = ordering_name(f"domain-aliases-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        columns = selected_columns(info, AliasDomain)
        page_key = DomainPageKey(self.row.id, requested_page, list_order, columns, conditions)
        return await load_connection_of_owned_rows(
            info,
            AliasDomain,
            page_key,
            domain_listing.load_alias_pages_by_domain,
            domain_listing.count_aliases_by_domain,
        )

    @field(
        (
            "Accounts that administer the domain as DOMAIN_ADMIN. A caller below ADMIN sees only "
            "the own account and those in domains that the caller administers. Empty if the caller "
            "does not administer the domain."
        ),
        **DOMAIN_ADMIN_GUARD,
    )
    async def admins(
        self,
        info: Info,
        filter: UserFilter | None = UNSET,
        order_by: DomainUserOrder = DomainUserOrder.USERNAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["User", strawberry.lazy("graph.users.types")]]:
        view = _graphql_type_by_name("User")
        list_order = domain_listing.USER_LIST_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else None
        list_ordering = ordering_name(f"domain-admins-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = DomainPageKey(
            self.row.id, requested_page, list_order, selected_columns(info, view), conditions
        )
        return await load_connection_of_owned_rows(
            info,
            view,
            page_key,
            domain_listing.load_admin_pages_by_domain,
            domain_listing.count_admins_by_domain,
        )

    @field(
        "Sender rules of the domain, which allow or block senders. Empty if the caller does not "
        "administer the domain.",
        **DOMAIN_ADMIN_GUARD,
    )
    async def sender_rules(
        self,
        info: Info,
        filter: DomainSenderRuleFilter | None = UNSET,
        order_by: SenderRuleOrder = SenderRuleOrder.PATTERN_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["SenderRule", strawberry.lazy("graph.spam.sender_rules")]]:
        rule_type = _graphql_type_by_name("SenderRule")
        list_order = sender_rules.LIST_ORDERS[order_by]
        conditions = filter.to_conditions() if filter else SenderRuleConditions()
        list_ordering = ordering_name(
            f"domain-sender-rules-{order_by}",
            None if conditions == SenderRuleConditions() else conditions,
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        page_key = DomainRuleListing(
            self.row.id, requested_page, list_order, selected_columns(info, rule_type), conditions
        )
        return await connection_of_page(
            info,
            rule_type,
            await info.context.load(sender_rules.load_rule_pages_by_domain, page_key),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: info.context.load(sender_rules.count_rules_by_domain, page_key),
        )

    @field(
        "Active DKIM key of the domain's own, or else its own pending key; the RSA key if there "
        "are two. Null: there is neither, or the caller does not administer the domain. The key "
        "of `*`, which can sign for domains without an active key, is not returned.",
        "name",
        **DOMAIN_ADMIN_GUARD,
    )
    async def dkim_key(self, info: Info) -> DkimKey | None:
        return DkimKey.from_row_or_none(
            await info.context.load(
                dkim_keys.load_visible_active_or_pending_keys,
                domain_loaders.DomainIdOrName(name=self.row.name),
            )
        )

    @field(
        "DNS records that the domain should have: addresses of the server, MX, SPF, DKIM, DMARC, "
        "MTA-STS, TLS-RPT, TLSA, and service records for mail clients. With `check`, also the PTR "
        "records of up to 10 public addresses of the server, unless a next hop is configured. The "
        "look-ups of a request take at most 4 seconds together.",
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
                dns_records.compute_expected_records_and_query_dns, request
            )
        ]


@strawberry.type(
    description=(
        "Alias domain: another name of a domain. Mail to an address in it is delivered as mail to "
        "the same local part in the domain."
    )
)
class AliasDomain(NodeView):
    alias: str = attribute_field("Name of the alias domain in Unicode form.")
    domain: Domain = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain that gets the mail of the alias domain.",
    )
    active: bool = attribute_field(
        "False: mail to the alias domain is refused. True has no effect if the domain is inactive."
    )
    created_at: datetime = attribute_field("Time when the alias domain was created.")

    load_batch = staticmethod(aliases.load_visible_aliases_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("AliasDomain")}
