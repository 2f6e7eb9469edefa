"""The log of webhooks: how long it gets, and what forgetting costs."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select, text
from sqlmodel import col

from graph.types import global_ids
from models.notifications.webhooks import PostState, WebhookDelivery
from models.runtime.environment import Environment
from resolvers.notifications import webhook_worker
from tests.conftest import Client, receive
from tests.support.servers.webhook_receiver import (
    Receiver,
    log_of,
    made,
    pump,
    receiving,
    worker_of,
)
from tests.support.servers.webhook_receiver import inward as let_inward
from tests.support.stores.query_plans import explained


@pytest.fixture
async def hooked(world: Environment) -> AsyncIterator[Receiver]:
    let_inward(world)
    async with receiving() as one:
        yield one


async def test_the_log_is_bounded(
    ada: Client, root: Client, hooked: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_worker.MAX_STORED_DELIVERIES", 3)
    key, _ = await made(root, hooked.url, "message.received")
    for n in range(6):
        await receive(ada, f"No. {n}")
    worker = worker_of(ada.world)
    await pump(worker)
    await webhook_worker.delete_old_deliveries(worker)
    nodes = (await log_of(root, key))["deliveries"]["nodes"]
    assert [node["body"]["objects"][0]["uid"] for node in nodes] == [6, 5, 4]


async def logged(world: Environment, key: int, state: PostState, many: int) -> None:
    """Put deliveries that have ended into the log of a webhook."""
    rows = [
        {
            "id": world.new_id(), "webhook_id": key, "stream_id": 0, "number": n, "event": f"e{n}",
            "type": "message.added", "at": world.now(), "body": {}, "state": state, "attempt": 1,
            "expires_at": world.now(),
        }
        for n in range(many)
    ]  # fmt: skip
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(WebhookDelivery), rows)


async def counted(world: Environment) -> dict[tuple[int, str], int]:
    key, state = col(WebhookDelivery.webhook_id), col(WebhookDelivery.state)
    asked = select(key, state, func.count().label("many")).group_by(key, state)
    return {(row.webhook_id, row.state): row.many for row in await world.database.read(asked)}


async def test_forgetting_costs_the_same_for_many_webhooks(
    root: Client, world: Environment, monkeypatch: pytest.MonkeyPatch, statements: list[str]
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_worker.MAX_STORED_DELIVERIES", 3)
    let_inward(world)
    keys, costs = list[int](), list[int]()
    for more in (1, 19):
        for _ in range(more):
            key, _ = await made(root, "http://127.0.0.1:1/", "message.*")
            keys.append(global_ids.decode("Webhook", key))
        for one in keys:
            await logged(world, one, PostState.DONE, 5)
            await logged(world, one, PostState.DEAD, 4)
            await logged(world, one, PostState.WAITING, 6)
        del statements[:]
        await webhook_worker.delete_old_deliveries(worker_of(world))
        costs.append(len([sent for sent in statements if "webhook" in sent]))
    assert costs == [2, 2]
    found = await counted(world)
    assert all(found[one, PostState.DONE] == found[one, PostState.DEAD] == 3 for one in keys)
    assert found[keys[0], PostState.WAITING] == 12
    del statements[:]
    await webhook_worker.delete_old_deliveries(worker_of(world))
    assert len([sent for sent in statements if "webhook" in sent]) == 1  # nothing to forget


async def test_the_log_is_walked_by_its_index(
    root: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.notifications.webhook_worker.MAX_STORED_DELIVERIES", 50)
    let_inward(world)
    for _ in range(20):
        key, _ = await made(root, "http://127.0.0.1:1/", "message.*")
        await logged(world, global_ids.decode("Webhook", key), PostState.DONE, 100)
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE webhook_deliveries"))
    with explained(world) as plans:
        plan = await plans.of(
            webhook_worker.delete_old_deliveries(worker_of(world)), "webhooks", asking="OFFSET"
        )
    assert "webhook_deliveries_ended" in plan, plan
    assert "SCAN webhook_deliveries" not in plan, plan
    assert "Seq Scan on webhook_deliveries" not in plan, plan
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan
