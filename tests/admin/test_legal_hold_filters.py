"""Filters of the copies and of the access log of a legal hold."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.admin.legal_holds import HeldCopy, LegalHoldAccess, LegalHoldAccessAction
from models.admin.legal_holds import LegalHold as LegalHoldRow
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.admin import legal_holds
from resolvers.admin.legal_hold_conditions import (
    HeldCopyConditions,
    HeldCopyPageKey,
    LegalHoldAccessConditions,
    LegalHoldAccessPageKey,
)
from resolvers.admin.legal_holds import HeldCopyOrder, LegalHoldAccessOrder
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.lists.list_rows import add_rows
from tests.support.operations.platform.legal_hold_operations import start_legal_hold
from tests.support.stores.query_plans import record_query_plans

COPIES_QUERY = """query ($id: ID!, $filter: HeldCopyFilter, $first: Int, $after: String) {
  legalHold(by: {id: $id}) { messages(filter: $filter, first: $first, after: $after) {
    totalCount nodes { subject } pageInfo { hasNextPage endCursor } } } }"""
ACCESSES_QUERY = """query ($id: ID!, $filter: LegalHoldAccessFilter) {
  legalHold(by: {id: $id}) { accessLog(filter: $filter) { totalCount nodes { action } } } }"""


async def test_copies_are_filtered(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock
) -> None:
    await deliver_to(ada, raw_message("Contract 1"))
    clock.tick(hours=1)
    between = clock()
    clock.tick(hours=1)
    await deliver_to(ada, raw_message("Contract 2", From="Dora <dora@far.example>"))
    legal_hold_id = await start_legal_hold(admin_client, ada)
    await deliver_to(ada, raw_message("Party"))
    names = ["Contract 1", "Contract 2", "Party"]
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, names),
        ({"subject": "CONTRACT"}, names[:2]),
        ({"from": "dora"}, names[1:2]),
        ({"from": "far.example"}, names[1:2]),
        ({"receivedBefore": between.isoformat()}, names[:1]),
        ({"receivedSince": between.isoformat()}, names[1:]),
        ({"origins": ["STORED"]}, names[:2]),
        ({"origins": ["RECEIVED", "SAVED"]}, names[2:]),
        ({"origins": []}, []),
        ({"subject": "contract", "from": "carol"}, names[:1]),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            legal_hold = await admin_client(COPIES_QUERY, id=legal_hold_id, filter=condition)
            page = legal_hold["legalHold"]["messages"]
            subjects = [node["subject"] for node in page["nodes"]]
            assert (subjects, page["totalCount"]) == (expected, len(expected))
            refused = await bob.execute(COPIES_QUERY, id=legal_hold_id, filter=condition)
            assert refused["errors"]
    too_long = await admin_client.execute(
        COPIES_QUERY, id=legal_hold_id, filter={"subject": "x" * 1001}
    )
    assert too_long["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_filtered_pages_of_copies_are_complete(
    ada: GraphQLClient, admin_client: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        await deliver_to(ada, f"{'odd' if number % 2 else 'even'} {number}")
    legal_hold_id = await start_legal_hold(admin_client, ada)
    monkeypatch.setattr("resolvers.pagination.STEP_LENGTHS", (2, 1))
    arguments = {"id": legal_hold_id, "first": 2}
    subjects, after, has_next = list[str](), None, True
    while has_next:
        found = await admin_client(
            COPIES_QUERY, filter={"subject": "odd"}, after=after, **arguments
        )
        page = found["legalHold"]["messages"]
        subjects += [node["subject"] for node in page["nodes"]]
        after, has_next = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]
    assert subjects == ["odd 1", "odd 3", "odd 5", "odd 7"]
    wrong = await admin_client.execute(COPIES_QUERY, after=after, **arguments)
    assert wrong["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_accesses_are_filtered(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock
) -> None:
    await deliver_to(ada, "a")
    legal_hold_id = await start_legal_hold(admin_client, ada)
    await admin_client(COPIES_QUERY, id=legal_hold_id)
    clock.tick(hours=1)
    between = clock().isoformat()
    clock.tick(hours=1)
    await admin_client.http.get(
        f"/rest/legal-holds/{legal_hold_id}/export.mbox", headers=admin_client.headers
    )
    cases: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, ["EXPORT", "LIST"]),
        ({"action": "EXPORT"}, ["EXPORT"]),
        ({"since": between}, ["EXPORT"]),
        ({"before": between}, ["LIST"]),
        ({"before": between, "action": "EXPORT"}, []),
    ]
    for case in each_case(cases):
        with case as (condition, expected):
            found = await admin_client(ACCESSES_QUERY, id=legal_hold_id, filter=condition)
            page = found["legalHold"]["accessLog"]
            actions = [node["action"] for node in page["nodes"]]
            assert (actions, page["totalCount"]) == (expected, len(expected))
            refused = await bob.execute(ACCESSES_QUERY, id=legal_hold_id, filter=condition)
            assert refused["errors"]


async def test_filtered_lists_of_a_legal_hold_read_its_index(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    environment = ada.environment
    await deliver_to(ada, "a")
    await start_legal_hold(admin_client, ada)
    (legal_hold,) = await environment.database.read(select(col(LegalHoldRow.id)))
    await add_rows(environment, LegalHoldAccess, 20, legal_hold_id=legal_hold.id)
    ctx = Context(environment, Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL})))
    copy_key = HeldCopyPageKey(
        legal_hold.id,
        PageRequest("x"),
        legal_holds.COPY_ORDERS[HeldCopyOrder.POSITION_ASC],
        conditions=HeldCopyConditions(subject="a"),
    )
    access_key = LegalHoldAccessPageKey(
        legal_hold.id,
        PageRequest("x"),
        legal_holds.ACCESS_ORDERS[LegalHoldAccessOrder.AT_DESC],
        conditions=LegalHoldAccessConditions(
            action=LegalHoldAccessAction.LIST, since=environment.now() - timedelta(days=1)
        ),
    )
    with record_query_plans(environment) as plans:
        copy_plans = await plans.explain_selects(
            legal_holds.load_copy_pages_and_log_access(ctx, [copy_key]),
            str(HeldCopy.__tablename__),
        )
        access_plan = await plans.explain_select(
            legal_holds.load_visible_access_pages_by_legal_hold(ctx, [access_key]),
            str(LegalHoldAccess.__tablename__),
        )
    assert copy_plans
    if environment.database.dialect == "sqlite":  # small tables have other plans
        for plan in (*copy_plans, access_plan):
            assert "TEMP B-TREE" not in plan, plan
            assert "SCAN held_copies" not in plan, plan
        assert "legal_hold_accesses_of_legal_hold" in access_plan, access_plan
