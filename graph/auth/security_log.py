"""GraphQL types and query of the security log."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.logged_ids import security_event_detail_with_global_ids
from graph.types.object_access import OVERSEEN
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    load_visible_user_id,
    require_no_user_condition,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import CIDR, IPAddress
from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.auth import security_event_pages
from resolvers.auth.security_event_pages import (
    SecurityEventFilter,
    SecurityEventOrder,
    SecurityEventPageKey,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

UNKNOWN_USER_ID = 0  # no account has this id


@strawberry.type(
    description=(
        "Entry of the security log: a sign-in, a failed attempt, a change to credentials, "
        "forwarding or senders, or an access to mail by somebody else."
    ),
    directives=[Auth(scope=Scope.READ)],
)
class SecurityEvent(NodeView):
    action: SecurityEventAction = attribute_field("Action that the event records.")
    result: SecurityEventResult = attribute_field(
        "Result of the action, or the state of the user that prevented it."
    )
    session_id: str | None = attribute_field(
        "Session identifier that an API key of an ADMIN sent with the last of the equal events, by "
        "`options.sessionId` or the header field X-Client-Session. Null: none was sent."
    )
    ip: IPAddress | None = attribute_field(
        "IP address of the client at the last of the equal events. Null: unknown."
    )
    protocol: AuthProtocol | None = attribute_field(
        "Protocol of the sign-in. HTTP for OAUTH_GRANT_CREATED. Null for other actions."
    )
    by: str | None = attribute_field(
        "Username of the administrator who acted, or `key NAME` for an API key that acts for no "
        "user. `operator`: the bootstrap key or a command on the server. `identity provider of "
        "DOMAIN`: the provider. Null: the user acted, the client was not signed in, or the action "
        "is SIGN_IN_ATTEMPTED."
    )
    detail: JSON | None = attribute_field(
        "Details of the last of the equal events. They contain no secrets; objects are given by "
        "global ID."
    )
    count: int = attribute_field(
        "Number of equal events that this entry counts: events with the same user, action, "
        "result, protocol, client, object and actor. Events within 6 hours of "
        "the first one are counted together."
    )
    created_at: datetime = attribute_field("Time of the first of the equal events.")
    last_at: datetime = attribute_field("Time of the last of the equal events.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User that the event is about. Null: the name of the sign-in belongs to no user, "
            "the user is deleted, or the event is about an API key without a user."
        ),
    )

    load_batch = staticmethod(security_event_pages.load_visible_events_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("SecurityEvent"),
        "detail": DerivedField(("action", "detail"), security_event_detail_with_global_ids),
    }


@strawberry.input(description="Conditions on security events. All must hold.")
class SecurityLogFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "Returns only events about this user. The list is empty if the caller can't see such a "
        "user. `User.securityLog` refuses this condition.",
        default=UNSET,
    )
    action: SecurityEventAction | None = attribute_field(
        "Returns only events of this action.", default=UNSET
    )
    ip: IPAddress | None = attribute_field(
        "Returns only events of a client with this IP address.", default=UNSET
    )
    network: CIDR | None = attribute_field(
        "Returns only events of clients with an IP address in this network.", default=UNSET
    )
    result: SecurityEventResult | None = attribute_field(
        "Returns only events with this result.", default=UNSET
    )
    protocol: AuthProtocol | None = attribute_field(
        "Returns only events with this protocol: sign-ins, also failed ones, and with HTTP also "
        "OAUTH_GRANT_CREATED. Other events have no protocol.",
        default=UNSET,
    )
    since: datetime | None = attribute_field(
        "Returns only entries of the security log whose `createdAt`, the time of the first of "
        "the equal events, is this time or later. Default: no such condition.",
        default=UNSET,
    )
    before: datetime | None = attribute_field(
        "Returns only entries of the security log whose `createdAt`, the time of the first of "
        "the equal events, is before this time. Default: no such condition.",
        default=UNSET,
    )

    def to_conditions(self) -> SecurityEventFilter:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {
            name: value
            for name, value in vars(self).items()
            if name != "user" and value_or_none(value) is not None
        }
        return SecurityEventFilter(**values)


async def load_event_page_of_user(
    info: Info,
    user_id: int,
    filter: SecurityLogFilter | None,
    order_by: SecurityEventOrder,
    page_arguments: PageArguments,
) -> Connection[SecurityEvent]:
    """Load a page of the events of one account. Raises InvalidInput if the filter names a user."""
    if filter:
        require_no_user_condition(filter.user, "events")
    return await _load_event_page(info, user_id, filter, order_by, page_arguments)


async def _load_event_page(
    info: Info,
    user_id: int | None,
    filter: SecurityLogFilter | None,
    order_by: SecurityEventOrder,
    page_arguments: PageArguments,
) -> Connection[SecurityEvent]:
    """Load a page of the events of one account, or of all accounts if `user_id` is None."""
    ctx, conditions = info.context, filter.to_conditions() if filter else SecurityEventFilter()
    list_order = security_event_pages.LIST_ORDERS[order_by]
    requested_page = page_request(
        ordering_name(f"auth-log-{order_by}", conditions), *page_arguments
    )
    page_key = SecurityEventPageKey(
        requested_page, list_order, selected_columns(info, SecurityEvent), conditions, user_id
    )
    return await connection_of_page(
        info,
        SecurityEvent,
        await ctx.load(security_event_pages.load_visible_event_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: ctx.load(security_event_pages.count_visible_events_of_lists, page_key),
    )


@strawberry.type
class SecurityLogQuery:
    @query(
        "Returns security events of the signed-in user and of users with the role USER in the "
        "administered domains. An ADMIN sees the events of all users and those without a user. "
        "Events are kept for 30 days after the first of equal events, by default.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=OVERSEEN,
    )
    async def security_log(
        self,
        info: Info,
        filter: SecurityLogFilter | None = UNSET,
        order_by: SecurityEventOrder = SecurityEventOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SecurityEvent]:
        user = filter.user if filter else None
        owner = (await load_visible_user_id(info, user) or UNKNOWN_USER_ID) if user else None
        page_arguments = PageArguments(first, after, last, before)
        return await _load_event_page(info, owner, filter, order_by, page_arguments)
