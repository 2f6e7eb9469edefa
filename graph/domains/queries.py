"""Queries of domains and alias domains."""

import strawberry
from strawberry import UNSET

from graph.domains.filters import AliasDomainFilter, DomainFilter
from graph.domains.types import DOMAIN_ADMIN_GUARD, AliasDomain, Domain
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.fields import Info, query
from graph.types.object_access import DOMAINS
from graph.types.references import (
    AliasDomainRef,
    DomainRef,
    domain_selector_from_ref,
    maybe_value,
)
from graph.types.row_mapping import selected_columns
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from resolvers.domains import aliases
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.aliases import AliasDomainOrder
from resolvers.domains.loaders import DomainConditions, DomainOrder


@strawberry.type
class DomainQuery:
    @query(
        "Returns a domain by ID or name. Null if it does not exist or the caller does not "
        "administer it. Null also for the name of an alias domain.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def domain(self, info: Info, by: DomainRef) -> Domain | None:
        ref = domain_selector_from_ref(by, path="by")
        if ref.id is None:
            return Domain.from_row_or_none(
                await domain_loaders.find_administered_domain(info.context, ref.name or "")
            )
        (row,) = await domain_loaders.load_administered_domains_by_id(info.context, [ref.id])
        return Domain.from_row_or_none(row)

    @query(
        "Returns the domains that the caller administers, active or not. Alias domains are not "
        "contained.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
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
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info) if filter else DomainConditions()
        )
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

    @query(
        "Returns an alias domain by ID or name. Null if it does not exist, or if the caller does "
        "not administer the domain that it is an alias of.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def alias_domain(self, info: Info, by: AliasDomainRef) -> AliasDomain | None:
        if by.id:
            key = global_ids.decode("AliasDomain", by.id.value, path="by")
            (row,) = await aliases.load_visible_aliases_by_id(info.context, [key])
            return AliasDomain.from_row_or_none(row)
        return AliasDomain.from_row_or_none(
            await aliases.find_visible_alias(info.context, maybe_value(by.alias) or "")
        )

    @query(
        "Returns the alias domains, active or not, of the domains that the caller administers.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def alias_domains(
        self,
        info: Info,
        filter: AliasDomainFilter | None = UNSET,
        order_by: AliasDomainOrder = AliasDomainOrder.ALIAS_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AliasDomain]:
        search_text = (filter.query or None) if filter else None
        list_ordering = ordering_name(f"domain-aliases-{order_by}", search_text)
        list_order = aliases.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            AliasDomain,
            await aliases.read_alias_page(
                info.context,
                search_text,
                requested_page,
                selected_columns(info, AliasDomain),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: aliases.count_aliases(info.context, search_text),
        )
