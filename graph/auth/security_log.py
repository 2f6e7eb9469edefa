"""GraphQL types and query of the security log."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import Conditions
from graph.types.object_views import Made
from graph.types.references import UserRef, owner_of, plain
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import CIDR, IPAddress
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.auth import security_log
from resolvers.auth.security_log import Events, EventWhere
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

NOBODY = 0  # no account has this id


@strawberry.type(
    description="Security event: a sign-in, an attempt, or what was done to a credential.",
    directives=[Auth(scope=Scope.READ)],
)
class AuthEvent(Shape):
    action: str = leaf("Such as authenticate, totp enable, password change, act as.")
    result: str = leaf("success, fail, or what stood against it, such as suspended.")
    session_id: str | None = leaf("Session, as a trusted front end calls it; of the last one.")
    ip: IPAddress | None = leaf("From; of the last one.")
    protocol: str | None = leaf("Through.")
    by: str | None = leaf("Administrator or key, where it was not the user.")
    detail: JSON | None = leaf("More; of the last one.")
    count: int = leaf("Equal events folded: those of six hours from the first.")
    created_at: datetime = leaf("The first of them.")
    last_at: datetime = leaf("The last of them.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Whose account; null where a name led to none.",
    )

    batch = staticmethod(security_log.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("AuthEvent")}


@strawberry.input(description="Which security events; all conditions hold.")
class AuthLogFilter(Conditions):
    action: str | None = leaf("Exactly this.", default=UNSET)
    ip: IPAddress | None = leaf("From this address.", default=UNSET)
    network: CIDR | None = leaf("From an address of this network.", default=UNSET)
    result: str | None = leaf("Exactly this.", default=UNSET)
    protocol: str | None = leaf("Exactly this.", default=UNSET)
    since: datetime | None = leaf("First seen then or later.", default=UNSET)
    before: datetime | None = leaf("First seen earlier.", default=UNSET)

    def where(self) -> EventWhere:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {name: value for name, value in vars(self).items() if plain(value) is not None}
        return EventWhere(**values)


async def event_page(
    info: Info, user_id: int | None, filter: AuthLogFilter | None, *page: object
) -> Connection[AuthEvent]:
    """Load a page of the events of one account, or of all accounts if `user_id` is None.

    `page_arguments` are: first, after, last, before.
    """
    ctx, where = info.context, filter.where() if filter else EventWhere()
    requested_page = page_asked(ordering(security_log.NEWEST, where), *page)
    page_key = Events(requested_page, columns(info, AuthEvent), where, user_id)
    return await connected(
        info,
        AuthEvent,
        await ctx.load(security_log.pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: ctx.load(security_log.counts, page_key),
    )


@strawberry.type
class AuthLogQuery:
    @query(
        "Security events across users, newest first: those of the domains' users, or all for "
        "ADMIN, also events of no account.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def auth_log(
        self,
        info: Info,
        user: Annotated[
            UserRef | None, strawberry.argument(description="Only of this user.")
        ] = UNSET,
        filter: AuthLogFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuthEvent]:
        owner = (await owner_of(info, user) or NOBODY) if user else None
        return await event_page(info, owner, filter, first, after, last, before)
