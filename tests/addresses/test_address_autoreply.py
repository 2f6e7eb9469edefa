"""Automatic replies of forwarding addresses: settings, validation, rights and preview."""

from typing import Any

import pytest

from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import (
    create_address,
    try_create_address,
    try_delete_addresses,
    try_update_addresses,
)
from tests.support.operations.autoreply_operations import (
    AUTOREPLY_ADDRESS,
    AUTOREPLY_SETTINGS,
    make_autoreply_address,
    send_message_to_address,
    set_autoreply,
)
from tests.support.operations.domain_operations import error_summary, load_domain_id
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency", "ada")

FIELDS = """enabled name subject text html internalText startsAt endsAt addresses interval
  activeNow createdAt"""
READ = f"query ($by: AddressRef!) {{ address(by: $by) {{ autoreply {{ id {FIELDS} }} }} }}"


async def load_autoreply(client: GraphQLClient, address: str = AUTOREPLY_ADDRESS) -> Any:
    result = (await client(READ, by={"address": address}))["address"]
    return result and result["autoreply"]


async def change_error(client: GraphQLClient, **arguments: Any) -> Any:
    _, errors = await try_update_addresses(client, AUTOREPLY_ADDRESS, autoreply=arguments)
    return error_summary(errors)


async def test_autoreply_is_created_updated_and_removed(root: GraphQLClient) -> None:
    await make_autoreply_address(
        root, autoreply={**AUTOREPLY_SETTINGS, "name": "Info", "interval": "P7D"}
    )
    result = await load_autoreply(root)
    assert (result["enabled"], result["text"], result["name"]) == (True, "We have it.", "Info")
    assert (result["interval"], result["activeNow"], result["addresses"]) == ("P7D", True, [])
    _, errors = await try_update_addresses(
        root, AUTOREPLY_ADDRESS, autoreply={"html": "<p>We have it.", "interval": None}
    )
    assert errors == []
    updated = await load_autoreply(root)
    assert updated == {**result, "html": "<p>We have it.", "interval": "P1D"}
    assert (await root(f'{{ node(id: "{result["id"]}") {{ id }} }}'))["node"] == {
        "id": result["id"]
    }
    _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply=None)
    assert errors == []
    assert (await load_autoreply(root))["createdAt"] is None
    assert (await root(f'{{ node(id: "{result["id"]}") {{ id }} }}'))["node"] is None
    assert await select_rows(root.environment, "SELECT id FROM autoreplies") == []


async def test_address_without_autoreply_has_an_empty_one(root: GraphQLClient) -> None:
    await create_address(root, AUTOREPLY_ADDRESS, forwardTo=["dave@far.example"])
    result = await load_autoreply(root)
    assert (result["enabled"], result["text"], result["createdAt"]) == (False, None, None)
    assert await load_autoreply(root, "ada@example.org") is None


# for each case: the arguments, the field of the error or none, and the broken rule
INVALID_AUTOREPLIES: list[tuple[Any, str | None, str]] = [
    ({}, None, "REQUIRED"),
    ({"enabled": True}, "text", "REQUIRED"),
    ({"enabled": True, "text": " "}, "text", "REQUIRED"),
    ({"name": "x" * 129}, "name", "PATTERN"),
    ({"subject": "a\nb"}, "subject", "PATTERN"),
    ({"subject": "é" * 1025}, "subject", "MAX"),
    ({"text": "x" * (128 * 1024 + 1)}, "text", "MAX"),
    ({"name": "a\tb"}, "name", "PATTERN"),
    ({"interval": "PT59M"}, "interval", "RANGE"),
    ({"startsAt": "2030-02-01T00:00:00Z", "endsAt": "2030-01-01T00:00:00Z"}, "endsAt", "RANGE"),
    ({"addresses": ["ada@example.org"]}, "addresses", "EXCLUSIVE"),
]


async def test_invalid_autoreply_is_refused_by_field_and_rule(root: GraphQLClient) -> None:
    await create_address(root, AUTOREPLY_ADDRESS, forwardTo=["dave@far.example"])
    for case in each_case(INVALID_AUTOREPLIES):
        with case as (arguments, field, rule):
            path = ["autoreply", *([field] if field else [])]
            assert await change_error(root, **arguments) == (
                "VALIDATION",
                ["set", *path],
                None,
                rule,
            )
            _, errors = await try_create_address(
                root, "new@example.org", forwardTo=["x@far.example"], autoreply=arguments
            )
            assert error_summary(errors) == ("VALIDATION", path, None, rule)
            assert (await load_autoreply(root))["createdAt"] is None
            assert await select_rows(root.environment, "SELECT id FROM autoreplies") == []


async def test_only_forwarding_address_can_have_autoreply(root: GraphQLClient) -> None:
    for arguments in ({"user": {"username": "ada"}}, {"kind": "DISCARD"}):
        _, errors = await try_create_address(
            root, AUTOREPLY_ADDRESS, autoreply=AUTOREPLY_SETTINGS, **arguments
        )
        assert error_summary(errors) == ("VALIDATION", ["autoreply"], None, "EXCLUSIVE")
    _, errors = await try_update_addresses(root, "ada@example.org", autoreply=AUTOREPLY_SETTINGS)
    assert error_summary(errors) == ("VALIDATION", ["set", "autoreply"], None, "EXCLUSIVE")
    await make_autoreply_address(root)
    # deletes the autoreply with the targets
    _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, kind="DISCARD")
    assert errors == []
    assert await select_rows(root.environment, "SELECT id FROM autoreplies") == []
    assert await select_rows(root.environment, "SELECT id FROM addresses WHERE answers") == []
    _, errors = await try_update_addresses(
        root,
        AUTOREPLY_ADDRESS,
        kind="FORWARD",
        forwardTo=["dave@far.example"],
        autoreply=AUTOREPLY_SETTINGS,
    )
    assert errors == []
    assert (await load_autoreply(root))["activeNow"] is True


async def test_deleting_an_address_deletes_its_autoreply(
    root: GraphQLClient, environment: Environment, lmtp_client: SmtpTestClient
) -> None:
    address = await make_autoreply_address(root)
    await send_message_to_address(lmtp_client)
    assert len(await select_rows(environment, "SELECT sender FROM autoreply_senders")) == 1
    assert (await try_delete_addresses(root, address))[1] == []
    assert await select_rows(environment, "SELECT id FROM autoreplies") == []
    assert await select_rows(environment, "SELECT sender FROM autoreply_senders") == []


async def test_batch_update_changes_all_autoreplies_or_none(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def cost(address_count: int, text: str) -> int:
        addresses = [f"n{n}@example.org" for n in range(address_count)]
        del statements[:]
        _, errors = await try_update_addresses(
            root, *addresses, autoreply={"enabled": True, "text": text}
        )
        statement_count = len(
            [statement for statement in statements if "api_keys" not in statement]
        )
        assert errors == []
        assert {(await load_autoreply(root, address))["text"] for address in addresses} == {text}
        return statement_count

    for number in range(20):
        await create_address(root, f"n{number}@example.org", forwardTo=["x@y.example"])
    assert await cost(1, "first") == await cost(20, "all")
    assert await cost(1, "second") == await cost(20, "again")
    _, errors = await try_update_addresses(
        root, "n0@example.org", "ada@example.org", autoreply=AUTOREPLY_SETTINGS
    )
    assert error_summary(errors) == ("VALIDATION", ["set", "autoreply"], None, "EXCLUSIVE")
    assert (await load_autoreply(root, "n0@example.org"))["text"] == "again"


async def test_list_loads_autoreplies_with_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        document = "{ addresses(first: 50) { nodes { autoreply { text interval } } } }"
        addresses = (await root(document))["addresses"]["nodes"]
        assert [
            expected_count["autoreply"]["text"]
            for expected_count in addresses
            if expected_count["autoreply"]
        ]
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_autoreply_address(root)
    expected_count = await cost()
    for number in range(19):
        await make_autoreply_address(root, f"more{number}@example.org")
    assert await cost() == expected_count


async def test_autoreply_change_is_journaled_without_text_in_audit_log(root: GraphQLClient) -> None:
    environment, domain_id = root.environment, await load_domain_id(root.environment, "example.org")
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "text": "the heron knows"})
    for arguments in ({"text": "the stork knows"}, {"enabled": False}, None):
        position = await load_stream_position(environment, domain_id)
        _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply=arguments)
        assert errors == []
        ((kind, _),) = await load_journal_entries(environment, domain_id, position)
        assert kind is EventType.ADDRESS_UPDATED
    position = await load_stream_position(environment, domain_id)
    _, errors = await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply=None)
    assert errors == []
    assert await load_journal_entries(environment, domain_id, position) == []  # already removed
    log = await select_rows(
        environment, "SELECT mutation, before, after FROM audit_log ORDER BY id"
    )
    text = repr(log)
    assert "heron" not in text
    assert "stork" not in text
    assert text.count("autoreply") >= 4


async def test_other_users_cannot_read_or_change_autoreply(
    root: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await make_autoreply_address(root)
    autoreply_id = (await load_autoreply(root))["id"]
    await domain_operations.create_domain(root, "other.example")
    other_admin = await domain_operations.make_admin_of_domains(
        environment, root.http, "chief", "other.example", permissions=list(AdminPermission)
    )
    before = await select_rows(environment, "SELECT * FROM autoreplies")
    for client in (bob, other_admin):
        assert await load_autoreply(client) is None
        assert (await client(f'{{ node(id: "{autoreply_id}") {{ id }} }}'))["node"] is None
        for arguments in ({"text": "Mine"}, None):
            _, errors = await try_update_addresses(client, AUTOREPLY_ADDRESS, autoreply=arguments)
            assert errors[0]["code"] == "NOT_FOUND"
        _, errors = await try_create_address(
            client, "new@example.org", forwardTo=["x@y.example"], autoreply=AUTOREPLY_SETTINGS
        )
        assert errors[0]["code"] in {"FORBIDDEN", "NOT_FOUND"}
    _, errors = await try_update_addresses(bob, "bob@example.org", autoreply=AUTOREPLY_SETTINGS)
    assert error_summary(errors) == ("FORBIDDEN", ["set", "autoreply"], None, "DOMAIN_ADMIN")
    assert await select_rows(environment, "SELECT * FROM autoreplies") == before


async def load_preview(
    root: GraphQLClient, address: str = AUTOREPLY_ADDRESS, **arguments: Any
) -> Any:
    document = """query ($by: AddressRef!, $sender: EmailAddress, $to: EmailAddress) {
      address(by: $by) { autoreply { preview(sender: $sender, to: $to, subject: "Lunch?") {
        suppressedBecause internal from fromName to subject text } } } }"""
    result = await root(document, by={"address": address}, **arguments)
    return result["address"]["autoreply"]["preview"]


async def test_preview_shows_the_reply_or_why_none_is_sent(
    root: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await make_autoreply_address(
        root, name="Info", autoreply={**AUTOREPLY_SETTINGS, "internalText": "Ask Bob."}
    )
    assert await load_preview(root, sender="carol@far.example") == {
        "suppressedBecause": None, "internal": False, "from": AUTOREPLY_ADDRESS, "fromName": "Info",
        "to": "carol@far.example", "subject": "Auto: Re: Lunch?", "text": "We have it.",
    }  # fmt: skip
    internal_reply = await load_preview(root, sender="bob@example.org")
    assert (internal_reply["internal"], internal_reply["text"]) == (True, "Ask Bob.")
    assert (await load_preview(root, sender=AUTOREPLY_ADDRESS))["suppressedBecause"] == "OWN"
    await send_message_to_address(lmtp_client)
    assert (await load_preview(root, sender="carol@far.example"))["suppressedBecause"] == "ANSWERED"
    await make_autoreply_address(root, "*@example.org", allowWildcard=True)
    catch_all_reply = await load_preview(root, "*@example.org", sender="eve@far.example")
    assert (catch_all_reply["suppressedBecause"], catch_all_reply["from"]) == (
        "OTHER_ADDRESS",
        None,
    )
    matched_reply = await load_preview(
        root, "*@example.org", sender="eve@far.example", to="any@example.org"
    )
    assert (matched_reply["suppressedBecause"], matched_reply["from"]) == (None, "any@example.org")


async def test_address_trace_shows_enabled_autoreply(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    document = """query ($address: String!) { addressTrace(address: $address) {
      stage output record { __typename } } }"""
    await make_autoreply_address(root)
    await set_autoreply(ada)
    for address in (AUTOREPLY_ADDRESS, "ada@example.org"):
        last_step = (await root(document, address=address))["addressTrace"][-1]
        assert last_step == {
            "stage": "AUTOREPLY", "output": [address], "record": {"__typename": "Autoreply"},
        }  # fmt: skip
    await try_update_addresses(root, AUTOREPLY_ADDRESS, autoreply={"enabled": False})
    stages = [
        step["stage"] for step in (await root(document, address=AUTOREPLY_ADDRESS))["addressTrace"]
    ]
    assert stages == ["ADDRESS"]
