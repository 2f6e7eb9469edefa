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
from graph.types.object_access import DOMAINS, MANAGED_OR_DOMAINS
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserSelection,
    domain_selectors_from_refs,
    is_true,
    require_administered_domain_ids,
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
from models.errors import InvalidInput
from models.queue.rate_values import RatePeriod
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers.domains import loaders as domain_loaders
from resolvers.queue import rate_limit_mutations, rate_limits
from resolvers.queue.rate_limit_mutations import NewRateLimit, RateLimitOwners
from resolvers.queue.rate_limits import RateLimitConditions, RateLimitHoldOrder, RateLimitOrder
from resolvers.users import loaders as users
from resolvers.users.limit_values import limit_or_none
from resolvers.users.selection import require_selected_users

if TYPE_CHECKING:
    from graph.domains.types import Domain
    from graph.users.types import User


RATE_LIMIT_GUARD: dict[str, Any] = {
    "role": Role.DOMAIN_ADMIN,
    "admin_permission": AdminPermission.RATE_LIMITS,
}


@strawberry.type(
    description="Number of messages that a user, or all users of a domain together, can "
    "send in a time window. The window begins with the first message. A message "
    "counts once for any number of recipients."
)
class RateLimit(NodeView):
    messages: int | None = attribute_field(
        "Messages that can be sent in the time window, 1 to 1,000,000,000. Null: this user or "
        "domain is unlimited, and the default of the settings does not apply. The limit of the "
        "platform still applies, and for a user also the limit of the domain."
    )
    per: RatePeriod = attribute_field("Length of the time window in which messages are counted.")
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
    used: int = attribute_field(
        "Messages sent in the current time window. 0 if no window is running, or if the "
        "limit is unlimited: then messages are not counted."
    )
    exhausted: bool = attribute_field(
        "True if no more messages can be sent until `resetsAt`. False if the limit is unlimited."
    )
    resets_at: datetime | None = attribute_field(
        "Time when the current time window ends. Null: no window is running."
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
    description="User who can't send at present, because a message exceeded a rate limit."
)
class RateLimitHold(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "id",
        users.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who can't send until `resetsAt`. Null only if the user was just deleted.",
    )
    source: LimitSource = attribute_field(
        "Owner of the exceeded limit: the user, the domain, or the platform."
    )
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        lazy_view_factory("graph.domains.types", "Domain"),
        description="Domain whose users have together exceeded the limit. Null: the limit is not "
        "that of a domain, or the caller can't see the domain.",
    )
    messages: int = attribute_field(
        "Exceeded limit: the number of messages that can be sent in the time window."
    )
    per: RatePeriod = attribute_field("Length of the time window in which messages are counted.")
    held_at: datetime = attribute_field(
        "Time when the first message of the current time window was refused."
    )
    resets_at: datetime = attribute_field(
        "Time when the user can send again: the end of the time window of the exceeded limit."
    )

    load_batch = staticmethod(rate_limits.load_holds_by_user)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("RateLimitHold"),
        "held_at": DerivedField(("since",), lambda since: since),
        "resets_at": DerivedField(("until",), lambda until: until),
        "source": DerivedField(("source",), LimitSource),
        "per": DerivedField(("per",), RatePeriod),
    }


@strawberry.input(
    description="Number of messages in a time window. All recipients of a message "
    "together count as one message."
)
class RateLimitInput:
    messages: int | None = attribute_field(
        "Messages that can be sent in the time window, 1 to 1,000,000,000. Null or omitted: this "
        "user or domain is unlimited, and the default of the settings does not apply. The limit of "
        "the platform still applies, and for a user also the limit of the domain."
    )
    per: RatePeriod = attribute_field("Length of the time window in which messages are counted.")

    def to_new_limit(self) -> NewRateLimit:
        """Convert the input to a rate limit."""
        return NewRateLimit(self.messages, self.per)


def validated_rate_limit_or_none(input: Any, *error_path: str) -> NewRateLimit | None:
    """Return the rate limit that an input sets; None without one.

    Raises InvalidInput if the limit is inherited at the same time.
    """
    if input.rate_limit and is_true(input.inherit_rate_limit):
        message = "`inheritRateLimit` can't be combined with `rateLimit`."
        path = [*error_path, "inheritRateLimit"]
        raise InvalidInput(message, constraint=ValidationConstraint.EXCLUSIVE, path=path)
    return input.rate_limit.value.to_new_limit() if input.rate_limit else None


@strawberry.input(
    description="Conditions on rate limits. With both users and domains, limits of either match. "
    "`exhausted` must hold in addition."
)
class RateLimitFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Returns only limits of these users, at most 1,000 by default (else LIMIT_REACHED).",
        default=UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Returns only limits of these domains, 1 to 1,000 by default. An empty list is an error. "
        "A domain that the caller does not administer is NOT_FOUND.",
        default=UNSET,
    )
    exhausted: bool | None = attribute_field(
        "True returns only limits that are used up, false only the others.", default=UNSET
    )


@strawberry.input(description="Conditions on users who can't send at present.")
class RateLimitHoldFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Returns only holds of these users, at most 1,000 by default (else LIMIT_REACHED). "
        "Default: all that the caller can see.",
        default=UNSET,
    )


@strawberry.input(description="Input of rateLimitSet. Users or domains are required.")
class RateLimitSetInput(Options):
    users: UserSelection | None = attribute_field(
        "Users to set the limit on, at most 1,000 by default. Required without `domains`.",
        default=UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Domains to set the limit on, 1 to 1,000 by default. The limit applies to all users of a "
        "domain together.",
        default=UNSET,
    )
    rate_limit: strawberry.Maybe[RateLimitInput] = attribute_field(
        "New limit. Required unless `inheritRateLimit` is true. Null is refused."
    )
    inherit_rate_limit: bool = attribute_field(
        "True removes the limit of the users and domains, so that the limit of the settings "
        "applies. Not allowed with `rateLimit`. Default: false.",
        default=False,
    )


@strawberry.input(
    description="Input of rateLimitReset. At least one of `users`, `domains` and `includePlatform: "
    "true` is required."
)
class RateLimitResetInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose counters are reset, at most 1,000 by default. Required if neither `domains` "
        "nor `includePlatform: true` is given.",
        default=UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Domains whose counters are reset, 1 to 1,000 by default. Counters of their users stay.",
        default=UNSET,
    )
    include_platform: bool = attribute_field(
        "True also resets the counter of the platform. Requires role ADMIN. Default: false.",
        default=False,
    )


@strawberry.type(description="Payload of rateLimitSet and rateLimitReset.")
class RateLimitsPayload(MutationPayload):
    rate_limits: list[RateLimit] = attribute_field(
        "Limits that are set on the users and domains of the input: first users by creation, then "
        "domains in the order of the input. Users and domains without a limit of their own are "
        "missing.",
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
        for row in await require_selected_users(
            info.context, user_selector_from_selection(selection, path="filter"), only_managed=False
        )
    ]


async def _resolve_conditions_or_raise(
    info: Info, rate_limit_filter: RateLimitFilter | None
) -> RateLimitConditions:
    """Convert the filter to conditions of the resolvers. Unknown domains raise NotFound."""
    if not rate_limit_filter:
        return RateLimitConditions()
    domain_ids = None
    if isinstance(rate_limit_filter.domains, list):
        domain_ids = await require_administered_domain_ids(info, rate_limit_filter.domains)
    return RateLimitConditions(
        await _load_selected_user_ids(info, value_or_none(rate_limit_filter.users)),
        domain_ids,
        value_or_none(rate_limit_filter.exhausted),
    )


def _rate_limit_owners(
    user_selection: UserSelection | None, domain_refs: list[DomainRef] | None
) -> RateLimitOwners:
    """Return the users and domains that an input names.

    Raises InvalidInput if an ID is not valid.
    """
    user_selector = user_selector_from_selection(user_selection) if user_selection else None
    domains = domain_selectors_from_refs(domain_refs)
    return RateLimitOwners(user_selector, domains or None)


async def _load_payload(info: Info, limit_ids: list[int]) -> RateLimitsPayload:
    """Load rate limits and return the payload with them."""
    rows = await info.context.load_many(rate_limits.load_limits_by_owner, limit_ids)
    return RateLimitsPayload(rate_limits=[RateLimit.from_row(row) for row in rows if row])


@strawberry.type
class RateLimitQuery:
    @query(
        "Returns the rate limits that are set on domains and users which the caller can see, also "
        "limits that are unlimited. Users and domains without one have the limits of the "
        "settings, which are not returned. A DOMAIN_ADMIN sees the limits of all accounts in the "
        "administered domains.",
        scope=Scope.READ,
        **RATE_LIMIT_GUARD,
        access=DOMAINS,
    )
    async def rate_limits(
        self,
        info: Info,
        filter: RateLimitFilter | None = UNSET,
        order_by: RateLimitOrder = RateLimitOrder.CREATED_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RateLimit]:
        conditions = await _resolve_conditions_or_raise(info, value_or_none(filter))
        list_order = rate_limits.LIMIT_ORDERS[order_by]
        list_ordering = ordering_name(f"rate-limits-{order_by}", conditions)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            RateLimit,
            await rate_limits.read_limit_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, RateLimit),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: rate_limits.count_visible_limits(info.context, conditions),
        )

    @query(
        "Returns users whose message was refused because it exceeded the rate limit of the user, "
        "the domain or the platform. A user is in the list until the user can send again. If the "
        "limit of a domain or of the platform is reached, users who have not tried to send since "
        "then are not returned. A DOMAIN_ADMIN sees all accounts in the administered domains.",
        scope=Scope.READ,
        **RATE_LIMIT_GUARD,
        access=DOMAINS,
    )
    async def rate_limit_holds(
        self,
        info: Info,
        filter: RateLimitHoldFilter | None = UNSET,
        order_by: RateLimitHoldOrder = RateLimitHoldOrder.HELD_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RateLimitHold]:
        users = value_or_none(filter.users) if filter else None
        keys = await _load_selected_user_ids(info, users)
        list_order = rate_limits.HOLD_ORDERS[order_by]
        list_ordering = ordering_name(f"rate-limit-holds-{order_by}", keys)
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            RateLimitHold,
            await rate_limits.read_rate_limit_hold_page(
                info.context, keys, requested_page, selected_columns(info, RateLimitHold), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: rate_limits.count_rate_limited_users(info.context, keys),
        )


@strawberry.type
class RateLimitMutation:
    @mutation(
        "Sets or removes the rate limits for sending of users and domains: for all of them or for "
        "none. A user or domain without an own limit has the limit of the settings. An own limit "
        "can be higher than that of the settings. The limit of the platform applies in any case. "
        "If `per` is unchanged, messages that were already counted still count. If `per` changes, "
        "the count begins again. LIMIT_REACHED for more than 1,000 users or 1,000 domains (by "
        "default). CONFLICT if another request moves a user to another domain at the same time: "
        "retry.",
        scope=Scope.FULL,
        **RATE_LIMIT_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def rate_limit_set(self, info: Info, input: RateLimitSetInput) -> RateLimitsPayload:
        new_limit = validated_rate_limit_or_none(input)
        if new_limit is None and not input.inherit_rate_limit:
            raise InvalidInput(
                "`rateLimit` or `inheritRateLimit` is required.",
                constraint=ValidationConstraint.REQUIRED,
                path=["rateLimit"],
            )
        owners = _rate_limit_owners(value_or_none(input.users), value_or_none(input.domains))
        return await _load_payload(
            info,
            await rate_limit_mutations.set_or_remove_rate_limits(info.context, owners, new_limit),
        )

    @mutation(
        "Resets the counters of sent messages of users, domains and the platform to 0, all or "
        "none of those that are given. The limits stay. A user who exceeded a rate limit can send "
        "again if the counters of the domain and the platform also allow it. LIMIT_REACHED for "
        "more than 1,000 users or 1,000 domains (by default). CONFLICT if a user moves to another "
        "domain at the same time: retry.",
        scope=Scope.FULL,
        **RATE_LIMIT_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def rate_limit_reset(self, info: Info, input: RateLimitResetInput) -> RateLimitsPayload:
        owners = _rate_limit_owners(value_or_none(input.users), value_or_none(input.domains))
        keys = await rate_limit_mutations.reset_rate_limits(
            info.context, owners, includes_platform=input.include_platform
        )
        return await _load_payload(info, keys)
