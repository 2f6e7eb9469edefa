"""GraphQL types, queries and mutations of rate limits."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info, query
from graph.types.input_conditions import Conditions
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import DomainRef, UserSelection, domain_named, plain, users_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.users.limits import LimitSource
from models.queue.rate_values import Rate, RateFrame
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import AdminPermission, Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import Named
from resolvers.queue import rate_limit_mutations, rate_limits
from resolvers.queue.rate_limit_mutations import Whose
from resolvers.queue.rate_limits import RateWhere
from resolvers.users import loaders as users
from resolvers.users.selection import chosen

if TYPE_CHECKING:
    from graph.domains.types import Domain
    from graph.users.types import User


OURS: dict[str, Any] = {
    "role": Role.DOMAIN_ADMIN,
    "admin_permission": AdminPermission.RATELIMIT,
}
ANY = "Messages; 0 = any number, whatever the settings say."


@strawberry.type(
    description="How many messages an account, or all accounts of a domain together, may send in a "
    "time. It begins with the first message; each counts once, however many it goes to."
)
class RateLimit(Shape):
    value: int = leaf(ANY)
    frame: RateFrame = leaf("In what time.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id", users.by_ids, shaped("graph.users.types", "User"), description="Whose."
    )
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.by_ids,
        shaped("graph.domains.types", "Domain"),
        description="Whose.",
    )
    used: int = leaf("Sent in the time that is running.")
    exhausted: bool = leaf("No more can be sent until resetsAt.")
    resets_at: datetime | None = leaf("When that time ends; null = none is running.")

    batch = staticmethod(rate_limits.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("RateLimit"),
        "frame": Made(("frame",), RateFrame),
        "used": Made(("used",), lambda used: used or 0),
        "exhausted": Made(("used", "value"), lambda used, value: 0 < value <= (used or 0)),
        "resets_at": Made(("until",), lambda until: until),
    }


@strawberry.type(description="An account that was turned away, and cannot send for now.")
class RateHold(Shape):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "id", users.by_ids, shaped("graph.users.types", "User"), description="Who is held up."
    )
    source: LimitSource = leaf("Whose messages have been too many.")
    domain: Annotated["Domain", strawberry.lazy("graph.domains.types")] | None = link(
        "domain_id",
        domain_loaders.by_ids,
        shaped("graph.domains.types", "Domain"),
        description="Whose accounts have sent too many together, where it is a domain.",
    )
    value: int = leaf("Messages that may be sent in a time.")
    frame: RateFrame = leaf("In what time.")
    held_since: datetime = leaf("When it was turned away first.")
    resets_at: datetime = leaf("When it can send again.")

    batch = staticmethod(rate_limits.holds_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("RateHold"),
        "held_since": Made(("since",), lambda since: since),
        "resets_at": Made(("until",), lambda until: until),
        "source": Made(("source",), LimitSource),
        "frame": Made(("frame",), RateFrame),
    }


@strawberry.input(description="So many messages in a time.")
class RateLimitInput:
    value: int = leaf(ANY)
    frame: RateFrame = leaf("In what time.")

    def rate(self) -> Rate:
        """Convert the input to a rate limit."""
        return Rate(self.value, self.frame)


@strawberry.input(description="Which limits: of these users or domains, or of all.")
class RateLimitFilter(Conditions):
    users: UserSelection | None = leaf("Of these.", default=UNSET)
    domains: list[str] | None = leaf("Of these, by name.", default=UNSET)
    exhausted: bool | None = leaf("No more can be sent for now, or some can.", default=UNSET)


@strawberry.input(description="Input of rateLimitSet.")
class RateLimitSetInput(Options):
    users: UserSelection | None = leaf("Of these.", default=UNSET)
    domains: list[DomainRef] | None = leaf("Of these.", default=UNSET)
    value: int | None = leaf(
        "Messages; 0 = any number, whatever the settings say; null = what the settings say.",
        default=UNSET,
    )
    frame: RateFrame = leaf("In what time.", default=RateFrame.HOUR)


@strawberry.input(description="Input of rateLimitReset.")
class RateLimitResetInput(Options):
    users: UserSelection | None = leaf("Of these.", default=UNSET)
    domains: list[DomainRef] | None = leaf("Of these.", default=UNSET)
    include_platform: bool = leaf("Of the platform too; needs ADMIN.", default=False)


@strawberry.type(description="Answer of rateLimitSet and rateLimitReset.")
class RateLimitsPayload(MutationPayload):
    rate_limits: list[RateLimit] = leaf(
        "Those that are set, of users, then of domains.", default_factory=list
    )


async def _users(info: Info, selection: UserSelection | None) -> Collection[int] | None:
    """Load the ids of the selected accounts; None without a selection."""
    if not selection:
        return None
    return [row.id for row in await chosen(info.context, users_named(selection), managed=False)]


async def _where(info: Info, filter: RateLimitFilter | None) -> RateWhere:
    """Convert the filter to conditions of the resolvers. Unknown domains raise NotFound."""
    if not filter:
        return RateWhere()
    domain_refs = [Named(name=name) for name in filter.domains or ()]
    domain_ids = None
    if isinstance(filter.domains, list):
        domain_ids = (
            [row.id for row in await domain_loaders.chosen(info.context, domain_refs)]
            if domain_refs
            else []
        )
    return RateWhere(await _users(info, plain(filter.users)), domain_ids, plain(filter.exhausted))


def _whose(selection: UserSelection | None, refs: list[DomainRef] | None) -> Whose:
    """Return the users and domains that an input names. Raises Invalid if an ID is not valid."""
    user_selector = users_named(selection) if selection else None
    domains = [
        domain_named(ref, path="domains", index=index) for index, ref in enumerate(refs or ())
    ]
    return Whose(user_selector, domains or None)


async def _now(info: Info, keys: list[int]) -> RateLimitsPayload:
    """Load rate limits and return the payload with them."""
    rows = await info.context.load_all(rate_limits.by_ids, keys)
    return RateLimitsPayload(rate_limits=[RateLimit.of(row) for row in rows if row])


@strawberry.type
class RateLimitQuery:
    @query(
        "Rates that are set, in the order they were; of others settings say it.",
        scope=Scope.READ,
        **OURS,
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
        where = await _where(info, plain(filter))
        requested_page = page_asked(ordering(rate_limits.LIMITS, where), first, after, last, before)
        return await connected(
            info,
            RateLimit,
            await rate_limits.page(info.context, where, requested_page, columns(info, RateLimit)),
            lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
            lambda: rate_limits.how_many(info.context, where),
        )

    @query(
        "Accounts that were turned away and cannot send for now, the last one first: by a rate "
        "of their own, of their domain, or of the platform.",
        scope=Scope.READ,
        **OURS,
    )
    async def rate_holds(
        self,
        info: Info,
        users: UserSelection | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RateHold]:
        keys = await _users(info, plain(users))
        requested_page = page_asked(ordering(rate_limits.HOLDS, keys), first, after, last, before)
        return await connected(
            info,
            RateHold,
            await rate_limits.holds(info.context, keys, requested_page, columns(info, RateHold)),
            lambda row: Cursor(requested_page.ordering, row.since, row.id),
            lambda: rate_limits.how_many_holds(info.context, keys),
        )


@strawberry.type
class RateLimitMutation:
    @mutation(
        "How many messages users, and domains, may send in a time: all or none. What is counted "
        "counts on.",
        scope=Scope.MASTER,
        **OURS,
    )
    async def rate_limit_set(self, info: Info, input: RateLimitSetInput) -> RateLimitsPayload:
        value = plain(input.value)
        rate = None if value is None else Rate(value, input.frame)
        owners = _whose(plain(input.users), plain(input.domains))
        return await _now(info, await rate_limit_mutations.change(info.context, owners, rate))

    @mutation(
        "Lets messages that were sent be counted anew: who is held up may send again.",
        scope=Scope.MASTER,
        **OURS,
    )
    async def rate_limit_reset(self, info: Info, input: RateLimitResetInput) -> RateLimitsPayload:
        owners = _whose(plain(input.users), plain(input.domains))
        keys = await rate_limit_mutations.reset(
            info.context, owners, platform=input.include_platform
        )
        return await _now(info, keys)
