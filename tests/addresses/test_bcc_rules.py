"""BCC rules: management, validation, rights and limits."""

from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_DELETE,
    create_domain,
    error_summary,
    run_mutation,
)
from tests.support.operations.id_references import id_refs
from tests.support.operations.rewrite_and_bcc_operations import (
    ARCHIVE,
    BCC_RULE_CREATE,
    BCC_RULE_DELETE,
    BCC_RULE_UPDATE,
    BCC_RULES_QUERY,
    create_bcc_rule,
    load_copy_recipients,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

NODE = "query ($id: ID!) { node(id: $id) { ... on BccRule { match } } }"


async def test_bcc_rule_is_created_updated_listed_and_deleted(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    answer, errors = await run_mutation(
        root, BCC_RULE_CREATE, match=" Ad.A@also.example", bccTo="Archive@far.example",
        direction="SENDER",
    )  # fmt: skip
    assert errors == []
    created_rule = answer["bccRule"]
    expected = ("ada@example.org", "Archive@far.example", "SENDER", {"name": "example.org"}, True)
    fields = ("match", "bccTo", "direction", "domain", "active")
    assert tuple(created_rule[name] for name in fields) == expected
    assert (await root(NODE, id=created_rule["id"])) == {"node": {"match": "ada@example.org"}}
    arguments = {"match": "@example.org", "direction": "RECIPIENT", "active": False}
    answer, errors = await run_mutation(
        root, BCC_RULE_UPDATE, bccRules=[{"id": created_rule["id"]}], set=arguments
    )
    assert errors == []
    assert {name: answer["bccRules"][0][name] for name in arguments} == arguments
    assert (await root(BCC_RULES_QUERY))["bccRules"]["nodes"] == answer["bccRules"]
    answer, errors = await run_mutation(
        root, BCC_RULE_DELETE, bccRules=[{"id": created_rule["id"]}]
    )
    assert (answer["deletedIds"], errors) == ([created_rule["id"]], [])
    assert (await root(BCC_RULES_QUERY))["bccRules"]["totalCount"] == 0
    assert (await root(NODE, id=created_rule["id"])) == {"node": None}
    assert await load_copy_recipients(ada.environment) == []


@pytest.mark.usefixtures("ada")
async def test_list_is_paged_with_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    statement_counts: set[int] = set()
    rule_ids: list[str] = []
    for _ in range(2):
        for n in range(1 if not rule_ids else 19):
            rule_ids.append(
                await create_bcc_rule(root, f"a{n}x{len(rule_ids)}@example.org", ARCHIVE)
            )
        del statements[:]
        page = (await root(BCC_RULES_QUERY, first=50))["bccRules"]
        statement_counts.add(len(statements))
        assert [node["id"] for node in page["nodes"]] == rule_ids
    assert len(statement_counts) == 1
    seen: list[str] = []
    after = None
    while len(seen) < len(rule_ids):
        page = (await root(BCC_RULES_QUERY, first=7, after=after))["bccRules"]
        seen += [node["id"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
    assert seen == rule_ids
    page = (await root(BCC_RULES_QUERY, last=3))["bccRules"]
    assert [node["id"] for node in page["nodes"]] == rule_ids[-3:]


INVALID_RULES: list[tuple[str, str, tuple[Any, ...]]] = [
    ("example.org", ARCHIVE, ("VALIDATION", ["match"], None, "ADDRESS")),
    ("a+b@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "PATTERN")),
    ("*@example.org", ARCHIVE, ("VALIDATION", ["match"], None, "PATTERN")),
    ("@far.example", ARCHIVE, ("NOT_FOUND", ["match"], None, "far.example")),
    ("@example.org", "@far.example", ("VALIDATION", ["bccTo"], None, "ADDRESS")),
    ("@example.org", "x" * 400, ("VALIDATION", ["bccTo"], None, "ADDRESS")),
    ("ada@example.org", "A.da@example.org", ("VALIDATION", ["bccTo"], None, "SELF")),
    ("ada@also.example", "ada@example.org", ("VALIDATION", ["bccTo"], None, "SELF")),
    ("T.aken@also.example", ARCHIVE, ("CONFLICT", ["match"], None, None)),
]


@pytest.mark.usefixtures("ada")
async def test_invalid_rule_is_refused_by_field_and_rule(
    root: GraphQLClient, environment: Environment
) -> None:
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    first_id = await create_bcc_rule(root, "taken@example.org", ARCHIVE)
    second_id = await create_bcc_rule(root, "taken@example.org", ARCHIVE, "SENDER")
    third_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    before = await select_rows(environment, "SELECT * FROM bcc_rules")
    for match, bcc_to, expected_error in INVALID_RULES:
        arguments = {"match": match, "bccTo": bcc_to, "direction": "RECIPIENT"}
        _, errors = await run_mutation(root, BCC_RULE_CREATE, **arguments)
        assert error_summary(errors) == expected_error, (match, bcc_to)
    missing_id = global_ids.encode("BccRule", environment.new_id())
    changes: list[tuple[list[str], dict[str, Any], tuple[Any, ...]]] = [
        ([second_id], {"direction": "RECIPIENT"}, ("CONFLICT", ["set", "match"], None, None)),
        ([first_id, second_id], {"direction": "SENDER"},
         ("CONFLICT", ["set", "match"], None, None)),
        ([first_id, third_id], {"match": "x@example.org"},
         ("CONFLICT", ["set", "match"], None, None)),
        ([third_id, first_id], {"bccTo": "taken@example.org"},
         ("VALIDATION", ["set", "bccTo"], None, "SELF")),
        ([first_id, missing_id], {"active": False}, ("NOT_FOUND", ["bccRules"], 1, str)),
        ([first_id], {}, ("VALIDATION", ["set"], None, "REQUIRED")),
        ([], {"active": True}, ("VALIDATION", ["bccRules"], None, "REQUIRED")),
    ]  # fmt: skip
    for ids, patch, expected in changes:
        _, errors = await run_mutation(root, BCC_RULE_UPDATE, bccRules=id_refs(ids), set=patch)
        assert error_summary(errors)[:3] == expected[:3], (ids, patch)
        assert expected[3] in (str, error_summary(errors)[3])
    _, errors = await run_mutation(
        root, BCC_RULE_DELETE, bccRules=[{"id": first_id}, {"id": missing_id}]
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["bccRules"], 1)
    assert await select_rows(environment, "SELECT * FROM bcc_rules") == before


async def test_rules_in_one_update_do_not_conflict_with_each_other(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    rule_ids = [await create_bcc_rule(root, f"{name}@example.org", ada.address) for name in "xyz"]
    answer, errors = await run_mutation(
        root,
        BCC_RULE_UPDATE,
        bccRules=id_refs(rule_ids),
        set={"direction": "SENDER", "bccTo": ARCHIVE},
    )
    assert errors == []
    assert [bcc_rule["id"] for bcc_rule in answer["bccRules"]] == rule_ids
    assert {bcc_rule["direction"] for bcc_rule in answer["bccRules"]} == {"SENDER"}


async def test_domain_admin_manages_rules_of_own_domains_only(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "far.example")
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "example.org"}
    )
    other_rule_id = await create_bcc_rule(root, "@far.example", "x@else.example")
    domain_rule_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    admin = await make_domain_admin(environment, root.http, "dora", [AdminPermission.BCC_RULES])
    page = (await admin(BCC_RULES_QUERY))["bccRules"]
    assert (page["totalCount"], [node["id"] for node in page["nodes"]]) == (1, [domain_rule_id])
    assert await admin(NODE, id=other_rule_id) == {"node": None}
    own_rule_id = await create_bcc_rule(admin, "ada@also.example", ARCHIVE, "SENDER")
    before = await select_rows(environment, "SELECT * FROM bcc_rules")
    arguments = {"bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await run_mutation(admin, BCC_RULE_CREATE, match="x@far.example", **arguments)
    assert error_summary(errors) == ("NOT_FOUND", ["match"], None, "far.example")
    _, errors = await run_mutation(
        admin, BCC_RULE_UPDATE, bccRules=[{"id": own_rule_id}], set={"match": "x@far.example"}
    )
    assert error_summary(errors) == ("NOT_FOUND", ["set", "match"], None, "far.example")
    for document, extra in ((BCC_RULE_UPDATE, {"set": {"active": False}}), (BCC_RULE_DELETE, {})):
        _, errors = await run_mutation(
            admin, document, bccRules=[{"id": own_rule_id}, {"id": other_rule_id}], **extra
        )
        assert error_summary(errors)[:3] == ("NOT_FOUND", ["bccRules"], 1)
    assert await select_rows(environment, "SELECT * FROM bcc_rules") == before
    for document, extra in ((BCC_RULE_UPDATE, {"set": {"active": False}}), (BCC_RULE_DELETE, {})):
        _, errors = await run_mutation(
            admin, document, bccRules=[{"id": own_rule_id}, {"id": domain_rule_id}], **extra
        )
        assert errors == []

    admin_without_permission = await make_domain_admin(
        environment, root.http, "dan", [AdminPermission.ALIAS_DOMAINS]
    )
    for client in (ada, admin_without_permission):
        assert (await client.execute(BCC_RULES_QUERY))["errors"][0]["extensions"][
            "code"
        ] == "FORBIDDEN"
        assert await client(NODE, id=other_rule_id) == {"node": None}
        attempts: list[tuple[str, dict[str, Any]]] = [
            (BCC_RULE_CREATE, {"match": "@example.org", **arguments}),
            (BCC_RULE_UPDATE, {"bccRules": [{"id": other_rule_id}], "set": {"active": False}}),
            (BCC_RULE_DELETE, {"bccRules": [{"id": other_rule_id}]}),
        ]
        for document, fields in attempts:
            _, errors = await run_mutation(client, document, **fields)
            assert [error["code"] for error in errors] == ["FORBIDDEN"]


async def test_domain_admin_without_permission_cannot_read_a_rule_by_id(
    root: GraphQLClient, environment: Environment
) -> None:
    admin = await make_domain_admin(environment, root.http, "dan", [])
    rule_id = await create_bcc_rule(root, "@example.org", ARCHIVE)
    assert await admin(NODE, id=rule_id) == {"node": None}


async def test_rule_changes_are_journaled_and_deleted_with_the_domain(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    domain_id = ada.user.domain_id
    assert domain_id is not None
    positions = {key: await load_stream_position(environment, key) for key in (domain_id, PLATFORM)}
    key = await create_bcc_rule(root, "@example.org", ARCHIVE)
    await run_mutation(root, BCC_RULE_UPDATE, bccRules=[{"id": key}], set={"active": False})
    await run_mutation(root, BCC_RULE_DELETE, bccRules=[{"id": key}])
    for stream in (domain_id, PLATFORM):
        expected_changes = [(EventType.DOMAIN_UPDATED, [domain_id])] * 3
        assert (
            await load_journal_entries(environment, stream, positions[stream]) == expected_changes
        )
    await create_domain(root, "brief.example")
    await create_bcc_rule(root, "@brief.example", ARCHIVE)
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "brief.example"}])
    assert errors == []
    assert await select_rows(environment, "SELECT id FROM bcc_rules") == []


async def test_number_of_rules_is_limited(
    root: GraphQLClient, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.addresses.bcc_rules.MAX_RULES_PER_DOMAIN", 1)
    await create_bcc_rule(root, "@example.org", ARCHIVE)
    arguments = {"match": ada.address, "bccTo": ARCHIVE, "direction": "SENDER"}
    _, errors = await run_mutation(root, BCC_RULE_CREATE, **arguments)
    assert (errors[0]["code"], errors[0]["limit"], errors[0]["used"]) == ("LIMIT_REACHED", 1, 1)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"role": "USER"}, []),
        ({"adminPermissions": ["FILTERS"]}, []),
        ({"administers": [{"name": "far.example"}]}, ["@far.example"]),
        ({"role": "ADMIN"}, ["@example.org", "@far.example"]),
        ({"adminPermissions": ["BCC_RULES"]}, ["@example.org", "@far.example"]),
    ],
)
async def test_rules_end_with_the_rights_of_their_maker(
    root: GraphQLClient, ada: GraphQLClient, change: dict[str, Any], kept: list[str]
) -> None:
    environment, http = root.environment, root.http
    await execute_mutation(root, "domainCreate", "domain { id }", name="far.example")
    maker = await make_domain_admin(
        environment,
        http,
        "maker",
        [AdminPermission.BCC_RULES],
        domains=("example.org", "far.example"),
    )
    await create_bcc_rule(root, ada.address, "root@copies.example")
    for match in ("@example.org", "@far.example"):
        await create_bcc_rule(maker, match, "maker@copies.example")
    users = {"usernames": ["maker"]}
    payload = await execute_mutation(root, "userRoleSet", "", users=users, **change)
    assert payload["errors"] == []
    rules = (await root("{ bccRules { nodes { match bccTo } } }"))["bccRules"]["nodes"]
    matches = [rule["match"] for rule in rules if rule["bccTo"] == "maker@copies.example"]
    assert (sorted(matches), len(rules)) == (kept, len(kept) + 1)
    log = await select_rows(
        environment, "SELECT id FROM audit_log WHERE mutation = 'bccRuleDelete'"
    )
    assert len(log) == 2 - len(kept)
