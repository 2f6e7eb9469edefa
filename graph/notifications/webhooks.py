"""GraphQL types, queries and mutations of webhooks, and the request bodies of deliveries."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.auth.types import SECRET_METADATA
from graph.domains.types import Domain
from graph.messages.deleted_messages import TaskPayload
from graph.notifications.references import WebhookDeleteInput, WebhookRef, WebhookTestInput
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserRef,
    load_domain_ids,
    load_named_user_id,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import URL, Cursor, Duration, encode_cursor
from models.errors import require_found
from models.notifications.webhooks import WebhookDeliveryState
from models.store.keyset_pages import Cursor as Place
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.notifications import webhooks
from resolvers.notifications.webhook_event_types import ALL_TYPES, TYPES
from resolvers.notifications.webhooks import (
    DELIVERY_ORDERING,
    LIST_ORDERING,
    DeliveryPageKey,
    NewWebhook,
    WebhookWhere,
)
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

DOMAIN_ADMIN_GUARD = Auth(role=Role.DOMAIN_ADMIN)
DEFAULT_SECRET_OVERLAP = timedelta(days=1)
TYPE_NAME_BY_OBJECT = {"Security": "AuthEvent", "Setting": "SettingChange", "Limit": "User"}
BODY_COLUMNS = ("event", "type", "at", "stream_id", "number", "body")


def delivery_body(delivery: Any) -> dict[str, Any]:
    """Return the JSON body of the request for a webhook delivery."""
    return _delivery_body_from_columns(*(getattr(delivery, name) for name in BODY_COLUMNS))


def _delivery_body_from_columns(
    event_id: str,
    event_type: str,
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
        "type": event_type,
        "at": occurred_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "cursor": encode_cursor({stream_id: position}) if position else None,
        "user": user and {**user, "id": global_ids.encode("User", user["id"])},
        "domain": domain and global_ids.encode("Domain", domain),
        "objects": [
            _object_with_global_ids(body["kind"], changed_object)
            for changed_object in body["objects"]
        ],
        "origin": body["origin"],
        **gap,
    }


def _object_with_global_ids(event_kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a changed object with global IDs in place of row ids."""
    object_name = "".join(part.capitalize() for part in event_kind.split("_")[:-1])
    global_id_by_field = {
        name: global_ids.encode("Mailbox", facts[name])
        for name in ("mailbox", "fromMailbox")
        if facts.get(name)
    }
    if facts.get("message"):
        global_id_by_field["message"] = global_ids.encode("Message", facts["message"])
    return {
        **facts,
        "id": global_ids.encode(TYPE_NAME_BY_OBJECT.get(object_name, object_name), facts["id"]),
        **global_id_by_field,
    }


@strawberry.type(
    description="An event, and what came of posting it.", directives=[DOMAIN_ADMIN_GUARD]
)
class WebhookDelivery(NodeView):
    type: str = attribute_field("Type of the event.")
    at: datetime = attribute_field("When it happened.")
    attempt: int = attribute_field("Number of the last try, from 1; 0 = it waits for its first.")
    status: int | None = attribute_field("HTTP status of the last answer.")
    error: str | None = attribute_field("What went wrong; null when it was taken.")
    duration: Duration | None = attribute_field("How long the last try took.")
    next_attempt_at: datetime | None = attribute_field("Next try; null = at once, or never again.")
    state: WebhookDeliveryState = attribute_field("How far it has come.")
    body: JSON = attribute_field("What is posted.")

    load_batch = staticmethod(webhooks.load_visible_deliveries_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("WebhookDelivery"),
        "duration": DerivedField(
            ("duration",), lambda ms: None if ms is None else timedelta(milliseconds=ms)
        ),
        "body": DerivedField(BODY_COLUMNS, _delivery_body_from_columns),
    }


@strawberry.type(description="Where events are posted.", directives=[DOMAIN_ADMIN_GUARD])
class Webhook(NodeView):
    types: list[str] = attribute_field('Event types; "user.*" prefix, "*" all.')
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="Only events of this user.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Only events of this domain and its users; with user, of that one while it is "
        "of this domain.",
    )
    url: URL = attribute_field("Where to.")
    active: bool = attribute_field("In force. An answer of 410 switches it off.")
    created_at: datetime = attribute_field("Creation.")
    failures: int = attribute_field("In a row.")
    last_delivery_at: datetime | None = attribute_field("Last post that was taken, to ten seconds.")

    load_batch = staticmethod(webhooks.load_visible_webhooks_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Webhook")}

    @field(
        "Deliveries of this webhook, the newest first: all pending ones, and the last 1,000 that "
        "were delivered or failed."
    )
    async def deliveries(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[WebhookDelivery]:
        requested_page = page_request(DELIVERY_ORDERING, first, after, last, before)
        page_key = DeliveryPageKey(
            self.row.id, requested_page, selected_columns(info, WebhookDelivery)
        )
        return await connection_of_page(
            info,
            WebhookDelivery,
            await info.context.load(webhooks.load_delivery_pages_by_webhook, page_key),
            lambda row: Place(DELIVERY_ORDERING, row.webhook_id, row.id),
            lambda: info.context.load(webhooks.count_deliveries_by_webhook, page_key),
        )


@strawberry.input(description="Input of webhookCreate.")
class WebhookCreateInput(Options):
    types: list[str] = attribute_field('Event types; "user.*" prefix, "*" all.')
    user: UserRef | None = attribute_field("Only events of this user.", default=UNSET)
    domain: DomainRef | None = attribute_field(
        "Only events of this domain and its users. Default: all events; of a DOMAIN_ADMIN those "
        "of the only domain.",
        default=UNSET,
    )
    url: URL = attribute_field(
        "http or https, and public, unless webhooks.allowPrivateNetworks is set."
    )
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(description="Changes of webhooks. An absent field leaves the value unchanged.")
class WebhookPatch:
    types: strawberry.Maybe[list[str]] = attribute_field('Event types; "user.*" prefix, "*" all.')
    url: strawberry.Maybe[URL] = attribute_field("URL that receives the events by POST.")
    active: strawberry.Maybe[bool] = attribute_field(
        "Whether events are delivered. Events of an inactive time are never delivered."
    )


@strawberry.input(description="Input of webhookUpdate.")
class WebhookUpdateInput(Options):
    webhooks: list[WebhookRef] = attribute_field("The webhooks to change.")
    set: WebhookPatch = attribute_field("The new values.")


@strawberry.input(description="Input of webhookSecretRotate.")
class WebhookSecretRotateInput(Options):
    webhook: WebhookRef = attribute_field("The webhook.")
    overlap: Duration = attribute_field(
        "The secret before signs along for so long, at most P7D.", default=DEFAULT_SECRET_OVERLAP
    )


@strawberry.input(description="Input of webhookReplay.")
class WebhookReplayInput(Options):
    webhook: WebhookRef = attribute_field("The webhook.")
    after: Cursor = attribute_field(
        "What came behind this position, of the accounts and domains it tells of."
    )


@strawberry.type(description="A webhook, and a secret that was made for it.")
class WebhookSecretPayload(MutationPayload):
    webhook: Webhook | None = attribute_field("The webhook.", default=None)
    secret: str | None = attribute_field(
        "For checking signatures, shown once.", default=None, metadata=SECRET_METADATA
    )


@strawberry.type(description="Webhooks after the mutation.")
class WebhooksPayload(MutationPayload):
    webhooks: list[Webhook] = attribute_field(
        "The webhooks, in the order of the references.", default_factory=list
    )


@strawberry.type
class WebhookQuery:
    @query(
        "Webhooks the viewer administers, in the order they were made.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def webhooks(
        self,
        info: Info,
        type: str = ALL_TYPES,
        user: Annotated[
            UserRef | None,
            strawberry.argument(
                description="Returns only webhooks for events of this user. Default: all webhooks."
            ),
        ] = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Webhook]:
        user_id = (
            require_found(await load_named_user_id(info, user), path=["user"]) if user else None
        )
        conditions = WebhookWhere(type, user_id)
        list_ordering = ordering_name(
            LIST_ORDERING, None if conditions == WebhookWhere() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Webhook,
            await webhooks.read_webhook_page(
                info.context, conditions, requested_page, selected_columns(info, Webhook)
            ),
            lambda row: Place(requested_page.ordering, row.created_at, row.id),
            lambda: webhooks.count_webhooks(info.context, conditions),
        )

    @query("Every event type there is.", scope=Scope.READ)
    async def webhook_types(self) -> list[str]:
        return TYPES


WRITE_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}


@strawberry.type
class WebhookMutation:
    @mutation("Makes a webhook. Its url must not point inward.", **WRITE_GUARD)
    async def webhook_create(self, info: Info, input: WebhookCreateInput) -> WebhookSecretPayload:
        domain_ids = (
            await load_domain_ids(info, [input.domain], path="domain") if input.domain else [None]
        )
        new = NewWebhook(
            input.types,
            input.url,
            require_found(await load_named_user_id(info, input.user), path=["user"])
            if input.user
            else None,
            domain_ids[0],
            input.active,
        )
        key, secret = await webhooks.create_webhook(info.context, new)
        (row,) = await info.context.load_many(webhooks.load_visible_webhooks_by_id, [key])
        return WebhookSecretPayload(webhook=Webhook.from_row_or_none(row), secret=secret)

    @mutation("Changes webhooks, all or none, and forgets their failures.", **WRITE_GUARD)
    async def webhook_update(self, info: Info, input: WebhookUpdateInput) -> WebhooksPayload:
        keys, patch = ids_from_refs(info, input.webhooks, "webhooks"), input.set
        fields = {"types": patch.types, "url": patch.url, "active": patch.active}
        values = {name: change.value for name, change in fields.items() if change is not None}
        await webhooks.update_webhooks(info.context, keys, values)
        return await _load_payload(info, keys)

    @mutation("Gives a webhook another secret; the one before is good for a while.", **WRITE_GUARD)
    async def webhook_secret_rotate(
        self, info: Info, input: WebhookSecretRotateInput
    ) -> WebhookSecretPayload:
        key = id_from_ref(input.webhook, "webhook")
        secret = await webhooks.rotate_secret(info.context, key, input.overlap)
        (row,) = await info.context.load_many(webhooks.load_visible_webhooks_by_id, [key])
        return WebhookSecretPayload(webhook=Webhook.from_row_or_none(row), secret=secret)

    @mutation("Deletes webhooks with their deliveries: all of them or none.", **WRITE_GUARD)
    async def webhook_delete(self, info: Info, input: WebhookDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.webhooks, "webhooks")
        await webhooks.delete_webhooks(info.context, keys)
        return DeletePayload(deleted_ids=[global_ids.encode("Webhook", key) for key in keys])

    @mutation(
        "Delivers a test event to webhooks, once and without retries. `Webhook.deliveries` shows "
        "the result.",
        **WRITE_GUARD,
    )
    async def webhook_test(self, info: Info, input: WebhookTestInput) -> WebhooksPayload:
        keys = ids_from_refs(info, input.webhooks, "webhooks")
        await webhooks.queue_test_events(info.context, keys)
        return await _load_payload(info, keys)

    @mutation("Posts once more what came after a journal position.", **WRITE_GUARD)
    async def webhook_replay(self, info: Info, input: WebhookReplayInput) -> TaskPayload:
        key = id_from_ref(input.webhook, "webhook")
        task = await webhooks.start_replay(info.context, key, input.after)
        return TaskPayload(task=Task.from_row(task))


async def _load_payload(info: Info, webhook_ids: list[int]) -> WebhooksPayload:
    """Load webhooks and return the payload with them."""
    rows = await info.context.load_many(webhooks.load_visible_webhooks_by_id, webhook_ids)
    return WebhooksPayload(webhooks=[Webhook.from_row(row) for row in rows if row])
