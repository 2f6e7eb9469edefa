"""Welcome messages of new users."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from models.users.roles import Role, Scope
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import try_create_user
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def welcome_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "welcome"
    folder.mkdir()
    message_fields = {
        "from": "Team [DOMAIN] <team@[DOMAIN]>",
        "subject": "Hello [FNAME]",
        "flagged": True,
    }
    (folder / "1.json").write_text(json.dumps({**message_fields, "attachments": ["logo.png"]}))
    (folder / "1.html").write_text("<p>Dear [FNAME] [LNAME], you are [EMAIL] [OTHER]</p>")
    (folder / "logo.png").write_bytes(b"\x89PNG" * 10)
    (folder / "2.json").write_text('{"subject": "Old", "mailbox": "SENT", "seen": true}')
    (folder / "2.txt").write_text("[USERNAME] [NAME]")
    return folder


def set_welcome_folder(client: GraphQLClient, folder: Path) -> None:
    """Set the folder with the welcome messages."""
    options = replace(client.environment.options, welcome_folder=folder)
    object.__setattr__(client.environment, "options", options)


MESSAGE_COUNT_QUERY = (
    """{ user(by: {username: "eve"}) { messageCount limits { quota { used } } } }"""
)


async def test_new_user_gets_welcome_messages(root: GraphQLClient, welcome_folder: Path) -> None:
    set_welcome_folder(root, welcome_folder)
    _, errors = await try_create_user(root, username="eve", name="Eve <b> of Oz")
    assert errors == []
    message_rows = await select_rows(
        root.environment,
        "SELECT m.subject, b.path, m.seen, m.flagged, m.from_address, m.preview,"
        " m.attachment_count FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id"
        " ORDER BY m.subject",
    )
    assert [tuple(map(str, row[:2])) for row in message_rows] == [
        ("Hello Eve", "INBOX"),
        ("Old", "Sent"),
    ]
    first, second = message_rows
    assert (bool(first[2]), bool(first[3]), bool(second[2])) == (False, True, True)
    assert first[4] == "team@example.org"
    assert "Dear Eve <b> of Oz, you are eve@example.org [OTHER]" in first[5]
    assert (first[6], second[5]) == (1, "eve Eve <b> of Oz")
    user = (await root(MESSAGE_COUNT_QUERY))["user"]
    assert user["messageCount"] == 2
    assert user["limits"]["quota"]["used"] > 0
    _, errors = await try_create_user(root, username="dan", address=None, emptyAddress=True)
    assert errors == []
    assert len(await select_rows(root.environment, "SELECT id FROM messages")) == 2


async def test_invalid_welcome_message_does_not_prevent_create(
    root: GraphQLClient, welcome_folder: Path
) -> None:
    (welcome_folder / "0.json").write_text("{")
    (welcome_folder / "0b.json").write_text('{"attachments": ["../../etc/passwd"]}')
    (welcome_folder / "0c.json").write_text('{"from": "nobody"}')
    (welcome_folder / "0d.json").write_text("[1]")
    (welcome_folder / "0e.json").write_bytes(b"\xff")
    set_welcome_folder(root, welcome_folder)
    _, errors = await try_create_user(root, quota=500, options={"idempotencyKey": "k"})
    assert errors == []
    # the quota has no room
    assert len(await select_rows(root.environment, "SELECT id FROM messages")) < 2
    set_welcome_folder(root, welcome_folder / "nowhere")
    assert (await try_create_user(root, address="dan@example.org"))[1] == []


async def test_domain_and_users_are_created_in_one_transaction(
    root: GraphQLClient, welcome_folder: Path
) -> None:
    set_welcome_folder(root, welcome_folder)
    ctx = Context(root.environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    async with ctx.combined_transaction():
        for name in "ab":
            new_user = NewUser(address=f"{name}@new.example", password_disabled=True)
            assert (await creation_create.create_user(ctx, new_user)).message_count == 2
