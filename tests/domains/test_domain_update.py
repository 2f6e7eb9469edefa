"""Changing domains: values, limits, and the log."""

from typing import Any

import pytest

from mail.recipients import address_resolution
from models.errors import NotFound
from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.users.limit_values import Unlimited
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import (
    DOMAIN_UPDATE,
    NO_DOMAIN_LIMITS,
    UNLIMITED_FIELDS,
    create_domain,
    error_summary,
    load_domain,
    load_domain_id,
    make_domain_user,
    run_mutation,
    try_update_domain,
)
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_domain_update_is_all_or_nothing(root: GraphQLClient) -> None:
    for name in ("a.example", "b.example", "c.example"):
        await create_domain(root, name)
    await make_domain_user(root.environment, "x@b.example")
    domain_refs = [{"name": "c.example"}, {"id": (await load_domain(root, "a.example"))["id"]}]
    positions = {
        name: await load_stream_position(
            root.environment, await load_domain_id(root.environment, name)
        )
        for name in ("a.example", "c.example")
    }
    payload, errors = await run_mutation(
        root, DOMAIN_UPDATE, domains=domain_refs, set={"maxUsers": 1, "tags": ["x"]}
    )
    assert errors == []
    assert [domain["name"] for domain in payload["domains"]] == ["c.example", "a.example"]
    assert {(domain["maxUsers"], *domain["tags"]) for domain in payload["domains"]} == {(1, "x")}
    for name, position in positions.items():
        domain_id = await load_domain_id(root.environment, name)
        assert await load_journal_entries(root.environment, domain_id, position) == [
            (EventType.DOMAIN_UPDATED, [domain_id])
        ]
    await make_domain_user(root.environment, "y@b.example")
    domain_refs = [{"name": f"{domain}.example"} for domain in "abc"]
    payload, errors = await run_mutation(
        root, DOMAIN_UPDATE, domains=domain_refs, set={"maxUsers": 1, "tags": []}
    )
    assert (payload["domains"], error_summary(errors)) == (
        [],
        ("LIMIT_REACHED", ["set", "maxUsers"], None, None),
    )
    assert errors[0]["used"] == 2
    assert (await load_domain(root, "a.example"))["tags"] == ["x"]
    payload, errors = await run_mutation(
        root, DOMAIN_UPDATE, domains=[*domain_refs, {"name": "d.example"}], set={}
    )
    assert error_summary(errors)[:2] == ("VALIDATION", ["set"])
    arguments = {"domains": [*domain_refs, {"name": "d.example"}], "set": {"active": False}}
    payload, errors = await run_mutation(root, DOMAIN_UPDATE, **arguments)
    assert error_summary(errors) == ("NOT_FOUND", ["domains"], 3, "d.example")
    assert (await load_domain(root, "a.example"))["active"]


# for each case: the changes, and code, path, limit and use of the error
LIMITS_BELOW_USE: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"maxUsers": 1}, ("LIMIT_REACHED", ["set", "maxUsers"], 1, 2)),
    ({"maxAddresses": 1}, ("LIMIT_REACHED", ["set", "maxAddresses"], 1, 2)),
    ({"maxUserQuota": "2 GiB", "defaultUserQuota": "1 GiB"},
     ("LIMIT_REACHED", ["set", "maxUserQuota"], 2 * GIB, 4 * GIB)),
    ({"quota": "6 GiB", "maxUserQuota": "6 GiB"},
     ("LIMIT_REACHED", ["set", "quota"], 6 * GIB, 7 * GIB)),
    ({"defaultUserQuota": "7 GiB"},
     ("LIMIT_REACHED", ["set", "defaultUserQuota"], 10 * GIB, 11 * GIB)),
]  # fmt: skip


async def test_limit_below_current_use_is_refused(root: GraphQLClient) -> None:
    await create_domain(root, "new.example")
    await make_domain_user(root.environment, "a@new.example")
    await make_domain_user(root.environment, "b@new.example", quota=4 * GIB)
    domain_before = await load_domain(root, "new.example")
    assert domain_before["quotaAllocated"] == 7 * GIB
    for case in each_case(LIMITS_BELOW_USE):
        with case as (values, refusal):
            _, (error,) = await try_update_domain(root, "new.example", **values)
            assert (error["code"], error["path"], error["limit"], error["used"]) == refusal
            assert await load_domain(root, "new.example") == domain_before


async def test_limit_equal_to_current_use_is_accepted(root: GraphQLClient) -> None:
    await create_domain(root, "new.example")
    await make_domain_user(root.environment, "a@new.example")
    await make_domain_user(root.environment, "b@new.example", quota=4 * GIB)
    values = {"maxUsers": 2, "maxAddresses": 2, "quota": 7 * GIB, "maxUserQuota": 4 * GIB}
    (domain,), errors = await try_update_domain(root, "new.example", **values)
    assert errors == []
    assert (domain["usersLeft"], domain["maxNewUserQuota"]) == (0, 0)


async def test_quota_limit_is_refused_with_unlimited_user(root: GraphQLClient) -> None:
    await create_domain(root, "new.example", **NO_DOMAIN_LIMITS)
    await make_domain_user(root.environment, "a@new.example", quota=Unlimited.UNLIMITED)
    for values in ({"quota": "9 GiB"}, {"maxUserQuota": "9 GiB"}):
        _, errors = await try_update_domain(root, "new.example", **values)
        assert error_summary(errors)[:2] == ("LIMIT_REACHED", ["set", *values])
    await create_domain(root, "heirs.example", **{**UNLIMITED_FIELDS, "defaultUserQuota": None})
    await make_domain_user(root.environment, "a@heirs.example")
    _, errors = await try_update_domain(root, "heirs.example", quota="9 GiB")
    assert error_summary(errors)[:2] == ("VALIDATION", ["set", "quota"])
    (domain,), errors = await try_update_domain(
        root, "heirs.example", quota="9 GiB", defaultUserQuota="1 GiB"
    )
    assert (errors, domain["quotaAllocated"]) == ([], GIB)


async def test_allocated_quota_follows_the_default_quota(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "new.example", **NO_DOMAIN_LIMITS)
    for name, quota in (("a", None), ("b", None), ("c", 5 * GIB), ("d", Unlimited.UNLIMITED)):
        await make_domain_user(environment, f"{name}@new.example", quota=quota)
    for patch, allocated in (
        ({"defaultUserQuota": 2 * GIB}, 9),
        ({"defaultUserQuota": None}, 5),
        ({"inheritDefaultUserQuota": True}, 7),
    ):
        (domain,), errors = await try_update_domain(root, "new.example", **patch)
        assert (errors, domain["quotaAllocated"]) == ([], allocated * GIB)
        await assert_store_consistent(environment)


async def test_null_clears_and_missing_field_keeps_value(root: GraphQLClient) -> None:
    await create_domain(root, "new.example", description="x", tags=["a"])
    cleared = {"description": None, "tags": None, "maxUsers": None, "quota": None}
    (domain,), errors = await try_update_domain(root, "new.example", **cleared)
    assert errors == []
    assert [domain[name] for name in cleared] == [None, [], None, None]
    assert (domain["maxUserQuota"], domain["maxAddresses"]) == (10 * GIB, 400)
    _, errors = await try_update_domain(root, "new.example", active=None)
    assert error_summary(errors) == ("VALIDATION", ["set", "active"], None, "REQUIRED")


async def test_contradicting_relay_flags_are_refused(root: GraphQLClient) -> None:
    await create_domain(
        root, "new.example", backupMx=True, relayAllRecipients=True, relayUnknownOnly=True
    )
    for values in ({"backupMx": False}, {"relayAllRecipients": False}):
        _, errors = await try_update_domain(root, "new.example", **values)
        assert error_summary(errors) == ("VALIDATION", ["set", *values], None, "REQUIRES")
    (domain,), errors = await try_update_domain(root, "new.example", relayUnknownOnly=False)
    assert (errors, domain["relayAllRecipients"]) == ([], True)


async def test_inactive_domain_receives_no_mail_but_users_sign_in(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await try_update_domain(root, "example.org", active=False)
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, "ada@example.org")
    assert (
        await address_resolution.find_sign_in_user_id(environment, "A.da@example.org")
        == ada.user.id
    )
    user_query = "query ($by: UserRef) { user(by: $by) { username } }"
    result = await root(user_query, by={"address": "ada@example.org"})
    assert result == {"user": {"username": "ada"}}


async def test_audit_log_has_only_changed_values(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "new.example")
    arguments = {
        "domains": [{"name": "new.example"}],
        "set": {"maxUsers": 10, "description": "Ours"},
        "options": {"reason": "asked for"},
    }
    await run_mutation(root, DOMAIN_UPDATE, **arguments)
    query = "SELECT target_id, domain_id, reason FROM audit_log WHERE mutation = 'domainUpdate'"
    domain_id = await load_domain_id(environment, "new.example")
    assert await select_rows(environment, query) == [(domain_id, domain_id, "asked for")]
    log_rows = await select_rows(
        environment, "SELECT after FROM audit_log WHERE mutation = 'domainUpdate'"
    )
    assert "Ours" in str(log_rows)
    assert "max" not in str(log_rows)


async def test_audit_log_has_field_names_and_null_for_unlimited(root: GraphQLClient) -> None:
    await create_domain(root, "new.example", quota="10 GiB", maxUsers=5)
    new_values = {"quota": None, "maxUsers": None, "passwordPolicy": {"minLength": 12}}
    domain_refs = [{"name": "new.example"}]
    _, errors = await run_mutation(root, DOMAIN_UPDATE, domains=domain_refs, set=new_values)
    assert errors == []
    document = '{ auditLog(filter: {mutation: "domainUpdate"}) { nodes { before after } } }'
    (entry,) = (await root(document))["auditLog"]["nodes"]
    assert entry["before"] == {
        "quota": 10 << 30, "maxUsers": 5, "passwordPolicy": {"minLength": None},
    }  # fmt: skip
    assert entry["after"] == new_values


async def test_update_of_many_domains_runs_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    for n in range(20):
        await create_domain(root, f"d{n}.example")

    async def count_statements(count: int) -> int:
        del statements[:]
        domain_refs = [{"name": f"d{n}.example"} for n in range(count)]
        arguments = {"defaultUserQuota": count, "maxUsers": 9}
        _, errors = await run_mutation(root, DOMAIN_UPDATE, domains=domain_refs, set=arguments)
        assert errors == []
        return len([statement for statement in statements if "api_keys" not in statement])

    assert await count_statements(1) == await count_statements(20)
