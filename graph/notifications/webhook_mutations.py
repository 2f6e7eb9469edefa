"""Inputs, payloads and mutations of webhooks."""

from datetime import timedelta
from typing import Any

import strawberry
from strawberry import UNSET

from graph.admin.tasks import Task, TaskPayload
from graph.notifications.references import WebhookDeleteInput, WebhookRef, WebhookTestInput
from graph.notifications.webhooks import Webhook
from graph.types.access_grants import GIVES_ACCESS
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED_OR_DOMAINS
from graph.types.object_references import id_from_ref, ids_from_refs
from graph.types.references import (
    DomainRef,
    UserRef,
    require_administered_domain_ids,
    require_visible_user_id_if_named,
)
from graph.types.scalars import URL, Cursor, Duration
from models.errors import require_found
from models.events.event_types import WebhookEventType
from models.users.roles import Role, Scope
from resolvers.notifications import webhook_lists, webhooks
from resolvers.notifications.webhooks import NewWebhook

TYPES_DESCRIPTION = (
    "Types of the events that the webhook receives. Null: all types. Omitted: all for a new "
    "webhook, else unchanged. Events of the types PING, CHANGES_MISSED and FILTER_MATCHED are "
    "delivered in any case. An empty list is an error."
)
DEFAULT_SECRET_OVERLAP = timedelta(days=1)
WRITE_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "scope": Scope.FULL}


@strawberry.input(description="Input of webhookCreate.")
class WebhookCreateInput(Options):
    types: list[WebhookEventType] | None = attribute_field(TYPES_DESCRIPTION, default=UNSET)
    user: UserRef | None = attribute_field(
        "Delivers only events of this user. A DOMAIN_ADMIN gets them while the user is in the "
        "domain, which must be an administered one (else NOT_FOUND). Not allowed with `domain`. "
        "Default: not limited to a user.",
        default=UNSET,
    )
    domain: DomainRef | None = attribute_field(
        "Delivers only events of this domain and its users. Default without `user`: all events of "
        "the platform; for a DOMAIN_ADMIN the only administered domain. A DOMAIN_ADMIN of several "
        "domains must give one.",
        default=UNSET,
    )
    url: URL = attribute_field(
        "URL that receives the events, `http` or `https`, at most 2,048 characters. Private "
        "networks require the setting `webhooks.allowPrivateNetworks`.",
        metadata=GIVES_ACCESS,
    )
    active: bool = attribute_field(
        "True delivers events. False: events that occur until it is activated are only "
        "delivered by webhookReplay. Default: true.",
        default=True,
    )


@strawberry.input(description="New values of webhooks, at least one. An absent field is unchanged.")
class WebhookPatch:
    types: strawberry.Maybe[list[WebhookEventType] | None] = attribute_field(TYPES_DESCRIPTION)
    url: strawberry.Maybe[URL] = attribute_field(
        "URL that receives the events, also pending ones: `http` or `https`, at most 2,048 "
        "characters. Private networks require the setting `webhooks.allowPrivateNetworks`. Null "
        "is refused.",
        metadata=GIVES_ACCESS,
    )
    active: strawberry.Maybe[bool] = attribute_field(
        "True delivers events. Events that occur while the webhook is inactive are only delivered "
        "by webhookReplay."
    )


@strawberry.input(description="Input of webhookUpdate.")
class WebhookUpdateInput(Options):
    webhooks: list[WebhookRef] = attribute_field("Webhooks to change, 1 to 1,000 by default.")
    set: WebhookPatch = attribute_field(
        "New values, the same for all webhooks. At least one value is required."
    )


@strawberry.input(description="Input of webhookSecretRotate.")
class WebhookSecretRotateInput(Options):
    webhook: WebhookRef = attribute_field("Webhook that gets a new secret.")
    overlap: Duration = attribute_field(
        "Time in which the old secret also signs requests, at most P7D. PT0S ends it at "
        "once. A still older secret ends in any case. Default: P1D.",
        default=DEFAULT_SECRET_OVERLAP,
    )


@strawberry.input(description="Input of webhookReplay.")
class WebhookReplayInput(Options):
    webhook: WebhookRef = attribute_field("Webhook that gets the events again.")
    after: Cursor = attribute_field(
        "Position in the event journal. Later events of the users and domains in this cursor are "
        "delivered again. The webhook must cover all of them, and the events must still be kept."
    )


@strawberry.type(description="Payload of webhookCreate and webhookSecretRotate.")
class WebhookSecretPayload(MutationPayload):
    webhook: Webhook | None = attribute_field(
        "Created or changed webhook. Null if the mutation failed.", default=None
    )
    secret: str | None = attribute_field(
        "Secret that signs the requests (Standard Webhooks): `whsec_` and 32 bytes in base64. It "
        "is returned once. Null: the mutation failed, or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of webhookUpdate and webhookTest.")
class WebhooksPayload(MutationPayload):
    webhooks: list[Webhook] = attribute_field(
        "Webhooks in the order of the references.",
        default_factory=list,
    )


@strawberry.type
class WebhookMutation:
    @mutation(
        "Creates a webhook and returns its secret once. It gets events from now on: of a user, a "
        "domain, or (only for an ADMIN) the platform. LIMIT_REACHED at 100 webhooks of that user, "
        "domain or platform. Another user whom it is for gets a message.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_create(self, info: Info, input: WebhookCreateInput) -> WebhookSecretPayload:
        domain_ids = (
            await require_administered_domain_ids(info, [input.domain], path="domain")
            if input.domain
            else [None]
        )
        new = NewWebhook(
            None if input.types is UNSET else input.types,
            input.url,
            require_found(await require_visible_user_id_if_named(info, input.user), path=["user"])
            if input.user
            else None,
            domain_ids[0],
            input.active,
        )
        key, secret = await webhooks.create_webhook(info.context, new)
        (row,) = await info.context.load_many(webhook_lists.load_visible_webhooks_by_id, [key])
        return WebhookSecretPayload(webhook=Webhook.from_row_or_none(row), secret=secret)

    @mutation(
        "Changes webhooks, all or none, resets their failures, and ends a pause after failures. "
        "Events that occurred while a webhook was inactive are only delivered by webhookReplay. "
        "Another user whom a webhook is for gets a message. LIMIT_REACHED for more than 1,000 "
        "references (by default).",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_update(self, info: Info, input: WebhookUpdateInput) -> WebhooksPayload:
        keys, patch = ids_from_refs(info, input.webhooks, "webhooks"), input.set
        fields = {"types": patch.types, "url": patch.url, "active": patch.active}
        values = {name: change.value for name, change in fields.items() if change is not None}
        await webhooks.update_webhooks(info.context, keys, values)
        return await _load_payload(info, keys)

    @mutation(
        "Replaces the secret of a webhook. The old secret also signs requests during `overlap`.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_secret_rotate(
        self, info: Info, input: WebhookSecretRotateInput
    ) -> WebhookSecretPayload:
        key = id_from_ref(input.webhook, "webhook")
        secret = await webhooks.rotate_secret(info.context, key, input.overlap)
        (row,) = await info.context.load_many(webhook_lists.load_visible_webhooks_by_id, [key])
        return WebhookSecretPayload(webhook=Webhook.from_row_or_none(row), secret=secret)

    @mutation(
        "Deletes webhooks with their deliveries, also pending ones, all or none. Another user "
        "whom a webhook is for gets a message. LIMIT_REACHED for more than 1,000 references (by "
        "default).",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_delete(self, info: Info, input: WebhookDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.webhooks, "webhooks")
        await webhooks.delete_webhooks(info.context, keys)
        return DeletePayload.of_keys("Webhook", keys)

    @mutation(
        "Queues a test event PING for each webhook, all or none, also for inactive ones. A worker "
        "delivers it once, without retries. The test also ends the pause after failed deliveries: "
        "due events are then delivered at once. `Webhook.deliveries` shows the result. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_test(self, info: Info, input: WebhookTestInput) -> WebhooksPayload:
        keys = ids_from_refs(info, input.webhooks, "webhooks")
        await webhooks.queue_test_events(info.context, keys)
        return await _load_payload(info, keys)

    @mutation(
        "Starts a task that delivers earlier events to a webhook again. These are the events of "
        "the webhook's types after the position `after` in the event journal, up to now. Only "
        "events of the users and domains in the cursor `after` are delivered. The member `cursor` "
        "of a delivered event is a position for one user or domain. With it as `after`, only "
        "events of that user or domain are delivered. VALIDATION if the webhook does not cover a "
        "user or domain in `after`, or if the events are no longer kept. The setting "
        "`journal.retention` says how long they are kept: by default 30 days. An inactive webhook "
        "gets the events if it is activated within a day.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def webhook_replay(self, info: Info, input: WebhookReplayInput) -> TaskPayload:
        key = id_from_ref(input.webhook, "webhook")
        task = await webhooks.queue_replay_task(info.context, key, input.after)
        return TaskPayload(task=Task.from_row(task))


async def _load_payload(info: Info, webhook_ids: list[int]) -> WebhooksPayload:
    """Load webhooks and return the payload with them."""
    rows = await info.context.load_many(webhook_lists.load_visible_webhooks_by_id, webhook_ids)
    return WebhooksPayload(webhooks=[Webhook.from_row(row) for row in rows if row])
