"""Stored files with a message: attached by reference, or linked to."""

import base64
import re
from typing import Any

import pytest

from models.runtime.environment import Environment
from tests.conftest import Client, Clock
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.queue_worker import bodies
from tests.support.operations.file_operations import store_file
from tests.support.stores.counter_check import rows

SENT = "submission { id } message { text html attachments { filename } } warnings { code }"
TO = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look.",
      "html": "<html><body><p>Look.</p></body></html>"}  # fmt: skip
pytestmark = pytest.mark.usefixtures("examined")


async def send(client: Client, *files: Any, **given: Any) -> Any:
    return await run(client, "messageSend", SENT, **{**TO, "fileAttachments": files, **given})


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


async def test_a_file_is_attached_and_its_bytes_are_kept_once(
    ada: Client, world: Environment
) -> None:
    text = "quack " * 2000
    file = await store_file(ada, text)
    before = await rows(world, "SELECT count(*), sum(stored_size) FROM blobs")
    for _ in range(3):
        done = await send(ada, {"file": file["id"]})
        assert done["errors"] == []
        assert done["message"]["attachments"] == [{"filename": "pond.txt"}]
    after = await rows(world, "SELECT count(*), sum(stored_size) FROM blobs")
    assert after[0][0] == before[0][0] + 3  # what is around the file, of each message
    assert after[0][1] - before[0][1] < 3 * 3000
    raw = (await bodies(world))[0]
    joined = b"".join(raw.split())
    assert base64.b64encode(text.encode()) in joined


@pytest.mark.parametrize("mode", ["LINK", "SHARE_RO", "SHARE_RW"])
async def test_links_stand_below_the_text(
    ada: Client, bob: Client, clock: Clock, mode: str
) -> None:
    assert bob.user
    file = await store_file(ada, filename="a & b <c>.txt")
    given = {"file": file["id"], "mode": mode, "sharePassword": "open sesame"}
    done = await send(ada, {**given, "shareExpiration": {"in": "P2D"}})
    assert done["errors"] == []
    text = done["message"]["text"].replace("\r\n", "\n")
    assert text.startswith("Look.\n\na & b <c>.txt (6 bytes, until 2030-01-03, with a password)\n")
    (html,) = done["message"]["html"]
    assert "a &amp; b &lt;c&gt;.txt" in html
    url = re.findall(r"https?://\S+/share/\S+", text)[0]
    path = url.partition("/share/")[2]
    assert "open sesame" not in text + html
    answer = await ada.http.get(f"/share/{path}")
    assert answer.status_code == 401
    answer = await ada.http.get(f"/share/{path}", auth=("", "open sesame"))
    assert (answer.status_code, answer.text) == (200, "Ducks.")
    clock.tick(days=3)
    assert (await ada.http.get(f"/share/{path}")).status_code == 404


async def test_a_link_ends_after_a_hundred_days_without_access(ada: Client) -> None:
    file = await store_file(ada)
    assert (await send(ada, {"file": file["id"], "mode": "LINK"}))["errors"] == []
    shown = await ada("{ viewer { user { files { nodes { shares { expiresAt } } } } } }")
    assert shown["viewer"]["user"]["files"]["nodes"] == [
        {"shares": [{"expiresAt": "2030-04-11T00:00:00Z"}]}
    ]


async def test_nothing_is_shared_where_nothing_is_sent(ada: Client, world: Environment) -> None:
    file = await store_file(ada)
    link = {"file": file["id"], "mode": "LINK"}
    assert codes(await send(ada, link, to=[{"address": "half@"}])) == [("VALIDATION", ["to"])]
    tried = await send(ada, link, options={"validateOnly": True})
    assert tried["errors"] == []
    assert await rows(world, "SELECT id FROM file_shares") == []


async def test_what_cannot_be_given_is_refused(ada: Client, bob: Client) -> None:
    file = await store_file(ada)
    path = ["fileAttachments", "0"]
    theirs = await send(bob, {"file": file["id"]})
    assert codes(theirs) == [("NOT_FOUND", [*path, "file"])]
    for mode in ("LINK", "SHARE_RO", "SHARE_RW"):
        theirs = await send(bob, {"file": file["id"], "mode": mode})
        assert codes(theirs) == [("NOT_FOUND", [*path, "file"])]
    both = await send(ada, {"file": file["id"], "sharePassword": "long enough"})
    assert codes(both) == [("VALIDATION", path)]
    late = {"file": file["id"], "mode": "LINK", "shareExpiration": {"at": "2029-01-01T00:00:00Z"}}
    assert codes(await send(ada, late)) == [("VALIDATION", [*path, "shareExpiration"])]
    short = {"file": file["id"], "mode": "LINK", "sharePassword": ""}
    assert codes(await send(ada, short)) == [("VALIDATION", [*path, "sharePassword"])]
    assert codes(await send(ada, {"file": "fil_x"})) == [("VALIDATION", [*path, "file"])]
