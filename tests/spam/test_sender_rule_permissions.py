"""Who can see and change sender rules."""

import httpx
import pytest

from graph.types import global_ids
from mail.spam.sender_rules import load_matching_rules
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Scope
from tests.conftest import GraphQLClient, make_api_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.domain_operations import (
    create_domain,
    error_summary,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.spam_operations import (
    ADA_SCOPE,
    DELETE_RULES,
    GLOBAL_SCOPE,
    RULE_CREATED,
    RULE_NODE,
    SENDER_RULE_CREATE,
    SenderRuleRecipient,
    create_sender_rules,
    rule_error,
    rule_rows,
    visible_patterns,
)
from tests.support.sample_mutations import MutationCall
from tests.support.stores.counter_check import load_journal_entries, load_stream_position


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
        assert error_summary(answer["errors"])[::3] == ("FORBIDDEN", "SENDER_RULES")
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
    ) == [(RULE_CREATED, [rule_id])]
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
    ) == [(RULE_CREATED, [global_ids.decode("SenderRule", rule["id"])])]
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
        environment, http, "chief", [AdminPermission.SENDER_RULES]
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
            "SENDER_RULES",
        )
    _, errors = await run_mutation(
        admin_without_permission, DELETE_RULES, senderRules=[{"id": domain_rule["id"]}]
    )
    assert error_summary(errors)[::3] == ("FORBIDDEN", "SENDER_RULES")


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
