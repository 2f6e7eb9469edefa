"""Temporary addresses: expiry, validation, limits and permission."""

from datetime import timedelta
from typing import Any

import pytest

from mail.recipients import address_resolution
from models.errors import NotFound
from models.runtime.options import Options
from models.users.roles import UserPermission
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import (
    load_address,
    try_create_temporary_address,
    try_delete_addresses,
    try_update_addresses,
)
from tests.support.operations.domain_operations import error_summary, make_domain_user

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_temporary_address_receives_mail_until_it_expires(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    created, errors = await try_create_temporary_address(
        ada, validity="P2D", comment="Shop", forSite="SHOP.example"
    )
    assert errors == []
    assert created["address"].endswith("@example.org")
    assert (created["forSite"], created["publicComment"], created["main"]) == (
        "shop.example", "Shop", False,
    )  # fmt: skip
    assert created["expiresAt"] == (clock() + timedelta(days=2)).isoformat().replace("+00:00", "Z")
    other, _ = await try_create_temporary_address(ada)
    assert other["address"] != created["address"]
    assert (
        await address_resolution.load_recipient_below_limits(ada.environment, created["address"])
    ).user_id == ada.user.id
    unlimited, _ = await try_create_temporary_address(ada, validity=None)
    assert unlimited["expiresAt"] is None
    document = "{ user { temporaryAddressCount temporaryAddresses { nodes { address } } } }"
    assert (await ada(document))["user"]["temporaryAddressCount"] == 3
    clock.tick(days=3)
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(ada.environment, created["address"])
    user = (await ada(document))["user"]
    assert {node["address"] for node in user["temporaryAddresses"]["nodes"]} == {
        other["address"], unlimited["address"],
    }  # fmt: skip

    # the owner can disable and delete a temporary address
    ((answer,), errors) = await try_update_addresses(
        ada, unlimited["address"], active=False, name="Shop"
    )
    assert (answer["active"], errors) == (False, [])
    assert (await try_delete_addresses(ada, unlimited))[1] == []
    assert await load_address(ada, unlimited["address"]) is None


# for each case: the arguments, the code and the path of the error
INVALID_TEMPORARY_ADDRESSES: list[tuple[dict[str, Any], str, str]] = [
    ({"validity": "PT0S"}, "VALIDATION", "validity"),
    ({"validity": "P4000D"}, "VALIDATION", "validity"),
    ({"forSite": "not a domain"}, "VALIDATION", "forSite"),
    ({"comment": "x" * 1001}, "VALIDATION", "comment"),
    ({"domain": {"name": "other.example"}}, "NOT_FOUND", "domain"),
    ({"domain": {"name": "nowhere.example"}}, "NOT_FOUND", "domain"),
    ({"user": {"address": "bob@other.example"}}, "NOT_FOUND", "user"),
]


async def test_invalid_temporary_address_is_refused(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await domain_operations.create_domain(root, "other.example")
    await make_domain_user(root.environment, "bob@other.example")
    for case in each_case(INVALID_TEMPORARY_ADDRESSES):
        with case as (arguments, code, path):
            result, errors = await try_create_temporary_address(ada, **arguments)
            assert (result, [(e["code"], e["path"]) for e in errors]) == (None, [(code, [path])])


async def test_temporary_addresses_are_limited_and_need_permission(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    environment = ada.environment
    object.__setattr__(environment, "options", Options(addresses_max_temporary_per_user=1))
    temporary_address, _ = await try_create_temporary_address(ada, validity=None)
    _, errors = await try_create_temporary_address(ada)
    assert (errors[0]["code"], errors[0]["limit"], errors[0]["used"]) == ("LIMIT_REACHED", 1, 1)
    other_permissions = [
        permission.value
        for permission in UserPermission
        if permission is not UserPermission.TEMPORARY_ADDRESSES
    ]
    await execute_mutation(
        root, "userPermissionsSet", users={"usernames": ["ada"]}, permissions=other_permissions
    )
    _, errors = await try_create_temporary_address(ada)
    assert error_summary(errors) == ("FORBIDDEN", [], None, "TEMPORARY_ADDRESSES")
    _, errors = await try_delete_addresses(ada, temporary_address)
    assert error_summary(errors)[:1] + error_summary(errors)[3:] == (
        "FORBIDDEN",
        "TEMPORARY_ADDRESSES",
    )
