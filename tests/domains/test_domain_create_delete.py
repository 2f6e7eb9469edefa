"""Creating and deleting domains, and their limits."""

import asyncio
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.errors import LimitReached, NotFound, RequestError
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.users.roles import Role
from models.users.tables import User
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.limit_values import Unlimited
from resolvers.users.quota import limits as quota_limits
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.address_rows import add_addresses
from tests.support.accounts.user_operations import execute_mutation, user_global_id
from tests.support.case_loop import each_case
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_CREATE,
    DOMAIN_DELETE,
    DOMAIN_LIMITS,
    NO_DOMAIN_LIMITS,
    UNLIMITED_FIELDS,
    create_domain,
    error_summary,
    load_domain,
    load_domain_id,
    make_domain_user,
    run_mutation,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

GIB = 1 << 30
pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_domain_create_sets_given_and_default_values(root: GraphQLClient) -> None:
    domain = await create_domain(
        root, "XN--Bcher-KVA.Example", description=" Books ", tags=["b", "A", "a"]
    )
    global_id = domain.pop("id")
    assert global_ids.decode("Domain", global_id)
    assert domain == {
        "name": "bücher.example",
        "description": "Books",
        "active": True,
        "tags": ["A", "b"],
        "maxAddresses": 400,
        "maxUsers": 10,
        "defaultUserQuota": 3 * GIB,
        "defaultUserQuotaInherited": False,
        "maxUserQuota": 10 * GIB,
        "maxNewUserQuota": 10 * GIB,
        "defaultNewUserQuota": 3 * GIB,
        "quota": 10 * GIB,
        "quotaAllocated": 0,
        "addressCount": 0,
        "addressesLeft": 400,
        "userCount": 0,
        "usersLeft": 10,
        "storage": {"size": 0, "messageCount": 0},
        "backupMx": False,
        "relayAllRecipients": False,
        "relayUnknownOnly": False,
        "globalAddressList": True,
    }
    domain_id = global_ids.decode("Domain", global_id)
    expected = [(EventType.DOMAIN_CREATED, [domain_id])]
    assert await load_journal_entries(root.environment, domain_id) == expected
    assert (await load_journal_entries(root.environment, PLATFORM))[-1:] == expected
    for name in ("bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"):
        assert (await load_domain(root, name))["id"] == global_id
    log_query = "SELECT mutation, target_id FROM audit_log"
    assert await select_rows(root.environment, log_query) == [("domainCreate", domain_id)]


async def test_unlimited_domain_has_no_remaining_counts(root: GraphQLClient) -> None:
    domain = await create_domain(root, "new.example", **NO_DOMAIN_LIMITS)
    limit_fields = ("addressesLeft", "usersLeft", "maxNewUserQuota")
    assert [domain[name] for name in limit_fields] == [None, None, None]
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (GIB, GIB)
    domain = await create_domain(
        root, "free.example", **{**UNLIMITED_FIELDS, "defaultUserQuota": None}
    )
    assert (domain["defaultUserQuota"], domain["defaultNewUserQuota"]) == (None, None)
    assert domain["defaultUserQuotaInherited"] is False


async def test_remaining_limits_are_exact(root: GraphQLClient) -> None:
    await create_domain(
        root, "new.example", maxUsers=2, maxAddresses=2, quota="4 GiB", maxUserQuota="4 GiB"
    )
    for name, remaining, max_new_quota, default_new_quota in (("a", 1, GIB, GIB), ("b", 0, 0, 0)):
        await make_domain_user(
            root.environment, f"{name}@new.example", quota=None if name == "a" else GIB
        )
        domain = await load_domain(root, "new.example")
        assert (domain["usersLeft"], domain["addressesLeft"]) == (remaining, remaining)
        assert (domain["maxNewUserQuota"], domain["defaultNewUserQuota"]) == (
            max_new_quota,
            default_new_quota,
        )
    assert domain["quotaAllocated"] == 4 * GIB
    assert domain["defaultUserQuota"] == 3 * GIB  # the default of users without an own quota


INVALID_DOMAINS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"name": ""}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "-a.example"}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "a..example"}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "eve@new.example"}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "a" * 64 + ".example"}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "a." * 5000 + "example"}, ("VALIDATION", ["name"], None, "DOMAIN")),
    ({"name": "EXAMPLE.org."}, ("CONFLICT", ["name"], None, None)),
    ({"name": "\uff45xample.org"}, ("CONFLICT", ["name"], None, None)),
    ({"description": "x" * 1001}, ("VALIDATION", ["description"], None, "LENGTH")),
    ({"tags": ["a", " "]}, ("VALIDATION", ["tags"], 1, "LENGTH")),
    ({"tags": ["a"] * 101}, ("VALIDATION", ["tags"], None, "MAX")),
    ({"maxUsers": 0}, ("VALIDATION", ["maxUsers"], None, "RANGE")),
    ({"maxAddresses": -1}, ("VALIDATION", ["maxAddresses"], None, "RANGE")),
    ({"quota": 0}, ("VALIDATION", ["quota"], None, "RANGE")),
    (
        {"defaultUserQuota": 1, "inheritDefaultUserQuota": True},
        ("VALIDATION", ["inheritDefaultUserQuota"], None, "EXCLUSIVE"),
    ),
    ({"maxUserQuota": "11 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "MAX")),
    ({"quota": "1 GiB"}, ("VALIDATION", ["maxUserQuota"], None, "MAX")),
    ({"defaultUserQuota": "11 GiB"}, ("VALIDATION", ["defaultUserQuota"], None, "MAX")),
    ({"defaultUserQuota": 0}, ("VALIDATION", ["defaultUserQuota"], None, "RANGE")),
    ({"defaultUserQuota": None}, ("VALIDATION", ["defaultUserQuota"], None, "MAX")),
    (
        {"inheritDefaultUserQuota": True, "maxUserQuota": 5},
        ("VALIDATION", ["inheritDefaultUserQuota"], None, "MAX"),
    ),
    (
        {"rateLimit": {"messages": 0, "per": "DAY"}},
        ("VALIDATION", ["rateLimit", "messages"], None, "RANGE"),
    ),
    (
        {"rateLimit": {"messages": 1, "per": "DAY"}, "inheritRateLimit": True},
        ("VALIDATION", ["inheritRateLimit"], None, "EXCLUSIVE"),
    ),
    ({"relayAllRecipients": True}, ("VALIDATION", ["relayAllRecipients"], None, "REQUIRES")),
    (
        {"backupMx": True, "relayUnknownOnly": True},
        ("VALIDATION", ["relayUnknownOnly"], None, "REQUIRES"),
    ),
]  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_invalid_domain_input_names_its_field(root: GraphQLClient) -> None:
    for case in each_case(INVALID_DOMAINS):
        with case as (invalid_input, refusal):
            count_before = await select_rows(root.environment, "SELECT count(*) FROM domains")
            limits = dict(DOMAIN_LIMITS)
            if (
                "defaultUserQuota" not in invalid_input
                and "inheritDefaultUserQuota" in invalid_input
            ):
                del limits["defaultUserQuota"]
            payload, errors = await run_mutation(
                root, DOMAIN_CREATE, **{"name": "new.example", **limits, **invalid_input}
            )
            assert (payload["domain"], error_summary(errors)) == (None, refusal)
            assert (
                await select_rows(root.environment, "SELECT count(*) FROM domains") == count_before
            )


@pytest.mark.parametrize("value", [2**53, -1, 2**63, "a lot"])
async def test_invalid_quota_is_refused_as_bad_user_input(root: GraphQLClient, value: Any) -> None:
    response = await root.execute(DOMAIN_CREATE, input={"name": "new.example", "quota": value})
    assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_one_of_concurrent_domain_creates_succeeds(root: GraphQLClient) -> None:
    attempts = [
        run_mutation(root, DOMAIN_CREATE, name=name) for name in ("new.example", "NEW.example") * 3
    ]
    outcomes = await asyncio.gather(*attempts)
    assert sorted(len(errors) for _, errors in outcomes) == [0, 1, 1, 1, 1, 1]
    assert {error["code"] for _, errors in outcomes for error in errors} == {"CONFLICT"}


async def test_one_of_concurrent_domain_and_alias_creates_succeeds(root: GraphQLClient) -> None:
    await create_domain(root, "old.example")
    attempts = [
        run_mutation(root, DOMAIN_CREATE, name="new.example"),
        run_mutation(
            root, ALIAS_DOMAIN_CREATE, alias="new.example", domain={"name": "old.example"}
        ),
    ]
    outcomes = await asyncio.gather(*attempts)
    assert sorted(len(errors) for _, errors in outcomes) == [0, 1]
    query = "SELECT name FROM domains UNION ALL SELECT alias FROM domain_aliases"
    assert [name for (name,) in await select_rows(root.environment, query)].count(
        "new.example"
    ) == 1


async def test_user_create_creates_domain_only_if_allowed(
    root: GraphQLClient, environment: Environment
) -> None:
    user = await make_domain_user(environment, "eve@new.example")
    domain = await load_domain(root, "new.example")
    assert (domain["maxUsers"], domain["quota"], domain["userCount"]) == (None, None, 1)
    assert domain["id"] == global_ids.encode("Domain", user.domain_id or 0)
    closed_environment = Environment(
        environment.database,
        environment.object_store,
        signing_secret=b"s",
        options=Options(argon2_memory_cost=8, argon2_time_cost=1, auto_create_domains=False),
        now=environment.now,
    )
    with pytest.raises(NotFound) as error_info:
        await make_domain_user(closed_environment, "eve@other.example")
    assert (error_info.value.ref, error_info.value.path) == ("other.example", ["address"])
    assert await load_domain(root, "other.example") is None
    assert (
        await make_domain_user(closed_environment, "zoe@new.example")
    ).domain_id == user.domain_id


async def test_domain_limits_come_from_the_settings(root: GraphQLClient) -> None:
    """For domainCreate, and for an address that creates the domain."""
    fields = ["maxUsers", "maxAddresses", "maxUserQuota", "quota", "defaultUserQuota"]
    no_limits = dict(zip(fields, (None, None, None, None, GIB), strict=True))
    _, errors = await run_mutation(root, DOMAIN_CREATE, name="a.example")
    await make_domain_user(root.environment, "eve@b.example")
    assert errors == []
    for name in ("a.example", "b.example"):
        assert {key: (await load_domain(root, name))[key] for key in fields} == no_limits
    set_options(
        root.environment,
        new_domain_max_users=1,
        new_domain_max_addresses=2,
        new_domain_default_user_quota=GIB // 2,
        new_domain_max_user_quota=GIB,
        new_domain_quota=3 * GIB,
    )
    assert (await run_mutation(root, DOMAIN_CREATE, name="c.example"))[1] == []
    await make_domain_user(root.environment, "eve@d.example")
    assert (await run_mutation(root, DOMAIN_CREATE, name="e.example", maxUsers=7, quota=None))[
        1
    ] == []
    limits = dict(zip(fields, (1, 2, GIB, 3 * GIB, GIB // 2), strict=True))
    for name in ("c.example", "d.example"):
        assert {key: (await load_domain(root, name))[key] for key in fields} == limits
    actual = {key: (await load_domain(root, "e.example"))[key] for key in fields}
    assert actual == limits | {"maxUsers": 7, "quota": None}
    with pytest.raises(LimitReached):
        await make_domain_user(root.environment, "bob@d.example")


ERROR_PATHS = [  # of the new address, by mutation
    ("userCreate", ["address"]),
    ("usersCreate", ["users", "0", "address"]),
    ("addressCreate", ["address"]),
    ("addressesCreate", ["addresses", "0", "address"]),
    ("addressUpdate", ["set", "address"]),
]


async def add_address_in_domain(
    client: GraphQLClient, ada: GraphQLClient, mutation: str, name: str, **options: Any
) -> Any:
    """Run a mutation that adds an address in this domain."""
    inputs: dict[str, dict[str, Any]] = {
        "userCreate": {"address": f"u@{name}", "passwordDisabled": True},
        "usersCreate": {"users": [{"address": f"l@{name}", "passwordDisabled": True}]},
        "addressesCreate": {
            "addresses": [{"user": {"id": user_global_id(ada)}, "address": f"l@{name}"}]
        },
        "addressCreate": {"user": {"id": user_global_id(ada)}, "address": f"a@{name}"},
        "addressUpdate": {
            "addresses": [{"address": ada.address}], "set": {"address": f"ada@{name}"},
        },
    }  # fmt: skip
    fields = "warnings { code message path }"
    options_input = {"options": options} if options else {}
    return await execute_mutation(client, mutation, fields, **inputs[mutation], **options_input)


async def test_address_creates_no_domain_unless_allowed(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    assert Options().auto_create_domains is False
    set_options(root.environment, auto_create_domains=False)
    for mutation, path in ERROR_PATHS:
        (error,) = (await add_address_in_domain(root, ada, mutation, "typo.example"))["errors"]
        assert (error["code"], error["path"]) == ("NOT_FOUND", path)
        assert "Domain not found: typo.example." in error["message"]
    assert await load_domain(root, "typo.example") is None


async def test_domain_created_by_an_address_gives_a_warning(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    for case in each_case(product(ERROR_PATHS, [{"validateOnly": True}, {}])):
        with case as ((mutation, path), options):
            add_address = partial(add_address_in_domain, root, ada, mutation)
            payload = await add_address("example.org", validateOnly=True)
            assert (payload["errors"], payload["warnings"]) == ([], [])
            name = f"{mutation}.example".lower()
            payload = await add_address(name, **options)
            (warning,) = payload["warnings"]
            assert (payload["errors"], warning["path"]) == ([], path)
            assert (warning["code"], name in warning["message"]) == ("DOMAIN_CREATED", True)
            assert (await load_domain(root, name) is None) == bool(options)


@pytest.mark.parametrize(
    ("limits", "path"),
    [({"maxUsers": 2}, "address"), ({"maxAddresses": 2}, "address")],
)
async def test_user_over_the_domain_limit_is_refused(
    root: GraphQLClient, limits: dict[str, Any], path: str
) -> None:
    await create_domain(root, "new.example", **{**NO_DOMAIN_LIMITS, **limits})
    await make_domain_user(root.environment, "a@new.example")
    await make_domain_user(root.environment, "b@new.example")
    with pytest.raises(RequestError) as error_info:
        await make_domain_user(root.environment, "c@new.example")
    assert (error_info.value.code, error_info.value.path) == ("LIMIT_REACHED", [path])
    assert (vars(error_info.value)["limit"], vars(error_info.value)["used"]) == (2, 2)
    assert (await load_domain(root, "new.example"))["userCount"] == 2


@pytest.mark.parametrize(
    "limits",
    [{"maxUsers": 2}, {"maxAddresses": 2}, {"quota": 2 * GIB}],
    ids=lambda outcome: next(iter(outcome)),
)
async def test_one_of_concurrent_users_gets_the_last_place(
    root: GraphQLClient, limits: dict[str, Any]
) -> None:
    await create_domain(root, "new.example", **{**NO_DOMAIN_LIMITS, **limits})
    await make_domain_user(root.environment, "a@new.example")
    attempts = [make_domain_user(root.environment, f"{name}@new.example") for name in "bcde"]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sorted(isinstance(outcome, User) for outcome in outcomes) == [False, False, False, True]
    assert {outcome.code for outcome in outcomes if isinstance(outcome, RequestError)} == {
        "LIMIT_REACHED"
    }
    domain = await load_domain(root, "new.example")
    assert (domain["userCount"], domain["quotaAllocated"]) == (2, 2 * GIB)


async def test_quota_is_that_of_user_domain_or_platform(root: GraphQLClient) -> None:
    for case in each_case(enumerate(product([0, 900], [None, 0, 800], [None, 0, 700]))):
        with case as (number, (platform, domain, user)):
            environment = Environment(
                root.environment.database,
                root.environment.object_store,
                signing_secret=b"s",
                options=Options(
                    users_default_quota=platform,
                    argon2_memory_cost=8,
                    argon2_time_cost=1,
                    auto_create_domains=True,
                ),
                now=root.environment.now,
            )
            address = f"eve{number}@example.org"
            quota = Unlimited.UNLIMITED if user == 0 else user
            eve = await make_domain_user(environment, address, quota=quota)
            async with environment.write_session() as session:
                await session.exec(update(Domain).values(default_user_quota=domain))
                await session.exec(update(User).values(used=1000))
            expected = next(quota for quota in (user, domain, platform) if quota is not None)
            ctx = Context(environment, Viewer(role=Role.ROOT))
            (row,) = await user_loaders.load_visible_users_by_id(ctx, [eve.id])
            assert row
            assert await quota_limits.load_quota(ctx, row) == expected
            try:
                await address_resolution.load_recipient_below_limits(environment, address)
                enforced = 0
            except RequestError as refused:
                enforced = vars(refused)["limit"]
            assert enforced == expected
            async with environment.write_session() as session:
                await session.exec(update(User).values(used=0))


async def test_received_message_over_domain_quota_is_refused(ada: GraphQLClient) -> None:
    await deliver_to(ada, "one")
    size = (await ada.load_mailbox()).size
    async with ada.environment.write_session() as session:
        await session.exec(update(Domain).values(default_user_quota=2 * size + 20))
    await deliver_to(ada, "two")
    with pytest.raises(RequestError):
        await deliver_to(ada, "three")


async def test_domain_with_users_or_aliases_needs_cascade_to_delete(
    root: GraphQLClient, environment: Environment
) -> None:
    for name in ("a.example", "b.example"):
        await create_domain(root, name)
    eve = await make_domain_user(environment, "eve@a.example")
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="also.example", domain={"name": "b.example"}
    )
    domain_refs = [{"name": "b.example"}, {"name": "a.example"}]
    payload, errors = await run_mutation(root, DOMAIN_DELETE, domains=domain_refs)
    assert (payload["deletedIds"], error_summary(errors)) == (
        [],
        ("CONFLICT", ["domains"], 1, None),
    )
    assert "users" in errors[0]["message"]
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=domain_refs[:1])
    assert error_summary(errors) == ("CONFLICT", ["domains"], 0, None)
    global_id = (await load_domain(root, "b.example"))["id"]
    payload, errors = await run_mutation(root, DOMAIN_DELETE, domains=domain_refs[:1], cascade=True)
    assert (payload["deletedIds"], errors) == ([global_id], [])
    assert await load_domain(root, "b.example") is None
    assert await select_rows(environment, "SELECT count(*) FROM domain_aliases") == [(0,)]
    domain_id = global_ids.decode("Domain", global_id)
    assert await select_rows(
        environment, "SELECT count(*) FROM streams WHERE id = :id", id=domain_id
    ) == [(0,)]
    assert (await load_journal_entries(environment, PLATFORM))[-1] == (
        EventType.DOMAIN_DELETED,
        [domain_id],
    )
    await create_domain(root, "also.example")
    other_global_id = (await load_domain(root, "a.example"))["id"]
    payload, errors = await run_mutation(root, DOMAIN_DELETE, domains=domain_refs[1:], cascade=True)
    assert (payload["deletedIds"], errors) == ([other_global_id], [])
    query = "SELECT domain_id, active FROM users WHERE id = :id"
    ((domain, active),) = await select_rows(environment, query, id=eve.id)
    assert (domain, bool(active)) == (None, False)
    assert await select_rows(environment, "SELECT count(*) FROM addresses") == [(0,)]
    await assert_store_consistent(environment)


async def test_cascade_deletes_addresses_and_journals_for_owners(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "old.example")
    domain_id = await load_domain_id(environment, "old.example")
    position = await load_stream_position(environment, ada.user.id)
    await add_addresses(environment, "ada@old.example", user_id=ada.user.id)
    await add_addresses(environment, "list@old.example")
    async with environment.write_session() as session:
        await session.exec(
            update(Domain).where(col(Domain.id) == domain_id).values(address_count=2)
        )
    address_rows = await select_rows(
        environment, "SELECT id FROM addresses WHERE domain_id = :k", k=domain_id
    )
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "old.example"}])
    assert error_summary(errors)[:2] == ("CONFLICT", ["domains"])
    _, errors = await run_mutation(
        root, DOMAIN_DELETE, domains=[{"name": "old.example"}], cascade=True
    )
    assert errors == []
    ((kind, (address,)),) = await load_journal_entries(environment, ada.user.id, position)
    assert (kind, (address,) in address_rows) == (EventType.ADDRESS_DELETED, True)


async def test_concurrent_user_create_and_domain_delete(
    root: GraphQLClient, environment: Environment
) -> None:
    await create_domain(root, "old.example")
    attempts: list[Any] = [
        make_domain_user(environment, "eve@old.example"),
        run_mutation(root, DOMAIN_DELETE, domains=[{"name": "old.example"}]),
    ]
    user, outcome = await asyncio.gather(*attempts, return_exceptions=True)
    assert not isinstance(outcome, BaseException)
    _, errors = outcome
    domain = await load_domain(root, "old.example")
    if errors:
        assert (isinstance(user, User), domain["userCount"]) == (True, 1)
    else:  # the domain was deleted first: the user was refused, or created the domain again
        assert isinstance(user, NotFound) or domain["userCount"] == 1
