"""Creating many addresses at once: all or nothing, and errors by position."""

from typing import Any

import pytest

from graph.types import global_ids
from models.users.roles import AdminPermission, Role
from resolvers.addresses import bulk_create
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
)
from tests.support.operations.address_operations import load_address
from tests.support.operations.domain_operations import load_domain, set_domain_columns
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import select_rows

PAYLOAD_FIELDS = (
    "addresses { address kind main forwardTo user { username } } warnings { code path }"
)
ADA = {"username": "ada"}
pytestmark = pytest.mark.usefixtures("verify_counters")


async def create_all(client: GraphQLClient, *addresses: dict[str, Any], **extra: Any) -> Any:
    return await execute_mutation(
        client, "addressesCreate", PAYLOAD_FIELDS, addresses=list(addresses), **extra
    )


async def count_addresses(client: GraphQLClient) -> int:
    ((count,),) = await select_rows(client.environment, "SELECT count(*) FROM addresses")
    return int(count)


def error_codes_and_paths(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["errors"]]


@pytest.mark.usefixtures("ada")
async def test_addresses_are_created_in_input_order(root: GraphQLClient) -> None:
    aliases = [{"address": f"a{number}@example.org", "user": ADA} for number in range(5)]
    payload = await create_all(
        root,
        *aliases,
        {"address": "list@example.org", "forwardTo": ["carol@far.example"]},
        {"address": "@example.org", "user": ADA, "allowWildcard": True},
        {"address": "new@example.org", "user": ADA, "main": True},
    )
    assert payload["errors"] == []
    created = payload["addresses"]
    assert [address["address"] for address in created] == [
        *(alias["address"] for alias in aliases),
        "list@example.org",
        "*@example.org",
        "new@example.org",
    ]
    assert [address["main"] for address in created] == [*[False] * 7, True]
    assert (created[5]["kind"], created[5]["user"]) == ("FORWARD", None)
    assert (created[0]["kind"], created[0]["user"]) == ("MAILBOX", ADA)
    assert (await load_address(root, "ada@example.org"))["main"] is False
    log_query = "SELECT count(*) FROM audit_log WHERE mutation = 'addressesCreate'"
    assert await select_rows(root.environment, log_query) == [(8,)]


@pytest.mark.usefixtures("ada")
async def test_errors_have_the_position_of_the_address_and_nothing_is_stored(
    root: GraphQLClient,
) -> None:
    count_before = await count_addresses(root)
    payload = await create_all(
        root,
        {"address": "one@example.org", "user": ADA},
        {"address": "o.n.e@example.org", "user": ADA},
        {"address": "ada@example.org", "user": ADA},
        {"address": "two@example.org", "tags": [""]},
        {"address": "two@example.org", "user": {"username": "nobody"}},
        {"address": "two@example.org", "user": ADA},
    )
    assert payload["addresses"] == []
    assert error_codes_and_paths(payload) == [
        ("CONFLICT", ["addresses", "1", "address"]),
        ("CONFLICT", ["addresses", "2", "address"]),
        ("VALIDATION", ["addresses", "3", "forwardTo"]),
        ("VALIDATION", ["addresses", "3", "tags", "0"]),
        ("NOT_FOUND", ["addresses", "4", "user"]),
    ]
    assert await count_addresses(root) == count_before
    assert await load_address(root, "one@example.org") is None


@pytest.mark.usefixtures("ada")
async def test_addresses_over_the_domain_limit_are_refused(root: GraphQLClient) -> None:
    await set_domain_columns(root.environment, max_addresses=2)
    payload = await create_all(
        root, *({"address": f"a{number}@example.org", "user": ADA} for number in range(3))
    )
    assert error_codes_and_paths(payload) == [
        ("LIMIT_REACHED", ["addresses", "1", "address"]),
        ("LIMIT_REACHED", ["addresses", "2", "address"]),
    ]
    assert (await load_domain(root, "example.org"))["addressCount"] == 1


@pytest.mark.usefixtures("ada")
async def test_number_of_addresses_per_call_is_limited(root: GraphQLClient) -> None:
    too_many_addresses = [
        {"address": f"a{number}@example.org", "user": ADA}
        for number in range(bulk_create.MAX_ADDRESSES + 1)
    ]
    for addresses in ([], too_many_addresses):
        (error,) = (await create_all(root, *addresses))["errors"]
        assert (error["code"], error["path"], error["constraint"]) == (
            "VALIDATION", ["addresses"], "MAX",
        )  # fmt: skip
    payload = await create_all(root, *too_many_addresses[1:])
    assert (payload["errors"], len(payload["addresses"])) == ([], bulk_create.MAX_ADDRESSES)


async def test_number_of_statements_does_not_depend_on_the_number_of_addresses(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    users = [{"id": global_ids.encode("User", client.user.id)} for client in (ada, bob)]
    counts = list[int]()
    for count in (4, 4, 40):
        del statements[:]
        payload = await create_all(
            root,
            *(
                {"address": f"n{len(counts)}-{number}@example.org", "user": users[number % 2]}
                for number in range(count - 1)
            ),
            {"address": f"forward{len(counts)}@example.org", "forwardTo": ["x@far.example"]},
        )
        assert (payload["errors"], len(payload["addresses"])) == ([], count)
        counts.append(len(statements))
    assert counts[2] == counts[1]


@pytest.mark.usefixtures("ada")
async def test_first_address_of_a_user_and_of_a_domain_are_created_among_others(
    root: GraphQLClient,
) -> None:
    _, errors = await try_create_user(root, username="newcomer", emptyAddress=True)
    assert errors == []
    newcomer = {"username": "newcomer"}
    set_options(root.environment, auto_create_domains=True)
    payload = await create_all(
        root,
        {"address": "one@example.org", "user": ADA},
        {"address": "n.ew@example.org", "user": newcomer},
        {"address": "second@example.org", "user": newcomer},
        {"address": "a@fresh.example", "forwardTo": ["x@far.example"]},
        {"address": "b@fresh.example", "forwardTo": ["x@far.example"]},
        {"address": "two@example.org", "user": ADA, "metadata": {"n": 1}},
        {"address": "three@example.org", "user": ADA},
    )
    assert payload["errors"] == []
    assert [address["main"] for address in payload["addresses"]] == [
        False, True, False, False, False, False, False,
    ]  # fmt: skip
    assert payload["warnings"] == [
        {"code": "DOMAIN_CREATED", "path": ["addresses", "3", "address"]}
    ]
    assert (await load_domain(root, "fresh.example"))["addressCount"] == 2
    payload = await create_all(
        root,
        {"address": "four@example.org", "user": ADA},
        {"address": "c@other.example", "forwardTo": ["x@far.example"]},
        {"address": "new@example.org", "user": ADA, "metadata": {"n": 1}},
    )
    assert error_codes_and_paths(payload) == [("CONFLICT", ["addresses", "2", "address"])]
    assert await load_domain(root, "other.example") is None


@pytest.mark.usefixtures("ada")
async def test_dry_run_stores_nothing(root: GraphQLClient) -> None:
    count_before = await count_addresses(root)
    new_address = {"address": "new@example.org", "user": ADA}
    payload = await create_all(root, new_address, options={"validateOnly": True})
    assert (payload["errors"], await count_addresses(root)) == ([], count_before)
    payload = await create_all(root, new_address, new_address, options={"validateOnly": True})
    assert error_codes_and_paths(payload) == [("CONFLICT", ["addresses", "1", "address"])]


async def test_domain_admin_creates_addresses_of_own_domains_and_users_only(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE)
    await make_client(root.environment, root.http, "boss", role=Role.ADMIN)
    eve, errors = await try_create_user(root, address="eve@foreign.example")
    assert errors == []
    count_before = await count_addresses(root)
    payload = await create_all(
        domain_admin,
        {"address": "a@example.org", "user": ADA},
        {"address": "b@foreign.example", "forwardTo": ["x@far.example"]},
        {"address": "c@example.org", "user": {"username": eve["username"]}},
        {"address": "d@example.org", "user": {"username": "boss"}},
        {"address": "d@*", "user": ADA, "allowWildcard": True},
    )
    assert error_codes_and_paths(payload) == [
        ("NOT_FOUND", ["addresses", "1", "address"]),
        ("NOT_FOUND", ["addresses", "2", "user"]),
        ("FORBIDDEN", ["addresses", "3", "user"]),
        ("FORBIDDEN", ["addresses", "4", "address"]),
    ]
    assert await count_addresses(root) == count_before
    payload = await create_all(ada, {"address": "a@example.org", "user": ADA})
    assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    assert await count_addresses(root) == count_before
