"""Test sending as an identity: its fields, and the mailbox of the copy."""

from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Scope
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, client_context, make_api_key
from tests.support.accounts.identity_operations import (
    add_address,
    change_address,
    create_identity,
    load_identities_by_address,
    send_message,
    set_allowed_senders,
    try_update_identities,
)
from tests.support.operations.message_sources import (
    names_and_addresses,
    parse_stored_message,
    save_draft,
)

CAROL = "carol@example.net"


async def recipient_addresses(answer: Any) -> list[str]:
    return [recipient["recipient"] for recipient in answer["submissions"][0]["recipients"]]


@pytest.fixture
async def full_identity(ada: GraphQLClient) -> Any:
    """An identity with all fields, which is not the default."""
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Letters"]))
    address_id = await add_address(ada.environment, "a.lovelace@example.org", user_id=ada.user.id)
    identity = await create_identity(
        ada, "a.lovelace@example.org", name="Countess", replyTo="desk@example.net",
        bcc=["log@example.net", CAROL], sentMailbox={"path": "Letters"},
    )  # fmt: skip
    assert identity["id"] == global_ids.encode("Identity", address_id)
    return identity


async def test_missing_fields_come_from_identity(ada: GraphQLClient, full_identity: Any) -> None:
    selections: list[dict[str, Any]] = [
        {"from": {"address": "alovelace+x@Example.ORG"}},
        {"identity": {"id": full_identity["id"]}},
    ]
    for selection in selections:
        answer = await send_message(ada, **selection)
        assert answer["errors"] == []
        message = answer["messages"][0]
        sender = (
            selection.get("from", full_identity)["address"]
            .replace("ORG", "org")
            .replace("Ex", "ex")
        )
        assert message["from"] == {"name": "Countess", "address": sender}
        assert message["replyTo"] == [{"address": "desk@example.net"}]
        assert message["bcc"] == [{"address": "log@example.net"}]  # carol is already a recipient
        assert message["mailbox"] == {"path": "Letters"}
        assert answer["submissions"][0]["envelopeFrom"] == sender
        assert await recipient_addresses(answer) == [CAROL, "log@example.net"]


async def test_given_fields_override_identity(ada: GraphQLClient, full_identity: Any) -> None:
    fields = {
        "from": {"address": full_identity["address"], "name": "A. L."},
        "replyTo": [{"address": "me@example.net"}],
        "bcc": [{"address": "eve@example.net"}],
        "mailbox": {"path": "Sent"},
    }
    answer = await send_message(ada, **fields)
    assert answer["messages"][0]["from"]["name"] == "A. L."
    assert answer["messages"][0]["replyTo"] == fields["replyTo"]
    assert answer["messages"][0]["mailbox"] == {"path": "Sent"}
    assert await recipient_addresses(answer) == [CAROL, "eve@example.net", "log@example.net"]
    empty_fields = {"from": {"address": full_identity["address"], "name": ""}, "replyTo": []}
    message = (await send_message(ada, **empty_fields))["messages"][0]
    assert (message["from"]["name"], message["replyTo"]) == (None, [])
    (error,) = (await send_message(ada, **fields, identity={"id": full_identity["id"]}))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["identity"])


async def test_default_identity_is_used_without_selection(
    ada: GraphQLClient, full_identity: Any
) -> None:
    assert (await send_message(ada))["messages"][0]["from"]["address"] == ada.address
    assert (await try_update_identities(ada, full_identity["id"], default=True))[1] == []
    message = (await send_message(ada))["messages"][0]
    assert message["from"] == {"name": "Countess", "address": full_identity["address"]}
    main_id = (await load_identities_by_address(ada))[ada.address]["id"]
    message = (await send_message(ada, identity={"id": main_id}))["messages"][0]
    assert (message["from"]["address"], message["mailbox"]) == (ada.address, {"path": "Sent"})
    assert (await try_update_identities(ada, main_id, name="Ada", default=True))[1] == []
    assert (await send_message(ada))["messages"][0]["from"] == {
        "name": "Ada",
        "address": ada.address,
    }


async def test_own_sender_address_gets_its_name(
    ada: GraphQLClient, environment: Environment
) -> None:
    await add_address(environment, "desk@example.org", user_id=ada.user.id, name="The desk")
    await add_address(environment, "*@example.org", user_id=ada.user.id, name="Anybody")
    await set_allowed_senders(ada, "a@example.com", "*@example.net")
    for sender, name in (
        ("desk@example.org", "The desk"),
        ("any@example.org", None),
        ("b@example.net", None),
        ("a@example.com", None),
    ):
        message = (await send_message(ada, **{"from": {"address": sender}}))["messages"][0]
        assert message["from"] == {"name": name, "address": sender}


async def test_forbidden_identity_is_not_used(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, full_identity: Any
) -> None:
    assert (await try_update_identities(ada, full_identity["id"], default=True))[1] == []
    address_id = global_ids.decode("Identity", full_identity["id"])
    await change_address(environment, address_id, send_as=False)
    message = (await send_message(ada))["messages"][0]
    assert (message["from"]["address"], message["bcc"]) == (ada.address, [])
    (error,) = (await send_message(ada, identity={"id": full_identity["id"]}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])
    await change_address(environment, address_id, send_as=True)
    (error,) = (await send_message(bob, identity={"id": full_identity["id"]}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])


async def test_copy_goes_to_sent_if_identity_mailbox_was_deleted(
    ada: GraphQLClient, full_identity: Any
) -> None:
    document = """mutation { mailboxDelete(input: {mailboxes: [{path: "Letters"}]}) {
      errors { code } } }"""
    assert (await ada(document))["mailboxDelete"]["errors"] == []
    assert (await send_message(ada, identity={"id": full_identity["id"]}))["messages"][0][
        "mailbox"
    ] == {"path": "Sent"}
    assert (await load_identities_by_address(ada))[full_identity["address"]]["sentMailbox"] is None


async def test_identity_bcc_alone_is_no_recipient(ada: GraphQLClient, full_identity: Any) -> None:
    (error,) = (await send_message(ada, identity={"id": full_identity["id"]}, to=[]))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["to"])


async def test_draft_uses_identity_fields(ada: GraphQLClient, full_identity: Any) -> None:
    arguments: dict[str, Any] = {
        "identity": {"id": full_identity["id"]},
        "text": "x",
    }
    empty = await parse_stored_message(ada, await save_draft(ada, **arguments))
    assert names_and_addresses(empty, "From") == [("Countess", full_identity["address"])]
    assert names_and_addresses(empty, "Reply-To") == [("", "desk@example.net")]
    assert "Bcc" not in empty
    to_field = {"to": [{"address": CAROL}]}
    saved = await save_draft(ada, **arguments, **to_field)
    assert names_and_addresses(await parse_stored_message(ada, saved), "Bcc") == [
        ("", "log@example.net")
    ]
    previous = {"draft": {"id": saved["message"]["id"]}}
    repeated = await save_draft(
        ada, **arguments, **to_field, **previous, bcc=[{"address": "log@example.net"}]
    )
    assert names_and_addresses(await parse_stored_message(ada, repeated), "Bcc") == [
        ("", "log@example.net")
    ]
    assert saved["message"]["mailbox"] == {"path": "Drafts"}  # not that of sent copies
    in_defaults = {"draft": {"id": saved["message"]["id"]}, "identity": None}
    other_sender = await parse_stored_message(ada, await save_draft(ada, **in_defaults))
    assert (other_sender["Reply-To"], other_sender["Bcc"]) == (None, None)
    with_own = {**in_defaults, "replyTo": [{"address": "me@example.net"}], "bcc": None}
    await save_draft(ada, **with_own)
    kept = await save_draft(ada, draft=in_defaults["draft"], identity=arguments["identity"])
    message = await parse_stored_message(ada, kept)
    assert names_and_addresses(message, "Reply-To") == [("", "me@example.net")]
    assert names_and_addresses(message, "Bcc") == [("", "log@example.net")]


async def test_submit_only_key_can_send_as_identity(ada: GraphQLClient, full_identity: Any) -> None:
    key_columns = {"user_id": ada.user.id, "role": ada.user.role, "scopes": [Scope.SUBMIT]}
    secret = await make_api_key(ada.environment, "submits", **key_columns)
    submit_client = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      submissions { envelopeFrom } errors { code } } }"""
    arguments = {"to": [{"address": CAROL}], "text": "x", "identity": {"id": full_identity["id"]}}
    assert (await submit_client(document, input=arguments))["messageSend"] == {
        "submissions": [{"envelopeFrom": full_identity["address"]}],
        "errors": [],
    }
