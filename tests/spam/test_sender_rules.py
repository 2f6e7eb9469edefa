"""Sender rules: creation, lists, limits, events, and how they apply."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, text

from graph.types import global_ids
from mail.spam.sender_rules import load_matching_rules
from models.runtime.environment import Environment
from models.spam.sender_rules import (
    PLATFORM_SCOPE,
    SenderAction,
    SenderRule,
    scope_of_domain,
    scope_of_user,
)
from models.store.columns import core_table
from models.users.roles import AdminPermission
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.clients.change_followers import (
    DOMAIN_CHANGES_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.operations.domain_operations import (
    DOMAIN_DELETE,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.id_references import id_refs
from tests.support.operations.spam_operations import (
    ADA_SCOPE,
    DELETE_RULES,
    GLOBAL_SCOPE,
    LIST_RULES,
    RULE_CREATED,
    RULE_DELETED,
    RULE_NODE,
    RULE_UPDATED,
    SENDER_RULE_CREATE,
    SenderRuleRecipient,
    create_sender_rules,
    rule_error,
    rule_rows,
    visible_patterns,
)
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import load_journal_entries, load_stream_position
from tests.support.stores.query_plans import record_query_plans


async def test_user_creates_and_deletes_own_rules(
    ada: GraphQLClient, environment: Environment
) -> None:
    position = await load_stream_position(environment, ada.user.id)
    patterns = ["*@Shop.example", "News@Other.example", "shop.example", "*.far.example"]
    rules = await create_sender_rules(
        ada, ADA_SCOPE, *patterns, action="ALLOW", comment=" friends "
    )
    assert [rule["pattern"] for rule in rules] == [
        "shop.example", "news@other.example", "*.far.example",
    ]  # fmt: skip
    user_scope = {"user": {"username": "ada"}, "tag": None, "domain": None, "global": False}
    assert all(rule["scope"] == user_scope for rule in rules)
    assert {(rule["action"], rule["comment"]) for rule in rules} == {("ALLOW", "friends")}
    rule_ids = [global_ids.decode("SenderRule", rule["id"]) for rule in rules]
    assert await load_journal_entries(environment, ada.user.id, position) == [
        (RULE_CREATED, rule_ids)
    ]
    assert await visible_patterns(ada) == "*.far.example news@other.example shop.example"
    assert await ada(RULE_NODE, id=rules[0]["id"]) == {"node": {"pattern": "shop.example"}}
    deleted_ids = [rules[0]["id"], rules[2]["id"]]
    answer, errors = await run_mutation(ada, DELETE_RULES, senderRules=id_refs(deleted_ids))
    assert (answer["deletedIds"], errors) == (deleted_ids, [])
    assert (await load_journal_entries(environment, ada.user.id, position))[1:] == [
        (RULE_DELETED, [rule_ids[0], rule_ids[2]])
    ]
    assert await visible_patterns(ada) == "news@other.example"
    assert await ada(RULE_NODE, id=deleted_ids[0]) == {"node": None}
    _, errors = await run_mutation(
        ada, DELETE_RULES, senderRules=[{"id": rules[1]["id"]}, {"id": deleted_ids[0]}]
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["senderRules"], 1)
    assert await visible_patterns(ada) == "news@other.example"


async def test_other_action_changes_existing_rule(
    ada: GraphQLClient, environment: Environment
) -> None:
    (first,) = await create_sender_rules(
        ada, ADA_SCOPE, "shop.example", action="ALLOW", comment="old"
    )
    position = await load_stream_position(environment, ada.user.id)
    (same,) = await create_sender_rules(ada, ADA_SCOPE, "@SHOP.example", action="ALLOW")
    assert same == first
    assert await load_journal_entries(environment, ada.user.id, position) == []
    changed, created = await create_sender_rules(ada, ADA_SCOPE, "shop.example", "new.example")
    assert changed == {**first, "action": "BLOCK"}
    assert created["comment"] is None
    assert len(await rule_rows(environment)) == 2
    changed_id, created_id = [
        global_ids.decode("SenderRule", rule["id"]) for rule in (changed, created)
    ]
    assert await load_journal_entries(environment, ada.user.id, position) == [
        (RULE_UPDATED, [changed_id]),
        (RULE_CREATED, [created_id]),
    ]
    (with_comment,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example", comment="new")
    (without_comment,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example", comment=None)
    assert (with_comment["comment"], without_comment["comment"]) == ("new", None)
    (other_rule,) = await create_sender_rules(ada, ADA_SCOPE, "*.shop.example", action="ALLOW")
    assert other_rule["id"] != first["id"]


# for each case: the input, and code, path, index and detail of the error
REFUSED_RULES: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"patterns": []}, ("VALIDATION", ["patterns"], None, "LENGTH")),
    ({"patterns": ["a.b"] * 101}, ("VALIDATION", ["patterns"], None, "LENGTH")),
    ({"patterns": ["a.b", "*"]}, ("VALIDATION", ["patterns"], 1, "PATTERN")),
    ({"patterns": ["a b@a.b"]}, ("VALIDATION", ["patterns"], 0, "PATTERN")),
    ({"patterns": ["*." + "a." * 10 + "b"]}, ("VALIDATION", ["patterns"], 0, "MAX")),
    ({"comment": "x" * 501}, ("VALIDATION", ["comment"], None, "LENGTH")),
    ({"scope": {"global": False}}, ("VALIDATION", ["scope", "global"], None, "EXCLUSIVE")),
    ({"scope": {"user": {"username": "bob"}}}, ("NOT_FOUND", ["scope", "user"], None, "bob")),
    ({"scope": {"user": {"username": "eve"}}}, ("NOT_FOUND", ["scope", "user"], None, "eve")),
    (
        {"scope": {"domain": {"name": "example.org"}}},
        ("FORBIDDEN", ["scope", "domain"], None, "DOMAIN_ADMIN"),
    ),
    ({"scope": {"tag": "vip"}}, ("FORBIDDEN", ["scope", "tag"], None, "ADMIN")),
    ({"scope": GLOBAL_SCOPE}, ("FORBIDDEN", ["scope", "global"], None, "ADMIN")),
]


@pytest.mark.usefixtures("bob")
async def test_invalid_or_forbidden_rule_is_refused(ada: GraphQLClient) -> None:
    await create_sender_rules(ada, ADA_SCOPE, "shop.example")
    for case in each_case(REFUSED_RULES):
        with case as (rule_input, expected_error):
            assert await rule_error(ada, **rule_input) == expected_error


async def test_rules_are_sorted_by_pattern_and_filtered(ada: GraphQLClient) -> None:
    blocked = ["b.example", "*.z.example", "x@a.example"]
    await create_sender_rules(ada, ADA_SCOPE, *blocked, comment="Newsletters")
    await create_sender_rules(ada, ADA_SCOPE, "a.example", "ü.example", action="ALLOW")
    assert await visible_patterns(ada) == "*.z.example a.example b.example x@a.example ü.example"
    assert await visible_patterns(ada, action="ALLOW") == "a.example ü.example"
    assert await visible_patterns(ada, query="A.EXAMPLE") == "a.example x@a.example"
    assert (
        await visible_patterns(ada, query="newsL", action="BLOCK")
        == "*.z.example b.example x@a.example"
    )
    assert await visible_patterns(ada, query="%") == ""
    assert await visible_patterns(ada, tag="vip") == ""
    assert await visible_patterns(ada, domain={"name": "example.org"}) == ""

    async def load_page(**variables: Any) -> tuple[list[str], Any]:
        connection = (await ada(LIST_RULES, **variables))["senderRules"]
        return [rule["pattern"][0] for rule in connection["nodes"]], connection["pageInfo"]

    first, info = await load_page(first=2)
    assert (first, info["hasNextPage"]) == (["*", "a"], True)
    second, info = await load_page(first=2, after=info["endCursor"])
    assert second == ["b", "x"]
    assert (await load_page(first=2, after=info["endCursor"]))[0] == ["ü"]
    assert (await load_page(last=2, before=info["startCursor"]))[0] == ["*", "a"]
    answer = await ada.execute(
        LIST_RULES, first=2, after=info["endCursor"], filter={"action": "ALLOW"}
    )
    assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


RULES_OF_DOMAINS = """query ($filter: DomainSenderRuleFilter,
    $orderBy: SenderRuleOrder! = PATTERN_ASC, $first: Int, $after: String) {
  domains(first: 50) { nodes { name
    senderRules(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
    nodes { pattern action scope { domain { name } user { username } global } comment }
    totalCount pageInfo { endCursor } } } } }"""


async def test_rules_of_many_domains_need_as_many_statements_as_one(
    root: GraphQLClient, ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await root(RULES_OF_DOMAINS)
        return len([statement for statement in statements if "api_keys" not in statement])

    await create_sender_rules(root, {"domain": {"name": "example.org"}}, "a.test", "b.test")
    await create_sender_rules(root, {"domain": {"name": "example.org"}}, "c.test", action="ALLOW")
    await create_sender_rules(ada, ADA_SCOPE, "d.test")
    expected_count = await count_statements()
    for n in range(20):
        await create_domain(root, f"n{n}.example")
        await create_sender_rules(
            root, {"domain": {"name": f"n{n}.example"}}, f"{n}.test", f"{n}.example"
        )
    assert [await count_statements(), await count_statements()] == [expected_count, expected_count]
    await authentication.wait_for_background_tasks(ada.environment)

    async def rules_of_domain(name: str, **variables: Any) -> Any:
        nodes = (await root(RULES_OF_DOMAINS, **variables))["domains"]["nodes"]
        return next(node["senderRules"] for node in nodes if node["name"] == name)

    connection = await rules_of_domain("example.org")
    assert [expected_count["pattern"] for expected_count in connection["nodes"]] == [
        "a.test",
        "b.test",
        "c.test",
    ]
    assert connection["nodes"][0]["scope"] == {
        "domain": {"name": "example.org"}, "user": None, "global": False,
    }  # fmt: skip
    allowed = await rules_of_domain("example.org", filter={"action": "ALLOW"})
    assert (
        [expected_count["pattern"] for expected_count in allowed["nodes"]],
        allowed["totalCount"],
    ) == (["c.test"], 1)
    descending = await rules_of_domain("example.org", orderBy="PATTERN_DESC", first=2)
    assert [node["pattern"] for node in descending["nodes"]] == ["c.test", "b.test"]
    assert descending["totalCount"] == 3
    found = await rules_of_domain("example.org", filter={"action": "BLOCK", "query": "B.T"})
    assert ([node["pattern"] for node in found["nodes"]], found["totalCount"]) == (["b.test"], 1)
    cursor = descending["pageInfo"]["endCursor"]
    for other in ({}, {"orderBy": "PATTERN_DESC", "filter": {"query": "test"}}):
        answer = await root.execute(RULES_OF_DOMAINS, after=cursor, **other)
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"BAD_CURSOR"}
    assert [
        expected_count["pattern"]
        for expected_count in (await rules_of_domain("n7.example", first=1))["nodes"]
    ] == ["7.example"]


RULES_WITH_SCOPES = """{ senderRules(first: 250) { totalCount nodes { pattern scope {
  user { username } domain { name } tag global } } } }"""


async def test_many_rules_need_as_many_statements_as_few(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await root(RULES_WITH_SCOPES)
        return len([statement for statement in statements if "api_keys" not in statement])

    await create_sender_rules(ada, ADA_SCOPE, "a.test")
    await create_sender_rules(root, {"domain": {"name": "example.org"}}, "a.test")
    expected_count = await count_statements()
    for n in range(20):
        await make_user(environment, f"n{n}")
        await create_sender_rules(root, {"user": {"username": f"n{n}"}}, "a.test", "b.test")
        await create_domain(root, f"n{n}.example")
        await create_sender_rules(root, {"domain": {"name": f"n{n}.example"}}, "a.test")
    assert [await count_statements(), await count_statements()] == [expected_count, expected_count]


async def insert_rules(
    environment: Environment, scope_key: str, count: int, **columns: Any
) -> None:
    """Insert rules into a scope without the checks of the mutation."""
    created_at, action = environment.now(), SenderAction.BLOCK
    rows_to_insert = [
        {
            "id": environment.new_id(), "scope": scope_key, "pattern": f"{number}.full.test",
            "action": action, "created_at": created_at, **columns,
        }
        for number in range(count)
    ]  # fmt: skip
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(core_table(SenderRule)), rows_to_insert)


async def test_number_of_rules_per_scope_is_limited(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, "example.org")
    await insert_rules(environment, scope_of_user(ada.user.id), 999, user_id=ada.user.id)
    await insert_rules(environment, scope_of_domain(domain_id), 1000, domain_id=domain_id)
    await insert_rules(environment, PLATFORM_SCOPE, 1001)
    answer, errors = await run_mutation(
        ada, SENDER_RULE_CREATE, scope=ADA_SCOPE, action="BLOCK", patterns=["a.test", "b.test"]
    )
    (error,) = errors
    assert (answer["senderRules"], error["code"], error["path"]) == (
        [],
        "LIMIT_REACHED",
        ["patterns"],
    )
    assert (error["limit"], error["used"]) == (1000, 999)
    await create_sender_rules(ada, ADA_SCOPE, "a.test", "0.full.test", action="ALLOW")
    # no new rule fits, and none of these is new
    await create_sender_rules(ada, ADA_SCOPE, "1.full.test", action="ALLOW")
    assert (await rule_error(ada, patterns=["b.test"]))[0] == "LIMIT_REACHED"
    assert (await rule_error(root, scope={"domain": {"name": "example.org"}}))[0] == "LIMIT_REACHED"
    await create_sender_rules(root, GLOBAL_SCOPE, "a.test")


async def test_rule_lists_are_read_in_index_order(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, "example.org")
    await insert_rules(environment, scope_of_user(ada.user.id), 900, user_id=ada.user.id)
    await insert_rules(environment, scope_of_domain(domain_id), 900, domain_id=domain_id)
    await insert_rules(environment, PLATFORM_SCOPE, 3000)
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE sender_rules"))
    domain_list = """query ($first: Int, $after: String) { domain(by: {name: "example.org"}) {
      senderRules(first: $first, after: $after) { nodes { pattern } pageInfo { endCursor } } } }"""
    list_cursor = (await ada(LIST_RULES, first=9))["senderRules"]["pageInfo"]["endCursor"]
    domain_list_cursor = (await root(domain_list, first=9))["domain"]["senderRules"]["pageInfo"][
        "endCursor"
    ]
    root_list_cursor = (await root(LIST_RULES, first=9))["senderRules"]["pageInfo"]["endCursor"]
    with record_query_plans(environment) as plans:
        for client, document, after, index in (
            (ada, LIST_RULES, list_cursor, "uq_sender_rules_scope"),
            (root, domain_list, domain_list_cursor, "uq_sender_rules_scope"),
            (root, LIST_RULES, root_list_cursor, "ix_sender_rules_pattern"),
        ):
            for page in ({"first": 50}, {"first": 50, "after": after}):
                request = client(document, **page)
                plan = await plans.explain_select(request, "sender_rules", containing="LIMIT")
                assert index in plan, plan
                full_sort_lines = [
                    line for line in plan.splitlines() if "Incremental Sort" not in line
                ]
                assert not any(
                    "TEMP B-TREE" in line or "Sort  (" in line for line in full_sort_lines
                ), plan


async def test_rules_are_deleted_with_their_domain(ada: GraphQLClient, root: GraphQLClient) -> None:
    await create_domain(root, "far.example")
    await create_sender_rules(root, {"domain": {"name": "far.example"}}, "a.test")
    await create_sender_rules(ada, ADA_SCOPE, "b.test")
    await create_sender_rules(root, GLOBAL_SCOPE, "c.test")
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "far.example"}])
    assert errors == []
    assert await visible_patterns(root) == "b.test c.test"


async def test_concurrent_creates_make_one_rule_per_pattern(
    ada: GraphQLClient, http: httpx.AsyncClient, environment: Environment
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    calls = [
        create_sender_rules(client, ADA_SCOPE, "shop.example", f"{n}.test", action=action)
        for n in range(5)
        for client, action in ((ada, "ALLOW"), (domain_admin, "BLOCK"))
    ]
    results = await asyncio.gather(*calls)
    assert len({result[0]["id"] for result in results}) == 1
    assert len(await rule_rows(environment)) == 6


async def test_rule_change_is_an_event_of_the_user(ada: GraphQLClient) -> None:
    cursor = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    (rule,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example")
    document = """query ($after: Cursor!) { changes(after: $after) { events {
      type ... on UserChange { nodeId node { ... on SenderRule { pattern } } } } } }"""
    events = (await ada(document, after=cursor))["changes"]["events"]
    assert events == [
        {"type": RULE_CREATED.value, "nodeId": rule["id"], "node": {"pattern": "shop.example"}}
    ]
    await run_mutation(ada, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    events = (await ada(document, after=cursor))["changes"]["events"]
    assert [event["node"] for event in events] == [None, None]
    assert [event["type"] for event in events] == [RULE_CREATED, RULE_DELETED]


async def test_administrators_get_events_of_domain_rules(
    live_server: LiveServer,
    root: GraphQLClient,
    admin_client: GraphQLClient,
    http: httpx.AsyncClient,
    environment: Environment,
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    admin_subscription = await open_subscription(
        live_server, "follow", admin_client, DOMAIN_CHANGES_SUBSCRIPTION
    )
    domain_subscription = await open_subscription(
        live_server, "follow", domain_admin, DOMAIN_CHANGES_SUBSCRIPTION
    )
    # in the stream of the account
    await create_sender_rules(domain_admin, {"user": {"username": "chief"}}, "own.test")
    (tag_rule,) = await create_sender_rules(root, {"tag": "vip"}, "a.test")
    (domain_rule,) = await create_sender_rules(root, {"domain": {"name": "example.org"}}, "b.test")
    await wait_until(
        lambda: (
            len(received_events(admin_subscription)) == 2 and received_events(domain_subscription)
        )
    )
    assert [event["nodeId"] for event in received_events(domain_subscription)] == [
        domain_rule["id"]
    ]
    assert {event["nodeId"] for event in received_events(admin_subscription)} == {
        tag_rule["id"],
        domain_rule["id"],
    }
    assert {event["type"] for event in received_events(admin_subscription)} == {RULE_CREATED}
    for event in (admin_subscription, domain_subscription):
        await event.unsubscribe()


async def test_rule_from_the_api_matches_a_delivery(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, "example.org")
    (user_rule,) = await create_sender_rules(ada, ADA_SCOPE, "News@Shop.example")
    (domain_rule,) = await create_sender_rules(
        root, {"domain": {"name": "example.org"}}, "*@*.example", action="ALLOW"
    )
    (global_rule,) = await create_sender_rules(root, GLOBAL_SCOPE, "shop.example")
    (matches,) = await load_matching_rules(
        environment, [SenderRuleRecipient(ada.user.id, domain_id)], "news+1@SHOP.example", ""
    )
    rule_ids = [global_ids.encode("SenderRule", match.id) for match in matches]
    assert rule_ids == [user_rule["id"], domain_rule["id"], global_rule["id"]]
    assert [match.rank for match in matches] == [0, 2, 3]
