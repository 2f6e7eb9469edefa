"""Messages that wait to be sent, in accounts as files: drafts, so that nothing goes twice."""

import io
import json
import zipfile
from typing import Any

import pytest

from models.world import World
from tests.accounts import run
from tests.conftest import Client
from tests.exported import FULL, exported, imported
from tests.mail.sending import bodies

LATER = {"to": [{"address": "carol@example.net"}], "subject": "Later", "text": "Hi."}
FOUND = """{ viewer { user { messages { nodes { subject draft mailbox { path }
  envelope { from } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def nodes(client: Client) -> list[Any]:
    found = (await client(FOUND))["viewer"]["user"]["messages"]["nodes"]
    return sorted(found, key=lambda node: str(node["subject"]))


@pytest.mark.parametrize("kind", FULL)
async def test_what_is_to_go_later_comes_back_as_a_draft(
    ada: Client, bob: Client, world: World, kind: str
) -> None:
    await run(ada, "messageSend", "submission { id }", **LATER, sendTime="2030-02-01T00:00:00Z")
    await run(ada, "messageSend", "submission { id }", **{**LATER, "subject": "Now"})
    made = await exported(ada, format=kind)
    sent = len(await bodies(world))
    await imported(bob, made["content"])
    later, now = await nodes(bob)
    assert later == {"subject": "Later", "draft": True, "mailbox": {"path": "Drafts"},
                     "envelope": None}  # fmt: skip
    assert (now["subject"], now["draft"], now["mailbox"]["path"]) == ("Now", False, "Sent")
    assert len(await bodies(world)) == sent  # nobody sends it a second time


async def test_the_record_says_to_whom_and_when(ada: Client) -> None:
    await run(ada, "messageSend", "submission { id }", **LATER, sendTime="2030-02-01T00:00:00Z")
    made = await exported(ada, format="EML_ZIP")
    with zipfile.ZipFile(io.BytesIO(made["content"])) as archive:
        name = next(n for n in archive.namelist() if n.endswith("account.json"))
        account = json.loads(archive.read(name))
    (one,) = account["scheduled"]
    assert (one["subject"], one["recipients"]) == ("Later", ["carol@example.net"])
    assert one["sendTime"].startswith("2030-02-01T00:00:00")
