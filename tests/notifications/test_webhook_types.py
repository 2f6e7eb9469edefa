"""The types by which webhooks select events: each can be given, and each can come."""

from sqlalchemy import update
from sqlmodel import col

from models.auth.security_log import SECURITY_EVENT_TYPES, SecurityEvent
from models.events.event_types import (
    ACCOUNT_EVENT_TYPES,
    WEBHOOK_ONLY_EVENT_TYPES,
    EventType,
    WebhookEventType,
)
from models.events.journal import PLATFORM, JournalEntry, append_journal_entry
from models.notifications.webhooks import Webhook
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.lists.list_rows import add_rows
from tests.support.schema.printed_schema import SDL
from tests.support.servers.webhook_receiver import (
    WEBHOOK_CREATE,
    allow_local_webhooks,
    create_webhook,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)

WEBHOOK_TYPES = "{ webhooks { nodes { types } } }"
WEBHOOK_UPDATE = """mutation ($id: ID!, $types: [WebhookEventType!]) {
  webhookUpdate(input: {webhooks: [{id: $id}], set: {types: $types}}) { errors { code } } }"""
WEBHOOKS_OF_TYPE = """query ($type: WebhookEventType!) {
  webhooks(filter: {type: $type}) { totalCount } }"""
UNSELECTABLE_TYPES = WEBHOOK_ONLY_EVENT_TYPES | {EventType.RESYNC}


async def record_event(environment: Environment, user_id: int, event_type: EventType) -> None:
    """Write an event to the journal that has events of this type."""
    stream_id = user_id if event_type in ACCOUNT_EVENT_TYPES else PLATFORM
    object_id = 1 if event_type in SECURITY_EVENT_TYPES else user_id
    async with environment.write_session(stream_id) as session:
        entry = JournalEntry(event_type, [object_id])
        await append_journal_entry(session, stream_id, entry, at=environment.now())


def test_webhooks_select_by_the_types_of_the_journal() -> None:
    offered = set(SDL.type_map["WebhookEventType"].values)  # type: ignore[attr-defined]
    assert offered == set(WebhookEventType) == set(EventType) - UNSELECTABLE_TYPES


async def test_webhook_receives_each_type_that_it_can_select(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    environment, user_id = ada.environment, ada.user.id
    allow_local_webhooks(environment)
    await add_rows(environment, SecurityEvent, 1, id=1, user_id=user_id)
    async with run_webhook_receiver() as receiver:
        await create_webhook(root, receiver.url, *sorted(WebhookEventType))
        for event_type in WebhookEventType:
            await record_event(environment, user_id, EventType(event_type))
        await post_until_idle(make_webhook_worker(environment))
        assert set(receiver.event_types) == set(WebhookEventType)
    assert await root(WEBHOOK_TYPES) == {
        "webhooks": {"nodes": [{"types": sorted(WebhookEventType)}]}
    }


async def test_types_that_webhooks_do_not_select_by_are_no_input(root: GraphQLClient) -> None:
    url = "https://example.com/"
    allow_local_webhooks(root.environment)
    webhook_id, _ = await create_webhook(root, url)
    for event_type in sorted(UNSELECTABLE_TYPES):
        for response in (
            await root.execute(WEBHOOK_CREATE, input={"url": url, "types": [event_type]}),
            await root.execute(WEBHOOK_UPDATE, id=webhook_id, types=[event_type]),
            await root.execute(WEBHOOKS_OF_TYPE, type=event_type),
        ):
            assert event_type in response["errors"][0]["message"]
    assert await root(WEBHOOK_TYPES) == {"webhooks": {"nodes": [{"types": None}]}}


async def test_webhook_with_stored_types_that_select_nothing_is_readable(
    root: GraphQLClient,
) -> None:
    allow_local_webhooks(root.environment)
    await create_webhook(root, "https://example.com/", "USER_CREATED")
    async with root.environment.write_session(PLATFORM) as session:
        connection = await session.connection()
        await connection.execute(
            update(Webhook).where(col(Webhook.active)).values(types=["PING", "USER_CREATED"])
        )
    assert await root(WEBHOOK_TYPES) == {"webhooks": {"nodes": [{"types": ["USER_CREATED"]}]}}
