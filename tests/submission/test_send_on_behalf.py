"""What an administrator who sends for a user is shown of it, and nobody else."""

from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import Client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import run
from tests.support.operations.domain_operations import live, made

CAROL, DAVE = "carol@example.net", "dave@example.net"
SHOWN = """submission { id queueId recipients { recipient state } }
  submissions { recipients { recipient } }"""
ADA = {"username": "ada"}
pytestmark = pytest.mark.usefixtures("examined", "ada")


async def send(client: Client, **given: Any) -> Any:
    to = {} if "merge" in given else {"to": [{"address": CAROL}, {"address": DAVE}]}
    return await run(client, "messageSend", SHOWN, subject="Hi", text="x", **to, **given)


async def seen(client: Client, done: Any) -> list[Any]:
    """What a client finds of it by either name."""
    document = "query ($by: SubmissionRef!) { submission(by: $by) { recipients { recipient } } }"
    names = [{name: done["submission"][name]} for name in ("id", "queueId")]
    return [(await client(document, by=by))["submission"] for by in names]


async def test_the_answer_names_the_recipients(
    ada: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    ours = await make_domain_admin(world, http, "dora", [AdminPermission.LOGIN_AS])
    both = [{"recipient": CAROL}, {"recipient": DAVE}]
    for client in (root, ours):
        done = await send(client, user=ADA)
        assert done["errors"] == []
        assert done["submission"]["recipients"] == [{**each, "state": "PENDING"} for each in both]
        assert done["submissions"] == [{"recipients": both}]
        assert await seen(client, done) == [None, None]
        assert await seen(ada, done) == [{"recipients": both}] * 2


async def test_each_message_of_a_merge_has_its_own(root: Client) -> None:
    merge = [{"to": [{"address": DAVE}]}, {"to": [{"address": CAROL}]}]
    done = await send(root, user=ADA, merge=merge)
    assert done["errors"] == []
    named = [each["recipients"] for each in done["submissions"]]
    assert named == [[{"recipient": DAVE}], [{"recipient": CAROL}]]


async def test_a_draft_that_is_submitted_names_them_too(ada: Client, root: Client) -> None:
    document = """mutation ($input: MessageUploadInput!) { messageUpload(input: $input) {
        message { id } errors { code } } }"""
    given = {"mailbox": {"path": "Drafts"}, "draft": True, "text": "x", "to": [{"address": CAROL}]}
    draft = (await ada(document, input=given))["messageUpload"]["message"]["id"]
    done = await run(root, "messageSubmit", SHOWN, message={"id": draft})
    assert done["errors"] == []
    assert [each["recipient"] for each in done["submission"]["recipients"]] == [CAROL]


async def test_others_neither_send_nor_see(
    bob: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    await made(root, "else.example")
    await live(world, "eve@else.example")
    theirs = await make_domain_admin(
        world, http, "dan", [AdminPermission.LOGIN_AS], domains=["else.example"]
    )
    powerless = await make_domain_admin(world, http, "dot")
    for client in (bob, theirs, powerless):
        refused = await send(client, user=ADA)
        assert (refused["submission"], refused["submissions"]) == (None, [])
        assert [each["code"] for each in refused["errors"]] in (
            ["NOT_FOUND"], ["FORBIDDEN"],
        )  # fmt: skip
    done = await send(root, user=ADA)
    for client in (bob, theirs, powerless, root):
        assert await seen(client, done) == [None, None]
