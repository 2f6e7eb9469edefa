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
    "Messages that can be sent in the time window, 1 to 1,000,000,000. Null: unlimited, even if "
    "the settings have a limit."
)


@strawberry.type(
    description="Number of messages that a user, or all users of a domain together, can "
    "send in a time window. The window begins with the first message. A message "
    "counts once for any number of recipients."
)
class RateLimit(NodeView):
    messages: int | None = attribute_field(MESSAGES_DESCRIPTION)
    per: RatePeriod = attribute_field("Length of the time window.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User that the limit is set on. Null: the limit is that of a domain.",
    )
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        lazy_view_factory("graph.domains.types", "Domain"),
        description="Domain that the limit is set on. Null: the limit is that of a user.",
    )
    used: int = attribute_field("Messages sent in the current time window.")
    exhausted: bool = attribute_field("True if no more messages can be sent until resetsAt.")
    resets_at: datetime | None = attribute_field(
        "Time when the current time window ends. Null: no window has begun."
    )

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


@strawberry.type(
    description="A user who can't send at present, because a message exceeded a rate limit."
)
class RateLimitHold(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who can't send.",
    )
    source: LimitSource = attribute_field(
        "Owner of the exceeded limit: the user, the domain, or the platform."
    )
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        lazy_view_factory("graph.domains.types", "Domain"),
        description="Domain whose users have together exceeded the limit. Null: the limit is "
        "not that of a domain.",
    )
    messages: int = attribute_field("Messages that can be sent in the time window.")
    per: RatePeriod = attribute_field("Length of the time window.")
    held_at: datetime = attribute_field("Time of the first message that was refused.")
    resets_at: datetime = attribute_field("Time when the user can send again.")

    load_batch = staticmethod(rate_limits.load_holds_by_user)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RateLimitHold"),
        "held_at": DerivedField(("since",), lambda since: since),
        "resets_at": DerivedField(("until",), lambda until: until),
        "source": DerivedField(("source",), LimitSource),
        "per": DerivedField(("per",), RatePeriod),
    }


@strawberry.input(description="A number of messages in a time window.")
class RateLimitInput:
    messages: int | None = attribute_field(MESSAGES_DESCRIPTION)
    per: RatePeriod = attribute_field("Length of the time window.")

    def to_rate(self) -> Rate:
        """Convert the input to a rate limit."""
        if self.messages is None:
            return Rate(STORED_UNLIMITED, self.per)
        return Rate(self.messages or REFUSED_COUNT, self.per)


@strawberry.input(
    description="Conditions on rate limits. With both users and domains, limits of either match."
)
class RateLimitFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Users that the limits are set on.", default=UNSET
    )
    domains: list[str] | None = attribute_field(
        "Names of domains that the limits are set on.", default=UNSET
    )
    exhausted: bool | None = attribute_field(
        "True: limits that are used up. False: limits that are not.", default=UNSET
    )


@strawberry.input(description="Conditions on users who can't send at present.")
class RateLimitHoldFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Users who can't send. Default: all that the caller can see.", default=UNSET
    )


@strawberry.input(description="Input of rateLimitSet. Users or domains are required.")
class RateLimitSetInput(Options):
    users: UserSelection | None = attribute_field("Users to set the limit on.", default=UNSET)
    domains: list[DomainRef] | None = attribute_field(
        "Domains to set the limit on. It applies to all users of the domain together.",
        default=UNSET,
    )
    rate_limit: RateLimitInput | None = attribute_field(
        "The new limit. Null: removes the limit, so that the settings apply.", default=UNSET
    )


@strawberry.input(
    description="Input of rateLimitReset. Users, domains or includePlatform is required."
)
class RateLimitResetInput(Options):
    users: UserSelection | None = attribute_field("Users whose counters are reset.", default=UNSET)
    domains: list[DomainRef] | None = attribute_field(
        "Domains whose counters are reset. Counters of their users stay.", default=UNSET
    )
    include_platform: bool = attribute_field(
        "Resets the counter of the platform. Requires the role ADMIN.", default=False
    )


@strawberry.type(description="Payload of rateLimitSet and rateLimitReset.")
class RateLimitsPayload(MutationPayload):
    rate_limits: list[RateLimit] = attribute_field(
        "Limits that are set on the users and domains of the input: first users, then domains.",
        default_factory=list,
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
        "Returns the rate limits that are set on users and domains. Users and "
        "domains without one have the limits of the settings. Oldest first.",
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
        "Returns users who can't send at present, because a message exceeded the "
        "rate limit of the user, the domain or the platform. Newest first.",
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
        "Sets or removes the rate limits of users and domains, all or none. "
        "Messages that are counted already still count.",
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
        "Resets counters of sent messages, so that users who exceeded a rate limit can send again.",
        scope=Scope.FULL,
        **RATE_LIMIT_GUARD,
    )
    async def rate_limit_reset(self, info: Info, input: RateLimitResetInput) -> RateLimitsPayload:
        owners = _rate_limit_owners(value_or_none(input.users), value_or_none(input.domains))
        keys = await rate_limit_mutations.reset_rate_limits(
            info.context, owners, includes_platform=input.include_platform
        )
        return await _load_payload(info, keys)
