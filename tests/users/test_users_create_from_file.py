"""Creating users from a file: formats, errors by line, and continuation after a crash."""

import json
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.transfer import record_files, record_tasks
from resolvers.users.creation.user_records import FIELD_PARSERS
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.import_runs import WorkerCrash
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
    try_sign_in,
)
from tests.support.case_loop import each_case
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

MD5_CRYPT_HASH = "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1"  # hash of "secret"
TASK_FIELDS = "task { id kind state doneCount totalCount result error }"
TASK_QUERY = "query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount result error } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def admin(root: GraphQLClient) -> GraphQLClient:
    """An administrator with a user account."""
    return await make_client(root.environment, root.http, "boss", role=Role.ADMIN)


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def numbered_users(*numbers: int) -> bytes:
    return json_lines(
        *(
            {
                "address": f"n{number}@example.org",
                "password": MD5_CRYPT_HASH,
                "hashedPassword": True,
            }
            for number in numbers
        )
    )


async def upload_file(client: GraphQLClient, content: bytes) -> str:
    response = await client.http.post("/rest/uploads", content=content, headers=client.headers)
    return str(response.json()["id"])


async def start_creation(client: GraphQLClient, content: bytes, **extra: Any) -> Any:
    return await execute_mutation(
        client, "usersCreateFromFile", TASK_FIELDS, file=await upload_file(client, content), **extra
    )


async def run_creation(client: GraphQLClient, content: bytes, **extra: Any) -> Any:
    payload = await start_creation(client, content, **extra)
    assert payload["errors"] == []
    while await tasks.run_next_task(client.environment):
        pass
    return (await client(TASK_QUERY, id=payload["task"]["id"]))["task"]


async def test_csv_file_has_the_fields_of_the_schema(admin: GraphQLClient) -> None:
    content = (
        "\ufeffaddress,password,hashedPassword,name,tags,quota,role,administers,"
        "adminPermissions,retention,metadata,mailboxes.sent,smtpAllowedNetworks,spam.level,limits.receivedPerHour,limits.forwardsPerDay\r\n"
        f'eve@example.org,{MD5_CRYPT_HASH},true,"Eve, Ms.",b; a,3 GiB,domain_admin,example.org,'
        'IMPERSONATE;FILTERS,P10D,"{""a"": [1]}",Gesendet,"[""192.0.2.7/24""]",7,7,unlimited\r\n'
        "\r\n"
        f"dan@example.org,{MD5_CRYPT_HASH},yes,,,,,,,,,,,\r\n"
    )
    task = await run_creation(admin, content.encode())
    assert task == {
        "state": "SUCCEEDED",
        "doneCount": 2,
        "totalCount": 2,
        "error": None,
        "result": {
            "changedCount": 2,
            "createdCount": 2,
            "refusedCount": 0,
            "errors": [],
            "warnings": [],
        },
    }
    document = """{ user(by: {username: "eve@example.org"}) { name tags role retention metadata
      administers { nodes { name } } adminPermissions smtpAllowedNetworks spam { level }
      limits { quota { limit } receivedPerHour { limit } forwardsPerDay { limit } }
      mailboxes { nodes { path } } } }"""
    user = (await admin(document))["user"]
    assert user.pop("mailboxes")["nodes"].count({"path": "Gesendet"}) == 1
    assert user == {
        "name": "Eve, Ms.",
        "tags": ["a", "b"],
        "role": "DOMAIN_ADMIN",
        "retention": "P10D",
        "metadata": {"a": [1]},
        "administers": {"nodes": [{"name": "example.org"}]},
        "adminPermissions": ["FILTERS", "IMPERSONATE"],
        "smtpAllowedNetworks": ["192.0.2.0/24"],
        "spam": {"level": 7},
        "limits": {
            "quota": {"limit": 3 << 30},
            "receivedPerHour": {"limit": 7},
            "forwardsPerDay": {"limit": None},
        },
    }
    assert await try_sign_in(admin.environment, "dan@example.org", "secret")
    log_query = (
        "SELECT target_kind, count(*) FROM audit_log WHERE mutation = :name GROUP BY 1 ORDER BY 1"
    )
    assert await select_rows(admin.environment, log_query, name="usersCreateFromFile") == [
        ("Task", 1),
        ("User", 2),
    ]


async def test_refused_lines_are_reported_and_others_are_created(admin: GraphQLClient) -> None:
    valid_line = numbered_users(1)
    content = valid_line + b"\n".join(
        [
            b"{no json",
            b"[]",
            b"",
            json_lines({"address": "boss@example.org", "passwordDisabled": True}).strip(),
            json_lines({"address": "n1@example.org", "username": "x",
                   "passwordDisabled": True}).strip(),
            json_lines({"address": "n2@example.org", "quota": "much", "flags": 1}).strip(),
            json_lines({"address": "n3@example.org", "password": "no hash", "hashedPassword": True,
                   "spam": {"level": 101}}).strip(),
            json_lines({"address": "n4@example.org", "administers": ["none.example"]}).strip(),
            json_lines({"address": "n5@example.org", "password": "correct horse"}).strip(),
        ]
    )  # fmt: skip
    task = await run_creation(admin, content)
    assert (task["state"], task["doneCount"], task["totalCount"]) == ("SUCCEEDED", 9, 9)
    result = task["result"]
    assert (result["createdCount"], result["refusedCount"]) == (2, 7)
    assert [(error["line"], error["code"], error["path"]) for error in result["errors"]] == [
        (2, "VALIDATION", []),
        (3, "VALIDATION", []),
        (5, "CONFLICT", ["address"]),
        (6, "CONFLICT", ["address"]),
        (7, "VALIDATION", ["flags"]),
        (7, "VALIDATION", ["password"]),
        (7, "VALIDATION", ["quota"]),
        (8, "VALIDATION", ["password"]),
        (8, "VALIDATION", ["spam", "level"]),
        (9, "NOT_FOUND", ["administers"]),
    ]
    assert "no hash" not in str(result)
    assert await try_sign_in(admin.environment, "n5@example.org", "correct horse")
    assert await select_rows(admin.environment, "SELECT count(*) FROM uploads") == [(0,)]
    assert await select_rows(admin.environment, "SELECT count(*) FROM import_archives") == [(0,)]


async def test_file_with_unknown_columns_is_refused_at_once(admin: GraphQLClient) -> None:
    cases: list[tuple[bytes, str]] = [
        (b"", "COLUMNS"),
        (b"address,pasword\nx@example.org,y\n", "COLUMNS"),
        (b"address,address\nx@example.org,y\n", "COLUMNS"),
    ]
    for case in each_case(cases):
        with case as (content, constraint):
            payload = await start_creation(admin, content, format="CSV")
            (error,) = payload["errors"]
            assert (payload["task"], error["code"], error["path"], error["constraint"]) == (
                None, "VALIDATION", ["file"], constraint,
            )  # fmt: skip
    upload_id = str(global_ids.encode("Upload", 7))
    payload = await execute_mutation(admin, "usersCreateFromFile", TASK_FIELDS, file=upload_id)
    assert "NOT_FOUND" in str(payload)


async def test_file_that_is_not_utf8_fails(admin: GraphQLClient) -> None:
    task = await run_creation(admin, b"address,passwordDisabled\na@example.org,true\n\xff,true\n")
    assert (task["state"], task["error"]) == ("FAILED", "The file must be encoded in UTF-8.")


async def test_crashed_creation_continues_and_creates_each_user_once(
    admin: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_tasks, "CHUNK_RECORDS", 3)  # so small that there are several chunks
    environment = admin.environment
    payload = await start_creation(admin, numbered_users(*range(10)))

    def fail(fault_point: str) -> None:
        if fault_point == "records stored" and next(countdown) == 0:
            raise WorkerCrash

    countdown = iter((2, 1, 0))
    object.__setattr__(environment, "reach_fault_point", fail)
    with pytest.raises(WorkerCrash):
        await tasks.run_next_task(environment)
    assert await select_rows(environment, "SELECT count(*) FROM users") == [(1 + 2 * 3,)]
    object.__setattr__(environment, "reach_fault_point", lambda _: None)
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    task = (await admin(TASK_QUERY, id=payload["task"]["id"]))["task"]
    assert (task["state"], task["doneCount"], task["totalCount"]) == ("SUCCEEDED", 10, 10)
    assert task["result"]["createdCount"] == 10
    assert await select_rows(environment, "SELECT count(*) FROM users") == [(11,)]


@pytest.mark.usefixtures("admin")
async def test_domain_admin_creates_users_of_own_domains_only(root: GraphQLClient) -> None:
    domain_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE)
    await try_create_user(root, address="x@elsewhere.example")
    content = numbered_users(1) + json_lines(
        {"address": "y@elsewhere.example", "passwordDisabled": True},
        {"address": "z@example.org", "passwordDisabled": True, "role": "ADMIN"},
        {"address": "q@example.org", "passwordDisabled": True, "quota": None},
        {
            "username": "ceo@elsewhere.example",
            "address": "ceo@example.org",
            "passwordDisabled": True,
        },
    )
    task = await run_creation(domain_admin, content)
    errors = task["result"]["errors"]
    assert [(error["line"], error["code"]) for error in errors] == [
        (2, "NOT_FOUND"), (3, "FORBIDDEN"), (4, "FORBIDDEN"), (5, "FORBIDDEN"),
    ]  # fmt: skip


async def test_creation_fails_after_the_loss_of_the_role(
    root: GraphQLClient, admin: GraphQLClient
) -> None:
    payload = await start_creation(admin, numbered_users(1))
    async with root.environment.write_session() as session:
        await (await session.connection()).execute(
            text("UPDATE users SET role = 'USER' WHERE id = :key"), {"key": admin.user.id}
        )
    assert await tasks.run_next_task(root.environment)
    task = (await root(TASK_QUERY, id=payload["task"]["id"]))["task"]
    assert (task["state"], task["doneCount"]) == ("FAILED", 0)
    assert "can no longer create users" in task["error"]


async def test_creation_from_file_needs_an_admin(ada: GraphQLClient) -> None:
    payload = await start_creation(ada, numbered_users(1))
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]


async def test_metadata_in_file_obeys_the_limit(admin: GraphQLClient) -> None:
    change_options(admin.environment, metadata_max_size=100)
    record = {"password": MD5_CRYPT_HASH, "hashedPassword": True}
    sizes = {"small": 80, "big": 120}
    content = json_lines(
        *(
            {**record, "address": f"{name}@example.org", "metadata": {"a": "x" * size}}
            for name, size in sizes.items()
        )
    )
    task = await run_creation(admin, content)
    assert task["result"]["createdCount"] == 1
    assert [(error["line"], error["code"]) for error in task["result"]["errors"]] == [
        (2, "VALIDATION")
    ]
    query = "SELECT username FROM users WHERE username LIKE '%@example.org'"
    usernames = {username for (username,) in await select_rows(admin.environment, query)}
    assert usernames & {f"{name}@example.org" for name in sizes} == {"small@example.org"}


async def test_empty_list_of_networks_is_refused(admin: GraphQLClient) -> None:
    user = {"password": MD5_CRYPT_HASH, "hashedPassword": True}
    content = json_lines(
        {**user, "address": "a@example.org", "smtpAllowedNetworks": []},
        {**user, "address": "b@example.org", "smtpAllowedNetworks": None},
    )
    result = (await run_creation(admin, content))["result"]
    assert (result["createdCount"], result["refusedCount"]) == (1, 1)
    (error,) = result["errors"]
    assert (error["line"], error["path"]) == (1, ["smtpAllowedNetworks"])


HOSTILE_NUMBERS = ("nan", "inf", "-inf", 10**19, -(10**19), 10**300, "9" * 4000, "P9999Y99999M")


async def test_fields_with_nul_or_hostile_values_are_refused(admin: GraphQLClient) -> None:
    records: list[tuple[str, Any]] = []
    for name, parser in FIELD_PARSERS.items():
        value: Any = {"sent": "a\0b"} if name == "mailboxes" else "a\0b"
        records.append((name, value))
        if parser is record_files.parse_texts or parser is record_files.parse_json:
            records += [(name, '["a\\u0000b"]'), (name, ["a\0b"]), (name, [{"a\0b": 1}])]
    records += [("metadata", {"x": ["a\0b"]}), ("metadata", {"a\0b": 1}), ("a\0b", 1)]
    records.append(("metadata", json.loads("[" * 900 + "]" * 900)))
    numeric_names = ("quota", "retention", "spam.level", "spam.junkScore", "spam.rejectScore",
                     "limits.receivedPerHour", "limits.recipientsPerDay",
                     "limits.forwardsPerDay")  # fmt: skip
    assert set(numeric_names) <= FIELD_PARSERS.keys()
    records += [(name, value) for name in numeric_names for value in HOSTILE_NUMBERS]
    user = {"address": "valid@example.org", "passwordDisabled": True}
    lines = [
        {**user, "address": f"n{number}@example.org", name: value}
        for number, (name, value) in enumerate(records)
    ]
    task = await run_creation(admin, json_lines(user, *lines))
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    errors_by_line = {error["line"]: error for error in task["result"]["errors"]}
    for line, (name, value) in enumerate(records, 2):
        error = errors_by_line[line]
        assert error["code"] == "VALIDATION", (name, value)
        assert error["path"] == name.replace("\0", "").split("."), (name, value)
    assert (task["result"]["createdCount"], task["result"]["refusedCount"]) == (1, len(records))


async def test_csv_cells_and_header_with_nul_are_refused(admin: GraphQLClient) -> None:
    content = (
        b"address,passwordDisabled,name,tags,metadata\n"
        b'a@example.org,true,"a\0b",,\n'
        b'b@example.org,true,,"[""a\\u0000b""]",\n'
        b'c@example.org,true,,,"{""a"": ""\\u0000""}"\n'
        b"d@example.org,true,,a;b,\n"
    )
    task = await run_creation(admin, content)
    assert (task["state"], task["result"]["createdCount"]) == ("SUCCEEDED", 1)
    assert [(error["line"], error["path"]) for error in task["result"]["errors"]] == [
        (2, ["name"]), (3, ["tags"]), (4, ["metadata"]),
    ]  # fmt: skip
    # the check before the task reads only the first line of the header
    task = await run_creation(admin, b'address,"name\n\0"\na@example.org,x\n', format="CSV")
    assert (task["state"], task["error"]) == ("FAILED", "Unknown columns: name\n.")
