"""Test links to stored files in drafts."""

import re
from typing import Any

import pytest

from models.events.event_types import EventType
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.operations.file_operations import store_file
from tests.support.operations.message_sources import save_draft
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

DRAFT_QUERY = "query ($id: ID!) { message(by: {id: $id}) { text html storedFiles { id } } }"
SHARES_QUERY = "SELECT id FROM file_shares"
DRAFT = {
    "to": [{"address": "carol@example.net"}],
    "subject": "Ducks",
    "text": "Look.",
    "html": "<p>Look.</p>",
}
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def read_draft(client: GraphQLClient, saved: Any) -> Any:
    assert saved["errors"] == []
    return (await client(DRAFT_QUERY, id=saved["message"]["id"]))["message"]


def link_urls(text: str) -> list[str]:
    return re.findall(r"https?://\S+/share/\S+", text)


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def test_link_is_part_of_saved_and_sent_text(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    file = await store_file(ada)
    before = await load_stream_position(environment, ada.user.id)
    link = {
        "file": {"id": file["id"]},
        "expiresAt": {"fromNow": "P2D"},
        "password": "open sesame",
    }
    saved = await save_draft(ada, **DRAFT, addFileLinks=[link])
    draft = await read_draft(ada, saved)
    assert draft["text"].startswith("Look.")
    (url,) = link_urls(draft["text"])
    assert "/share/" in draft["html"]
    assert draft["storedFiles"] == []
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, before)]
    assert {EventType.FILE_UPDATED, EventType.MESSAGE_ADDED} <= set(kinds)
    path = "/share/" + url.partition("/share/")[2]
    assert (await ada.http.get(path)).status_code == 401
    assert (await ada.http.get(path, auth=("", "open sesame"))).text == "Ducks."
    renamed = await save_draft(ada, draft={"id": saved["message"]["id"]}, subject="Geese")
    assert link_urls((await read_draft(ada, renamed))["text"]) == [url]
    answer = await execute_mutation(
        ada, "draftSend", "messages { text }", message={"id": saved["message"]["id"]}
    )
    assert answer["errors"] == []
    assert link_urls(answer["messages"][0]["text"]) == [url]
    assert len(await load_queued_messages(environment)) == 1
    clock.tick(days=3)
    assert (await ada.http.get(path)).status_code == 404


async def test_link_is_added_to_existing_draft(
    ada: GraphQLClient, environment: Environment
) -> None:
    files = [await store_file(ada, filename=name) for name in ("a.txt", "b.txt")]
    saved = await save_draft(ada, **DRAFT)
    for file in files:
        saved = await save_draft(
            ada,
            draft={"id": saved["message"]["id"]},
            addFileLinks=[{"file": {"id": file["id"]}, "mode": "READ_ONLY_LINK"}],
        )
    draft = await read_draft(ada, saved)
    assert len(link_urls(draft["text"])) == 2
    assert draft["text"].index("a.txt") < draft["text"].index("b.txt")
    assert len(await select_rows(environment, SHARES_QUERY)) == 2


async def test_refused_save_creates_no_link(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    file = await store_file(ada)
    link = {"file": {"id": file["id"]}}
    path = ["set", "addFileLinks", "0"]
    for client, fields, code, error_path in (
        (ada, {"addFileLinks": [{**link, "mode": "ATTACH"}]}, "VALIDATION", [*path, "mode"]),
        (ada, {"addFileLinks": [{**link, "password": ""}]}, "VALIDATION", [*path, "password"]),
        (
            ada,
            {"addFileLinks": [{**link, "expiresAt": {"at": "2029-01-01T00:00:00Z"}}]},
            "VALIDATION",
            [*path, "expiresAt"],
        ),
        (ada, {"addFileLinks": [{"file": {"id": "x"}}]}, "VALIDATION", [*path, "file", "id"]),
        (ada, {"addFileLinks": [link], "subject": "a\nb"}, "VALIDATION", ["set", "subject"]),
        (bob, {"addFileLinks": [link]}, "NOT_FOUND", [*path, "file"]),
    ):
        answer = await save_draft(client, **{**DRAFT, **fields})
        assert error_codes_and_paths(answer) == [(code, error_path)]
    dry_run = await save_draft(ada, **DRAFT, addFileLinks=[link], options={"validateOnly": True})
    assert dry_run["errors"] == []
    assert await select_rows(environment, SHARES_QUERY) == []


async def test_other_user_adds_no_link_to_draft(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    saved = await save_draft(ada, **DRAFT)
    before = await read_draft(ada, saved)
    file = await store_file(bob)
    answer = await save_draft(
        bob,
        draft={"id": saved["message"]["id"]},
        addFileLinks=[{"file": {"id": file["id"]}}],
    )
    assert error_codes_and_paths(answer) == [("NOT_FOUND", ["draft"])]
    assert await read_draft(ada, saved) == before
    assert await select_rows(environment, SHARES_QUERY) == []


async def test_draft_is_sent_after_its_linked_file_was_deleted(
    ada: GraphQLClient, environment: Environment
) -> None:
    file = await store_file(ada)
    saved = await save_draft(ada, **DRAFT, addFileLinks=[{"file": {"id": file["id"]}}])
    (url,) = link_urls((await read_draft(ada, saved))["text"])
    path = "/share/" + url.partition("/share/")[2]
    assert (await ada.http.get(path)).status_code == 200
    deleted = await execute_mutation(ada, "fileDelete", "", files=[{"id": file["id"]}])
    assert deleted["errors"] == []
    assert (await ada.http.get(path)).status_code == 404
    assert await select_rows(environment, SHARES_QUERY) == []
    answer = await execute_mutation(
        ada, "draftSend", "messages { text }", message={"id": saved["message"]["id"]}
    )
    assert answer["errors"] == []
    assert link_urls(answer["messages"][0]["text"]) == [url]
