"""What is worth showing to whoever looks on."""

from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from resolvers.auth import security_log
from resolvers.auth.security_log import NewSecurityEvent
from tests.conftest import Client, context
from tests.support.clients.change_followers import open_subscription
from tests.support.operations.push_receivers import come
from tests.support.servers.live_server import Follower, House, cursor, house, note, until

FOLLOW = """subscription ($after: Cursor) { notifications(after: $after) { kind title text at cursor
  hasMore message { id subject } } }"""
AT = "{ viewer { user { cursor } } }"


@pytest.fixture
async def live(world: Environment, tmp_path: Path) -> Any:
    async with house(world, tmp_path) as live:
        yield live


def told(follower: Follower) -> list[Any]:
    for payload in follower.got:
        assert not payload.get("errors"), payload
    return [payload["data"]["notifications"] for payload in follower.got]


async def position(client: Client) -> str:
    return str((await client(AT))["viewer"]["user"]["cursor"])


@pytest.mark.parametrize("by", ["follow", "stream"])
async def test_new_mail_is_shown_to_its_owner_alone(
    live: House, ada: Client, bob: Client, by: str
) -> None:
    mine = await open_subscription(live, by, ada, FOLLOW)
    his = await open_subscription(live, by, bob, FOLLOW)
    await come(ada, "Spam", into="Junk")
    placed = await come(ada, "Hello")
    await until(lambda: mine.got)
    (one,) = told(mine)
    key = global_ids.encode("Message", placed.message_id)
    assert (one["kind"], one["title"], one["text"]) == ("message.received", "Carol", "Hello")
    assert (one["message"], one["hasMore"]) == ({"id": key, "subject": "Hello"}, False)
    await come(bob, "His")
    await until(lambda: his.got)
    assert [one["text"] for one in told(his)] == ["His"]
    assert len(mine.got) == 1
    for follower in (mine, his):
        await follower.leave()


async def test_it_goes_on_after_a_cursor_and_misses_nothing(live: House, ada: Client) -> None:
    at = await position(ada)
    for n in range(3):
        await come(ada, f"No. {n}")
    follower = await live.follow(ada, FOLLOW, after=at)
    await until(lambda: len(follower.got) == 3)
    assert [(one["text"], one["hasMore"]) for one in told(follower)] == [
        ("No. 0", True), ("No. 1", True), ("No. 2", False),
    ]  # fmt: skip
    await follower.leave()
    again = await live.follow(ada, FOLLOW, after=told(follower)[0]["cursor"])
    await until(lambda: len(again.got) == 2)
    assert [one["text"] for one in told(again)] == ["No. 1", "No. 2"]
    await again.leave()
    unknown = await live.follow(ada, FOLLOW, after=cursor(ada, 10_000))
    await until(lambda: unknown.got)
    assert [one["kind"] for one in told(unknown)] == ["resync"]
    await unknown.leave()


async def test_somebody_elses_cursor_is_refused(live: House, ada: Client, bob: Client) -> None:
    follower = await live.follow(ada, FOLLOW, after=cursor(bob, 1))
    await until(lambda: follower.got or follower.over)
    assert "BAD_CURSOR" in str(follower.got or follower.over)
    await follower.leave()


async def test_limits_sign_ins_and_mail_that_could_not_be_sent(live: House, ada: Client) -> None:
    at = await position(ada)
    full = {
        "limit": "STORAGE", "level": "WARNING", "used": 81, "allowed": 100, "refused": False,
        "resetsAt": None,
    }  # fmt: skip
    user = ada.user.id
    await note(ada, ChangeKind.LIMIT_REACHED, [user], **full)
    await note(ada, ChangeKind.LIMIT_REACHED, [user], **{**full, "level": "FULL", "refused": True})
    for action, result in (
        ("authenticate", "success"),
        ("authenticate", "fail"),
        ("key value set", "success"),
        ("password change", "success"),
    ):
        await security_log.log_event_separately(
            context(ada), NewSecurityEvent(action, user, result, protocol="IMAP")
        )
    await note(ada, ChangeKind.SUBMISSION_CHANGED, [7], state="SENT")
    await note(ada, ChangeKind.SUBMISSION_CHANGED, [7], state="FAILED")
    follower = await live.follow(ada, FOLLOW, after=at)
    await until(lambda: len(follower.got) == 6)
    assert [(one["kind"], one["title"]) for one in told(follower)] == [
        ("limit.reached", "Storage: used up to 81 %"),
        ("limit.reached", "Storage: used up"),
        ("login.succeeded", "New sign-in"),
        ("login.failed", "A sign-in failed"),
        ("password.changed", "The password was changed"),
        ("message.bounced", "A message could not be sent"),
    ]
    assert told(follower)[2]["text"] == "IMAP"
    await follower.leave()


async def test_many_are_told_by_as_few_statements_as_one(
    live: House, ada: Client, statements: list[str]
) -> None:
    text = FOLLOW.replace("message { id subject }", "")

    async def cost(many: int) -> int:
        at = await position(ada)
        for n in range(many):
            await come(ada, f"{many} {n}")
        del statements[:]
        follower = await live.follow(ada, text, after=at)
        await until(lambda: len(follower.got) == many)
        await follower.leave()
        return len([one for one in statements if "FROM messages" in one])

    assert await cost(1) == await cost(20) == 1
