"""Test stored files in sent messages: attached, or as links."""

import base64
import re
from typing import Any

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.operations.file_operations import store_file
from tests.support.stores.counter_check import select_rows

SEND_FIELDS = "submissions { id } messages { text html attachments { filename } } warnings { code }"
SEND_INPUT = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look.",
      "html": "<html><body><p>Look.</p></body></html>"}  # fmt: skip
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def send_with_files(client: GraphQLClient, *files: Any, **fields: Any) -> Any:
    return await execute_mutation(
        client, "messageSend", SEND_FIELDS, **{**SEND_INPUT, "fileAttachments": files, **fields}
    )


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def test_attached_file_shares_its_blob(ada: GraphQLClient, environment: Environment) -> None:
    text = "quack " * 2000
    file = await store_file(ada, text)
    before = await select_rows(environment, "SELECT count(*), sum(stored_size) FROM blobs")
    for _ in range(3):
        answer = await send_with_files(ada, {"file": {"id": file["id"]}})
        assert answer["errors"] == []
        assert answer["messages"][0]["attachments"] == [{"filename": "pond.txt"}]
    after = await select_rows(environment, "SELECT count(*), sum(stored_size) FROM blobs")
    assert after[0][0] == before[0][0] + 3  # one blob per message for the rest of it
    assert after[0][1] - before[0][1] < 3 * 3000
    raw = (await load_queued_messages(environment))[0]
    joined = b"".join(raw.split())
    assert base64.b64encode(text.encode()) in joined


@pytest.mark.parametrize("mode", ["LINK", "READ_ONLY_LINK", "WRITABLE_LINK"])
async def test_file_links_are_added_below_text(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock, mode: str
) -> None:
    assert bob.user
    file = await store_file(ada, filename="a & b <c>.txt")
    attachment = {"file": {"id": file["id"]}, "mode": mode, "password": "open sesame"}
    sent = await send_with_files(ada, {**attachment, "expiresAt": {"fromNow": "P2D"}})
    assert sent["errors"] == []
    text = sent["messages"][0]["text"].replace("\r\n", "\n")
    assert text.startswith("Look.\n\na & b <c>.txt (6 bytes, until 2030-01-03, with a password)\n")
    html = sent["messages"][0]["html"]
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


async def test_file_link_expires_after_hundred_days(ada: GraphQLClient) -> None:
    file = await store_file(ada)
    assert (await send_with_files(ada, {"file": {"id": file["id"]}, "mode": "LINK"}))[
        "errors"
    ] == []
    answer = await ada("{ viewer { user { files { nodes { shares { expiresAt } } } } } }")
    assert answer["viewer"]["user"]["files"]["nodes"] == [
        {"shares": [{"expiresAt": "2030-04-11T00:00:00Z"}]}
    ]


async def test_refused_send_creates_no_share(ada: GraphQLClient, environment: Environment) -> None:
    file = await store_file(ada)
    link = {"file": {"id": file["id"]}, "mode": "LINK"}
    assert error_codes_and_paths(await send_with_files(ada, link, to=[{"address": "half@"}])) == [
        ("VALIDATION", ["to", "0"])
    ]
    validated = await send_with_files(ada, link, options={"validateOnly": True})
    assert validated["errors"] == []
    assert await select_rows(environment, "SELECT id FROM file_shares") == []


async def test_invalid_file_attachment_is_refused(ada: GraphQLClient, bob: GraphQLClient) -> None:
    file = await store_file(ada)
    path = ["fileAttachments", "0"]
    foreign = await send_with_files(bob, {"file": {"id": file["id"]}})
    assert error_codes_and_paths(foreign) == [("NOT_FOUND", [*path, "file"])]
    for mode in ("LINK", "READ_ONLY_LINK", "WRITABLE_LINK"):
        foreign = await send_with_files(bob, {"file": {"id": file["id"]}, "mode": mode})
        assert error_codes_and_paths(foreign) == [("NOT_FOUND", [*path, "file"])]
    password_without_link = await send_with_files(
        ada, {"file": {"id": file["id"]}, "password": "long enough"}
    )
    assert error_codes_and_paths(password_without_link) == [("VALIDATION", path)]
    expired = {
        "file": {"id": file["id"]},
        "mode": "LINK",
        "expiresAt": {"at": "2029-01-01T00:00:00Z"},
    }
    assert error_codes_and_paths(await send_with_files(ada, expired)) == [
        ("VALIDATION", [*path, "expiresAt"])
    ]
    short_password = {"file": {"id": file["id"]}, "mode": "LINK", "password": ""}
    assert error_codes_and_paths(await send_with_files(ada, short_password)) == [
        ("VALIDATION", [*path, "password"])
    ]
    assert error_codes_and_paths(await send_with_files(ada, {"file": {"id": "fil_x"}})) == [
        ("VALIDATION", [*path, "file", "id"])
    ]
