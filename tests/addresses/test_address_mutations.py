"""Mutations that create, update and delete addresses."""

from typing import Any

import pytest
from sqlalchemy import update

from mail.recipients import address_resolution
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, make_client
from tests.support.case_loop import each_case
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import (
    create_address,
    load_address,
    load_address_row,
    try_create_address,
    try_create_temporary_address,
    try_delete_addresses,
    try_update_addresses,
)
from tests.support.operations.domain_operations import (
    error_summary,
    load_domain_id,
    make_admin_of_domains,
    make_domain_user,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

pytestmark = pytest.mark.usefixtures("verify_counters")


async def update_domains(environment: Environment, **column_values: Any) -> None:
    async with environment.write_session() as session:
        await session.exec(update(Domain).values(**column_values))


async def test_created_user_address_receives_mail_and_is_journaled(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    environment = root.environment
    domain_id = await load_domain_id(environment, "example.org")
    positions = {
        stream_id: await load_stream_position(environment, stream_id)
        for stream_id in (domain_id, ada.user.id)
    }
    address = await create_address(
        root, "Sales.Team@Example.ORG", user={"username": "ada"}, name="Sales", tags=["b", "a"],
        publicComment="Ours", privateComment="Mine", metadata={"n": 1}, privateMetadata={"m": 2},
    )  # fmt: skip
    assert address["address"] == "Sales.Team@example.org"
    assert (address["localPart"], address["kind"], address["main"]) == (
        "Sales.Team",
        "MAILBOX",
        False,
    )
    assert (address["user"], address["domain"]) == ({"username": "ada"}, {"name": "example.org"})
    assert (address["tags"], address["metadata"], address["privateMetadata"]) == (
        ["a", "b"], {"n": 1}, {"m": 2},
    )  # fmt: skip
    assert (address["publicComment"], address["privateComment"]) == ("Ours", "Mine")
    recipient = await address_resolution.load_recipient_below_limits(
        environment, "salesteam+x@example.org"
    )
    assert recipient.user_id == ada.user.id
    for stream_id, position in positions.items():
        ((kind, _),) = await load_journal_entries(environment, stream_id, position)
        assert kind is EventType.ADDRESS_CREATED
    duplicate, errors = await try_create_address(
        root, "salesteam@example.org", user={"username": "ada"}
    )
    assert (duplicate, error_summary(errors)) == (None, ("CONFLICT", ["address"], None, None))


INVALID_ADDRESSES: list[tuple[dict[str, Any], Any]] = [
    ({"address": "a+b@example.org"}, (["address"], "SUBADDRESS")),
    ({"address": "nothing"}, (["address"], "ADDRESS")),
    ({"address": "a*@example.org"}, (["address"], "WILDCARD")),
    ({"address": "a*b@example.org", "allowWildcard": True}, (["address"], "PATTERN")),
    ({"address": "**@example.org", "allowWildcard": True}, (["address"], "PATTERN")),
    ({"address": "*@*", "allowWildcard": True}, (["address"], "PATTERN")),
    ({"address": "a*@*", "allowWildcard": True}, (["address"], "PATTERN")),
    ({"address": "+a*@example.org", "allowWildcard": True}, (["address"], "PATTERN")),
    ({"address": f"{'x' * 33}*@example.org", "allowWildcard": True}, (["address"], "MAX")),
    ({"address": f"*{'x' * 33}@example.org", "allowWildcard": True}, (["address"], "MAX")),
    ({"address": "*@-b.example", "allowWildcard": True}, (["address"], "DOMAIN")),
    ({"address": "\u0430da*@example.org", "allowWildcard": True}, (["address"], "LOOKALIKE")),
    ({"kind": "FORWARD", "forwardTo": ["a@b.example"]}, (["user"], "REQUIRED")),
    ({"user": None}, (["forwardTo"], "REQUIRED")),
    ({"user": None, "kind": "MAILBOX"}, (["user"], "REQUIRED")),
    ({"user": None, "kind": "LEARN_SPAM"}, (["kind"], "UNSUPPORTED")),
    ({"user": None, "kind": "LEARN_HAM"}, (["kind"], "UNSUPPORTED")),
    ({"user": None, "kind": "DISCARD", "forwardTo": ["a@b.example"]},
     (["forwardTo"], "EXCLUSIVE")),
    ({"forwardTo": ["a@b.example"]}, (["forwardTo"], "EXCLUSIVE")),
    ({"limits": {"forwardsPerDay": 5}}, (["limits", "forwardsPerDay"], "EXCLUSIVE")),
    ({"limits": {"forwardsPerDay": 0}}, (["limits", "forwardsPerDay"], "RANGE")),
    ({"name": "x" * 129}, (["name"], "LENGTH")),
    ({"name": "a\nb"}, (["name"], "PATTERN")),
    ({"tags": [""]}, (["tags", "0"], "LENGTH")),
    ({"metadata": [1]}, (["metadata"], "OBJECT")),
    ({"publicComment": "x" * 1001}, (["publicComment"], "LENGTH")),
    ({"expiresAt": "2029-01-01T00:00:00Z"}, (["expiresAt"], "MIN")),
    ({"expiresAt": "2031-01-01T00:00:00Z", "main": True}, (["main"], "MAIN_ADDRESS")),
    ({"address": "@example.org", "allowWildcard": True, "main": True},
     (["main"], "MAIN_ADDRESS")),
    ({"address": "all@*", "allowWildcard": True, "main": True}, (["main"], "MAIN_ADDRESS")),
    (
        {
            "domain": None, "address": "x@own.example", "user": None,
            "forwardTo": ["x@own.example"],
        },
        (["forwardTo", "0"], "SELF"),
    ),
]  # fmt: skip


@pytest.mark.usefixtures("ada")
async def test_invalid_address_is_refused_by_field_and_rule(root: GraphQLClient) -> None:
    for case in each_case(INVALID_ADDRESSES):
        with case as (values, expected_error):
            defaults = {"address": "new@example.org", "user": {"username": "ada"}}
            arguments = {
                name: value for name, value in (defaults | values).items() if value is not None
            }
            result, errors = await try_create_address(root, arguments.pop("address"), **arguments)
            assert result is None
            assert [("VALIDATION", *expected_error)] == [
                (e["code"], e["path"], e["constraint"]) for e in errors
            ]
            assert await load_address(root, "new@example.org") is None
            assert (await load_address(root, "ada@example.org"))["main"] is True


async def test_all_input_errors_are_returned_at_once(root: GraphQLClient) -> None:
    arguments = {
        "tags": [""],
        "limits": {"forwardsPerDay": -1},
        "forwardTo": ["x", "http://127.0.0.1/"],
    }
    _, errors = await try_create_address(root, "a+b@example.org", **arguments)
    assert [(field_path(e), item_index(e)) for e in errors] == [
        (["address"], None), (["forwardTo"], 0), (["limits", "forwardsPerDay"], None),
        (["tags"], 0),
    ]  # fmt: skip


# for each case: the pattern, and an address that it matches
WILDCARD_ADDRESSES: list[tuple[str, str]] = [
    ("@example.org", "any@example.org"),
    ("*@example.org", "any@example.org"),
    ("Pre.fix*@example.org", "prefixes@example.org"),
    ("*-suffix@example.org", "a-suffix@example.org"),
    ("every.where@*", "everywhere@example.org"),
]


async def test_wildcard_address_receives_mail(root: GraphQLClient, ada: GraphQLClient) -> None:
    for case in each_case(WILDCARD_ADDRESSES):
        with case as (pattern, asked_address):
            address = await create_address(
                root, pattern, user={"username": "ada"}, allowWildcard=True
            )
            assert address["wildcard"] is True
            assert address["catchAll"] is (pattern in ("@example.org", "*@example.org"))
            assert (
                await address_resolution.load_recipient_below_limits(
                    root.environment, asked_address
                )
            ).user_id == ada.user.id
            assert (await load_address(root, pattern))["id"] == address["id"]
            assert await load_address(root, asked_address) is None
            assert (await load_address(root, asked_address, allow_wildcard=True))["id"] == address[
                "id"
            ]
            ((answer,), errors) = await try_update_addresses(root, pattern, name="Pattern")
            assert (answer["name"], errors) == ("Pattern", [])
            for values, path, rule in (
                ({"main": True}, "main", "MAIN_ADDRESS"),
                ({"address": "x@example.org"}, "address", "WILDCARD"),
            ):
                answer, errors = await try_update_addresses(root, pattern, **values)
                assert (answer, error_summary(errors)) == (
                    [],
                    ("VALIDATION", ["set", path], None, rule),
                )
            assert (await try_delete_addresses(root, address))[1] == []
            assert await load_address(root, asked_address, allow_wildcard=True) is None


async def test_number_of_addresses_of_a_domain_is_limited(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await update_domains(root.environment, max_addresses=1)
    for _, errors in (
        await try_create_address(root, "b@example.org", forwardTo=["x@y.example"]),
        await try_create_temporary_address(ada),
    ):
        (error,) = errors
        assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 1, 1)


async def test_kind_changes_only_for_addresses_without_user(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_address(root, "list@own.example", forwardTo=["smtp://u:p@relay.example.com"])
    ((answer,), errors) = await try_update_addresses(root, "list@own.example", kind="DISCARD")
    assert (answer["kind"], answer["forwardTo"], errors) == ("DISCARD", [], [])
    assert (await load_address_row(root.environment, "list@own.example")).relays is None
    for address, kind, path, rule in (
        ("list@own.example", "FORWARD", "forwardTo", "REQUIRED"),
        ("list@own.example", "MAILBOX", "kind", "ADDRESS_KIND"),
        ("list@own.example", "LEARN_HAM", "kind", "UNSUPPORTED"),
        (ada.address, "DISCARD", "kind", "ADDRESS_KIND"),
    ):
        _, errors = await try_update_addresses(root, address, kind=kind)
        assert ("VALIDATION", ["set", path], None, rule) in [
            error_summary([{"constraint": None, **error}]) for error in errors
        ]
    ((answer,), errors) = await try_update_addresses(
        root, "list@own.example", kind="FORWARD", forwardTo=["x@y.example"], active=False
    )
    assert (answer["kind"], answer["active"], errors) == ("FORWARD", False, [])


async def test_new_main_address_replaces_the_old_one(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await create_address(root, "second@example.org", user={"username": "ada"})
    domain_id = await load_domain_id(root.environment, "example.org")
    positions = {
        stream_id: await load_stream_position(root.environment, stream_id)
        for stream_id in (domain_id, ada.user.id)
    }
    ((answer,), errors) = await try_update_addresses(
        ada, "second@example.org", main=True, name="Ada L."
    )
    assert (answer["main"], answer["name"], errors) == (True, "Ada L.", [])
    assert (await load_address(ada, "ada@example.org"))["main"] is False
    user = await ada("{ user { address { address } localPart } }")
    assert user["user"] == {"address": {"address": "second@example.org"}, "localPart": "second"}
    listed_users = await root('{ users(filter: {query: "second@"}) { nodes { username } } }')
    assert listed_users["users"]["nodes"] == [{"username": "ada"}]
    for stream_id, position in positions.items():
        kinds = [
            (kind, len(ids))
            for kind, ids in await load_journal_entries(root.environment, stream_id, position)
        ]
        expected = [(EventType.ADDRESS_UPDATED, 2), (EventType.USER_UPDATED, 1)]
        assert sorted(kinds) == sorted(expected)
    _, errors = await try_update_addresses(ada, "second@example.org", main=False)
    assert error_summary(errors) == ("VALIDATION", ["set", "main"], None, "MAIN_ADDRESS")
    main_address = await load_address(root, "second@example.org")
    _, errors = await try_delete_addresses(root, main_address)
    assert error_summary(errors) == ("CONFLICT", ["addresses"], 0, None)


async def test_first_address_becomes_main_and_sets_the_users_domain(root: GraphQLClient) -> None:
    arguments = {"username": "eve", "emptyAddress": True, "passwordDisabled": True}
    document = """mutation ($input: UserCreateInput!) {
      userCreate(input: $input) { user { id } errors { code } } }"""
    assert (await root(document, input=arguments))["userCreate"]["errors"] == []
    pattern = await create_address(
        root, "@own.example", user={"username": "eve"}, allowWildcard=True
    )
    first = await create_address(root, "eve@own.example", user={"username": "eve"})
    second = await create_address(root, "eva@own.example", user={"username": "eve"})
    assert [address["main"] for address in (pattern, first, second)] == [False, True, False]
    result = await root("""{ user(by: {username: "eve"}) { domain { name userCount }
      address { address } } }""")
    assert result["user"] == {
        "domain": {"name": "own.example", "userCount": 1},
        "address": {"address": "eve@own.example"},
    }


async def test_main_address_in_other_domain_moves_user_within_limits(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    await domain_operations.create_domain(
        root, "own.example", maxUsers=1, quota=None, maxUserQuota=None
    )
    await create_address(root, "ada@own.example", user={"username": "ada"})
    _, errors = await try_update_addresses(ada, "ada@own.example", main=True)
    assert error_summary(errors) == ("FORBIDDEN", ["set", "main"], None, "DOMAIN_ADMIN")
    ((answer,), errors) = await try_update_addresses(root, "ada@own.example", main=True)
    assert (answer["main"], errors) == (True, [])
    counts = {}
    for name in ("example.org", "own.example"):
        domain = await domain_operations.load_domain(root, name)
        counts[name] = (domain["userCount"], domain["addressCount"], int(domain["quotaAllocated"]))
    assert counts["example.org"] == (0, 1, 0)
    assert counts["own.example"][:2] == (1, 1)
    user = await make_domain_user(root.environment, "bob@example.org")
    await create_address(root, "bob@own.example", user={"address": "bob@example.org"})
    _, errors = await try_update_addresses(root, "bob@own.example", main=True)
    assert (errors[0]["code"], errors[0]["limit"]) == ("LIMIT_REACHED", 1)
    assert (await load_address(root, "bob@example.org"))["main"] is True
    assert user.domain_id == await load_domain_id(root.environment, "example.org")


async def test_renamed_main_address_is_found_by_new_address(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    arguments = {"address": " L.Ada@XN--BCHER-KVA.example "}
    for address, values, expected_error in (
        ("ada@example.org", {"address": "a+b@example.org"}, ("VALIDATION", None, "SUBADDRESS")),
        ("ada@example.org", {"address": "a*@example.org"}, ("VALIDATION", None, "WILDCARD")),
    ):
        _, errors = await try_update_addresses(root, address, **values)
        assert error_summary(errors) == (expected_error[0], ["set", "address"], *expected_error[1:])
    ((answer,), errors) = await try_update_addresses(root, "ada@example.org", **arguments)
    assert (answer["address"], answer["main"], errors) == ("L.Ada@bücher.example", True, [])
    assert (
        await address_resolution.load_recipient_below_limits(
            root.environment, "lada@bücher.example"
        )
    ).user_id == ada.user.id
    assert await load_address(root, "ada@example.org") is None
    result = await root('{ users(filter: {query: "lada@bücher"}) { nodes { domain { name } } } }')
    assert result["users"]["nodes"] == [{"domain": {"name": "bücher.example"}}]
    await create_address(root, "taken@bücher.example", forwardTo=["x@y.example"])
    _, errors = await try_update_addresses(
        root, "lada@bücher.example", address="Tak.en@bücher.example"
    )
    assert error_summary(errors) == ("CONFLICT", ["set", "address"], None, None)
    ((answer,), errors) = await try_update_addresses(
        root, "lada@bücher.example", address="La.da@bücher.example"
    )
    assert (answer["address"], errors) == ("La.da@bücher.example", [])


async def test_batch_update_changes_all_addresses_or_none(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def cost(address_count: int) -> int:
        addresses = [f"n{address_count}x{n}@own.example" for n in range(address_count)]
        for address in addresses:
            await create_address(root, address, forwardTo=["x@y.example"])
        del statements[:]
        answer, errors = await try_update_addresses(root, *addresses, active=False, tags=["off"])
        assert ([updated["address"] for updated in answer], errors) == (addresses, [])
        assert not any(updated["active"] for updated in answer)
        return len([statement for statement in statements if "api_keys" not in statement])

    assert await cost(1) == await cost(20)
    addresses = ["n1x0@own.example", "nobody@own.example"]
    answer, errors = await try_update_addresses(root, *addresses, active=True)
    assert (answer, error_summary(errors)) == (
        [],
        ("NOT_FOUND", ["addresses"], 1, "nobody@own.example"),
    )
    assert (await load_address(root, addresses[0]))["active"] is False
    for values, path in (({"main": True}, "main"), ({"address": "q@own.example"}, "address")):
        _, errors = await try_update_addresses(
            root, "n1x0@own.example", "n20x1@own.example", **values
        )
        assert error_summary(errors) == ("VALIDATION", ["set", path], None, "EXCLUSIVE")
    _, errors = await try_update_addresses(root, "n1x0@own.example")
    assert error_summary(errors) == ("VALIDATION", ["set"], None, "REQUIRED")


async def test_owner_changes_few_fields_and_others_none(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    second_address = await create_address(root, "second@example.org", user={"username": "ada"})
    for values, name in (
        ({"active": False}, "active"),
        ({"name": "x", "address": "y@example.org"}, "address"),
        ({"privateMetadata": {}}, "privateMetadata"),
        ({"sendAs": False}, "sendAs"),
        ({"limits": {"forwardsPerDay": 1}}, "limits"),
    ):
        _, errors = await try_update_addresses(ada, "second@example.org", **values)
        path = ["set", name] + (["forwardsPerDay"] if name == "limits" else [])
        assert error_summary(errors) == ("FORBIDDEN", path, None, "DOMAIN_ADMIN")
    _, errors = await try_delete_addresses(ada, second_address)
    assert error_summary(errors) == ("FORBIDDEN", ["addresses"], 0, "DOMAIN_ADMIN")
    before = await load_address_row(root.environment, "second@example.org")
    assert await load_address(bob, "second@example.org") is None
    assert (await bob(f'{{ node(id: "{second_address["id"]}") {{ id }} }}'))["node"] is None
    _, errors = await try_update_addresses(bob, "second@example.org", name="Mine")
    assert error_summary(errors) == ("NOT_FOUND", ["addresses"], 0, "second@example.org")
    assert (await try_delete_addresses(bob, second_address))[1][0]["code"] == "NOT_FOUND"
    assert await load_address_row(root.environment, "second@example.org") == before
    answer = await bob.execute("{ addresses { nodes { id } } }")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


@pytest.mark.usefixtures("ada")
async def test_domain_admin_manages_addresses_of_own_domains_only(root: GraphQLClient) -> None:
    environment = root.environment
    await domain_operations.create_domain(root, "a.example")
    await domain_operations.create_domain(root, "b.example")
    domain_admin = await make_admin_of_domains(environment, root.http, "chief", "a.example",
                                permissions=list(AdminPermission))  # fmt: skip
    await make_domain_user(environment, "user@a.example")
    created = await create_address(
        domain_admin, "info@a.example", user={"address": "user@a.example"}, main=True
    )
    assert created["main"] is True
    await create_address(domain_admin, "list@a.example", forwardTo=["x@y.example"])
    other_address = await create_address(root, "list@b.example", forwardTo=["x@y.example"])
    for address, arguments, code in (
        ("list2@b.example", {"forwardTo": ["x@y.example"]}, "NOT_FOUND"),
        ("new.domain@c.example", {"forwardTo": ["x@y.example"]}, "NOT_FOUND"),
        ("ada2@a.example", {"user": {"username": "ada"}}, "NOT_FOUND"),
        ("every@*", {"forwardTo": ["x@y.example"], "allowWildcard": True}, "FORBIDDEN"),
    ):
        _, errors = await try_create_address(domain_admin, address, **arguments)
        assert [error["code"] for error in errors] == [code], address
    assert await load_address(domain_admin, "list@b.example") is None
    assert (await try_update_addresses(domain_admin, "list@b.example", active=False))[1][0][
        "code"
    ] == "NOT_FOUND"
    assert (await try_delete_addresses(domain_admin, other_address))[1][0]["code"] == "NOT_FOUND"
    _, errors = await try_update_addresses(domain_admin, "list@a.example", address="list@b.example")
    assert error_summary(errors) == ("NOT_FOUND", ["set", "address"], None, "b.example")

    # nor addresses of users with a higher role in these domains
    platform_admin = await make_client(environment, root.http, "over", role="ADMIN")
    await create_address(root, "over@a.example", user={"username": "over"})
    _, errors = await try_update_addresses(
        domain_admin, "over@a.example", address="other@a.example"
    )
    assert error_summary(errors) == ("FORBIDDEN", ["addresses"], 0, "ADMIN")
    admin_address = await load_address(root, "over@a.example")
    _, errors = await try_delete_addresses(domain_admin, admin_address)
    assert error_summary(errors) == ("FORBIDDEN", ["addresses"], 0, "ADMIN")
    assert platform_admin.user.id

    # of a user of another domain, they change the address but not the account
    await create_address(root, "ada@a.example", user={"username": "ada"})
    ((answer,), errors) = await try_update_addresses(domain_admin, "ada@a.example", active=False)
    assert (answer["active"], errors) == (False, [])
    _, errors = await try_update_addresses(domain_admin, "ada@a.example", main=True)
    assert errors[0]["code"] == "NOT_FOUND"
