"""GraphQL types and query of the security log."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.references import UserRef, load_user_or_viewer_id, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import CIDR, IPAddress
from models.auth.security_log import AuthEventAction, AuthEventResult, AuthProtocol
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.auth import security_log
from resolvers.auth.security_log import SecurityEventFilter, SecurityEventPageKey
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

UNKNOWN_USER_ID = 0  # no account has this id


@strawberry.type(
    description="Security event: a sign-in, an attempt, or what was done to a credential.",
    directives=[Auth(scope=Scope.READ)],
)
class AuthEvent(NodeView):
    action: AuthEventAction = attribute_field("What was done.")
    result: AuthEventResult = attribute_field("The result, or the reason for a refusal.")
    session_id: str | None = attribute_field(
        "Session, as a trusted front end calls it; of the last one."
    )
    ip: IPAddress | None = attribute_field("From; of the last one.")
    protocol: AuthProtocol | None = attribute_field("Protocol of the client.")
    by: str | None = attribute_field("Administrator or key, where it was not the user.")
    detail: JSON | None = attribute_field("More; of the last one.")
    count: int = attribute_field("Equal events folded: those of six hours from the first.")
    created_at: datetime = attribute_field("The first of them.")
    last_at: datetime = attribute_field("The last of them.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Whose account; null where a name led to none.",
    )

    load_batch = staticmethod(security_log.load_visible_events_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("AuthEvent")}


@strawberry.input(description="Which security events; all conditions hold.")
class AuthLogFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "Events of this account. `User.authLog` refuses it.", default=UNSET
    )
    action: AuthEventAction | None = attribute_field("Events of this action.", default=UNSET)
    ip: IPAddress | None = attribute_field("From this address.", default=UNSET)
    network: CIDR | None = attribute_field("From an address of this network.", default=UNSET)
    result: AuthEventResult | None = attribute_field("Events of this result.", default=UNSET)
    protocol: AuthProtocol | None = attribute_field("Events of this protocol.", default=UNSET)
    since: datetime | None = attribute_field("First seen then or later.", default=UNSET)
    before: datetime | None = attribute_field("First seen earlier.", default=UNSET)

    def to_conditions(self) -> SecurityEventFilter:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {
            name: value
            for name, value in vars(self).items()
            if name != "user" and value_or_none(value) is not None
        }
        return SecurityEventFilter(**values)


async def load_event_page(
    info: Info, user_id: int | None, filter: AuthLogFilter | None, *page_arguments: object
) -> Connection[AuthEvent]:
    """Load a page of the events of one account, or of all accounts if `user_id` is None.

    `page_arguments` are: first, after, last, before.
    """
    ctx, conditions = info.context, filter.to_conditions() if filter else SecurityEventFilter()
    requested_page = page_request(
        ordering_name(security_log.CURSOR_KIND, conditions), *page_arguments
    )
    page_key = SecurityEventPageKey(
        requested_page, selected_columns(info, AuthEvent), conditions, user_id
    )
    return await connection_of_page(
        info,
        AuthEvent,
        await ctx.load(security_log.load_event_pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: ctx.load(security_log.count_events, page_key),
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
        filter: AuthLogFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuthEvent]:
        user = filter.user if filter else None
        owner = (await load_user_or_viewer_id(info, user) or UNKNOWN_USER_ID) if user else None
        return await load_event_page(info, owner, filter, first, after, last, before)
