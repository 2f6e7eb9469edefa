"""GraphQL types, queries and mutations of rate limits."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserSelection,
    domain_selector_from_ref,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.users.limits import LimitSource
from models.queue.rate_values import Rate, RatePeriod
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import AdminPermission, Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainIdOrName
from resolvers.queue import rate_limit_mutations, rate_limits
from resolvers.queue.rate_limit_mutations import RateLimitOwners
from resolvers.queue.rate_limits import RateLimitConditions
from resolvers.users import loaders as users
from resolvers.users.limit_values import STORED_UNLIMITED, limit_or_none
from resolvers.users.selection import load_selected_users

if TYPE_CHECKING:
    from graph.domains.types import Domain
    from graph.users.types import User


REFUSED_COUNT = -1  # stands for 0 messages, since 0 is the stored form of unlimited
RATE_LIMIT_GUARD: dict[str, Any] = {
    "role": Role.DOMAIN_ADMIN,
    "admin_permission": AdminPermission.RATE_LIMITS,
}
MESSAGES_DESCRIPTION = (
    "Messages in the time window. Null is unlimited, even if the settings have a limit."
)


@strawberry.type(
    description="How many messages an account, or all accounts of a domain together, may send in a "
    "time. It begins with the first message; each counts once, however many it goes to."
)
class RateLimit(NodeView):
    messages: int | None = attribute_field(MESSAGES_DESCRIPTION)
    per: RatePeriod = attribute_field("Length of the time window.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Whose.",
    )
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        lazy_view_factory("graph.domains.types", "Domain"),
        description="Whose.",
    )
    used: int = attribute_field("Sent in the time that is running.")
    exhausted: bool = attribute_field("No more can be sent until resetsAt.")
    resets_at: datetime | None = attribute_field("When that time ends; null = none is running.")

    load_batch = staticmethod(rate_limits.load_limits_by_owner)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RateLimit"),
        "messages": DerivedField(("messages",), limit_or_none),
        "per": DerivedField(("per",), RatePeriod),
        "used": DerivedField(("used",), lambda used: used or 0),
        "exhausted": DerivedField(
            ("used", "messages"), lambda used, messages: 0 < messages <= (used or 0)
        ),
        "resets_at": DerivedField(("until",), lambda until: until),
    }


@strawberry.type(description="An account that was turned away, and cannot send for now.")
class RateLimitHold(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Who is held up.",
    )
    source: LimitSource = attribute_field("Whose messages have been too many.")
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        lazy_view_factory("graph.domains.types", "Domain"),
        description="Whose accounts have sent too many together, where it is a domain.",
    )
    messages: int = attribute_field("Messages that can be sent in the time window.")
    per: RatePeriod = attribute_field("Length of the time window.")
    held_at: datetime = attribute_field("Time of the first message that was refused.")
    resets_at: datetime = attribute_field("When it can send again.")

    load_batch = staticmethod(rate_limits.load_holds_by_user)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RateLimitHold"),
        "held_at": DerivedField(("since",), lambda since: since),
        "resets_at": DerivedField(("until",), lambda until: until),
        "source": DerivedField(("source",), LimitSource),
        "per": DerivedField(("per",), RatePeriod),
    }


@strawberry.input(description="So many messages in a time.")
class RateLimitInput:
    messages: int | None = attribute_field(MESSAGES_DESCRIPTION)
    per: RatePeriod = attribute_field("Length of the time window.")

    def to_rate(self) -> Rate:
        """Convert the input to a rate limit."""
        if self.messages is None:
            return Rate(STORED_UNLIMITED, self.per)
        return Rate(self.messages or REFUSED_COUNT, self.per)


@strawberry.input(description="Which limits: of these users or domains, or of all.")
class RateLimitFilter(ConditionsInput):
    users: UserSelection | None = attribute_field("Of these.", default=UNSET)
    domains: list[str] | None = attribute_field("Of these, by name.", default=UNSET)
    exhausted: bool | None = attribute_field(
        "No more can be sent for now, or some can.", default=UNSET
    )


@strawberry.input(description="Selects accounts that have reached a rate limit.")
class RateLimitHoldFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Only these accounts. Default: all that the viewer sees.", default=UNSET
    )


@strawberry.input(description="Input of rateLimitSet.")
class RateLimitSetInput(Options):
    users: UserSelection | None = attribute_field("Of these.", default=UNSET)
    domains: list[DomainRef] | None = attribute_field("Of these.", default=UNSET)
    rate_limit: RateLimitInput | None = attribute_field(
        "The new limit. Null removes the limit: the settings apply.", default=UNSET
    )


@strawberry.input(description="Input of rateLimitReset.")
class RateLimitResetInput(Options):
    users: UserSelection | None = attribute_field("Of these.", default=UNSET)
    domains: list[DomainRef] | None = attribute_field("Of these.", default=UNSET)
    include_platform: bool = attribute_field("Of the platform too; needs ADMIN.", default=False)


@strawberry.type(description="Answer of rateLimitSet and rateLimitReset.")
class RateLimitsPayload(MutationPayload):
    rate_limits: list[RateLimit] = attribute_field(
        "Those that are set, of users, then of domains.", default_factory=list
    )


async def _load_selected_user_ids(
    info: Info, selection: UserSelection | None
) -> Collection[int] | None:
    """Load the ids of the accounts that a filter selects; None without a selection."""
    if not selection:
        return None
    return [
        row.id
        for row in await load_selected_users(
            info.context, user_selector_from_selection(selection, path="filter"), only_managed=False
        )
    ]


async def _resolve_conditions(
    info: Info, rate_limit_filter: RateLimitFilter | None
) -> RateLimitConditions:
    """Convert the filter to conditions of the resolvers. Unknown domains raise NotFound."""
    if not rate_limit_filter:
        return RateLimitConditions()
    domain_refs = [DomainIdOrName(name=name) for name in rate_limit_filter.domains or ()]
    domain_ids = None
    if isinstance(rate_limit_filter.domains, list):
        domain_ids = (
            [
                row.id
                for row in await domain_loaders.load_referenced_domains(info.context, domain_refs)
            ]
            if domain_refs
            else []
        )
    return RateLimitConditions(
        await _load_selected_user_ids(info, value_or_none(rate_limit_filter.users)),
        domain_ids,
        value_or_none(rate_limit_filter.exhausted),
    )


def _rate_limit_owners(
    user_selection: UserSelection | None, domain_refs: list[DomainRef] | None
) -> RateLimitOwners:
    """Return the users and domains that an input names. Raises Invalid if an ID is not valid."""
    user_selector = user_selector_from_selection(user_selection) if user_selection else None
    domains = [
        domain_selector_from_ref(ref, path="domains", index=index)
        for index, ref in enumerate(domain_refs or ())
    ]
    return RateLimitOwners(user_selector, domains or None)


async def _load_payload(info: Info, limit_ids: list[int]) -> RateLimitsPayload:
    """Load rate limits and return the payload with them."""
    rows = await info.context.load_many(rate_limits.load_limits_by_owner, limit_ids)
    return RateLimitsPayload(rate_limits=[RateLimit.from_row(row) for row in rows if row])


@strawberry.type
class RateLimitQuery:
    @query(
        "Rates that are set, in the order they were; of others settings say it.",
        scope=Scope.READ,
        **RATE_LIMIT_GUARD,
    )
    async def rate_limits(
        self,
        info: Info,
        filter: RateLimitFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RateLimit]:
        conditions = await _resolve_conditions(info, value_or_none(filter))
        requested_page = page_request(
            ordering_name(rate_limits.LIMIT_CURSOR_KIND, conditions), first, after, last, before
        )
        return await connection_of_page(
            info,
            RateLimit,
            await rate_limits.read_limit_page(
                info.context, conditions, requested_page, selected_columns(info, RateLimit)
            ),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: rate_limits.count_limits(info.context, conditions),
        )

    @query(
        "Accounts that were turned away and cannot send for now, the last one first: by a rate "
        "of their own, of their domain, or of the platform.",
        scope=Scope.READ,
        **RATE_LIMIT_GUARD,
    )
    async def rate_limit_holds(
        self,
        info: Info,
        filter: RateLimitHoldFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RateLimitHold]:
        users = value_or_none(filter.users) if filter else None
        keys = await _load_selected_user_ids(info, users)
        requested_page = page_request(
            ordering_name(rate_limits.HOLD_CURSOR_KIND, keys), first, after, last, before
        )
        return await connection_of_page(
            info,
            RateLimitHold,
            await rate_limits.read_rate_limit_hold_page(
                info.context, keys, requested_page, selected_columns(info, RateLimitHold)
            ),
            lambda row: Cursor(requested_page.ordering, row.since, row.id),
            lambda: rate_limits.count_rate_limited_users(info.context, keys),
        )


@strawberry.type
class RateLimitMutation:
    @mutation(
        "How many messages users, and domains, may send in a time: all or none. What is counted "
        "counts on.",
        scope=Scope.FULL,
        **RATE_LIMIT_GUARD,
    )
    async def rate_limit_set(self, info: Info, input: RateLimitSetInput) -> RateLimitsPayload:
        new_limit = value_or_none(input.rate_limit)
        rate = new_limit.to_rate() if new_limit else None
        owners = _rate_limit_owners(value_or_none(input.users), value_or_none(input.domains))
        return await _load_payload(
            info, await rate_limit_mutations.set_or_remove_rate_limits(info.context, owners, rate)
        )

    @mutation(
        "Lets messages that were sent be counted anew: who is held up may send again.",
        scope=Scope.FULL,
        **RATE_LIMIT_GUARD,
    )
    async def rate_limit_reset(self, info: Info, input: RateLimitResetInput) -> RateLimitsPayload:
        owners = _rate_limit_owners(value_or_none(input.users), value_or_none(input.domains))
        keys = await rate_limit_mutations.reset_rate_limits(
            info.context, owners, includes_platform=input.include_platform
        )
        return await _load_payload(info, keys)
