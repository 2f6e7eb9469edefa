"""Lists of quarantined messages: filters, order, and cost for many accounts."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert
from sqlalchemy import text as sql

from mail.delivery.quarantine import QuarantineReason
from mail.spam.scan_result import SpamScanSymbol
from models.spam.quarantine import QuarantineBlob, QuarantineItem
from models.store.columns import core_table
from tests.conftest import GraphQLClient, ManualClock, make_user, raw_message
from tests.support.operations.quarantine_operations import (
    QUARANTINE_QUERY,
    list_quarantined_subjects,
    load_quarantine_rows,
    quarantine_message,
)
from tests.support.stores.query_plans import record_query_plans

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_quarantine_lists_are_read_in_index_order(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    environment, table = ada.environment, core_table(QuarantineItem)
    await quarantine_message(ada)
    (row,) = await load_quarantine_rows(environment)
    items = [
        {
            **row._asdict(),
            "id": environment.new_id(),
            "user_id": owner,
            "notified": number % 100 > 0,
            "created_at": clock() + timedelta(seconds=number),
        }
        for number in range(1500)
        for owner in (ada.user.id, bob.user.id)
    ]
    references = [{"item_id": item["id"], "blob_id": row.blob_id} for item in items]
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(table), items)
        await connection.execute(insert(core_table(QuarantineBlob)), references)
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(sql("ANALYZE quarantine_items"))
    user_list = """query ($orderBy: QuarantineOrder! = CREATED_AT_DESC, $first: Int,
        $after: String) { viewer { user {
      quarantine(orderBy: $orderBy, first: $first, after: $after) {
        nodes { subject } pageInfo { endCursor } } } } }"""
    list_cursor = (await ada(QUARANTINE_QUERY, first=9))["quarantine"]["pageInfo"]["endCursor"]
    user_list_cursor = (await ada(user_list, first=9))["viewer"]["user"]["quarantine"]["pageInfo"][
        "endCursor"
    ]
    with record_query_plans(environment) as plans:
        for client, document, after, index in (
            (ada, QUARANTINE_QUERY, list_cursor, "quarantine_of_user"),
            (ada, user_list, user_list_cursor, "quarantine_of_user"),
            (root, QUARANTINE_QUERY, list_cursor, "quarantine_by_age"),
        ):
            for page in ({"first": 50}, {"first": 50, "after": after}):
                plan = await plans.explain_select(
                    client(document, **page), table.name, containing="LIMIT"
                )
                assert index in plan, plan
                assert "TEMP B-TREE" not in plan
                assert "Sort  (" not in plan
        plan = await plans.explain_select(
            ada(user_list, first=50, orderBy="CREATED_AT_ASC"), table.name, containing="LIMIT"
        )
        assert "quarantine_of_user" in plan, plan


async def test_quarantine_list_is_filtered_and_sorted_newest_first(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for number, (subject, reason) in enumerate(
        (
            ("Cheap Pills", QuarantineReason(20.0, [SpamScanSymbol("FUZZY_HASH", 20.0)])),
            ("Größe", QuarantineReason(6.0)),
            ("Invoice", QuarantineReason(0.5, (), "Eicar-Test")),
        )
    ):
        await quarantine_message(ada, raw_message(subject), reason, sender=f"x{number}@far.example")
        clock.tick(hours=1)
    assert await list_quarantined_subjects(ada) == ["Invoice", "Größe", "Cheap Pills"]
    assert await list_quarantined_subjects(ada, query="PILLS") == ["Cheap Pills"]
    assert await list_quarantined_subjects(ada, query="GRÖSSE") == ["Größe"]
    assert await list_quarantined_subjects(ada, query="größE") == ["Größe"]
    assert await list_quarantined_subjects(ada, query="fuzzy_hash") == ["Cheap Pills"]
    assert await list_quarantined_subjects(ada, query="X1@far") == ["Größe"]
    assert await list_quarantined_subjects(ada, query="ADA@EXAMPLE") == [
        "Invoice",
        "Größe",
        "Cheap Pills",
    ]
    assert await list_quarantined_subjects(ada, query="%") == []
    assert await list_quarantined_subjects(ada, scoreAbove=6.0) == ["Cheap Pills"]
    assert await list_quarantined_subjects(ada, virus=True) == ["Invoice"]
    assert await list_quarantined_subjects(ada, virus=False, scoreAbove=1) == [
        "Größe",
        "Cheap Pills",
    ]
    assert await list_quarantined_subjects(ada, since="2030-01-01T01:00:00Z") == [
        "Invoice",
        "Größe",
    ]
    for invalid_filter in ({"query": "x" * 1001}, {"scoreAbove": 1e10}):
        answer = await ada.execute(QUARANTINE_QUERY, filter=invalid_filter)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    first = (await ada(QUARANTINE_QUERY, first=2))["quarantine"]
    assert [node["subject"] for node in first["nodes"]] == ["Invoice", "Größe"]
    assert first["pageInfo"]["hasNextPage"]
    rest = (await ada(QUARANTINE_QUERY, first=2, after=first["pageInfo"]["endCursor"]))[
        "quarantine"
    ]
    assert [node["subject"] for node in rest["nodes"]] == ["Cheap Pills"]


QUARANTINE_OF_USER = """query ($filter: UserQuarantineFilter,
    $orderBy: QuarantineOrder! = CREATED_AT_DESC, $first: Int, $after: String) { viewer { user {
  quarantine(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
    totalCount nodes { subject } pageInfo { endCursor } } } } }"""


async def test_quarantine_of_a_user_is_filtered_and_sorted(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    for subject, score, virus in (("b", 20.0, None), ("z", 6.0, "Eicar"), ("a", 9.0, None)):
        await quarantine_message(ada, raw_message(subject), QuarantineReason(score, (), virus))
        clock.tick(hours=1)

    async def list_subjects(client: GraphQLClient, **arguments: Any) -> str:
        page = (await client(QUARANTINE_OF_USER, **arguments))["viewer"]["user"]["quarantine"]
        assert page["totalCount"] == len(page["nodes"])
        return "".join(node["subject"] for node in page["nodes"])

    for arguments, expected in (
        ({}, "azb"),
        ({"orderBy": "CREATED_AT_ASC"}, "bza"),
        ({"orderBy": "SCORE_DESC"}, "baz"),
        ({"filter": {"query": "Z"}}, "z"),
        ({"filter": {"virus": False}, "orderBy": "SCORE_ASC"}, "ab"),
        ({"filter": {"scoreAbove": 6, "since": "2030-01-01T01:00:00Z"}}, "a"),
    ):
        assert await list_subjects(ada, **arguments) == expected, arguments
        assert await list_subjects(bob, **arguments) == ""
    page = (await ada(QUARANTINE_OF_USER, first=1))["viewer"]["user"]["quarantine"]
    assert (page["totalCount"], page["nodes"]) == (3, [{"subject": "a"}])
    for invalid, code in (
        ({"filter": {"virus": True}, "after": page["pageInfo"]["endCursor"]}, "BAD_CURSOR"),
        ({"filter": {"scoreAbove": 1e10}}, "BAD_USER_INPUT"),
    ):
        answer = await ada.execute(QUARANTINE_OF_USER, **invalid)
        assert answer["errors"][0]["extensions"]["code"] == code


QUARANTINE_OF_USERS = """{ users(first: 50) { nodes { username
  quarantine(first: 2) { totalCount nodes { subject user { username } domain { name } } } } } }"""
QUARANTINE_OF_ALL = """{ quarantine(first: 50) { nodes {
  subject text user { username } domain { name } attachments { filename } } } }"""


async def test_many_quarantine_lists_need_as_many_statements_as_few(
    ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str], http: httpx.AsyncClient
) -> None:
    async def count_statements(document: str) -> int:
        del statements[:]
        await admin_client(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await quarantine_message(ada)
    (
        await count_statements(QUARANTINE_OF_USERS),
        await count_statements(QUARANTINE_OF_ALL),
    )  # prepares the statements
    counts_before = (
        await count_statements(QUARANTINE_OF_USERS),
        await count_statements(QUARANTINE_OF_ALL),
    )
    for number in range(20):
        user = await make_user(ada.environment, f"n{number}")
        client = GraphQLClient(http, ada.environment, user, "")
        for subject in "ab":
            await quarantine_message(client, f"{subject}{number}")
    answer = await admin_client(QUARANTINE_OF_USERS)
    assert sum(node["quarantine"]["totalCount"] for node in answer["users"]["nodes"]) == 41
    counts_after = (
        await count_statements(QUARANTINE_OF_USERS),
        await count_statements(QUARANTINE_OF_ALL),
    )
    # Reading the text of other users writes a log entry for each of them, which needs statements.
    assert counts_after[0] == counts_before[0]
    assert (await count_statements(QUARANTINE_OF_ALL.replace("text", "score"))) == (
        await count_statements(QUARANTINE_OF_ALL.replace("text", "notified"))
    )
