"""Updating users: one or many, all or nothing."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.users.tables import Usage, UsageKind
from tests.conftest import GraphQLClient, make_user
from tests.support.accounts.openpgp_keys import SIGN_ONLY_KEY, make_public_key
from tests.support.accounts.user_operations import (
    NEW_PASSWORD,
    execute_mutation,
    load_journal_changes,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_update_users,
    user_global_id,
)
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import set_domain_columns
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_stream_position,
    select_rows,
)

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_update_sets_named_fields_and_clears_null_fields(ada: GraphQLClient) -> None:
    public_key = make_public_key("Ada <ada@example.org>")
    (user,), errors = await try_update_users(
        ada,
        name="Ada L.",
        language="de",
        retention="P1D",
        openpgpPublicKey=public_key,
        metadata={"a": 1},
        spam={"level": 7},
    )
    assert errors == []
    assert (user["name"], user["language"], user["retention"]) == ("Ada L.", "de", "P1D")
    assert (user["metadata"], user["spam"]["level"]) == ({"a": 1}, 7)
    assert user["openpgpKey"]["address"] == "ada@example.org"
    (user,), errors = await try_update_users(ada, name="Ada")
    assert (user["language"], user["openpgpPublicKey"] is None) == ("de", False)
    (user,), errors = await try_update_users(
        ada,
        name=None,
        language=None,
        retention=None,
        openpgpPublicKey=None,
        metadata=None,
        spam=None,
    )
    assert errors == []
    cleared = ("name", "language", "retention", "openpgpPublicKey", "openpgpKey", "metadata")
    assert [user[name] for name in cleared] == [None] * 6
    assert user["spam"]["level"] == 50


async def test_update_is_journaled_for_user_and_domain(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment, domain = ada.environment, ada.user.domain_id or 0
    user_position = await load_stream_position(environment, ada.user.id)
    domain_position = await load_stream_position(environment, domain)
    assert (await try_update_users(ada, name="New", language="de"))[1] == []
    expected = (EventType.USER_UPDATED, [ada.user.id], [["language", "name"]])
    assert await load_journal_changes(environment, ada.user.id, user_position) == [expected]
    assert await load_journal_changes(environment, domain, domain_position) == [expected]
    user_position = await load_stream_position(environment, ada.user.id)
    assert (await try_update_users(ada, name="New"))[1] == []  # an unchanged value is not journaled
    assert await load_journal_changes(environment, ada.user.id, user_position) == []
    assert (
        await select_rows(environment, "SELECT id FROM audit_log WHERE mutation = 'userUpdate'")
        == []
    )
    dan, _ = await try_create_user(root, username="dan", address=None, emptyAddress=True)
    platform_position = await load_stream_position(environment, PLATFORM)
    user_id = global_ids.decode("User", dan["id"])
    assert (await try_update_users(root, user_id, name="D"))[1] == []
    assert await load_journal_changes(environment, PLATFORM, platform_position) == [
        (EventType.USER_UPDATED, [user_id], [["name"]])
    ]


async def test_update_of_many_users_is_all_or_nothing(
    root: GraphQLClient, statements: list[str]
) -> None:
    new_users = [await make_user(root.environment, f"n{number}") for number in range(30)]
    user_ids = [user.id for user in new_users]
    patch = {"tags": ["a", "B"], "quota": 5, "spam": {"level": 3}, "suspended": True,
             "limits": {"recipientsPerDay": 9}}  # fmt: skip

    async def count_statements(ids: list[int]) -> int:
        del statements[:]
        users, errors = await try_update_users(root, *ids, **patch)
        assert (len(users), errors) == (len(ids), [])
        return len([statement for statement in statements if "api_keys" not in statement])

    assert await count_statements(user_ids[:1]) == await count_statements(user_ids[1:])
    ((allocated,),) = await select_rows(root.environment, "SELECT quota_allocated FROM domains")
    assert allocated == 150
    ((tag_count,),) = await select_rows(root.environment, "SELECT count(*) FROM user_tags")
    assert tag_count == 60
    await set_domain_columns(root.environment, quota=200)
    rows_before = await select_rows(
        root.environment, "SELECT id, quota, name FROM users ORDER BY id"
    )
    users, (error,) = await try_update_users(root, *user_ids, quota=7, name="X")
    assert (users, error["code"], error["path"]) == ([], "LIMIT_REACHED", ["set", "quota"])
    users, (error,) = await try_update_users(root, *user_ids, 77, name="X")
    assert (users, error["code"]) == ([], "NOT_FOUND")
    assert (
        await select_rows(root.environment, "SELECT id, quota, name FROM users ORDER BY id")
        == rows_before
    )


INVALID_UPDATES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "REQUIRED"),
    ({"passwordDisabled": False, "hashedPassword": True}, "", "REQUIRED"),
    ({"username": "a..b"}, "username", "PATTERN"),
    ({"username": ""}, "username", "PATTERN"),
    ({"name": "a\nb"}, "name", "PATTERN"),
    ({"password": ""}, "password", "MIN"),
    ({"password": "short"}, "password", "MIN"),
    ({"password": "x" * 257}, "password", "MAX"),
    ({"password": "password1", "allowUnsafe": False}, "password", "BREACHED"),
    ({"password": "$9$x", "hashedPassword": True}, "password", "PASSWORD_HASH"),
    ({"password": NEW_PASSWORD, "passwordDisabled": True}, "password", "EXCLUSIVE"),
    ({"openpgpPublicKey": SIGN_ONLY_KEY}, "openpgpPublicKey", "KEY"),
    ({"metadata": [1]}, "metadata", "OBJECT"),
    ({"limits": {"recipientsPerDay": 0}}, "limits.recipientsPerDay", "RANGE"),
    ({"quota": 0}, "quota", "RANGE"),
    ({"quota": 1, "inheritQuota": True}, "inheritQuota", "EXCLUSIVE"),
    ({"limits": {}, "inheritLimits": True}, "inheritLimits", "EXCLUSIVE"),
    ({"retention": "PT0S"}, "retention", "RANGE"),
    ({"tags": [""]}, "tags.0", "LENGTH"),
    ({"allowedSenders": ["a*b"]}, "allowedSenders.0", "PATTERN"),
    ({"retention": "P999Y"}, "retention", "RANGE"),
]


async def test_invalid_update_names_field_and_rule(root: GraphQLClient, ada: GraphQLClient) -> None:
    for case in each_case(INVALID_UPDATES):
        with case as (patch, path, rule):
            row_before = await load_user_row(root.environment, ada)
            users, (error,) = await try_update_users(root, ada, **patch)
            expected_path = ["set", *filter(None, path.split("."))]
            assert (users, error["path"], error["constraint"]) == ([], expected_path, rule)
            assert await load_user_row(root.environment, ada) == row_before


async def test_username_change_updates_key_and_search_words(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    (user,), errors = await try_update_users(root, ada, username="Ada.Byron")
    assert (errors, user["username"]) == ([], "ada.byron")
    row = await load_user_row(root.environment, ada)
    assert (row.username_key, row.words) == ("adabyron", "ada.byron\nada@example.org\nadabyron")
    for taken_name in ("adabyron", "a.dabyron", "ADA.byron"):
        users, (error,) = await try_update_users(root, bob, username=taken_name)
        assert (users, error["code"], error["path"]) == ([], "CONFLICT", ["set", "username"])
    # another spelling of the own name
    assert (await try_update_users(root, ada, username="adabyron"))[1] == []
    response = await root('{ user(by: {username: "ada.byron"}) { username } }')
    assert response["user"] == {"username": "adabyron"}
    users, (error,) = await try_update_users(root, ada, bob, username="both")
    assert (error["constraint"], error["path"]) == ("EXCLUSIVE", ["set", "username"])
    (user,), _ = await try_update_users(root, ada, name="Ada Ö")
    assert (await load_user_row(root.environment, ada)).words == "adabyron\nada o\nada@example.org"


async def test_one_of_concurrent_username_changes_succeeds(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    other_user, _ = await try_create_user(root, address="x@elsewhere.example")
    user_ids = [ada.user.id, global_ids.decode("User", other_user["id"])]
    results = await asyncio.gather(
        *(try_update_users(root, user_id, username="ra.ce") for user_id in user_ids)
    )
    assert sorted(len(errors) for _, errors in results) == [0, 1]
    ((error,),) = [errors for _, errors in results if errors]
    assert (error["code"], error["path"]) == ("CONFLICT", ["set", "username"])


async def test_quota_changes_respect_the_domain_limits(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    async def set_quota(quota: Any, *targets: GraphQLClient) -> Any:
        patch = {"inheritQuota": True} if quota == "inherited" else {"quota": quota}
        users, errors = await try_update_users(root, *targets, **patch)
        await assert_store_consistent(root.environment)
        return (
            (errors[0]["limit"], errors[0]["used"])
            if errors
            else users[0]["limits"]["quota"]["limit"]
        )

    assert await set_quota("3 GiB", ada) == 3 * GIB
    assert await set_quota("inherited", ada) == GIB
    await set_domain_columns(root.environment, quota=4 * GIB, max_user_quota=3 * GIB)
    assert await set_quota(3 * GIB, ada) == 3 * GIB  # at the limit
    assert await set_quota(GIB + 1, bob) == (4 * GIB, 4 * GIB)
    assert await set_quota(3 * GIB + 1, ada) == (3 * GIB, 3 * GIB + 1)
    assert await set_quota(None, ada) == (3 * GIB, 0)
    assert await set_quota(2 * GIB, ada, bob) == 2 * GIB
    assert await set_quota(2 * GIB + 1, ada, bob) == (4 * GIB, 4 * GIB)
    # less than the allocated quota
    await set_domain_columns(root.environment, quota=GIB, max_user_quota=0)
    assert await set_quota(GIB, ada) == GIB  # less than before
    assert await set_quota(GIB + 1, ada) == (GIB, 3 * GIB)
    await set_domain_columns(root.environment, quota=0)
    assert await set_quota(None, ada) is None
    changes = [asyncio.create_task(set_quota(n * 1000, ada if n % 2 else bob)) for n in range(1, 9)]
    await asyncio.gather(*changes)


async def test_changed_limit_resets_its_counter(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    window_end = root.environment.now() + timedelta(hours=1)
    async with root.environment.write_session() as session:
        for client in (ada, bob):
            kind = UsageKind.RECIPIENTS  # the other counters are in the row of the user
            session.add(Usage(user_id=client.user.id, kind=kind, used=3, until=window_end))

    async def load_counters() -> set[tuple[int, str]]:
        return set(await select_rows(root.environment, "SELECT user_id, kind FROM usages"))

    counters_before = await load_counters()
    assert (await try_update_users(root, ada, limits={"recipientsPerDay": 5}))[1] == []
    assert counters_before - await load_counters() == {(ada.user.id, "RECIPIENTS")}
    limits = {"receivedPerHour": 5, "recipientsPerDay": 5}
    assert (await try_update_users(root, ada, bob, limits=limits))[1] == []
    assert await load_counters() == {(bob.user.id, "RECIPIENTS")} - {(bob.user.id, "RECIPIENTS")}
    assert (await load_user_row(root.environment, bob)).received_per_hour == 5


MESSAGE_SEND = """mutation ($input: MessageSendInput!) {
  messageSend(input: $input) { submissions { id } errors { code path message } } }"""


@pytest.mark.usefixtures("bob")
async def test_allowed_senders_allows_further_senders(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    async def can_send(address: str, **extra: Any) -> bool:
        message = {"from": {"address": address}, "to": [{"address": "c@x.example"}], "text": "Hi"}
        payload = (await ada(MESSAGE_SEND, input={**message, **extra}))["messageSend"]
        assert [error["code"] for error in payload["errors"]] in ([], ["FORBIDDEN_OPERATION"])
        return not payload["errors"]

    cases = {
        "bob@example.org": (["Bob@EXAMPLE.org"], "bob@example.org", "bobby@example.org"),
        "domain": (["other.example"], "any.body@other.example", "x@sub.other.example"),
        "idn": (["xn--bcher-kva.example"], "x@bücher.example", "x@bucher.example"),
        "suffix": (["*@other.example"], "x@OTHER.example", "x@another.example"),
        "sub": (["*.other.example"], "x@a.other.example", "x@other.example"),
        "prefix": (["news*"], "news-1@any.example", "x@news.example"),
        "all": (["*"], "who@ever.example", None),
    }
    for patterns, allowed_sender, refused_sender in cases.values():
        assert not await can_send(allowed_sender)
        assert (await try_update_users(root, ada, allowedSenders=patterns))[1] == []
        assert await can_send(allowed_sender), patterns
        assert refused_sender is None or not await can_send(refused_sender), patterns
        envelope = {"from": {"address": allowed_sender}, "to": [{"address": "c@x.example"}]}
        assert await can_send("ada@example.org", envelope=envelope)
        assert (await try_update_users(root, ada, allowedSenders=None))[1] == []
    assert not await can_send("bob@example.org")


async def test_update_changes_spam_thresholds(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    fields = "users { spam { level junkScore rejectScore } }"
    payload = await execute_mutation(
        ada, "userUpdate", fields, set={"spam": {"level": 10, "junkScore": 4.5}}
    )
    assert payload == {
        "users": [{"spam": {"level": 10, "junkScore": 4.5, "rejectScore": 15}}],
        "errors": [],
    }
    payload = await execute_mutation(
        ada,
        "userUpdate",
        fields,
        set={"spam": {"level": None, "junkScore": None, "rejectScore": 8}},
    )
    assert payload["users"] == [{"spam": {"level": 50, "junkScore": 8, "rejectScore": 8}}]
    both_users = {"ids": [user_global_id(ada), user_global_id(bob)]}
    for policy, path in (
        ({"junkScore": 9}, "rejectScore"),  # the reject score of ada is 8
        ({"junkScore": 0}, "junkScore"),
        ({"rejectScore": -1}, "rejectScore"),
        ({"rejectScore": 1e308}, "rejectScore"),
        ({"level": 101}, "level"),
    ):
        payload = await execute_mutation(
            root, "userUpdate", fields, users=both_users, set={"spam": policy}
        )
        assert (payload["users"], payload["errors"][0]["path"]) == ([], ["set", "spam", path])
    payload = await execute_mutation(
        root, "userUpdate", fields, users=both_users, set={"spam": {"junkScore": 7}}
    )
    assert [user["spam"]["junkScore"] for user in payload["users"]] == [7, 7]
    assert (
        len(
            await select_rows(
                root.environment, "SELECT id FROM audit_log WHERE mutation = 'userUpdate'"
            )
        )
        == 2
    )
    payload = await execute_mutation(
        ada, "userUpdate", users={"ids": [user_global_id(bob)]}, set={"spam": {"level": 1}}
    )
    assert payload["errors"][0]["code"] == "NOT_FOUND"
    domain_admin = await make_admin_of_domain(root)
    payload = await execute_mutation(
        domain_admin, "userUpdate", users={"ids": [user_global_id(bob)]}, set={"spam": {"level": 1}}
    )
    assert payload["errors"][0]["requires"] == "SPAM_POLICY"
