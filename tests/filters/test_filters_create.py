"""Creating many filters at once: from a list, all or none, and from a file."""

import json
from typing import Any

import pytest

from graph.types import global_ids
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.filters import bulk_create
from resolvers.transfer import record_tasks
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.import_runs import WorkerCrash, upload_content
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_update_users,
)
from tests.support.operations.filter_operations import list_filters
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

TASK_FIELDS = "task { id kind state }"
TASK_QUERY = "query ($id: ID!) { task(by: {id: $id}) { state doneCount totalCount result error } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def admin(root: GraphQLClient) -> GraphQLClient:
    """An administrator with a user account."""
    return await make_client(root.environment, root.http, "boss", role=Role.ADMIN)


def new_filter(name: str, user: str | None = None, **fields: Any) -> dict[str, Any]:
    owner = {"user": {"username": user}} if user else {}
    return {"name": name, "query": {"subject": name}, "action": {"seen": True}, **owner, **fields}


def record(name: str, user: str, **fields: Any) -> dict[str, Any]:
    return new_filter(name, **{"user": user, **fields}) | {"user": user}


def json_lines(*records: Any) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in records)


async def create_all(client: GraphQLClient, *filters: dict[str, Any], **extra: Any) -> Any:
    fields = "filters { name position user { username } }"
    return await execute_mutation(client, "filtersCreate", fields, filters=list(filters), **extra)


async def names_of_filters(client: GraphQLClient) -> list[str]:
    return [node["name"] for node in (await list_filters(client))["nodes"]]


def error_codes_and_paths(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["errors"]]


async def start_creation(client: GraphQLClient, content: bytes) -> Any:
    upload_id = await upload_content(client, content)
    return await execute_mutation(client, "filtersCreateFromFile", TASK_FIELDS, file=upload_id)


async def run_creation(client: GraphQLClient, content: bytes) -> Any:
    payload = await start_creation(client, content)
    assert payload["errors"] == []
    while await tasks.run_next_task(client.environment):
        pass
    return (await client(TASK_QUERY, id=payload["task"]["id"]))["task"]


async def test_filters_are_created_in_input_order(
    admin: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    payload = await create_all(
        admin, new_filter("a", "ada"), new_filter("b", "bob"), new_filter("c", "ada"),
        new_filter("own"),
    )  # fmt: skip
    assert payload["errors"] == []
    assert payload["filters"] == [
        {"name": "a", "position": 0, "user": {"username": "ada"}},
        {"name": "b", "position": 0, "user": {"username": "bob"}},
        {"name": "c", "position": 1, "user": {"username": "ada"}},
        {"name": "own", "position": 0, "user": {"username": "boss"}},
    ]
    assert await names_of_filters(ada) == ["a", "c"]
    assert await names_of_filters(bob) == ["b"]
    log_query = "SELECT count(*) FROM audit_log WHERE mutation = 'filtersCreate'"
    assert await select_rows(admin.environment, log_query) == [(3,)]


async def test_errors_have_the_position_of_the_filter_and_nothing_is_stored(
    ada: GraphQLClient,
) -> None:
    payload = await create_all(
        ada,
        new_filter("fine"),
        new_filter("x", action={}),
        new_filter("x", query={"subject": " "}),
        new_filter("x", action={"mailbox": {"path": "None"}}),
        new_filter("x", "nobody"),
    )
    assert payload["filters"] == []
    assert error_codes_and_paths(payload) == [
        ("VALIDATION", ["filters", "1", "action"]),
        ("VALIDATION", ["filters", "2", "query", "subject"]),
        ("NOT_FOUND", ["filters", "3", "action", "mailbox"]),
        ("NOT_FOUND", ["filters", "4", "user"]),
    ]
    assert await names_of_filters(ada) == []


async def test_number_of_statements_does_not_depend_on_the_number_of_filters(
    admin: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    users = [{"id": global_ids.encode("User", client.user.id)} for client in (ada, bob)]
    counts = list[int]()
    for count in (4, 4, 40):
        del statements[:]
        payload = await create_all(
            admin, *(new_filter("x") | {"user": users[number % 2]} for number in range(count))
        )
        assert (payload["errors"], len(payload["filters"])) == ([], count)
        counts.append(len(statements))
    assert counts[2] == counts[1]


async def test_positions_of_created_filters_continue_those_before(ada: GraphQLClient) -> None:
    payload = await create_all(ada, new_filter("a"), new_filter("b", position=7), new_filter("c"))
    assert [node["position"] for node in payload["filters"]] == [0, 7, 8]
    payload = await create_all(ada, new_filter("d", position=2**31 - 1), new_filter("e"))
    assert [node["position"] for node in payload["filters"]] == [2**31 - 1, 2**31 - 1]


async def test_metadata_over_the_quota_are_refused_by_position(
    admin: GraphQLClient, ada: GraphQLClient
) -> None:
    _, errors = await try_update_users(admin, ada, quota="3000")
    assert errors == []
    metadata = {"x": "y" * 1000}
    payload = await create_all(ada, *(new_filter("x", metadata=metadata) for _ in range(3)))
    assert error_codes_and_paths(payload) == [("QUOTA_EXCEEDED", ["filters", "2"])]
    assert await names_of_filters(ada) == []


async def test_platform_key_must_name_the_owner(root: GraphQLClient, ada: GraphQLClient) -> None:
    payload = await create_all(root, new_filter("x", "ada"), new_filter("x"))
    assert [error["path"] for error in payload["errors"]] == [["filters", "1"]]
    assert await names_of_filters(ada) == []


async def test_number_of_filters_is_limited(ada: GraphQLClient) -> None:
    for count in (0, bulk_create.MAX_FILTERS + 1):
        payload = await create_all(ada, *(new_filter("x") for _ in range(count)))
        assert error_codes_and_paths(payload) == [("VALIDATION", ["filters"])]
    set_options(ada.environment, filters_max_per_user=2)
    payload = await create_all(ada, *(new_filter("x") for _ in range(3)))
    assert error_codes_and_paths(payload) == [("LIMIT_REACHED", ["filters", "2", "user"])]
    payload = await create_all(ada, new_filter("x"), options={"validateOnly": True})
    assert (payload["errors"], await names_of_filters(ada)) == ([], [])


async def test_other_user_sees_and_changes_nothing(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    payload = await create_all(bob, new_filter("x", "ada"))
    assert error_codes_and_paths(payload) == [("NOT_FOUND", ["filters", "0", "user"])]
    bare_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE, name="bare")
    payload = await create_all(bare_admin, new_filter("x", "ada"))
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    assert await names_of_filters(ada) == []
    payload = await create_all(ada, new_filter("mine"))
    assert payload["errors"] == []
    assert await names_of_filters(bob) == []


async def test_file_has_the_fields_of_the_schema(admin: GraphQLClient, ada: GraphQLClient) -> None:
    content = (
        "user,name,query,action,active,position,metadata\r\n"
        'ada,Lists,"{""from"": ""ann""}","{""mailbox"": ""Sent"", ""keywords"": [""news""]}",'
        'no,5,"{""n"": 1}"\r\n'
        f'{ada.address},All,{{}},"{{""forwardTo"": [""x@far.example""]}}",,,\r\n'
    )
    task = await run_creation(admin, content.encode())
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert (task["result"]["createdCount"], task["result"]["errors"]) == (2, [])
    first, second = (await list_filters(ada))["nodes"]
    assert (first["name"], first["active"], first["position"]) == ("Lists", False, 5)
    assert (first["query"]["from"], first["metadata"]) == ("ann", {"n": 1})
    assert (first["action"]["mailbox"], first["action"]["keywords"]) == (
        {"path": "Sent"}, ["news"],
    )  # fmt: skip
    assert (second["position"], second["action"]["forwardTo"]) == (6, ["x@far.example"])


@pytest.mark.usefixtures("ada")
async def test_refused_lines_are_reported_and_others_are_created(admin: GraphQLClient) -> None:
    content = json_lines(
        record("a", "ada"),
        record("x", "nobody"),
        {"user": "ada", "name": "x"},
        record("x", "ada", query={"subject": 5}),
        record("x", "ada", action={"webhook": "web_1"}),
        record("x", "ada", action={"mailbox": "None"}),
        record("x", "ada", action={}),
        record("b", "ada", metadata={"x": "y" * (64 << 10)}),
    )
    task = await run_creation(admin, content)
    result = task["result"]
    assert (task["state"], result["createdCount"], result["refusedCount"]) == ("SUCCEEDED", 1, 7)
    assert [(error["line"], error["code"], error["path"]) for error in result["errors"]] == [
        (2, "NOT_FOUND", ["user"]),
        (3, "VALIDATION", ["action"]),
        (3, "VALIDATION", ["query"]),
        (4, "VALIDATION", ["query", "subject"]),
        (5, "VALIDATION", ["action", "webhook"]),
        (6, "NOT_FOUND", ["action", "mailbox"]),
        (7, "VALIDATION", ["action"]),
        (8, "VALIDATION", ["metadata"]),
    ]


async def test_crashed_creation_continues_and_creates_each_filter_once(
    admin: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_tasks, "CHUNK_RECORDS", 3)  # so small that there are several chunks
    environment = admin.environment
    names = [f"n{number}" for number in range(10)]
    payload = await start_creation(admin, json_lines(*(record(name, "ada") for name in names)))

    def fail(fault_point: str) -> None:
        if fault_point == "records stored" and next(countdown) == 0:
            raise WorkerCrash

    countdown = iter((2, 1, 0))
    object.__setattr__(environment, "reach_fault_point", fail)
    with pytest.raises(WorkerCrash):
        await tasks.run_next_task(environment)
    object.__setattr__(environment, "reach_fault_point", lambda _: None)
    assert await names_of_filters(ada) == names[:6]
    await deregister_as_dead(environment)
    assert await tasks.run_next_task(environment)
    task = (await admin(TASK_QUERY, id=payload["task"]["id"]))["task"]
    assert (task["state"], task["doneCount"], task["totalCount"]) == ("SUCCEEDED", 10, 10)
    assert await names_of_filters(ada) == names


@pytest.mark.usefixtures("admin")
async def test_domain_admin_creates_filters_by_permission_only(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    content = json_lines(record("a", "ada"), record("b", "boss"))
    payload = await start_creation(ada, content)
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    bare_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE, name="bare")
    task = await run_creation(bare_admin, content)
    errors = task["result"]["errors"]
    assert [(error["line"], error["code"]) for error in errors] == [
        (1, "FORBIDDEN"), (2, "FORBIDDEN"),
    ]  # fmt: skip
    filter_admin = await make_admin_of_domain(root, AdminPermission.FILTERS)
    task = await run_creation(filter_admin, content)
    errors = task["result"]["errors"]
    assert [(error["line"], error["code"]) for error in errors] == [(2, "FORBIDDEN")]
    assert await names_of_filters(ada) == ["a"]


async def test_queries_of_a_file_have_the_names_of_the_schema(
    admin: GraphQLClient, ada: GraphQLClient
) -> None:
    query = {
        "toOrCc": "ada@",
        "header": {"name": "X-Kind", "value": "bill"},
        "larger": "2 KiB",
        "any": [{"regex": {"name": "Subject", "pattern": "^a"}}, {"not": [{"toOrCc": "bob"}]}],
    }
    bad_queries: list[dict[str, Any]] = [
        {"to": "ada"},
        {"header": {"key": "X-Kind"}},
        {"header": {"value": "bill"}},
        {"any": [{"toOrCc": 5}]},
        {"larger": "much"},
        {"regex": {"pattern": 5}},
        {"header": "X-Kind"},
        {"any": {"subject": "x"}},
        {"any": ["x"]},
    ]
    records = [record("x", "ada", query=bad_query) for bad_query in bad_queries]
    task = await run_creation(admin, json_lines(record("fine", "ada", query=query), *records))
    errors = task["result"]["errors"]
    assert [(error["line"], error["code"], error["path"]) for error in errors] == [
        (2, "VALIDATION", ["query", "to"]),
        (3, "VALIDATION", ["query", "header", "key"]),
        (3, "VALIDATION", ["query", "header", "name"]),
        (4, "VALIDATION", ["query", "header", "name"]),
        (5, "VALIDATION", ["query", "any", "0", "toOrCc"]),
        (6, "VALIDATION", ["query", "larger"]),
        (7, "VALIDATION", ["query", "regex", "pattern"]),
        (8, "VALIDATION", ["query", "header"]),
        (9, "VALIDATION", ["query", "any"]),
        (10, "VALIDATION", ["query", "any", "0"]),
    ]
    fields = "query { toOrCc header { name value } larger any { regex { name pattern } } }"
    data = await ada(f"{{ viewer {{ user {{ filters {{ nodes {{ {fields} }} }} }} }} }}")
    (stored,) = data["viewer"]["user"]["filters"]["nodes"]
    assert stored["query"]["toOrCc"] == "ada@"
    assert stored["query"]["header"] == {"name": "X-Kind", "value": "bill"}
    assert int(stored["query"]["larger"]) == 2048
    assert stored["query"]["any"][0]["regex"] == {"name": "Subject", "pattern": "^a"}
