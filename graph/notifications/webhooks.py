"""GraphQL types and queries of webhooks, and the request bodies of deliveries."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.changes.changed_types import TYPE_NAME_BY_EVENT_TYPE
from graph.domains.types import Domain
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import OVERSEEN_OR_DOMAINS
from graph.types.object_views import DerivedField
from graph.types.references import (
    UserRef,
    require_visible_user_id_if_named,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, Duration, encode_cursor
from models.errors import require_found
from models.events.event_types import JOURNAL_EVENT_TYPES, EventType, WebhookEventType
from models.notifications.webhooks import WebhookDeliveryState
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.notifications import webhook_lists
from resolvers.notifications.webhook_lists import (
    WebhookDeliveryOrder,
    WebhookDeliveryPageKey,
    WebhookOrder,
    WebhookWhere,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

DOMAIN_ADMIN_GUARD = Auth(role=Role.DOMAIN_ADMIN)
BODY_COLUMNS = ("event", "type", "at", "stream_id", "number", "body")


def delivery_body(delivery: Any) -> dict[str, Any]:
    """Return the JSON body of the request for a webhook delivery."""
    return _delivery_body_from_columns(*(getattr(delivery, name) for name in BODY_COLUMNS))


def _delivery_body_from_columns(
    event_id: str,
    event_type: EventType,
    occurred_at: datetime,
    stream_id: int,
    position: int,
    body: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON body of a request. Row ids become global IDs."""
    user, domain = body["user"], body["domain"]
    gap = {name: body[name] for name in ("missed", "reason") if name in body}
    return {
        "id": event_id,
        "type": event_type.value,
        "at": occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "cursor": encode_cursor({stream_id: position}) if position else None,
        "user": user and {**user, "id": global_ids.encode("User", user["id"])},
        "domain": domain and global_ids.encode("Domain", domain),
        "objects": [
            _object_with_global_ids(event_type, changed_object)
            for changed_object in body["objects"]
        ],
        "origin": body["origin"],
        **gap,
    }


def _selectable_types(stored_types: Sequence[str]) -> list[WebhookEventType]:
    """Return the stored types by which webhooks select events. Others have no effect."""
    return [WebhookEventType(name) for name in stored_types if name in JOURNAL_EVENT_TYPES]


def _object_with_global_ids(event_type: EventType, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a changed object with global IDs in place of row ids."""
    global_id_by_field = {
        name: global_ids.encode("Mailbox", facts[name])
        for name in ("mailbox", "fromMailbox")
        if facts.get(name)
    }
    if facts.get("message"):
        global_id_by_field["message"] = global_ids.encode("Message", facts["message"])
    return {
        **facts,
        "id": global_ids.encode(TYPE_NAME_BY_EVENT_TYPE[event_type], facts["id"]),
        **global_id_by_field,
    }


@strawberry.type(
    description="Delivery of one event to a webhook, with its attempts.",
    directives=[DOMAIN_ADMIN_GUARD],
)
class WebhookDelivery(NodeView):
    type: EventType = attribute_field("Type of the delivered event.")
    at: datetime = attribute_field("Time when the delivered event occurred.")
    attempt: int = attribute_field(
        "Number of delivery attempts that were made. 0: the first one was not made yet."
    )
    status: int | None = attribute_field(
        "HTTP status of the response to the last attempt. Null: it got no response, or no attempt "
        "was made."
    )
    error: str | None = attribute_field(
        "Error of the last attempt. Null: the receiver accepted the event, or no attempt was "
        "made. A delivery that expired without an attempt also has an error."
    )
    duration: Duration | None = attribute_field(
        "Duration of the last attempt. Null: no attempt was made."
    )
    next_attempt_at: datetime | None = attribute_field(
        "Time of the next attempt. Null with `state` PENDING: after the earlier "
        "deliveries of the same user or domain, if the webhook is active. Null with "
        "another state: never."
    )
    state: WebhookDeliveryState = attribute_field(
        "State of the delivery: pending, accepted or failed."
    )
    body: JSON = attribute_field("JSON body of the HTTP request of the delivery.")

    load_batch = staticmethod(webhook_lists.load_visible_deliveries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("WebhookDelivery"),
        "duration": DerivedField(
            ("duration",), lambda ms: None if ms is None else timedelta(milliseconds=ms)
        ),
        "body": DerivedField(BODY_COLUMNS, _delivery_body_from_columns),
    }


@strawberry.input(description="Conditions on deliveries of a webhook.")
class WebhookDeliveryFilter(ConditionsInput):
    state: WebhookDeliveryState | None = attribute_field(
        "Returns only deliveries in this state.", default=UNSET
    )


@strawberry.type(
    description="Webhook: a URL that gets events by HTTP POST requests. It is deleted if the "
    "administrator who created or last changed it loses the right to it.",
    directives=[DOMAIN_ADMIN_GUARD],
)
class Webhook(NodeView):
    types: list[WebhookEventType] | None = attribute_field(
        "Types of the events that the webhook receives. Null: all types. Events of the types PING, "
        "CHANGES_MISSED and FILTER_MATCHED are delivered in any case."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User whose events are delivered. Null: events are not limited to one user, "
        "the user was deleted, or the caller can't see the user.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain whose events and whose users' events are delivered. With `user`: "
        "events of that user while the user is in the domain. Null: events are not limited to a "
        "domain.",
    )
    url: URL = attribute_field("URL that receives the events of the webhook.")
    active: bool = attribute_field(
        "True if events are delivered. A response with status 410 deactivates the webhook."
    )
    created_at: datetime = attribute_field("Time when the webhook was created.")
    failures: int = attribute_field(
        "Number of consecutive failed attempts since webhookUpdate, or since the receiver "
        "accepted an event by a status 2xx. Failed attempts of webhookTest don't count."
    )
    last_delivery_at: datetime | None = attribute_field(
        "Time when the receiver last accepted an event: its response had a status 2xx. Events of "
        "`webhookTest` count. The value can be up to 10 seconds too early. Null: it has accepted "
        "none."
    )

    load_batch = staticmethod(webhook_lists.load_visible_webhooks_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Webhook"),
        "types": DerivedField(
            ("types",), lambda types: None if types is None else _selectable_types(types)
        ),
    }

    @field(
        "Deliveries of this webhook: all pending ones, the last 1,000 that were delivered, and the "
        "last 1,000 that failed."
    )
    async def deliveries(
        self,
        info: Info,
        filter: WebhookDeliveryFilter | None = UNSET,
        order_by: WebhookDeliveryOrder = WebhookDeliveryOrder.CREATED_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[WebhookDelivery]:
        list_order = webhook_lists.DELIVERY_ORDERS[order_by]
        state = value_or_none(filter.state) if filter else None
        list_ordering = ordering_name(f"webhook-deliveries-{order_by}", state)
        requested_page = page_request(list_ordering, first, after, last, before)
        columns = selected_columns(info, WebhookDelivery)
        page_key = WebhookDeliveryPageKey(self.row.id, requested_page, list_order, columns, state)
        return await connection_of_page(
            info,
            WebhookDelivery,
            await info.context.load(webhook_lists.load_delivery_pages_by_webhook, page_key),
            lambda row: list_order.cursor_of_row(row, requested_page.ordering),
            lambda: info.context.load(webhook_lists.count_deliveries_by_webhook, page_key),
        )


@strawberry.input(description="Conditions on webhooks. All must hold.")
class WebhookFilter(ConditionsInput):
    type: WebhookEventType | None = attribute_field(
        "Returns only webhooks whose `types` contain this type or are null.", default=UNSET
    )
    user: UserRef | None = attribute_field(
        "Returns only webhooks whose `user` is this user, without webhooks of the domain or of "
        "all domains. NOT_FOUND if the caller can't see the user.",
        default=UNSET,
    )


@strawberry.type
class WebhookQuery:
    @query(
        "Returns the webhooks of the domains and users that the caller administers, also inactive "
        "ones. An ADMIN gets all webhooks, also those for all events of the platform.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=OVERSEEN_OR_DOMAINS,
    )
    async def webhooks(
        self,
        info: Info,
        filter: WebhookFilter | None = UNSET,
        order_by: WebhookOrder = WebhookOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Webhook]:
        where = filter or WebhookFilter()
        user_id = (
            require_found(
                await require_visible_user_id_if_named(info, where.user), path=["filter", "user"]
            )
            if where.user
            else None
        )
        conditions = WebhookWhere(where.type or None, user_id)
        list_ordering = ordering_name(
            f"webhooks-{order_by}", None if conditions == WebhookWhere() else conditions
        )
        list_order = webhook_lists.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Webhook,
            await webhook_lists.read_visible_webhook_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Webhook),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: webhook_lists.count_visible_webhooks(info.context, conditions),
        )
