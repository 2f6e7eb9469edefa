"""Sender rules: who can create and see them, and how they apply."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, text

from graph.types import global_ids
from mail.spam.sender_rules import load_matching_rules
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.spam.sender_rules import (
    PLATFORM_PLACE,
    SenderAction,
    SenderRule,
    place_of_domain,
    place_of_user,
)
from models.store.columns import core_table
from models.users.roles import AdminPermission, Scope
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, make_api_key, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.clients.change_followers import (
    DOMAIN_CHANGES_SUBSCRIPTION,
    open_subscription,
    received_events,
)
from tests.support.operations.domain_operations import (
    DOMAIN_DELETE,
    ERRORS,
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.id_references import id_refs
from tests.support.operations.spam_operations import (
    SENDER_RULE_CREATE,
    SenderRuleRecipient,
    create_sender_rules,
)
from tests.support.sample_mutations import MutationCall
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import load_journal_entries, load_stream_position
from tests.support.stores.query_plans import record_query_plans

DELETE_RULES = f"""mutation ($input: SenderRuleDeleteInput!) {{
  senderRuleDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
LIST_RULES = """query ($filter: SenderRuleFilter, $first: Int, $after: String, $last: Int,
                 $before: String) {
  senderRules(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { action pattern } totalCount pageInfo { startCursor endCursor hasNextPage } } }"""
RULE_NODE = "query ($id: ID!) { node(id: $id) { ... on SenderRule { pattern } } }"
ADA_SCOPE = {"user": {"username": "ada"}}
GLOBAL_SCOPE = {"global": True}
RULE_CHANGED = EventType.SENDER_RULE_CHANGED


async def rule_error(client: GraphQLClient, **arguments: Any) -> tuple[Any, ...]:
    """Return the error of a call that creates no rule."""
    defaults = {"scope": ADA_SCOPE, "action": "ALLOW", "patterns": ["shop.example"]}
    rows_before = await rule_rows(client.environment)
    answer, errors = await run_mutation(client, SENDER_RULE_CREATE, **{**defaults, **arguments})
    assert (answer["senderRules"], await rule_rows(client.environment)) == ([], rows_before)
    return error_summary(errors)


async def rule_rows(environment: Environment) -> list[Any]:
    table = core_table(SenderRule)
    async with environment.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def visible_patterns(client: GraphQLClient, **filter: Any) -> str:
    """Return the patterns of the rules that the client can see."""
    page = (await client(LIST_RULES, filter=filter or None))["senderRules"]
    patterns = [node["pattern"] for node in page["nodes"]]
    assert page["totalCount"] == len(patterns)
    return " ".join(patterns)


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
        (RULE_CHANGED, rule_ids)
    ]
    assert await visible_patterns(ada) == "*.far.example news@other.example shop.example"
    assert await ada(RULE_NODE, id=rules[0]["id"]) == {"node": {"pattern": "shop.example"}}
    deleted_ids = [rules[0]["id"], rules[2]["id"]]
    answer, errors = await run_mutation(ada, DELETE_RULES, senderRules=id_refs(deleted_ids))
    assert (answer["deletedIds"], errors) == (deleted_ids, [])
    assert (await load_journal_entries(environment, ada.user.id, position))[1:] == [
        (RULE_CHANGED, [rule_ids[0], rule_ids[2]])
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
    rule_ids = [global_ids.decode("SenderRule", rule["id"]) for rule in (created, changed)]
    assert await load_journal_entries(environment, ada.user.id, position) == [
        (RULE_CHANGED, rule_ids)
    ]
    (with_comment,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example", comment="new")
    (without_comment,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example", comment=None)
    assert (with_comment["comment"], without_comment["comment"]) == ("new", None)
    (other_rule,) = await create_sender_rules(ada, ADA_SCOPE, "*.shop.example", action="ALLOW")
    assert other_rule["id"] != first["id"]


@pytest.mark.parametrize(
    ("rule_input", "expected_error"),
    [
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
    ],
)
@pytest.mark.usefixtures("bob")
async def test_invalid_or_forbidden_rule_is_refused(
    ada: GraphQLClient, rule_input: dict[str, Any], expected_error: tuple[Any, ...]
) -> None:
    await create_sender_rules(ada, ADA_SCOPE, "shop.example")
    assert await rule_error(ada, **rule_input) == expected_error


async def test_user_without_permission_keeps_rules_but_cannot_change_them(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    (rule,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example")
    document = """mutation ($input: UserPermissionsSetInput!) {
      userPermissionsSet(input: $input) { errors { message } } }"""
    permission_input = {"users": {"usernames": ["ada"]}, "permissions": ["APP_PASSWORDS"]}
    assert (await root(document, input=permission_input))["userPermissionsSet"]["errors"] == []
    assert await visible_patterns(ada) == "shop.example"
    for mutation, mutation_input in (
        (SENDER_RULE_CREATE, {"scope": ADA_SCOPE, "action": "ALLOW", "patterns": ["shop.example"]}),
        (DELETE_RULES, {"senderRules": [{"id": rule["id"]}]}),
    ):
        answer = next(iter((await ada(mutation, input=mutation_input)).values()))
        assert error_summary(answer["errors"])[::3] == ("FORBIDDEN", "SPAM_POLICY")
    assert await visible_patterns(ada) == "shop.example"


async def test_other_user_cannot_see_or_change_rules(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    (rule,) = await create_sender_rules(ada, ADA_SCOPE, "shop.example")
    rows_before = await rule_rows(ada.environment)
    assert await visible_patterns(bob) == ""
    assert await visible_patterns(bob, user=ADA_SCOPE["user"]) == ""
    assert await bob(RULE_NODE, id=rule["id"]) == {"node": None}
    _, errors = await run_mutation(bob, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["senderRules"], 0)
    await create_sender_rules(bob, {"user": {"username": "bob"}}, "shop.example", action="ALLOW")
    assert await visible_patterns(bob, user={"username": "bob"}) == "shop.example"
    assert [
        row for row in await rule_rows(ada.environment) if row.user_id == ada.user.id
    ] == rows_before


async def test_domain_admin_manages_rules_of_own_domain_only(
    ada: GraphQLClient, root: GraphQLClient, http: httpx.AsyncClient, environment: Environment
) -> None:
    await create_domain(root, "far.example")
    far_user = {"address": "far@far.example"}
    payload = await MutationCall("userCreate", {**far_user, "passwordDisabled": True})(root)
    assert payload["errors"] == []
    all_permissions = list(AdminPermission)
    domain_admin = await make_domain_admin(environment, http, "chief", all_permissions)
    await create_sender_rules(root, {"domain": {"name": "far.example"}}, "far.test")
    await create_sender_rules(root, {"user": far_user}, "fars.test")
    await create_sender_rules(root, {"tag": "VIP"}, "tags.test")
    await create_sender_rules(root, GLOBAL_SCOPE, "every.test")
    position = await load_stream_position(
        environment, await load_domain_id(environment, "example.org")
    )
    (domain_rule,) = await create_sender_rules(
        domain_admin, {"domain": {"name": "Example.ORG"}}, "ours.test"
    )
    assert domain_rule["scope"] == {
        "user": None, "tag": None, "domain": {"name": "example.org"}, "global": False,
    }  # fmt: skip
    rule_id = global_ids.decode("SenderRule", domain_rule["id"])
    assert await load_journal_entries(
        environment, await load_domain_id(environment, "example.org"), position
    ) == [(RULE_CHANGED, [rule_id])]
    (ada_rule,) = await create_sender_rules(domain_admin, ADA_SCOPE, "adas.test")
    assert ada_rule["scope"]["user"] == {"username": "ada"}
    assert await visible_patterns(domain_admin) == "adas.test ours.test"
    assert await visible_patterns(domain_admin, domain={"name": "far.example"}) == ""
    assert await visible_patterns(domain_admin, domain={"name": "example.org"}) == "ours.test"
    assert await visible_patterns(ada) == "adas.test"
    for scope, code in (
        ({"domain": {"name": "far.example"}}, "NOT_FOUND"),
        ({"user": far_user}, "NOT_FOUND"),
        ({"user": {"username": "over"}}, "NOT_FOUND"),
        ({"tag": "vip"}, "FORBIDDEN"),
        (GLOBAL_SCOPE, "FORBIDDEN"),
    ):
        assert (await rule_error(domain_admin, scope=scope))[0] == code
    log = '{ auditLog(filter: {mutation: "senderRuleCreate"}) { nodes { mutation after } } }'
    entries = (await domain_admin(log))["auditLog"]["nodes"]
    assert [(entry["mutation"], entry["after"]["pattern"]) for entry in entries] == [
        ("senderRuleCreate", "adas.test"),
        ("senderRuleCreate", "ours.test"),
    ]


async def test_tag_rule_is_visible_to_domain_admins_and_changed_by_admins(
    ada: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
    http: httpx.AsyncClient,
    environment: Environment,
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    (rule,) = await create_sender_rules(admin_client, {"tag": " Größe "}, "tags.test")
    assert rule["scope"]["tag"] == "grösse"
    assert await load_journal_entries(
        environment, PLATFORM, await load_stream_position(environment, PLATFORM) - 1
    ) == [(RULE_CHANGED, [global_ids.decode("SenderRule", rule["id"])])]
    assert (
        await visible_patterns(domain_admin),
        await visible_patterns(admin_client, tag="GRÖSSE"),
    ) == (
        "",
        "tags.test",
    )
    document = """mutation ($input: UserUpdateInput!) {
      userUpdate(input: $input) { errors { message } } }"""
    update_input = {"users": {"usernames": ["ada"]}, "set": {"tags": ["GRÖSSE"]}}
    assert (await root(document, input=update_input))["userUpdate"]["errors"] == []
    assert (await visible_patterns(domain_admin), await visible_patterns(ada)) == ("tags.test", "")
    _, errors = await run_mutation(domain_admin, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    assert error_summary(errors)[::3] == ("FORBIDDEN", "ADMIN")
    recipient = SenderRuleRecipient(ada.user.id, None, ["GRÖSSE"])
    ((match,),) = await load_matching_rules(environment, [recipient], "x@tags.test", "")
    assert global_ids.encode("SenderRule", match.id) == rule["id"]
    _, errors = await run_mutation(admin_client, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    assert errors == []
    assert await rule_error(admin_client, scope={"tag": " "}) == (
        "VALIDATION", ["scope", "tag"], None, "LENGTH",
    )  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_domain_admin_without_permission_cannot_see_account_rules(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    domain_admin = await make_domain_admin(
        environment, http, "chief", [AdminPermission.SPAM_POLICY]
    )
    admin_without_permission = await make_domain_admin(environment, http, "bare")
    (ada_rule,) = await create_sender_rules(domain_admin, ADA_SCOPE, "adas.test")
    (domain_rule,) = await create_sender_rules(
        domain_admin, {"domain": {"name": "example.org"}}, "ours.test"
    )
    assert (
        await visible_patterns(domain_admin),
        await visible_patterns(admin_without_permission),
    ) == ("adas.test ours.test", "ours.test")
    assert await admin_without_permission(RULE_NODE, id=ada_rule["id"]) == {"node": None}
    own_scope = {"user": {"username": "bare"}}
    for rule_input in (
        {"scope": own_scope},
        {"scope": {"domain": {"name": "example.org"}}},
        {"scope": ADA_SCOPE},
    ):
        assert (await rule_error(admin_without_permission, **rule_input))[::3] == (
            "FORBIDDEN",
            "SPAM_POLICY",
        )
    _, errors = await run_mutation(
        admin_without_permission, DELETE_RULES, senderRules=[{"id": domain_rule["id"]}]
    )
    assert error_summary(errors)[::3] == ("FORBIDDEN", "SPAM_POLICY")


async def test_domain_admin_sees_but_cannot_change_rules_of_higher_role(
    admin_client: GraphQLClient, http: httpx.AsyncClient, environment: Environment
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    scope = {"user": {"username": "over"}}
    (rule,) = await create_sender_rules(admin_client, scope, "overs.test")
    assert await visible_patterns(domain_admin) == "overs.test"
    assert (await rule_error(domain_admin, scope=scope))[::3] == ("FORBIDDEN", "ADMIN")
    _, errors = await run_mutation(domain_admin, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    assert error_summary(errors)[::3] == ("FORBIDDEN", "ADMIN")
    assert await visible_patterns(admin_client) == "overs.test"


@pytest.mark.usefixtures("ada")
async def test_key_with_settings_scope_changes_only_own_rules(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", list(AdminPermission))
    (ada_rule,) = await create_sender_rules(domain_admin, ADA_SCOPE, "adas.test")
    (domain_rule,) = await create_sender_rules(
        domain_admin, {"domain": {"name": "example.org"}}, "ours.test"
    )
    secret = await make_api_key(
        environment,
        "few",
        user_id=domain_admin.user.id,
        role=domain_admin.user.role,
        scopes=[Scope.SETTINGS],
    )
    settings_client = GraphQLClient(http, environment, domain_admin.user, secret)
    await create_sender_rules(settings_client, {"user": {"username": "chief"}}, "own.test")
    for scope in (ADA_SCOPE, {"domain": {"name": "example.org"}}):
        assert (await rule_error(settings_client, scope=scope))[::3] == ("FORBIDDEN", "FULL")
    for rule in (ada_rule, domain_rule):
        _, errors = await run_mutation(
            settings_client, DELETE_RULES, senderRules=[{"id": rule["id"]}]
        )
        assert error_summary(errors)[::3] == ("FORBIDDEN", "FULL")


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


RULES_OF_DOMAINS = """query ($action: SenderAction, $first: Int, $after: String) {
  domains(first: 50) { nodes { name senderRules(action: $action, first: $first, after: $after) {
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
    allowed = await rules_of_domain("example.org", action="ALLOW")
    assert (
        [expected_count["pattern"] for expected_count in allowed["nodes"]],
        allowed["totalCount"],
    ) == (["c.test"], 1)
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
            "id": environment.new_id(), "place": scope_key, "pattern": f"{number}.full.test",
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
    await insert_rules(environment, place_of_user(ada.user.id), 999, user_id=ada.user.id)
    await insert_rules(environment, place_of_domain(domain_id), 1000, domain_id=domain_id)
    await insert_rules(environment, PLATFORM_PLACE, 1001)
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
    await create_sender_rules(
        ada, ADA_SCOPE, "1.full.test", action="ALLOW"
    )  # no new rule fits, and none of these is new
    assert (await rule_error(ada, patterns=["b.test"]))[0] == "LIMIT_REACHED"
    assert (await rule_error(root, scope={"domain": {"name": "example.org"}}))[0] == "LIMIT_REACHED"
    await create_sender_rules(root, GLOBAL_SCOPE, "a.test")


async def test_rule_lists_are_read_in_index_order(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, "example.org")
    await insert_rules(environment, place_of_user(ada.user.id), 900, user_id=ada.user.id)
    await insert_rules(environment, place_of_domain(domain_id), 900, domain_id=domain_id)
    await insert_rules(environment, PLATFORM_PLACE, 3000)
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
            (ada, LIST_RULES, list_cursor, "uq_sender_rules_place"),
            (root, domain_list, domain_list_cursor, "uq_sender_rules_place"),
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
      type ... on AccountChange { nodeId node { ... on SenderRule { pattern } } } } } }"""
    events = (await ada(document, after=cursor))["changes"]["events"]
    assert events == [
        {"type": RULE_CHANGED.value, "nodeId": rule["id"], "node": {"pattern": "shop.example"}}
    ]
    await run_mutation(ada, DELETE_RULES, senderRules=[{"id": rule["id"]}])
    events = (await ada(document, after=cursor))["changes"]["events"]
    assert [event["node"] for event in events] == [None, None]


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
    await create_sender_rules(
        domain_admin, {"user": {"username": "chief"}}, "own.test"
    )  # in the stream of the account
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
    assert {event["type"] for event in received_events(admin_subscription)} == {RULE_CHANGED}
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
