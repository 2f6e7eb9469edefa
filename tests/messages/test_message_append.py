"""Messages that are put into a folder."""

import base64
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from models.errors import LimitReached
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import upload
from tests.conftest import Client, Clock, context, raw_message
from tests.support.operations.bulk_operations import call, keys
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("counted")


# putting in


async def test_a_message_is_put_in_byte_for_byte(post: Client, clock: Clock) -> None:
    raw = raw_message("Up", body="Grüße")
    clock.tick(days=1)
    for given in (raw.decode(), raw.decode().replace("\r\n", "\n"), base64.b64encode(raw).decode()):
        answer = await call(
            post, "messageUpload", mailbox={"path": "Brief"}, raw=given, flagged=True,
            receivedAt="2001-01-01T00:00:00Z", metaData={"a": 1},
        )  # fmt: skip
        message = answer["message"]
        assert (answer["errors"], message["source"]) == ([], raw.decode())
        assert message["flags"] == ["\\Seen", "\\Flagged"]
        assert message["size"] == len(raw)
        assert message["receivedAt"] == "2001-01-01T00:00:00Z"
        assert message["savedAt"] == "2030-01-02T00:00:03Z"
        assert message["expires"] == "2030-01-03T00:00:03Z"
        assert message["metaData"] == {"a": 1}
    ((at,),) = await rows(post.world, "SELECT max(at) FROM changes WHERE kind = 'MESSAGE_ADDED'")
    assert str(at).startswith("2030-01-02")


async def test_a_message_sent_before_is_put_in(post: Client) -> None:
    raw = raw_message("Up", body="x" * 300_000)
    sent = await post.http.post("/rest/uploads", content=raw, headers=post.headers)
    given = {"mailbox": {"path": "INBOX"}, "rawUpload": sent.json()["id"], "unseen": True}
    answer = await call(post, "messageUpload", **given)
    assert (answer["errors"], answer["message"]["size"]) == ([], len(raw))
    assert (await post.box()).unseen == 4


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({}, "VALIDATION", ["raw"]),
        ({"raw": "a: b", "rawUpload": "x"}, "VALIDATION", ["rawUpload"]),
        ({"rawUpload": global_ids.encode("Upload", 7)}, "NOT_FOUND", None),
        ({"raw": "no message"}, "VALIDATION", ["raw"]),
        ({"raw": " \n"}, "VALIDATION", ["raw"]),
        ({"raw": "a: b", "mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["mailbox"]),
        ({"raw": "a: b", "metaData": []}, "VALIDATION", ["metaData"]),
    ],
)
async def test_what_is_no_message_is_refused(
    post: Client, given: dict[str, Any], code: str, path: list[str] | None
) -> None:
    answer = await call(post, "messageUpload", **{"mailbox": {"path": "INBOX"}, **given})
    (error,) = answer["errors"]
    assert error["code"] == code
    assert path is None or error["path"] == path
    assert len(await keys(post)) == 3


async def test_too_large_a_message_is_refused_and_one_that_does_not_fit(
    post: Client, world: Environment
) -> None:
    raw = raw_message("Up").decode()
    small = replace(world, options=replace(world.options, message_max=len(raw) - 1))
    ctx = context(replace(post, world=small))
    with pytest.raises(LimitReached) as refused:
        await upload.store_message(ctx, upload.NewMessage(MailboxSelector(path="INBOX"), raw))
    assert (refused.value.limit, refused.value.used) == (len(raw) - 1, len(raw))
    ((used,),) = await rows(world, "SELECT used FROM users")
    async with world.write_session() as session:
        await session.exec(update(User).values(quota=used + len(raw) - 1))
    answer = await call(post, "messageUpload", mailbox={"path": "INBOX"}, raw=raw)
    assert [(e["code"], e["used"]) for e in answer["errors"]] == [("QUOTA_EXCEEDED", used)]
    async with world.write_session() as session:
        await session.exec(update(User).values(quota=used + len(raw)))
    answer = await call(post, "messageUpload", mailbox={"path": "INBOX"}, raw=raw)
    assert answer["errors"] == []
    async with world.write_session() as session:
        await session.exec(update(User).values(quota=None))
