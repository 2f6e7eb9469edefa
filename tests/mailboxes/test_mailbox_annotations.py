"""Test annotations of mailboxes, and mailboxStateSet with numbers of another server."""

from typing import Any

import pytest

from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.mailboxes import annotations
from tests.conftest import GraphQLClient, deliver_to
from tests.support.case_loop import each_case
from tests.support.operations.mailbox_operations import (
    create_mailboxes,
    delete_mailboxes,
    run_mailbox_mutation,
)
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_journal_entries,
    load_stream_position,
    select_rows,
)

ANNOTATIONS_QUERY = """
query ($prefix: String, $prepend: Boolean! = false, $key: String! = "/private/comment") {
  mailbox(by: {path: "INBOX"}) {
    annotations(prefix: $prefix, prependPrefix: $prepend) { key value }
    annotation(key: $key) { key value }
  }
}
"""


async def set_annotation(client: GraphQLClient, key: str, value: str, **extra: Any) -> Any:
    arguments = {"mailbox": {"path": "INBOX"}, "key": key, "value": value, **extra}
    return await run_mailbox_mutation(
        client, "mailboxAnnotationSet", "annotations { key value }", **arguments
    )


async def delete_annotation(client: GraphQLClient, key: str) -> Any:
    arguments: dict[str, Any] = {"mailbox": {"path": "INBOX"}, "key": key}
    return await run_mailbox_mutation(client, "mailboxAnnotationDelete", "keys", **arguments)


async def load_annotations(client: GraphQLClient, **arguments: Any) -> dict[str, str]:
    mailbox = (await client(ANNOTATIONS_QUERY, **arguments))["mailbox"]
    return {entry["key"]: entry["value"] for entry in mailbox["annotations"]}


async def test_annotations_are_set_read_and_unset(ada: GraphQLClient, bob: GraphQLClient) -> None:
    last = await load_stream_position(ada.environment, ada.user.id)
    answer = await set_annotation(ada, "/Private/Comment", "Für mich")
    assert answer["annotations"] == [{"key": "/private/comment", "value": "Für mich"}]
    await set_annotation(ada, "/private/comment", "anders")
    await set_annotation(ada, "/private/comment", "anders")
    await set_annotation(ada, "/shared/vendor/x y/z", "")
    kinds = [kind for kind, _ in await load_journal_entries(ada.environment, ada.user.id, last)]
    assert kinds == [EventType.MAILBOX_UPDATED] * 3
    assert await load_annotations(ada) == {"comment": "anders", "vendor/x y/z": ""}
    with_full_keys = {"/private/comment": "anders", "/shared/vendor/x y/z": ""}
    assert await load_annotations(ada, prepend=True) == with_full_keys
    assert await load_annotations(ada, prefix="/SHARED/v") == {"vendor/x y/z": ""}
    entry = (await ada(ANNOTATIONS_QUERY, key="/PRIVATE/comment"))["mailbox"]["annotation"]
    assert entry == {"key": "/private/comment", "value": "anders"}
    assert await load_annotations(bob) == {}
    assert (await delete_annotation(ada, "/private/COMMENT"))["keys"] == ["/private/comment"]
    assert (await delete_annotation(ada, "/private/comment"))["keys"] == []
    assert (await ada(ANNOTATIONS_QUERY))["mailbox"]["annotation"] is None


async def test_invalid_annotation_key_is_refused(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "", "comment", "/comment", "/private", "/private/", "/private//x", "/shared/x/",
        "/public/x", "/private/a*", "/private/a%b", "/private/é", "/private/a\tb",
        "/private/" + "x" * 250,
    ]  # fmt: skip
    for case in each_case(cases):
        with case as key:
            for answer in (await set_annotation(ada, key, "x"), await delete_annotation(ada, key)):
                (error,) = answer["errors"]
                assert (error["code"], error["path"]) == ("VALIDATION", ["key"])
            answer = await ada.execute(ANNOTATIONS_QUERY, key=key)
            assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_annotation_size_and_count_are_limited(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (error,) = (await set_annotation(ada, "/private/x", "é" * 32_769))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["value"])
    assert (await set_annotation(ada, "/private/x", "é" * 32_768))["errors"] == []
    monkeypatch.setattr(annotations, "MAX_ANNOTATIONS", 2)
    assert (await set_annotation(ada, "/private/y", "x"))["errors"] == []
    (error,) = (await set_annotation(ada, "/private/z", "x"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["key"])
    assert (await set_annotation(ada, "/private/y", "changed"))["errors"] == []


async def test_annotations_are_deleted_with_their_mailbox(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A")
    assert (await set_annotation(ada, "/private/x", "x", mailbox={"path": "A"}))["errors"] == []
    assert (await delete_mailboxes(ada, "A"))["errors"] == []
    assert await select_rows(ada.environment, "SELECT * FROM mailbox_annotations") == []


async def set_state(root: GraphQLClient, *names: str, path: str = "INBOX", **state: Any) -> Any:
    arguments = {"users": {"usernames": list(names or ["ada"])}, "mailbox": {"path": path}, **state}
    selection = "mailboxes { objectId uidValidity uidNext modseq }"
    return await run_mailbox_mutation(root, "mailboxStateSet", selection, **arguments)


async def test_mailbox_state_numbers_only_increase(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada)
    before = await ada.load_mailbox()
    object_id, validity = "0123456789abcdef" * 2, before.uid_validity + 1000
    higher_numbers = {"uidValidity": validity, "minNextUid": 5000, "minHighestModseq": 1_000_000}
    (mailbox,) = (await set_state(root, objectId=object_id, **higher_numbers))["mailboxes"]
    assert (mailbox["objectId"], mailbox["uidValidity"], mailbox["uidNext"]) == (
        object_id,
        validity,
        5000,
    )
    assert mailbox["modseq"] == 1_000_000
    (mailbox,) = (await set_state(root, minNextUid=2, minHighestModseq=3))["mailboxes"]
    assert (mailbox["uidNext"], mailbox["modseq"]) == (5000, 1_000_000)
    await deliver_to(ada, "another")
    after = await ada.load_mailbox()
    assert (after.uid_next, after.modseq) == (5001, 1_000_001)
    await create_mailboxes(ada, "A")
    assert (await ada.load_mailbox("A")).uid_validity == validity + 1
    await assert_store_consistent(environment)


async def test_invalid_mailbox_state_is_refused(ada: GraphQLClient, root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({"uidValidity": 1}, "VALIDATION", ["uidValidity"]),
        ({"uidValidity": 2**32}, "VALIDATION", ["uidValidity"]),
        ({"uidValidity": 0}, "VALIDATION", ["uidValidity"]),
        ({"minNextUid": 2**32}, "VALIDATION", ["minNextUid"]),
        ({"minHighestModseq": -1}, "VALIDATION", ["minHighestModseq"]),
        ({"objectId": "x" * 32}, "VALIDATION", ["objectId"]),
        ({"objectId": "A" * 32}, "VALIDATION", ["objectId"]),
        ({}, "VALIDATION", []),
        ({"path": "Nowhere", "minNextUid": 7}, "NOT_FOUND", ["mailbox"]),
    ]
    for case in each_case(cases):
        with case as (state, code, path):
            before = await ada.load_mailbox()
            (error,) = (await set_state(root, **state))["errors"]
            assert (error["code"], error["path"]) == (code, path)
            assert await ada.load_mailbox() == before


async def test_duplicate_uid_validity_or_guid_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_mailboxes(ada, "A")
    used_uid_validity = (await ada.load_mailbox("A")).uid_validity
    (error,) = (await set_state(root, uidValidity=used_uid_validity))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["uidValidity"])
    object_id = (await ada.load_mailbox("A")).object_id
    (error,) = (await set_state(root, objectId=object_id))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["objectId"])
    (error,) = (await set_state(root, "ada", "bob", objectId="0" * 32))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["objectId"])
    mailboxes, errors = await create_mailboxes(ada, "B", objectId="f" * 32)
    assert (len(mailboxes), errors) == (1, [])
    document = "query ($objectId: String!) { mailbox(by: {objectId: $objectId}) { path } }"
    assert await ada(document, objectId="f" * 32) == {"mailbox": {"path": "B"}}
    assert await bob(document, objectId="f" * 32) == {"mailbox": None}
    _, (error,) = await create_mailboxes(ada, "C", objectId="f" * 32)
    assert (error["code"], error["path"]) == ("CONFLICT", ["objectId"])


async def test_raised_modseq_drops_older_journal_entries(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await set_state(root, minHighestModseq=5000)
    assert await load_stream_position(ada.environment, ada.user.id) == 5000
    assert await load_journal_entries(ada.environment, ada.user.id) == [
        (EventType.MAILBOX_UPDATED, [(await ada.load_mailbox()).id])
    ]
