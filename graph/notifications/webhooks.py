"""GraphQL types, queries and mutations of webhooks, and the request bodies of deliveries."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.admin.tasks import Task
from graph.auth.types import SECRET
from graph.domains.types import Domain
from graph.messages.deleted_messages import TaskPayload
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import DomainRef, UserRef, domains_of, keys_of, owner_named
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from graph.types.scalars import URL, Cursor, Duration, cursor
from models.errors import found
from models.notifications.webhooks import PostState
from models.store.keyset_pages import Cursor as Place
from models.store.keyset_pages import ordering
from models.users.roles import Role, Scope
from resolvers.domains import loaders as domain_loaders
from resolvers.notifications import webhooks
from resolvers.notifications.webhook_event_types import EVERY, TYPES
from resolvers.notifications.webhooks import LOG, NEWEST, NewWebhook, OfWebhook, WebhookWhere
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

FOR_ADMINS = Auth(role=Role.DOMAIN_ADMIN)
OVERLAP = timedelta(days=1)
CALLED = {"Security": "AuthEvent", "Setting": "SettingChange", "Limit": "User"}
BODY = ("event", "type", "at", "stream_id", "number", "body")


def worded(row: Any) -> dict[str, Any]:
    """Return the JSON body of the request for a webhook delivery."""
    return _body(*(getattr(row, name) for name in BODY))


def _body(
    event: str, type: str, at: datetime, stream: int, number: int, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON body of a request. Row ids become global IDs."""
    user, domain = body["user"], body["domain"]
    gap = {name: body[name] for name in ("missed", "reason") if name in body}
    return {
        "id": event,
        "type": type,
        "at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "cursor": cursor({stream: number}) if number else None,
        "user": user and {**user, "id": global_ids.encode("User", user["id"])},
        "domain": domain and global_ids.encode("Domain", domain),
        "objects": [_object(body["kind"], changed_object) for changed_object in body["objects"]],
        "origin": body["origin"],
        **gap,
    }


def _object(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a changed object with global IDs in place of row ids."""
    object_name = "".join(word.capitalize() for word in kind.split("_")[:-1])
    global_id_by_field = {
        name: global_ids.encode("Mailbox", facts[name])
        for name in ("mailbox", "fromMailbox")
        if facts.get(name)
    }
    if facts.get("message"):
        global_id_by_field["message"] = global_ids.encode("Message", facts["message"])
    return {
        **facts,
        "id": global_ids.encode(CALLED.get(object_name, object_name), facts["id"]),
        **global_id_by_field,
    }


@strawberry.type(description="An event, and what came of posting it.", directives=[FOR_ADMINS])
class WebhookDelivery(Shape):
    type: str = leaf("Type of the event.")
    at: datetime = leaf("When it happened.")
    attempt: int = leaf("Number of the last try, from 1; 0 = it waits for its first.")
    status: int | None = leaf("HTTP status of the last answer.")
    error: str | None = leaf("What went wrong; null when it was taken.")
    duration: Duration | None = leaf("How long the last try took.")
    next_attempt_at: datetime | None = leaf("Next try; null = at once, or never again.")
    state: PostState = leaf("How far it has come.")
    body: JSON = leaf("What is posted.")

    batch = staticmethod(webhooks.deliveries_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("WebhookDelivery"),
        "duration": Made(
            ("duration",), lambda ms: None if ms is None else timedelta(milliseconds=ms)
        ),
        "body": Made(BODY, _body),
    }


@strawberry.type(description="Where events are posted.", directives=[FOR_ADMINS])
class Webhook(Shape):
    types: list[str] = leaf('Event types; "user.*" prefix, "*" all.')
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="Only events of this user.",
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.by_ids,
        Domain.maybe,
        description="Only events of this domain and its users; with user, of that one while it is "
        "of this domain.",
    )
    url: URL = leaf("Where to.")
    active: bool = leaf("In force. An answer of 410 switches it off.")
    created_at: datetime = leaf("Creation.")
    failures: int = leaf("In a row.")
    last_delivery_at: datetime | None = leaf("Last post that was taken, to ten seconds.")

    batch = staticmethod(webhooks.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Webhook")}

    @field("What waits, and the last thousand that were taken, or given up; newest first.")
    async def deliveries(
        self, info: Info, first: int | None = UNSET, after: str | None = UNSET
    ) -> Connection[WebhookDelivery]:
        requested_page = page_asked(LOG, first, after, None, None)
        page_key = OfWebhook(self.row.id, requested_page, columns(info, WebhookDelivery))
        return await connected(
            info,
            WebhookDelivery,
            await info.context.load(webhooks.deliveries, page_key),
            lambda row: Place(LOG, row.webhook_id, row.id),
            lambda: info.context.load(webhooks.delivery_counts, page_key),
        )


@strawberry.input(description="Input of webhookCreate.")
class WebhookCreateInput(Options):
    types: list[str] = leaf('Event types; "user.*" prefix, "*" all.')
    user: UserRef | None = leaf("Only events of this user.", default=UNSET)
    domain: DomainRef | None = leaf(
        "Only events of this domain and its users. Default: all events; of a DOMAIN_ADMIN those "
        "of the only domain.",
        default=UNSET,
    )
    url: URL = leaf("http or https, and public, unless webhooks.allowPrivate is set.")
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of webhookUpdate; absent = unchanged.")
class WebhookUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    types: strawberry.Maybe[list[str]] = leaf('Event types; "user.*" prefix, "*" all.')
    url: strawberry.Maybe[URL] = leaf("Where to.")
    active: strawberry.Maybe[bool] = leaf("In force; what happens while it is not is not posted.")


@strawberry.input(description="Input of webhookSecretRotate.")
class WebhookSecretRotateInput(Options):
    id: strawberry.ID = leaf("The webhook.")
    overlap: Duration = leaf(
        "The secret before signs along for so long, at most P7D.", default=OVERLAP
    )


@strawberry.input(description="Input of webhookReplay.")
class WebhookReplayInput(Options):
    webhook: strawberry.ID = leaf("The webhook.")
    after: Cursor = leaf("What came behind this position, of the accounts and domains it tells of.")


@strawberry.type(description="A webhook, and a secret that was made for it.")
class WebhookSecretPayload(MutationPayload):
    webhook: Webhook | None = leaf("The webhook.", default=None)
    secret: str | None = leaf("For checking signatures, shown once.", default=None, metadata=SECRET)


@strawberry.type(description="Webhooks, as they are now.")
class WebhooksPayload(MutationPayload):
    webhooks: list[Webhook] = leaf("In the order of ids.", default_factory=list)


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
        type: str = EVERY,
        user: UserRef | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Webhook]:
        user_id = found(await owner_named(info, user), path=["user"]) if user else None
        where = WebhookWhere(type, user_id)
        list_ordering = ordering(NEWEST, None if where == WebhookWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            Webhook,
            await webhooks.page(info.context, where, requested_page, columns(info, Webhook)),
            lambda row: Place(requested_page.ordering, row.created_at, row.id),
            lambda: webhooks.count(info.context, where),
        )

    @query("Every event type there is.", scope=Scope.READ)
    async def webhook_types(self) -> list[str]:
        return TYPES


WRITES: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.MASTER}


@strawberry.type
class WebhookMutation:
    @mutation("Makes a webhook. Its url must not point inward.", **WRITES)
    async def webhook_create(self, info: Info, input: WebhookCreateInput) -> WebhookSecretPayload:
        domain_ids = (
            await domains_of(info, [input.domain], path="domain") if input.domain else [None]
        )
        new = NewWebhook(
            input.types,
            input.url,
            found(await owner_named(info, input.user), path=["user"]) if input.user else None,
            domain_ids[0],
            input.active,
        )
        key, secret = await webhooks.create(info.context, new)
        (row,) = await info.context.load_all(webhooks.by_ids, [key])
        return WebhookSecretPayload(webhook=Webhook.maybe(row), secret=secret)

    @mutation("Changes webhooks, all or none, and forgets their failures.", **WRITES)
    async def webhook_update(self, info: Info, input: WebhookUpdateInput) -> WebhooksPayload:
        keys = keys_of(info, "Webhook", input.ids)
        fields = {"types": input.types, "url": input.url, "active": input.active}
        values = {name: change.value for name, change in fields.items() if change is not None}
        await webhooks.change(info.context, keys, values)
        return await _now(info, keys)

    @mutation("Gives a webhook another secret; the one before is good for a while.", **WRITES)
    async def webhook_secret_rotate(
        self, info: Info, input: WebhookSecretRotateInput
    ) -> WebhookSecretPayload:
        (key,) = keys_of(info, "Webhook", [input.id])
        secret = await webhooks.rotate(info.context, key, input.overlap)
        (row,) = await info.context.load_all(webhooks.by_ids, [key])
        return WebhookSecretPayload(webhook=Webhook.maybe(row), secret=secret)

    @mutation("Removes webhooks with their logs, all or none.", **WRITES)
    async def webhook_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await webhooks.remove(info.context, keys_of(info, "Webhook", input.ids))
        return DeletePayload(deleted_ids=input.ids)

    @mutation("Posts a ping event, once; what came of it is in deliveries.", **WRITES)
    async def webhook_test(self, info: Info, input: IdsInput) -> WebhooksPayload:
        keys = keys_of(info, "Webhook", input.ids)
        await webhooks.test(info.context, keys)
        return await _now(info, keys)

    @mutation("Posts once more what came after a journal position.", **WRITES)
    async def webhook_replay(self, info: Info, input: WebhookReplayInput) -> TaskPayload:
        (key,) = keys_of(info, "Webhook", [input.webhook])
        task = await webhooks.replay(info.context, key, input.after)
        return TaskPayload(task=Task.of(task))


async def _now(info: Info, keys: list[int]) -> WebhooksPayload:
    """Load webhooks and return the payload with them."""
    rows = await info.context.load_all(webhooks.by_ids, keys)
    return WebhooksPayload(webhooks=[Webhook.of(row) for row in rows if row])
