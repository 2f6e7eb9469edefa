"""The delivery log of webhooks: its maximum length and the cost of deleting old deliveries."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select, text
from sqlmodel import col

from graph.types import global_ids
from models.notifications.webhooks import WebhookDelivery, WebhookDeliveryState
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.notifications import webhook_cleanup, webhook_lists
from resolvers.notifications.webhook_lists import WebhookDeliveryOrder, WebhookDeliveryPageKey
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, deliver_to
from tests.support.servers.webhook_receiver import (
    WebhookReceiver,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)
from tests.support.servers.webhook_receiver import allow_local_webhooks as let_inward
from tests.support.stores.query_plans import record_query_plans


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    let_inward(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


async def test_log_has_maximum_length(
    ada: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_cleanup.MAX_STORED_DELIVERIES", 3)
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    for n in range(6):
        await deliver_to(ada, f"No. {n}")
    worker = make_webhook_worker(ada.environment)
    await post_until_idle(worker)
    await webhook_cleanup.delete_all_but_newest_deliveries(ada.environment)
    nodes = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
    assert [node["body"]["objects"][0]["uid"] for node in nodes] == [6, 5, 4]


async def add_deliveries(
    environment: Environment, webhook_id: int, state: WebhookDeliveryState, count: int
) -> None:
    """Add deliveries in this state to the log of a webhook."""
    rows = [
        {
            "id": environment.new_id(), "webhook_id": webhook_id, "stream_id": 0, "number": n,
            "event": f"e{n}", "type": "MESSAGE_ADDED", "at": environment.now(), "body": {},
            "state": state, "attempt": 1, "expires_at": environment.now(),
        }
        for n in range(count)
    ]  # fmt: skip
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(WebhookDelivery), rows)


async def count_deliveries(environment: Environment) -> dict[tuple[int, str], int]:
    webhook_id, state = col(WebhookDelivery.webhook_id), col(WebhookDelivery.state)
    query = select(webhook_id, state, func.count().label("many")).group_by(webhook_id, state)
    return {(row.webhook_id, row.state): row.many for row in await environment.database.read(query)}


async def test_old_deliveries_are_deleted_with_constant_statements(
    root: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    statements: list[str],
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_cleanup.MAX_STORED_DELIVERIES", 3)
    let_inward(environment)
    webhook_ids, statement_counts = list[int](), list[int]()
    for new_count in (1, 19):
        for _ in range(new_count):
            global_id, _ = await create_webhook(root, "http://127.0.0.1:1/", "MESSAGE_ADDED")
            webhook_ids.append(global_ids.decode("Webhook", global_id))
        for webhook_id in webhook_ids:
            await add_deliveries(environment, webhook_id, WebhookDeliveryState.DELIVERED, 5)
            await add_deliveries(environment, webhook_id, WebhookDeliveryState.FAILED, 4)
            await add_deliveries(environment, webhook_id, WebhookDeliveryState.PENDING, 6)
        del statements[:]
        await webhook_cleanup.delete_all_but_newest_deliveries(environment)
        statement_counts.append(
            len([statement for statement in statements if "webhook" in statement])
        )
    assert statement_counts == [2, 2]
    counts = await count_deliveries(environment)
    assert all(
        counts[webhook_id, WebhookDeliveryState.DELIVERED]
        == counts[webhook_id, WebhookDeliveryState.FAILED]
        == 3
        for webhook_id in webhook_ids
    )
    assert counts[webhook_ids[0], WebhookDeliveryState.PENDING] == 12
    del statements[:]
    await webhook_cleanup.delete_all_but_newest_deliveries(environment)
    # no delivery to delete
    assert len([statement for statement in statements if "webhook" in statement]) == 1


async def test_old_deliveries_are_found_by_index(
    root: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_cleanup.MAX_STORED_DELIVERIES", 50)
    let_inward(environment)
    for _ in range(20):
        webhook_id, _ = await create_webhook(root, "http://127.0.0.1:1/", "MESSAGE_ADDED")
        await add_deliveries(
            environment,
            global_ids.decode("Webhook", webhook_id),
            WebhookDeliveryState.DELIVERED,
            100,
        )
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE webhook_deliveries"))
    with record_query_plans(environment) as plans:
        plan = await plans.explain_select(
            webhook_cleanup.delete_all_but_newest_deliveries(environment),
            "webhooks",
            containing="OFFSET",
        )
    # PostgreSQL can also read the other index, since all deliveries of a webhook have the state
    indexes = "webhook_deliveries_ended", "webhook_deliveries_log"
    assert any(index in plan for index in indexes), plan
    assert "SCAN webhook_deliveries" not in plan, plan
    assert "Seq Scan on webhook_deliveries" not in plan, plan
    assert "Seq Scan on webhook_deliveries" not in plan, plan
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan


FILTERED_LOG_QUERY = """query ($id: ID!, $filter: WebhookDeliveryFilter, $first: Int,
    $after: String) { node(id: $id) { ... on Webhook {
  deliveries(filter: $filter, first: $first, after: $after) {
    totalCount nodes { state } pageInfo { hasNextPage endCursor } } } } }"""


async def test_log_is_filtered_by_state(
    root: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    let_inward(environment)
    webhook_id, _ = await create_webhook(root, "http://127.0.0.1:1/", "MESSAGE_ADDED")
    row_id = global_ids.decode("Webhook", webhook_id)
    counts = {
        WebhookDeliveryState.DELIVERED: 5,
        WebhookDeliveryState.FAILED: 3,
        WebhookDeliveryState.PENDING: 2,
    }
    for state, count in counts.items():
        await add_deliveries(environment, row_id, state, count)
    for state, count in counts.items():
        condition = {"state": state.value}
        found = await root(FILTERED_LOG_QUERY, id=webhook_id, filter=condition)
        page = found["node"]["deliveries"]
        assert [node["state"] for node in page["nodes"]] == [state.value] * count
        assert page["totalCount"] == count
        hidden = await bob.execute(FILTERED_LOG_QUERY, id=webhook_id, filter=condition)
        assert hidden.get("errors") or hidden["data"] == {"node": None}
    everything = (await root(FILTERED_LOG_QUERY, id=webhook_id))["node"]["deliveries"]
    assert everything["totalCount"] == 10
    first = await root(FILTERED_LOG_QUERY, id=webhook_id, filter={"state": "FAILED"}, first=2)
    after = first["node"]["deliveries"]["pageInfo"]["endCursor"]
    wrong = await root.execute(FILTERED_LOG_QUERY, id=webhook_id, first=2, after=after)
    assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_deliveries_in_a_state_are_read_by_index(
    root: GraphQLClient, environment: Environment
) -> None:
    let_inward(environment)
    webhook_id, _ = await create_webhook(root, "http://127.0.0.1:1/", "MESSAGE_ADDED")
    row_id = global_ids.decode("Webhook", webhook_id)
    await add_deliveries(environment, row_id, WebhookDeliveryState.FAILED, 20)
    viewer = Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL}))
    page_key = WebhookDeliveryPageKey(
        row_id,
        PageRequest("x"),
        webhook_lists.DELIVERY_ORDERS[WebhookDeliveryOrder.CREATED_DESC],
        state=WebhookDeliveryState.FAILED,
    )
    with record_query_plans(environment) as plans:
        plan = await plans.explain_select(
            webhook_lists.load_delivery_pages_by_webhook(Context(environment, viewer), [page_key]),
            "webhook_deliveries",
        )
    if environment.database.dialect == "sqlite":  # small tables have other plans
        assert "webhook_deliveries_ended" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
