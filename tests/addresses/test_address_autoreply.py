"""Addresses that forward answer by themselves: set by the API, sent by the queue."""

from typing import Any

import pytest

from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import Client
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import change, create, delete, made
from tests.support.operations.autoreply_operations import (
    AUTOREPLY_ADDRESS,
    AUTOREPLY_SETTINGS,
    make_autoreply_address,
    send_message_to_address,
    set_autoreply,
)
from tests.support.operations.domain_operations import key_of, told
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined", "ada")

FIELDS = """enabled name subject text html internalText startsAt endsAt addresses interval
  activeNow createdAt"""
READ = f"query ($by: AddressRef!) {{ address(by: $by) {{ autoreply {{ id {FIELDS} }} }} }}"


async def stands(client: Client, address: str = AUTOREPLY_ADDRESS) -> Any:
    found = (await client(READ, by={"address": address}))["address"]
    return found and found["autoreply"]


async def refused(client: Client, **given: Any) -> Any:
    _, errors = await change(client, AUTOREPLY_ADDRESS, autoreply=given)
    return told(errors)


# ---------------------------------------------------------------- setting it


async def test_it_is_made_changed_and_forgotten_with_its_address(root: Client) -> None:
    await make_autoreply_address(
        root, autoreply={**AUTOREPLY_SETTINGS, "name": "Info", "interval": "P7D"}
    )
    found = await stands(root)
    assert (found["enabled"], found["text"], found["name"]) == (True, "We have it.", "Info")
    assert (found["interval"], found["activeNow"], found["addresses"]) == ("P7D", True, [])
    _, errors = await change(
        root, AUTOREPLY_ADDRESS, autoreply={"html": "<p>We have it.", "interval": None}
    )
    assert errors == []
    again = await stands(root)
    assert again == {**found, "html": "<p>We have it.", "interval": "P1D"}
    assert (await root(f'{{ node(id: "{found["id"]}") {{ id }} }}'))["node"] == {"id": found["id"]}
    _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply=None)
    assert errors == []
    assert (await stands(root))["createdAt"] is None
    assert (await root(f'{{ node(id: "{found["id"]}") {{ id }} }}'))["node"] is None
    assert await rows(root.world, "SELECT id FROM autoreplies") == []


async def test_what_never_was_is_empty_and_accounts_have_theirs(root: Client) -> None:
    await made(root, AUTOREPLY_ADDRESS, targets=["dave@far.example"])
    found = await stands(root)
    assert (found["enabled"], found["text"], found["createdAt"]) == (False, "", None)
    assert await stands(root, "ada@example.org") is None


@pytest.mark.parametrize(
    ("given", "field", "rule"),
    [
        ({}, None, "required"),
        ({"enabled": True}, "text", "required"),
        ({"enabled": True, "text": " "}, "text", "required"),
        ({"name": "x" * 129}, "name", "pattern"),
        ({"subject": "a\nb"}, "subject", "pattern"),
        ({"subject": "é" * 1025}, "subject", "max"),
        ({"text": "x" * (128 * 1024 + 1)}, "text", "max"),
        ({"name": "a\tb"}, "name", "pattern"),
        ({"interval": "PT59M"}, "interval", "range"),
        ({"startsAt": "2030-02-01T00:00:00Z", "endsAt": "2030-01-01T00:00:00Z"}, "endsAt", "range"),
        ({"addresses": ["ada@example.org"]}, "addresses", "exclusive"),
    ],
)
async def test_what_cannot_be_is_refused_by_field_and_rule(
    root: Client, given: Any, field: str | None, rule: str
) -> None:
    await made(root, AUTOREPLY_ADDRESS, targets=["dave@far.example"])
    path = ["autoreply", *([field] if field else [])]
    index = 0 if field == "text" and rule == "required" else None  # by what it has already
    assert await refused(root, **given) == ("VALIDATION", ["set", *path], index, rule)
    _, errors = await create(root, "new@example.org", targets=["x@far.example"], autoreply=given)
    assert told(errors) == ("VALIDATION", path, None, rule)
    assert (await stands(root))["createdAt"] is None
    assert await rows(root.world, "SELECT id FROM autoreplies") == []


async def test_only_what_forwards_answers(root: Client) -> None:
    for given in ({"user": {"username": "ada"}}, {"kind": "DISCARD"}):
        _, errors = await create(root, AUTOREPLY_ADDRESS, autoreply=AUTOREPLY_SETTINGS, **given)
        assert told(errors) == ("VALIDATION", ["autoreply"], None, "exclusive")
    _, errors = await change(root, "ada@example.org", autoreply=AUTOREPLY_SETTINGS)
    assert told(errors) == ("VALIDATION", ["set", "autoreply"], 0, "exclusive")
    await make_autoreply_address(root)
    _, errors = await change(
        root, AUTOREPLY_ADDRESS, kind="DISCARD"
    )  # drops it, as it drops the targets
    assert errors == []
    assert await rows(root.world, "SELECT id FROM autoreplies") == []
    assert await rows(root.world, "SELECT id FROM addresses WHERE answers") == []
    _, errors = await change(
        root,
        AUTOREPLY_ADDRESS,
        kind="FORWARD",
        targets=["dave@far.example"],
        autoreply=AUTOREPLY_SETTINGS,
    )
    assert errors == []
    assert (await stands(root))["activeNow"] is True


async def test_a_deleted_address_takes_along_what_it_answers(
    root: Client, world: Environment, neighbour: Neighbour
) -> None:
    found = await make_autoreply_address(root)
    await send_message_to_address(neighbour)
    assert len(await rows(world, "SELECT sender FROM autoreply_senders")) == 1
    assert (await delete(root, found))[1] == []
    assert await rows(world, "SELECT id FROM autoreplies") == []
    assert await rows(world, "SELECT sender FROM autoreply_senders") == []


async def test_many_are_changed_at_once_or_none(root: Client, statements: list[str]) -> None:
    async def cost(many: int, text: str) -> int:
        listed = [f"n{n}@example.org" for n in range(many)]
        del statements[:]
        _, errors = await change(root, *listed, autoreply={"enabled": True, "text": text})
        costs = len([sent for sent in statements if "api_keys" not in sent])
        assert errors == []
        assert {(await stands(root, one))["text"] for one in listed} == {text}
        return costs

    for nth in range(20):
        await made(root, f"n{nth}@example.org", targets=["x@y.example"])
    assert await cost(1, "first") == await cost(20, "all")
    assert await cost(1, "second") == await cost(20, "again")
    _, errors = await change(
        root, "n0@example.org", "ada@example.org", autoreply=AUTOREPLY_SETTINGS
    )
    assert told(errors) == ("VALIDATION", ["set", "autoreply"], 1, "exclusive")
    assert (await stands(root, "n0@example.org"))["text"] == "again"


async def test_a_list_reads_them_all_at_once(root: Client, statements: list[str]) -> None:
    async def cost() -> int:
        del statements[:]
        document = "{ addresses(first: 50) { nodes { autoreply { text interval } } } }"
        found = (await root(document))["addresses"]["nodes"]
        assert [one["autoreply"]["text"] for one in found if one["autoreply"]]
        return len([sent for sent in statements if "api_keys" not in sent])

    await make_autoreply_address(root)
    one = await cost()
    for nth in range(19):
        await make_autoreply_address(root, f"more{nth}@example.org")
    assert await cost() == one


async def test_it_is_told_of_and_the_words_stay_out_of_the_log(root: Client) -> None:
    world, home = root.world, await key_of(root.world, "example.org")
    await make_autoreply_address(root, autoreply={**AUTOREPLY_SETTINGS, "text": "the heron knows"})
    for given in ({"text": "the stork knows"}, {"enabled": False}, None):
        last = await reached(world, home)
        _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply=given)
        assert errors == []
        ((kind, _),) = await journal(world, home, last)
        assert kind is ChangeKind.ADDRESS_CHANGED
    last = await reached(world, home)
    _, errors = await change(root, AUTOREPLY_ADDRESS, autoreply=None)
    assert errors == []
    assert await journal(world, home, last) == []  # it was so already
    log = await rows(world, "SELECT mutation, before, after FROM admin_log ORDER BY id")
    text = repr(log)
    assert "heron" not in text
    assert "stork" not in text
    assert text.count("autoreply") >= 4


async def test_another_user_sees_and_changes_nothing(
    root: Client, bob: Client, world: Environment
) -> None:
    await make_autoreply_address(root)
    key = (await stands(root))["id"]
    await domain_operations.made(root, "other.example")
    elsewhere = await domain_operations.administrator(
        world, root.http, "chief", "other.example", permissions=list(AdminPermission)
    )
    before = await rows(world, "SELECT * FROM autoreplies")
    for client in (bob, elsewhere):
        assert await stands(client) is None
        assert (await client(f'{{ node(id: "{key}") {{ id }} }}'))["node"] is None
        for given in ({"text": "Mine"}, None):
            _, errors = await change(client, AUTOREPLY_ADDRESS, autoreply=given)
            assert errors[0]["code"] == "NOT_FOUND"
        _, errors = await create(
            client, "new@example.org", targets=["x@y.example"], autoreply=AUTOREPLY_SETTINGS
        )
        assert errors[0]["code"] in {"FORBIDDEN", "NOT_FOUND"}
    _, errors = await change(bob, "bob@example.org", autoreply=AUTOREPLY_SETTINGS)
    assert told(errors) == ("FORBIDDEN", ["set", "autoreply"], 0, "DOMAIN_ADMIN")
    assert await rows(world, "SELECT * FROM autoreplies") == before


# ---------------------------------------------------------------- trying it


async def preview(root: Client, address: str = AUTOREPLY_ADDRESS, **given: Any) -> Any:
    document = """query ($by: AddressRef!, $sender: EmailAddress, $to: EmailAddress) {
      address(by: $by) { autoreply { preview(sender: $sender, to: $to, subject: "Lunch?") {
        silence internal from fromName to subject text } } } }"""
    found = await root(document, by={"address": address}, **given)
    return found["address"]["autoreply"]["preview"]


async def test_a_preview_says_what_it_would_answer(root: Client, neighbour: Neighbour) -> None:
    await make_autoreply_address(
        root, name="Info", autoreply={**AUTOREPLY_SETTINGS, "internalText": "Ask Bob."}
    )
    assert await preview(root, sender="carol@far.example") == {
        "silence": None, "internal": False, "from": AUTOREPLY_ADDRESS, "fromName": "Info",
        "to": "carol@far.example", "subject": "Auto: Re: Lunch?", "text": "We have it.",
    }  # fmt: skip
    inside = await preview(root, sender="bob@example.org")
    assert (inside["internal"], inside["text"]) == (True, "Ask Bob.")
    assert (await preview(root, sender=AUTOREPLY_ADDRESS))["silence"] == "OWN"
    await send_message_to_address(neighbour)
    assert (await preview(root, sender="carol@far.example"))["silence"] == "ANSWERED"
    await make_autoreply_address(root, "*@example.org", allowWildcard=True)
    nobody = await preview(root, "*@example.org", sender="eve@far.example")
    assert (nobody["silence"], nobody["from"]) == ("OTHER_ADDRESS", None)
    any_ = await preview(root, "*@example.org", sender="eve@far.example", to="any@example.org")
    assert (any_["silence"], any_["from"]) == (None, "any@example.org")


async def test_a_trace_shows_that_it_answers(root: Client, ada: Client) -> None:
    document = """query ($address: String!) { addressTrace(address: $address) {
      stage output record { __typename } } }"""
    await make_autoreply_address(root)
    await set_autoreply(ada)
    for address in (AUTOREPLY_ADDRESS, "ada@example.org"):
        last = (await root(document, address=address))["addressTrace"][-1]
        assert last == {
            "stage": "AUTOREPLY", "output": [address], "record": {"__typename": "Autoreply"},
        }  # fmt: skip
    await change(root, AUTOREPLY_ADDRESS, autoreply={"enabled": False})
    stages = [
        step["stage"] for step in (await root(document, address=AUTOREPLY_ADDRESS))["addressTrace"]
    ]
    assert stages == ["ADDRESS"]
