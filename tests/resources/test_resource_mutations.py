"""Creation, change and deletion of resources: addresses, validation, limits, logs and rights."""

import asyncio
from typing import Any

import httpx
import pytest

from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.clients.change_followers import (
    DOMAIN_CHANGES_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.mail.invitations import deliver_invitation, meeting, trust_front_server
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_DELETE,
    DOMAIN_RENAME,
    DOMAIN_UPDATE,
    ERRORS,
    create_domain,
    load_domain,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.resource_operations import (
    RESOURCE_CREATE,
    RESOURCE_DELETE,
    RESOURCE_UPDATE,
    create_resource,
    list_resource_names,
    list_resources,
    new_resource,
)
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import load_journal_entries, select_rows

pytestmark = pytest.mark.usefixtures("ada", "verify_consistency")

ADDRESS_CREATE = f"""mutation ($input: AddressCreateInput!) {{
  addressCreate(input: $input) {{ address {{ id }} {ERRORS} }} }}"""
TRACE = """query ($address: String!) { addressTrace(address: $address) {
  stage output record { __typename ... on Resource { address } } } }"""


async def update(
    client: GraphQLClient, *addresses: str, **values: Any
) -> tuple[list[Any], list[Any]]:
    refs = [{"address": address} for address in addresses]
    payload, errors = await run_mutation(client, RESOURCE_UPDATE, resources=refs, set=values)
    return payload["resources"], errors


async def delete(client: GraphQLClient, *addresses: str) -> tuple[list[str], list[Any]]:
    refs = [{"address": address} for address in addresses]
    payload, errors = await run_mutation(client, RESOURCE_DELETE, resources=refs)
    return payload["deletedIds"], errors


async def address_count(client: GraphQLClient) -> int:
    return int((await load_domain(client, "example.org"))["addressCount"])


async def test_resource_is_created_updated_listed_and_deleted(
    root: GraphQLClient, environment: Environment
) -> None:
    count = await address_count(root)
    created = await create_resource(root, " Meeting Room 1 ", bookingLimit=1)
    assert created | {"id": None} == {
        "id": None, "name": "Meeting Room 1", "address": "meeting-room-1@example.org",
        "localPart": "meeting-room-1", "kind": "LOCATION", "bookingPolicy": "LIMITED",
        "bookingLimit": 1, "active": True, "domain": {"name": "example.org"},
    }  # fmt: skip
    assert await address_count(root) == count + 1
    stream = await load_domain_id(environment, "example.org")
    assert EventType.RESOURCE_CREATED in [
        kind for kind, _ in await load_journal_entries(environment, stream)
    ]
    (changed,), errors = await update(
        root, created["address"], name="Hall", kind="GROUP", bookingPolicy="ALWAYS_FREE"
    )
    assert errors == []
    assert changed == created | {
        "name": "Hall", "kind": "GROUP", "bookingPolicy": "ALWAYS_FREE", "bookingLimit": None,
    }  # fmt: skip
    assert (await list_resources(root))["nodes"] == [changed]
    assert await delete(root, created["address"]) == ([created["id"]], [])
    assert (await list_resources(root))["totalCount"] == 0
    assert await address_count(root) == count
    assert await select_rows(
        environment,
        "SELECT mutation FROM audit_log WHERE target_kind = 'Resource' ORDER BY id",
    ) == [("resourceCreate",), ("resourceUpdate",), ("resourceDelete",)]


async def test_address_is_made_from_the_name(root: GraphQLClient) -> None:
    cases: list[tuple[str, str, str]] = [
        ("Besprechungsraum Größe 7", "LOCATION", "besprechungsraum-grosse-7"),
        ("Łódź / Ærø", "LOCATION", "lodz-aero"),
        ("Переговорная", "LOCATION", "peregovornaya"),
        ("会議室", "LOCATION", "location"),
        ("🚗", "THING", "thing"),
        ("postmaster", "GROUP", "postmaster-2"),
        ("Ada", "GROUP", "ada-2"),
        ("R&D: " + "x" * 120, "GROUP", "r-d-" + "x" * 44),
    ]
    for case in each_case(cases):
        with case as (name, kind, local_part):
            resource = await create_resource(root, name, kind=kind)
            assert (resource["localPart"], resource["address"]) == (
                local_part,
                f"{local_part}@example.org",
            )


async def test_second_resource_of_a_name_gets_a_number(root: GraphQLClient) -> None:
    created = await asyncio.gather(*(create_resource(root, "Car") for _ in range(4)))
    assert sorted(resource["localPart"] for resource in created) == [
        "car", "car-2", "car-3", "car-4",
    ]  # fmt: skip


async def test_address_of_a_resource_is_taken_for_others(root: GraphQLClient) -> None:
    room = await create_resource(root)
    _, errors = await run_mutation(
        root, ADDRESS_CREATE, address=room["address"], user={"username": "ada"}
    )
    assert [(error["code"], error["path"]) for error in errors] == [("CONFLICT", ["address"])]
    document = f"""mutation ($input: UserCreateInput!) {{
      userCreate(input: $input) {{ user {{ id }} {ERRORS} }} }}"""
    _, errors = await run_mutation(
        root,
        document,
        username="room",
        address=room["address"],
        password="long enough 1 word",  # noqa: S106 - a test's
    )
    assert [error["code"] for error in errors] == ["CONFLICT"]
    for mutation, fields in (
        ("addressUpdate", {"set": {"active": False}}),
        ("addressDelete", {}),
    ):
        document = f"""mutation ($input: {mutation[0].upper()}{mutation[1:]}Input!) {{
          {mutation}(input: $input) {{ {ERRORS} }} }}"""
        _, errors = await run_mutation(
            root, document, addresses=[{"address": room["address"]}], **fields
        )
        assert [error["code"] for error in errors] == ["CONFLICT"], mutation
    _, errors = await run_mutation(root, ADDRESS_CREATE, address="x@example.org", kind="RESOURCE")
    assert [(error["code"], error["constraint"]) for error in errors] == [
        ("VALIDATION", "ADDRESS_KIND")
    ]


async def test_invalid_input_is_refused(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"name": " "}, "name", "REQUIRED"),
        ({"name": "x" * 129}, "name", "LENGTH"),
        ({"name": "a\nb"}, "name", "PATTERN"),
        ({"name": "a\u202eb"}, "name", "PATTERN"),
        ({"bookingPolicy": "LIMITED"}, "bookingLimit", "REQUIRED"),
        ({"bookingPolicy": "LIMITED", "bookingLimit": 0}, "bookingLimit", "MIN"),
        ({"bookingPolicy": "LIMITED", "bookingLimit": -1}, "bookingLimit", "MIN"),
        ({"bookingPolicy": "LIMITED", "bookingLimit": 1001}, "bookingLimit", "MAX"),
        ({"bookingPolicy": "ALWAYS_FREE", "bookingLimit": 1}, "bookingLimit", "EXCLUSIVE"),
    ]
    for case in each_case(cases):
        with case as (fields, path, constraint):
            _, errors = await run_mutation(root, RESOURCE_CREATE, **{**new_resource(), **fields})
            assert [
                (error["code"], error["path"][-1], error["constraint"]) for error in errors
            ] == [("VALIDATION", path, constraint)]
            assert await list_resource_names(root) == []


async def test_update_changes_all_or_none(root: GraphQLClient) -> None:
    first = await create_resource(root, "A", bookingLimit=2)
    second = await create_resource(root, "B")
    addresses = first["address"], second["address"]
    for values, code in (
        ({"bookingLimit": 3}, "VALIDATION"),
        ({}, "VALIDATION"),
        ({"name": ""}, "VALIDATION"),
        ({"bookingPolicy": "LIMITED", "bookingLimit": None}, "VALIDATION"),
    ):
        _, errors = await update(root, *addresses, **values)
        assert {error["code"] for error in errors} == {code}, values
    _, errors = await update(root, first["address"], "nobody@example.org", name="C")
    assert [error["code"] for error in errors] == ["NOT_FOUND"]
    assert (await list_resources(root))["nodes"] == [first, second]
    resources, errors = await update(root, *addresses, bookingPolicy="LIMITED", bookingLimit=5)
    assert errors == []
    assert [resource["bookingLimit"] for resource in resources] == [5, 5]


async def test_address_limit_of_the_domain_counts_resources(root: GraphQLClient) -> None:
    count = await address_count(root)
    domains = [{"name": "example.org"}]
    _, errors = await run_mutation(
        root, DOMAIN_UPDATE, domains=domains, set={"maxAddresses": count + 1}
    )
    assert errors == []
    await create_resource(root)
    _, errors = await run_mutation(root, RESOURCE_CREATE, **new_resource())
    assert [error["code"] for error in errors] == ["LIMIT_REACHED"]


async def test_rename_and_deletion_of_the_domain_include_resources(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "old.example")
    trust_front_server(environment)
    room = await create_resource(root, domain={"name": "old.example"}, bookingLimit=1)
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="alias.example", domain={"name": "old.example"}
    )
    _, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "old.example"}, newName="new.example"
    )
    assert errors == []
    (renamed,) = (await list_resources(root))["nodes"]
    assert (renamed["id"], renamed["address"]) == (room["id"], "room@new.example")
    for number, address in enumerate(("room@new.example", "room@alias.example")):
        times = f"DTSTART:2030011{number}T100000Z\nDURATION:PT1H"
        item = meeting(address, times, uid=f"u{number}")
        assert await deliver_invitation(environment, item) == "ACCEPTED"
        (step,) = (
            step
            for step in (await root(TRACE, address=address))["addressTrace"]
            if step["stage"] == "RESOURCE"
        )
        assert step["record"] == {"__typename": "Resource", "address": "room@new.example"}
    domains = [{"name": "new.example"}]
    payload, errors = await run_mutation(root, DOMAIN_DELETE, domains=domains, cascade=True)
    assert errors == []
    assert payload["deletedIds"]
    assert await list_resource_names(root) == []
    assert await select_rows(environment, "SELECT count(*) FROM bookings") == [(0,)]
    types = [kind for kind, _ in await load_journal_entries(environment, PLATFORM)]
    assert EventType.RESOURCE_DELETED in types


async def test_roles_see_and_change_the_resources_of_their_domains(
    root: GraphQLClient,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    await create_domain(root, "other.example")
    own = await create_resource(root, "Own")
    foreign = await create_resource(root, "Foreign", domain={"name": "other.example"})
    manager = await make_domain_admin(environment, http, "manager")
    assert await list_resource_names(ada) == ["Own"]
    assert await list_resource_names(manager) == ["Own"]
    assert await list_resource_names(admin_client) == ["Foreign", "Own"]
    by_id = "query ($id: ID!) { resource(by: {id: $id}) { name } }"
    assert (await ada(by_id, id=foreign["id"]))["resource"] is None
    for document, fields in (
        (RESOURCE_CREATE, new_resource(domain={"name": "other.example"})),
        (RESOURCE_UPDATE, {"resources": [{"id": foreign["id"]}], "set": {"name": "x"}}),
        (RESOURCE_DELETE, {"resources": [{"id": foreign["id"]}]}),
        (RESOURCE_DELETE, {"resources": [{"id": own["id"]}, {"address": foreign["address"]}]}),
    ):
        _, errors = await run_mutation(manager, document, **fields)
        assert [error["code"] for error in errors] == ["NOT_FOUND"]
        response = await ada.execute(document, input=fields)
        assert "FORBIDDEN" in str(response)
    assert await list_resource_names(root) == ["Foreign", "Own"]
    assert await update(manager, own["address"], name="Renamed") != ([], [])
    assert await list_resource_names(ada) == ["Renamed"]


async def test_inactive_resource_refuses_mail_until_it_is_active(
    root: GraphQLClient, environment: Environment
) -> None:
    trust_front_server(environment)
    room = (await create_resource(root, active=False))["address"]
    with pytest.raises(Exception, match=room):
        await deliver_invitation(environment, meeting(room))
    await update(root, room, active=True)
    assert await deliver_invitation(environment, meeting(room)) == "ACCEPTED"
    await update(root, room, active=False)
    with pytest.raises(Exception, match=room):
        await deliver_invitation(environment, meeting(room, uid="2"))
    assert await select_rows(environment, "SELECT count(*) FROM bookings") == [(1,)]


async def test_administrator_of_the_domain_follows_resources_and_bookings(
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    live_server: LiveServer,
) -> None:
    manager = await make_domain_admin(environment, http, "manager")
    follower = await open_subscription(live_server, "follow", manager, DOMAIN_CHANGES_SUBSCRIPTION)
    trust_front_server(environment)
    room = await create_resource(root)
    assert await deliver_invitation(environment, meeting(room["address"])) == "ACCEPTED"

    def changed_ids() -> list[str]:
        return [
            event["nodeId"]
            for event in received_events(follower)
            if event["type"] in {"RESOURCE_CREATED", "RESOURCE_UPDATED"}
        ]

    await wait_until(lambda: len(changed_ids()) >= 2)
    assert changed_ids() == [room["id"]] * 2
    await follower.unsubscribe()
