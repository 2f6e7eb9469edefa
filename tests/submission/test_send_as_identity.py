"""Test sending as an identity: its fields, and the mailbox of the copy."""

from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, context, make_key
from tests.support.accounts.identity_operations import (
    address,
    change,
    known,
    made,
    readdress,
    sent,
    whitelist,
)
from tests.support.operations.message_sources import names, read_back, upload

CAROL = "carol@example.net"


async def recipient_addresses(answer: Any) -> list[str]:
    return [recipient["recipient"] for recipient in answer["submission"]["recipients"]]


@pytest.fixture
async def full_identity(ada: Client) -> Any:
    """An identity with all fields, which is not the default."""
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Letters"]))
    address_id = await address(ada.world, "a.lovelace@example.org", user_id=ada.user.id)
    identity = await made(
        ada, "a.lovelace@example.org", name="Countess", replyTo="desk@example.net",
        bcc=["log@example.net", CAROL], sentMailbox={"path": "Letters"},
    )  # fmt: skip
    assert identity["id"] == global_ids.encode("Identity", address_id)
    return identity


async def test_missing_fields_come_from_identity(ada: Client, full_identity: Any) -> None:
    selections: list[dict[str, Any]] = [
        {"from": {"address": "alovelace+x@Example.ORG"}},
        {"identity": full_identity["id"]},
    ]
    for selection in selections:
        answer = await sent(ada, **selection)
        assert answer["errors"] == []
        message = answer["message"]
        sender = (
            selection.get("from", full_identity)["address"]
            .replace("ORG", "org")
            .replace("Ex", "ex")
        )
        assert message["from"] == {"name": "Countess", "address": sender}
        assert message["replyTo"] == [{"address": "desk@example.net"}]
        assert message["bcc"] == [{"address": "log@example.net"}]  # carol is already a recipient
        assert message["mailbox"] == {"path": "Letters"}
        assert answer["submission"]["envelopeFrom"] == sender
        assert await recipient_addresses(answer) == [CAROL, "log@example.net"]


async def test_given_fields_override_identity(ada: Client, full_identity: Any) -> None:
    fields = {
        "from": {"address": full_identity["address"], "name": "A. L."},
        "replyTo": [{"address": "me@example.net"}],
        "bcc": [{"address": "eve@example.net"}],
        "mailbox": {"path": "Sent"},
    }
    answer = await sent(ada, **fields)
    assert answer["message"]["from"]["name"] == "A. L."
    assert answer["message"]["replyTo"] == fields["replyTo"]
    assert answer["message"]["mailbox"] == {"path": "Sent"}
    assert await recipient_addresses(answer) == [CAROL, "eve@example.net", "log@example.net"]
    empty_fields = {"from": {"address": full_identity["address"], "name": ""}, "replyTo": []}
    message = (await sent(ada, **empty_fields))["message"]
    assert (message["from"]["name"], message["replyTo"]) == (None, [])
    (error,) = (await sent(ada, **fields, identity=full_identity["id"]))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["identity"])


async def test_default_identity_is_used_without_selection(ada: Client, full_identity: Any) -> None:
    assert (await sent(ada))["message"]["from"]["address"] == ada.address
    assert (await change(ada, full_identity["id"], default=True))[1] == []
    message = (await sent(ada))["message"]
    assert message["from"] == {"name": "Countess", "address": full_identity["address"]}
    main_id = (await known(ada))[ada.address]["id"]
    message = (await sent(ada, identity=main_id))["message"]
    assert (message["from"]["address"], message["mailbox"]) == (ada.address, {"path": "Sent"})
    assert (await change(ada, main_id, name="Ada", default=True))[1] == []
    assert (await sent(ada))["message"]["from"] == {"name": "Ada", "address": ada.address}


async def test_own_sender_address_gets_its_name(ada: Client, world: Environment) -> None:
    await address(world, "desk@example.org", user_id=ada.user.id, name="The desk")
    await address(world, "*@example.org", user_id=ada.user.id, name="Anybody")
    await whitelist(ada, "a@example.com", "*@example.net")
    for sender, name in (
        ("desk@example.org", "The desk"),
        ("any@example.org", None),
        ("b@example.net", None),
        ("a@example.com", None),
    ):
        message = (await sent(ada, **{"from": {"address": sender}}))["message"]
        assert message["from"] == {"name": name, "address": sender}


async def test_forbidden_identity_is_not_used(
    ada: Client, bob: Client, world: Environment, full_identity: Any
) -> None:
    assert (await change(ada, full_identity["id"], default=True))[1] == []
    address_id = global_ids.decode("Identity", full_identity["id"])
    await readdress(world, address_id, send_as=False)
    message = (await sent(ada))["message"]
    assert (message["from"]["address"], message["bcc"]) == (ada.address, [])
    (error,) = (await sent(ada, identity=full_identity["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])
    await readdress(world, address_id, send_as=True)
    (error,) = (await sent(bob, identity=full_identity["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])


async def test_copy_goes_to_sent_if_identity_mailbox_was_deleted(
    ada: Client, full_identity: Any
) -> None:
    document = """mutation { mailboxDelete(input: {mailboxes: [{path: "Letters"}]}) {
      errors { code } } }"""
    assert (await ada(document))["mailboxDelete"]["errors"] == []
    assert (await sent(ada, identity=full_identity["id"]))["message"]["mailbox"] == {"path": "Sent"}
    assert (await known(ada))[full_identity["address"]]["sentMailbox"] is None


async def test_identity_bcc_alone_is_no_recipient(ada: Client, full_identity: Any) -> None:
    (error,) = (await sent(ada, identity=full_identity["id"], to=[]))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["to"])


async def test_draft_uses_identity_fields(ada: Client, full_identity: Any) -> None:
    arguments: dict[str, Any] = {"identity": full_identity["id"], "draft": True, "text": "x"}
    empty = await read_back(ada, await upload(ada, **arguments))
    assert names(empty, "From") == [("Countess", full_identity["address"])]
    assert names(empty, "Reply-To") == [("", "desk@example.net")]
    assert "Bcc" not in empty
    to_field = {"to": [{"address": CAROL}]}
    saved = await upload(ada, **arguments, **to_field)
    assert names(await read_back(ada, saved), "Bcc") == [("", "log@example.net")]
    previous = {"replacePrevious": {"id": saved["message"]["id"]}}
    repeated = await upload(
        ada, **arguments, **to_field, **previous, bcc=[{"address": "log@example.net"}]
    )
    assert names(await read_back(ada, repeated), "Bcc") == [("", "log@example.net")]
    draft = (await sent(ada, identity=full_identity["id"], isDraft=True))["message"]
    assert draft["mailbox"] == {"path": "Drafts"}
    raw_upload = {"raw": "Subject: x\n\nx\n", "identity": full_identity["id"]}
    (error,) = (await upload(ada, **raw_upload))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["raw"])


async def test_uploaded_message_keeps_its_from_field(ada: Client, full_identity: Any) -> None:
    foreign = await upload(ada, **{"from": {"address": "eve@example.net"}}, text="x")
    assert names(await read_back(ada, foreign), "From") == [("", "eve@example.net")]
    own = await upload(ada, **{"from": {"address": full_identity["address"]}}, text="x")
    message = await read_back(ada, own)
    assert (names(message, "From"), "Reply-To" in message) == (
        [("", full_identity["address"])],
        False,
    )


async def test_submit_only_key_can_send_as_identity(ada: Client, full_identity: Any) -> None:
    key_columns = {"user_id": ada.user.id, "role": ada.user.role, "scopes": [Scope.SUBMIT]}
    secret = await make_key(ada.world, "submits", **key_columns)
    submit_client = Client(ada.http, ada.world, ada.user, secret)
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      submission { envelopeFrom } errors { code } } }"""
    arguments = {"to": [{"address": CAROL}], "text": "x", "identity": full_identity["id"]}
    assert (await submit_client(document, input=arguments))["messageSend"] == {
        "submission": {"envelopeFrom": full_identity["address"]},
        "errors": [],
    }
