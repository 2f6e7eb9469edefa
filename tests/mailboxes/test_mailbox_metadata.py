"""Annotations of folders, and their numbers from another server."""

from typing import Any

import pytest

from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from resolvers.mailboxes import metadata
from tests.conftest import Client, receive
from tests.support.operations.mailbox_operations import (
    create_mailboxes,
    delete_mailboxes,
    run_mailbox_mutation,
)
from tests.support.stores.counter_check import examine, journal, reached, rows

READ = """
query ($prefix: String, $prepend: Boolean! = false, $key: String! = "/private/comment") {
  mailbox(by: {path: "INBOX"}) {
    metadata(prefix: $prefix, prependPrefix: $prepend) { key value }
    metadataEntry(key: $key) { key value }
  }
}
"""


async def put(client: Client, key: str, value: str, **more: Any) -> Any:
    given = {"mailbox": {"path": "INBOX"}, "key": key, "value": value, **more}
    return await run_mailbox_mutation(
        client, "mailboxMetadataSet", "entries { key value }", **given
    )


async def drop(client: Client, key: str) -> Any:
    given: dict[str, Any] = {"mailbox": {"path": "INBOX"}, "key": key}
    return await run_mailbox_mutation(client, "mailboxMetadataUnset", "keys", **given)


async def entries(client: Client, **given: Any) -> dict[str, str]:
    box = (await client(READ, **given))["mailbox"]
    return {entry["key"]: entry["value"] for entry in box["metadata"]}


async def test_annotations_are_set_read_and_unset(ada: Client, bob: Client) -> None:
    last = await reached(ada.world, ada.user.id)
    answer = await put(ada, "/Private/Comment", "Für mich")
    assert answer["entries"] == [{"key": "/private/comment", "value": "Für mich"}]
    await put(ada, "/private/comment", "anders")
    await put(ada, "/private/comment", "anders")
    await put(ada, "/shared/vendor/x y/z", "")
    kinds = [kind for kind, _ in await journal(ada.world, ada.user.id, last)]
    assert kinds == [ChangeKind.MAILBOX_UPDATED] * 3
    assert await entries(ada) == {"comment": "anders", "vendor/x y/z": ""}
    long = {"/private/comment": "anders", "/shared/vendor/x y/z": ""}
    assert await entries(ada, prepend=True) == long
    assert await entries(ada, prefix="/SHARED/v") == {"vendor/x y/z": ""}
    entry = (await ada(READ, key="/PRIVATE/comment"))["mailbox"]["metadataEntry"]
    assert entry == {"key": "/private/comment", "value": "anders"}
    assert await entries(bob) == {}
    assert (await drop(ada, "/private/COMMENT"))["keys"] == ["/private/comment"]
    assert (await drop(ada, "/private/comment"))["keys"] == []
    assert (await ada(READ))["mailbox"]["metadataEntry"] is None


@pytest.mark.parametrize(
    "key",
    [
        "", "comment", "/comment", "/private", "/private/", "/private//x", "/shared/x/",
        "/public/x", "/private/a*", "/private/a%b", "/private/é", "/private/a\tb",
        "/private/" + "x" * 250,
    ],
)  # fmt: skip
async def test_a_wrong_name_is_refused(ada: Client, key: str) -> None:
    for answer in (await put(ada, key, "x"), await drop(ada, key)):
        (error,) = answer["errors"]
        assert (error["code"], error["path"]) == ("VALIDATION", ["key"])
    answer = await ada.raw(READ, key=key)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_annotations_have_limits(ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    (error,) = (await put(ada, "/private/x", "é" * 32_769))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["value"])
    assert (await put(ada, "/private/x", "é" * 32_768))["errors"] == []
    monkeypatch.setattr(metadata, "MAX_ANNOTATIONS", 2)
    assert (await put(ada, "/private/y", "x"))["errors"] == []
    (error,) = (await put(ada, "/private/z", "x"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["key"])
    assert (await put(ada, "/private/y", "changed"))["errors"] == []


async def test_annotations_go_with_their_folder(ada: Client) -> None:
    await create_mailboxes(ada, "A")
    assert (await put(ada, "/private/x", "x", mailbox={"path": "A"}))["errors"] == []
    assert (await delete_mailboxes(ada, "A"))["errors"] == []
    assert await rows(ada.world, "SELECT * FROM mailbox_metadata") == []


async def set_state(root: Client, *names: str, path: str = "INBOX", **state: Any) -> Any:
    given = {"users": {"usernames": list(names or ["ada"])}, "mailbox": {"path": path}, **state}
    selection = "mailboxes { guid uidValidity uidNext modseq modifyIndex }"
    return await run_mailbox_mutation(root, "mailboxStateSet", selection, **given)


async def test_numbers_rise_and_never_fall(ada: Client, root: Client, world: Environment) -> None:
    await receive(ada)
    was = await ada.box()
    guid, validity = "0123456789abcdef" * 2, was.uid_validity + 1000
    high = {"uidValidity": validity, "minNextUid": 5000, "minHighestModseq": 1_000_000}
    (box,) = (await set_state(root, guid=guid, **high))["mailboxes"]
    assert (box["guid"], box["uidValidity"], box["uidNext"]) == (guid, validity, 5000)
    assert (box["modseq"], box["modifyIndex"]) == (1_000_000, 1_000_000)
    (box,) = (await set_state(root, minNextUid=2, minHighestModseq=3))["mailboxes"]
    assert (box["uidNext"], box["modseq"]) == (5000, 1_000_000)
    await receive(ada, "another")
    after = await ada.box()
    assert (after.uid_next, after.modseq) == (5001, 1_000_001)
    await create_mailboxes(ada, "A")
    assert (await ada.box("A")).uid_validity == validity + 1
    await examine(world)


@pytest.mark.parametrize(
    ("state", "code", "path"),
    [
        ({"uidValidity": 1}, "VALIDATION", ["uidValidity"]),
        ({"uidValidity": 2**32}, "VALIDATION", ["uidValidity"]),
        ({"uidValidity": 0}, "VALIDATION", ["uidValidity"]),
        ({"minNextUid": 2**32}, "VALIDATION", ["minNextUid"]),
        ({"minHighestModseq": -1}, "VALIDATION", ["minHighestModseq"]),
        ({"guid": "x" * 32}, "VALIDATION", ["guid"]),
        ({"guid": "A" * 32}, "VALIDATION", ["guid"]),
        ({}, "VALIDATION", []),
        ({"path": "Nowhere", "minNextUid": 7}, "NOT_FOUND", ["mailbox"]),
    ],
)
async def test_numbers_that_are_none(
    ada: Client, root: Client, state: dict[str, Any], code: str, path: list[str]
) -> None:
    before = await ada.box()
    (error,) = (await set_state(root, **state))["errors"]
    assert (error["code"], error["path"]) == (code, path)
    assert await ada.box() == before


async def test_no_number_is_given_twice(ada: Client, bob: Client, root: Client) -> None:
    await create_mailboxes(ada, "A")
    newest = (await ada.box("A")).uid_validity
    (error,) = (await set_state(root, uidValidity=newest))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["uidValidity"])
    guid = (await ada.box("A")).guid
    (error,) = (await set_state(root, guid=guid))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["guid"])
    (error,) = (await set_state(root, "ada", "bob", guid="0" * 32))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["guid"])
    made, errors = await create_mailboxes(ada, "B", guid="f" * 32)
    assert (len(made), errors) == (1, [])
    document = "query ($guid: String!) { mailbox(by: {guid: $guid}) { path } }"
    assert await ada(document, guid="f" * 32) == {"mailbox": {"path": "B"}}
    assert await bob(document, guid="f" * 32) == {"mailbox": None}
    _, (error,) = await create_mailboxes(ada, "C", guid="f" * 32)
    assert (error["code"], error["path"]) == ("CONFLICT", ["guid"])


async def test_who_follows_begins_afresh_where_numbers_were_lifted(
    ada: Client, root: Client
) -> None:
    await set_state(root, minHighestModseq=5000)
    assert await reached(ada.world, ada.user.id) == 5000
    assert await journal(ada.world, ada.user.id) == [
        (ChangeKind.MAILBOX_UPDATED, [(await ada.box()).id])
    ]
