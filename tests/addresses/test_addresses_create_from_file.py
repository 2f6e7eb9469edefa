"""Creating addresses from a file: fields, errors by line, and continuation after a crash."""

import json
from typing import Any

import pytest

from models.users.roles import AdminPermission, Role
from resolvers.addresses.file_create import FIELD_PARSERS
from resolvers.admin import tasks
from resolvers.transfer import record_files, record_tasks
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.import_runs import WorkerCrash, upload_content
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
)
from tests.support.operations.address_operations import load_address
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

TASK_FIELDS = "task { id kind state }"
TASK_QUERY = "query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount result error } }"
pytestmark = pytest.mark.usefixtures("verify_counters")


@pytest.fixture
async def admin(root: GraphQLClient) -> GraphQLClient:
    """An administrator with a user account."""
    return await make_client(root.environment, root.http, "boss", role=Role.ADMIN)


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


async def start_creation(client: GraphQLClient, content: bytes, **extra: Any) -> Any:
    upload_id = await upload_content(client, content)
    return await execute_mutation(
        client, "addressesCreateFromFile", TASK_FIELDS, file=upload_id, **extra
    )


async def run_creation(client: GraphQLClient, content: bytes) -> Any:
    payload = await start_creation(client, content)
    assert payload["errors"] == []
    while await tasks.run_next_task(client.environment):
        pass
    return (await client(TASK_QUERY, id=payload["task"]["id"]))["task"]


async def test_csv_file_has_the_fields_of_the_schema(
    admin: GraphQLClient, ada: GraphQLClient
) -> None:
    content = (
        "address,kind,user,name,forwardTo,main,active,sendAs,allowWildcard,"
        "limits.forwardsPerDay,expiresAt,tags,publicComment,privateComment,metadata\r\n"
        "desk@example.org,mailbox,ada,Desk,,,no,false,,,2031-01-01T00:00:00Z,b; a,Ours,Mine,"
        '"{""n"": 1}"\r\n'
        "list@example.org,,,,x@far.example;y@far.example,,,,,7,,,,,\r\n"
        "all@example.org,,,,x@far.example,,,,,unlimited,,,,,\r\n"
        f"@example.org,,{ada.address},,,,,,true,,,,,,\r\n"
        "new@example.org,,ada,,,yes,,,,,,,,,\r\n"
    )
    task = await run_creation(admin, content.encode())
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert task["result"] == {
        "changedCount": 5, "createdCount": 5, "refusedCount": 0, "errors": [], "warnings": [],
    }  # fmt: skip
    desk = await load_address(admin, "desk@example.org")
    assert (desk["kind"], desk["user"], desk["name"]) == ("MAILBOX", {"username": "ada"}, "Desk")
    assert (desk["active"], desk["sendAs"], desk["tags"]) == (False, False, ["a", "b"])
    assert (desk["publicComment"], desk["metadata"]) == ("Ours", {"n": 1})
    assert desk["expiresAt"].startswith("2031-01-01T00:00:00")
    forward = await load_address(admin, "list@example.org")
    assert (forward["kind"], forward["forwardTo"]) == (
        "FORWARD",
        ["x@far.example", "y@far.example"],
    )
    assert forward["limits"]["forwardsPerDay"]["limit"] == 7
    unlimited = await load_address(admin, "all@example.org")
    assert unlimited["limits"]["forwardsPerDay"]["limit"] is None
    assert (await load_address(admin, "*@example.org"))["catchAll"] is True
    assert (await load_address(admin, "new@example.org"))["main"] is True
    log_query = (
        "SELECT target_kind, count(*) FROM audit_log WHERE mutation = :name GROUP BY 1 ORDER BY 1"
    )
    assert await select_rows(admin.environment, log_query, name="addressesCreateFromFile") == [
        ("Address", 5),
        ("Task", 1),
    ]


@pytest.mark.usefixtures("ada")
async def test_refused_lines_are_reported_and_others_are_created(admin: GraphQLClient) -> None:
    content = b"{no json\n" + json_lines(
        {"address": "a@example.org", "user": "ada"},
        {"address": "a@example.org", "user": "ada"},
        {"address": "b@example.org", "user": "nobody"},
        {"address": "b+x@example.org", "user": "ada", "active": "maybe", "flags": 1},
        {"user": "ada"},
        {"address": "b@example.org", "user": "ada", "expiresAt": "2031-01-01T00:00:00"},
        {
            "address": "b@example.org",
            "forwardTo": ["x@far.example"],
            "limits": {"forwardsPerDay": -1},
        },
        {"address": "b@example.org", "forwardTo": ["x@far.example"]},
        {"address": "c@example.org", "user": "ada", "metadata": {"x": "y" * (64 << 10)}},
    )
    task = await run_creation(admin, content)
    assert (task["state"], task["doneCount"], task["totalCount"]) == ("SUCCEEDED", 10, 10)
    result = task["result"]
    assert (result["createdCount"], result["refusedCount"]) == (2, 8)
    assert [(error["line"], error["code"], error["path"]) for error in result["errors"]] == [
        (1, "VALIDATION", []),
        (3, "CONFLICT", ["address"]),
        (4, "NOT_FOUND", ["user"]),
        (5, "VALIDATION", ["active"]),
        (5, "VALIDATION", ["address"]),
        (5, "VALIDATION", ["flags"]),
        (6, "VALIDATION", ["address"]),
        (7, "VALIDATION", ["expiresAt"]),
        (8, "VALIDATION", ["limits", "forwardsPerDay"]),
        (10, "VALIDATION", ["metadata"]),
    ]
    assert await select_rows(admin.environment, "SELECT count(*) FROM uploads") == [(0,)]
    assert await select_rows(admin.environment, "SELECT count(*) FROM import_archives") == [(0,)]


@pytest.mark.usefixtures("ada")
async def test_file_with_byte_order_mark_crlf_and_blank_lines_is_read(admin: GraphQLClient) -> None:
    content = (
        b"\xef\xbb\xbfaddress,user\r\na@example.org,ada\r\n\r\n"
        b'"b@example.org","ada"\r\nA@example.org,ada\r\nc@example.org,ada,x\r\n'
    )
    task = await run_creation(admin, content)
    result = task["result"]
    assert (task["state"], result["createdCount"], result["refusedCount"]) == ("SUCCEEDED", 2, 2)
    assert [(error["line"], error["code"]) for error in result["errors"]] == [
        (5, "CONFLICT"), (6, "VALIDATION"),
    ]  # fmt: skip
    task = await run_creation(admin, b"address,user\r\n")
    assert (task["state"], task["totalCount"], task["result"]["createdCount"]) == (
        "SUCCEEDED",
        0,
        0,
    )
    for empty in (b"", b"\xef\xbb\xbf", b"\r\n"):
        payload = await start_creation(admin, empty)
        assert [error["path"] for error in payload["errors"]] == [["file"]]


async def test_errors_of_long_records_are_short(admin: GraphQLClient) -> None:
    long_name = "x" * 100_000
    content = json_lines(
        {"address": "a@example.org", "user": long_name},
        {"address": "a@example.org", "forwardTo": ["x@far.example"], long_name: 1},
        {f"field{number}": 1 for number in range(1000)},
    )
    result = (await run_creation(admin, content))["result"]
    assert [error["line"] for error in result["errors"]] == [1, 2, 3]
    assert len(json.dumps(result)) < 3000
    assert result["errors"][2]["message"] == "A record has at most 200 fields."


async def test_file_with_unknown_columns_is_refused_at_once(admin: GraphQLClient) -> None:
    payload = await start_creation(admin, b"address,autoreply\nx@example.org,y\n", format="CSV")
    (error,) = payload["errors"]
    assert (payload["task"], error["code"], error["path"], error["constraint"]) == (
        None, "VALIDATION", ["file"], "COLUMNS",
    )  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_crashed_creation_continues_and_creates_each_address_once(
    admin: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_tasks, "CHUNK_RECORDS", 3)  # so small that there are several chunks
    environment = admin.environment
    records = [{"address": f"n{number}@example.org", "user": "ada"} for number in range(10)]
    payload = await start_creation(admin, json_lines(*records))

    def fail(fault_point: str) -> None:
        if fault_point == "records stored" and next(countdown) == 0:
            raise WorkerCrash

    countdown = iter((2, 1, 0))
    object.__setattr__(environment, "reach_fault_point", fail)
    with pytest.raises(WorkerCrash):
        await tasks.run_next_task(environment)
    count_query = "SELECT count(*) FROM addresses WHERE local LIKE 'n%'"
    assert await select_rows(environment, count_query) == [(2 * 3,)]
    object.__setattr__(environment, "reach_fault_point", lambda _: None)
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    task = (await admin(TASK_QUERY, id=payload["task"]["id"]))["task"]
    assert (task["state"], task["doneCount"], task["totalCount"]) == ("SUCCEEDED", 10, 10)
    assert task["result"]["createdCount"] == 10
    assert await select_rows(environment, count_query) == [(10,)]


@pytest.mark.usefixtures("ada", "admin")
async def test_domain_admin_creates_addresses_of_own_domains_and_users_only(
    root: GraphQLClient,
) -> None:
    domain_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE)
    await try_create_user(root, address="eve@foreign.example")
    content = json_lines(
        {"address": "a@example.org", "user": "ada"},
        {"address": "b@foreign.example", "forwardTo": ["x@far.example"]},
        {"address": "c@example.org", "user": "eve@foreign.example"},
        {"address": "d@example.org", "user": "boss"},
    )
    task = await run_creation(domain_admin, content)
    assert [(error["line"], error["code"]) for error in task["result"]["errors"]] == [
        (2, "NOT_FOUND"), (3, "NOT_FOUND"), (4, "FORBIDDEN"),
    ]  # fmt: skip
    assert (await load_address(root, "a@example.org"))["user"] == {"username": "ada"}
    assert await load_address(root, "c@example.org") is None


async def test_other_user_can_neither_start_nor_see_a_creation(
    admin: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    content = json_lines({"address": "a@example.org", "user": "ada"})
    payload = await start_creation(bob, content)
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    payload = await start_creation(admin, content)
    assert (await bob(TASK_QUERY, id=payload["task"]["id"]))["task"] is None
    assert (await ada(TASK_QUERY, id=payload["task"]["id"]))["task"] is None
    foreign_upload_id = await upload_content(bob, content)
    payload = await execute_mutation(
        admin, "addressesCreateFromFile", TASK_FIELDS, file=foreign_upload_id
    )
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("NOT_FOUND", ["file"])
    ]


HOSTILE_NUMBERS = ("nan", "inf", "-inf", 10**19, -(10**19), 10**300, "9" * 4000)
HOSTILE_TIMES = ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+14:00", "9999-12-31", "nan", 7)


@pytest.mark.usefixtures("ada")
async def test_fields_with_nul_or_hostile_values_are_refused(admin: GraphQLClient) -> None:
    records: list[tuple[str, Any]] = []
    for name, parser in FIELD_PARSERS.items():
        records.append((name, "a\0b"))
        if parser is record_files.parse_texts or parser is record_files.parse_json:
            records += [(name, '["a\\u0000b"]'), (name, ["a\0b"]), (name, [{"a\0b": 1}])]
    records += [("metadata", {"x": ["a\0b"]}), ("metadata", {"a\0b": 1}), ("a\0b", 1)]
    records.append(("metadata", json.loads("[" * 900 + "]" * 900)))
    records += [("limits.forwardsPerDay", value) for value in HOSTILE_NUMBERS]
    records += [("expiresAt", value) for value in HOSTILE_TIMES]
    address = {"address": "valid@example.org", "user": "ada"}
    lines = [
        {**address, "address": f"n{number}@example.org", name: value}
        for number, (name, value) in enumerate(records)
    ]
    task = await run_creation(admin, json_lines(address, *lines))
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    errors_by_line = {error["line"]: error for error in task["result"]["errors"]}
    for line, (name, value) in enumerate(records, 2):
        error = errors_by_line[line]
        assert error["code"] == "VALIDATION", (name, value)
        assert error["path"] == name.replace("\0", "").split("."), (name, value)
    assert (task["result"]["createdCount"], task["result"]["refusedCount"]) == (1, len(records))
