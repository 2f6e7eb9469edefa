"""The address trace and the release from quarantine apply the rewrite that delivery applies."""

from typing import Any

import pytest

from mail.recipients import address_resolution
from models.runtime.environment import Environment
from models.users.roles import Role
from tests.conftest import GraphQLClient, make_client
from tests.support.operations.address_operations import create_address
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.quarantine_operations import (
    INBOX_MESSAGES_QUERY,
    QUARANTINE_RELEASE_ERRORS,
    quarantine_message,
    set_options,
)
from tests.support.operations.rewrite_and_bcc_operations import create_recipient_rewrite

TRACE = """query ($address: String!) { addressTrace(address: $address) {
  stage output record { id } } }"""


async def load_traced_rewrites(client: GraphQLClient, address: str) -> list[tuple[list[str], str]]:
    """Return the new address and the ID of each rewrite in the trace of an address."""
    return [
        (step["output"], step["record"]["id"])
        for step in (await client(TRACE, address=address))["addressTrace"]
        if step["stage"] == "RECIPIENT_REWRITE"
    ]


async def release_and_load_delivered_to(client: GraphQLClient, address: str) -> str:
    """Release a message that was quarantined for an address, and return its Delivered-To."""
    item_id = await quarantine_message(client, address=address)
    _, errors = await run_mutation(
        client, QUARANTINE_RELEASE_ERRORS, quarantineItems=[{"id": item_id}]
    )
    assert errors == []
    (message,) = (await client(INBOX_MESSAGES_QUERY))["viewer"]["user"]["mailbox"]["messages"][
        "nodes"
    ]
    (line,) = [
        line for line in message["rawSource"].splitlines() if line.startswith("Delivered-To:")
    ]
    return str(line.removeprefix("Delivered-To: "))


async def test_rewrite_is_skipped_for_account_above_its_maker(
    admin_client: GraphQLClient, ada: GraphQLClient, environment: Environment, http: Any
) -> None:
    root_client = await make_client(environment, http, "top", role=Role.ROOT)
    rewrite_id = await create_recipient_rewrite(admin_client, "@example.org", ada.address)
    for client in (root_client, admin_client):
        assert await load_traced_rewrites(client, root_client.address) == []
        assert await load_traced_rewrites(client, admin_client.address) == [
            ([ada.address], rewrite_id)
        ]
    row, address = await address_resolution.resolve_with_rewrite(environment, root_client.address)
    assert (row.user_id, address) == (root_client.user.id, root_client.address)
    assert await release_and_load_delivered_to(root_client, root_client.address) == address


@pytest.mark.parametrize(
    ("delimiters", "rewritten_address", "other_address"),
    [
        ("-", "info-news@old.example", "info+news@old.example"),
        ("+", "info+news@old.example", "info-news@old.example"),
        ("+-", "in.fo-a+b@old.example", "info_news@old.example"),
    ],
)
async def test_rewrite_of_a_subaddress_depends_on_the_configured_delimiters(
    root: GraphQLClient,
    ada: GraphQLClient,
    delimiters: str,
    rewritten_address: str,
    other_address: str,
) -> None:
    rewrite_id = await create_recipient_rewrite(root, "info@old.example", ada.address)
    set_options(ada.environment, addresses_subaddress_delimiters=delimiters)
    assert await load_traced_rewrites(root, other_address) == []
    assert await load_traced_rewrites(root, rewritten_address) == [([ada.address], rewrite_id)]
    _, address = await address_resolution.resolve_with_rewrite(ada.environment, rewritten_address)
    assert address == ada.address
    assert await release_and_load_delivered_to(ada, rewritten_address) == address


async def test_address_of_its_own_keeps_its_mail_from_a_rewrite_of_the_part_before_a_delimiter(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    set_options(ada.environment, addresses_subaddress_delimiters="-")
    await create_address(root, "anna-maria@example.org", user={"username": "bob"})
    for address in ("anna@example.org", "anna-lisa@example.org"):
        await create_recipient_rewrite(root, address, address.replace("anna", "to"))
    rewrites = {
        name: await load_traced_rewrites(root, f"{name}@example.org")
        for name in ("anna-maria", "an.na-maria", "anna-lisa", "anna-news", "anna")
    }
    assert {name: [output for output, _ in steps] for name, steps in rewrites.items()} == {
        "anna-maria": [],
        "an.na-maria": [],
        "anna-lisa": [["to-lisa@example.org"]],
        "anna-news": [["to@example.org"]],
        "anna": [["to@example.org"]],
    }
    row, address = await address_resolution.resolve_with_rewrite(
        ada.environment, "anna-maria@example.org"
    )
    assert (row.user_id, address) == (bob.user.id, "anna-maria@example.org")


@pytest.mark.parametrize("address", ["nobody", "@example.org", "a\0b@example.org"])
async def test_impossible_address_has_no_rewrite(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, address: str
) -> None:
    await create_recipient_rewrite(root, "@example.org", ada.address)
    assert await address_resolution.find_applied_rewrite(environment, address) is None
