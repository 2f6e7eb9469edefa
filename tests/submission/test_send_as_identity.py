"""Sending as an identity: what is taken from it, and where the copy goes."""

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


async def recipients(answer: Any) -> list[str]:
    return [one["recipient"] for one in answer["submission"]["recipients"]]


@pytest.fixture
async def countess(ada: Client) -> Any:
    """An identity with all there can be, which is not the default."""
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Letters"]))
    key = await address(ada.world, "a.lovelace@example.org", user_id=ada.user.id)
    one = await made(
        ada, "a.lovelace@example.org", name="Countess", replyTo="desk@example.net",
        bcc=["log@example.net", CAROL], sentMailbox={"path": "Letters"},
    )  # fmt: skip
    assert one["id"] == global_ids.encode("Identity", key)
    return one


async def test_what_is_not_given_is_the_identitys(ada: Client, countess: Any) -> None:
    ways: list[dict[str, Any]] = [
        {"from": {"address": "alovelace+x@Example.ORG"}},
        {"identity": countess["id"]},
    ]
    for way in ways:
        answer = await sent(ada, **way)
        assert answer["errors"] == []
        message = answer["message"]
        shown = way.get("from", countess)["address"].replace("ORG", "org").replace("Ex", "ex")
        assert message["from"] == {"name": "Countess", "address": shown}
        assert message["replyTo"] == [{"address": "desk@example.net"}]
        assert message["bcc"] == [{"address": "log@example.net"}]  # carol has it
        assert message["mailbox"] == {"path": "Letters"}
        assert answer["submission"]["envelopeFrom"] == shown
        assert await recipients(answer) == [CAROL, "log@example.net"]


async def test_what_is_given_is_as_it_is_given(ada: Client, countess: Any) -> None:
    given = {
        "from": {"address": countess["address"], "name": "A. L."},
        "replyTo": [{"address": "me@example.net"}],
        "bcc": [{"address": "eve@example.net"}],
        "mailbox": {"path": "Sent"},
    }
    answer = await sent(ada, **given)
    assert answer["message"]["from"]["name"] == "A. L."
    assert answer["message"]["replyTo"] == given["replyTo"]
    assert answer["message"]["mailbox"] == {"path": "Sent"}
    assert await recipients(answer) == [CAROL, "eve@example.net", "log@example.net"]
    bare = {"from": {"address": countess["address"], "name": ""}, "replyTo": []}
    message = (await sent(ada, **bare))["message"]
    assert (message["from"]["name"], message["replyTo"]) == (None, [])
    (error,) = (await sent(ada, **given, identity=countess["id"]))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["identity"])


async def test_the_default_is_used_when_none_is_named(ada: Client, countess: Any) -> None:
    assert (await sent(ada))["message"]["from"]["address"] == ada.address
    assert (await change(ada, countess["id"], default=True))[1] == []
    message = (await sent(ada))["message"]
    assert message["from"] == {"name": "Countess", "address": countess["address"]}
    main = (await known(ada))[ada.address]["id"]
    message = (await sent(ada, identity=main))["message"]
    assert (message["from"]["address"], message["mailbox"]) == (ada.address, {"path": "Sent"})
    assert (await change(ada, main, name="Ada", default=True))[1] == []
    assert (await sent(ada))["message"]["from"] == {"name": "Ada", "address": ada.address}


async def test_a_name_goes_with_each_sender_of_ones_own(ada: Client, world: Environment) -> None:
    await address(world, "desk@example.org", user_id=ada.user.id, name="The desk")
    await address(world, "*@example.org", user_id=ada.user.id, name="Anybody")
    await whitelist(ada, "a@example.com", "*@example.net")
    for shown, name in (
        ("desk@example.org", "The desk"),
        ("any@example.org", None),
        ("b@example.net", None),
        ("a@example.com", None),
    ):
        message = (await sent(ada, **{"from": {"address": shown}}))["message"]
        assert message["from"] == {"name": name, "address": shown}


async def test_one_that_may_be_sent_as_no_longer_is_not_used(
    ada: Client, bob: Client, world: Environment, countess: Any
) -> None:
    assert (await change(ada, countess["id"], default=True))[1] == []
    key = global_ids.decode("Identity", countess["id"])
    await readdress(world, key, send_as=False)
    message = (await sent(ada))["message"]
    assert (message["from"]["address"], message["bcc"]) == (ada.address, [])
    (error,) = (await sent(ada, identity=countess["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])
    await readdress(world, key, send_as=True)
    (error,) = (await sent(bob, identity=countess["id"]))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["identity"])


async def test_a_folder_that_is_gone_is_sent(ada: Client, countess: Any) -> None:
    document = """mutation { mailboxDelete(input: {mailboxes: [{path: "Letters"}]}) {
      errors { code } } }"""
    assert (await ada(document))["mailboxDelete"]["errors"] == []
    assert (await sent(ada, identity=countess["id"]))["message"]["mailbox"] == {"path": "Sent"}
    assert (await known(ada))[countess["address"]]["sentMailbox"] is None


async def test_nobody_is_copied_where_it_goes_to_nobody(ada: Client, countess: Any) -> None:
    (error,) = (await sent(ada, identity=countess["id"], to=[]))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["to"])


async def test_drafts_have_what_belongs_to_their_sender(ada: Client, countess: Any) -> None:
    given: dict[str, Any] = {"identity": countess["id"], "draft": True, "text": "x"}
    empty = await read_back(ada, await upload(ada, **given))
    assert names(empty, "From") == [("Countess", countess["address"])]
    assert names(empty, "Reply-To") == [("", "desk@example.net")]
    assert "Bcc" not in empty
    people = {"to": [{"address": CAROL}]}
    saved = await upload(ada, **given, **people)
    assert names(await read_back(ada, saved), "Bcc") == [("", "log@example.net")]
    old = {"replacePrevious": {"id": saved["message"]["id"]}}
    again = await upload(ada, **given, **people, **old, bcc=[{"address": "log@example.net"}])
    assert names(await read_back(ada, again), "Bcc") == [("", "log@example.net")]
    draft = (await sent(ada, identity=countess["id"], isDraft=True))["message"]
    assert draft["mailbox"] == {"path": "Drafts"}
    whole = {"raw": "Subject: x\n\nx\n", "identity": countess["id"]}
    (error,) = (await upload(ada, **whole))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["raw"])


async def test_a_message_that_is_only_stored_is_from_whom_it_says(
    ada: Client, countess: Any
) -> None:
    stored = await upload(ada, **{"from": {"address": "eve@example.net"}}, text="x")
    assert names(await read_back(ada, stored), "From") == [("", "eve@example.net")]
    own = await upload(ada, **{"from": {"address": countess["address"]}}, text="x")
    message = await read_back(ada, own)
    assert (names(message, "From"), "Reply-To" in message) == ([("", countess["address"])], False)


async def test_a_key_for_sending_alone_sends_as_an_identity(ada: Client, countess: Any) -> None:
    more = {"user_id": ada.user.id, "role": ada.user.role, "scopes": [Scope.SUBMIT]}
    secret = await make_key(ada.world, "submits", **more)
    only = Client(ada.http, ada.world, ada.user, secret)
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      submission { envelopeFrom } errors { code } } }"""
    given = {"to": [{"address": CAROL}], "text": "x", "identity": countess["id"]}
    assert (await only(document, input=given))["messageSend"] == {
        "submission": {"envelopeFrom": countess["address"]},
        "errors": [],
    }
