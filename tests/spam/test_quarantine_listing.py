"""Lists of mail that is held: narrowed, in order, and for many accounts at once."""

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import insert
from sqlalchemy import text as sql

from mail.delivery.quarantine import QuarantineReason
from mail.spam.scan_result import SpamScanSymbol
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import core_table
from tests.conftest import Client, Clock, make_user, raw_message
from tests.support.operations.quarantine_operations import LIST, held, hold, listed
from tests.support.stores.query_plans import explained

pytestmark = pytest.mark.usefixtures("examined")


async def test_lists_are_read_in_the_order_of_an_index(
    ada: Client, bob: Client, root: Client, clock: Clock
) -> None:
    world, table = ada.world, core_table(QuarantineItem)
    await hold(ada)
    (row,) = await held(world)
    given = [
        {**row._asdict(), "id": world.new_id(), "user_id": owner, "notified": nth % 100 > 0,
         "created_at": clock() + timedelta(seconds=nth)}
        for nth in range(1500) for owner in (ada.user.id, bob.user.id)
    ]  # fmt: skip
    needs = [{"item_id": one["id"], "blob_id": row.blob_id} for one in given]
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(table), given)
        await connection.execute(insert(core_table(QuarantineBlob)), needs)
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(sql("ANALYZE quarantine_items"))
    mine = """query ($first: Int, $after: String) { viewer { user {
      quarantine(first: $first, after: $after) { nodes { subject } pageInfo { endCursor } } } } }"""
    at = (await ada(LIST, first=9))["quarantine"]["pageInfo"]["endCursor"]
    below = (await ada(mine, first=9))["viewer"]["user"]["quarantine"]["pageInfo"]["endCursor"]
    with explained(world) as plans:
        for client, document, after, index in (
            (ada, LIST, at, "quarantine_of_user"),
            (ada, mine, below, "quarantine_of_user"),
            (root, LIST, at, "quarantine_by_age"),
        ):
            for ask in ({"first": 50}, {"first": 50, "after": after}):
                plan = await plans.of(client(document, **ask), table.name, asking="LIMIT")
                assert index in plan, plan
                assert "TEMP B-TREE" not in plan
                assert "Sort  (" not in plan


async def test_lists_are_narrowed_and_come_newest_first(ada: Client, clock: Clock) -> None:
    for nth, (subject, why) in enumerate(
        (
            ("Cheap Pills", QuarantineReason(20.0, [SpamScanSymbol("FUZZY_HASH", 20.0)])),
            ("Größe", QuarantineReason(6.0)),
            ("Invoice", QuarantineReason(0.5, (), "Eicar-Test")),
        )
    ):
        await hold(ada, raw_message(subject), why, sender=f"x{nth}@far.example")
        clock.tick(hours=1)
    assert await listed(ada) == ["Invoice", "Größe", "Cheap Pills"]
    assert await listed(ada, query="PILLS") == ["Cheap Pills"]
    assert await listed(ada, query="GRÖSSE") == ["Größe"]
    assert await listed(ada, query="größE") == ["Größe"]
    assert await listed(ada, query="fuzzy_hash") == ["Cheap Pills"]
    assert await listed(ada, query="X1@far") == ["Größe"]
    assert await listed(ada, query="ADA@EXAMPLE") == ["Invoice", "Größe", "Cheap Pills"]
    assert await listed(ada, query="%") == []
    assert await listed(ada, scoreAbove=6.0) == ["Cheap Pills"]
    assert await listed(ada, virus=True) == ["Invoice"]
    assert await listed(ada, virus=False, scoreAbove=1) == ["Größe", "Cheap Pills"]
    assert await listed(ada, since="2030-01-01T01:00:00Z") == ["Invoice", "Größe"]
    for wrong in ({"query": "x" * 1001}, {"scoreAbove": 1e10}):
        answer = await ada.raw(LIST, filter=wrong)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    first = (await ada(LIST, first=2))["quarantine"]
    assert [node["subject"] for node in first["nodes"]] == ["Invoice", "Größe"]
    assert first["pageInfo"]["hasNextPage"]
    rest = (await ada(LIST, first=2, after=first["pageInfo"]["endCursor"]))["quarantine"]
    assert [node["subject"] for node in rest["nodes"]] == ["Cheap Pills"]
    mine = await ada(
        "{ viewer { user { quarantine(first: 1) { totalCount nodes { subject } } } } }"
    )
    assert mine["viewer"]["user"]["quarantine"] == {
        "totalCount": 3,
        "nodes": [{"subject": "Invoice"}],
    }


MANY = """{ users(first: 50) { nodes { username
  quarantine(first: 2) { totalCount nodes { subject user { username } domain { name } } } } } }"""
EACH = """{ quarantine(first: 50) { nodes {
  subject text user { username } domain { name } attachments { filename } } } }"""


async def test_lists_cost_the_same_however_many(
    ada: Client, over: Client, statements: list[str], http: httpx.AsyncClient
) -> None:
    async def cost(document: str) -> int:
        del statements[:]
        await over(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    await hold(ada)
    await cost(MANY), await cost(EACH)  # made once
    few = await cost(MANY), await cost(EACH)
    for nth in range(20):
        user = await make_user(ada.world, f"n{nth}")
        client = Client(http, ada.world, user, "")
        for subject in "ab":
            await hold(client, f"{subject}{nth}")
    answer = await over(MANY)
    assert sum(node["quarantine"]["totalCount"] for node in answer["users"]["nodes"]) == 41
    many = await cost(MANY), await cost(EACH)
    # each of those whose mail is looked into is noted: that is theirs
    assert many[0] == few[0]
    assert (await cost(EACH.replace("text", "score"))) == (
        await cost(EACH.replace("text", "notified"))
    )
