"""Lists of resources and bookings: filters, pages, orders, private fields and statements."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from models.resources.tables import Booking
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.lists.list_rows import FIRST_TIME, add_rows
from tests.support.mail.invitations import (
    deliver_invitation,
    hours,
    meeting,
    trust_front_server,
)
from tests.support.operations.domain_operations import create_domain
from tests.support.operations.resource_operations import (
    create_resource,
    list_resource_names,
    list_resources,
)
from tests.support.stores.counter_check import select_rows
from tests.support.stores.query_plans import record_query_plans

pytestmark = pytest.mark.usefixtures("ada")

BOOKINGS = """query ($by: ResourceRef!, $filter: BookingFilter,
    $orderBy: BookingOrder! = STARTS_AT_ASC, $first: Int, $after: String, $last: Int,
    $before: String) {
  resource(by: $by) { bookings(filter: $filter, orderBy: $orderBy, first: $first, after: $after,
      last: $last, before: $before) {
    totalCount nodes { startsAt endsAt uid summary organizer { name address } }
    pageInfo { hasNextPage endCursor startCursor } } } }"""
PRIVATE = {"uid": None, "summary": None, "organizer": None}


async def list_bookings(client: GraphQLClient, address: str, **variables: Any) -> Any:
    return (await client(BOOKINGS, by={"address": address}, **variables))["resource"]["bookings"]


async def resource_row_id(environment: Environment, address: str) -> int:
    ((key,),) = await select_rows(
        environment,
        "SELECT resources.id FROM resources JOIN addresses ON addresses.id = address_id "
        "WHERE display_address = :address",
        address=address,
    )
    return int(key)


async def test_filters_and_orders_select_resources(root: GraphQLClient) -> None:
    await create_domain(root, "other.example")
    for name, fields in (
        ("Zürich", {"kind": "LOCATION"}),
        ("Beamer", {"kind": "THING"}),
        ("älteste", {"kind": "GROUP", "active": False}),
        ("Other", {"domain": {"name": "other.example"}}),
    ):
        await create_resource(root, name, **fields)
    assert await list_resource_names(root) == ["älteste", "Beamer", "Other", "Zürich"]
    assert await list_resource_names(root, orderBy="NAME_DESC", first=2) == ["Zürich", "Other"]
    assert await list_resource_names(root, orderBy="CREATED_AT_DESC")  # the clock stands still
    for conditions, names in (
        ({"domain": {"name": "other.example"}}, ["Other"]),
        ({"kind": "THING"}, ["Beamer"]),
        ({"active": False}, ["älteste"]),
        ({"query": "zurich"}, ["Zürich"]),
        ({"query": "ALT"}, ["älteste"]),
        ({"query": "e", "kind": "LOCATION"}, ["Other"]),
        ({"query": "%"}, []),
        ({"domain": {"name": "missing.example"}}, []),
    ):
        page = await list_resources(root, filter=conditions)
        assert [node["name"] for node in page["nodes"]] == names, conditions
        assert page["totalCount"] == len(names)
    page = await list_resources(root, first=3)
    rest = await list_resources(root, first=3, after=page["pageInfo"]["endCursor"])
    assert [node["name"] for node in rest["nodes"]] == ["Zürich"]
    response = await list_resources(root, last=1, before=rest["pageInfo"]["startCursor"])
    assert [node["name"] for node in response["nodes"]] == ["Other"]


async def test_only_organizer_and_administrators_see_details(
    root: GraphQLClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    trust_front_server(environment)
    room = (await create_resource(root))["address"]
    event = replace(meeting(room, organizer=ada.address), author=ada.address)
    assert await deliver_invitation(environment, event) == "ACCEPTED"
    details = {
        "uid": "meeting-1",
        "summary": "Planning",
        "organizer": {"name": "Carol", "address": ada.address},
    }
    manager = await make_domain_admin(environment, http, "manager")
    for client, expected in ((ada, details), (bob, PRIVATE), (manager, details), (root, details)):
        (node,) = (await list_bookings(client, room))["nodes"]
        assert node["startsAt"] == "2030-01-10T10:00:00Z"
        assert {name: node[name] for name in PRIVATE} == expected


async def test_bookings_are_filtered_by_time_and_paged(
    root: GraphQLClient, environment: Environment
) -> None:
    trust_front_server(environment)
    room = (await create_resource(root))["address"]
    for day in range(10, 20):
        item = meeting(room, hours(day), uid=f"u{day}")
        assert await deliver_invitation(environment, item) == "ACCEPTED"
    page = await list_bookings(
        root,
        room,
        filter={"endsAfter": "2030-01-12T11:00:00Z", "startsBefore": "2030-01-15T10:00:00Z"},
    )
    assert [node["startsAt"][8:10] for node in page["nodes"]] == ["13", "14"]
    assert page["totalCount"] == 2
    page = await list_bookings(root, room, first=4, orderBy="STARTS_AT_DESC")
    rest = await list_bookings(
        root, room, first=4, orderBy="STARTS_AT_DESC", after=page["pageInfo"]["endCursor"]
    )
    assert [node["startsAt"][8:10] for node in rest["nodes"]] == ["15", "14", "13", "12"]
    for at in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"):
        for name in ("endsAfter", "startsBefore"):
            assert (await list_bookings(root, room, filter={name: at}))["totalCount"] in (0, 10)
    response = await root.execute(BOOKINGS, by={"address": room}, after="x")
    assert response["errors"]


async def test_page_of_bookings_reads_the_index(
    root: GraphQLClient, environment: Environment
) -> None:
    room = (await create_resource(root))["address"]
    key = await resource_row_id(environment, room)
    await add_rows(
        environment,
        Booking,
        2000,
        resource_id=key,
        starts_at=lambda n: FIRST_TIME + timedelta(hours=n),
        ends_at=lambda n: FIRST_TIME + timedelta(hours=n + 1),
    )
    with record_query_plans(environment) as plans:
        for order in ("STARTS_AT_ASC", "STARTS_AT_DESC"):
            page = root(
                BOOKINGS.replace("totalCount", ""),
                by={"address": room},
                orderBy=order,
                filter={"endsAfter": "2030-02-01T00:00:00Z"},
            )
            plan = await plans.explain_select(page, "bookings")
            assert "bookings_by_start" in plan, plan
            assert "TEMP B-TREE" not in plan, plan


async def test_number_of_statements_does_not_depend_on_the_number_of_resources(
    root: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    document = """{ resources(first: 100) { totalCount nodes { id name address domain { name }
      bookings(first: 5) { totalCount nodes { startsAt summary organizer { address } } } } } }"""
    trust_front_server(environment)
    counts = []
    for total in (1, 20):
        while len(await list_resource_names(root)) < total:
            room = (await create_resource(root))["address"]
            await deliver_invitation(environment, meeting(room))
        await root(document)
        del statements[:]
        nodes = (await root(document))["resources"]["nodes"]
        assert [node["bookings"]["totalCount"] for node in nodes] == [1] * total
        counts.append(len(statements))
    assert counts[0] == counts[1]
