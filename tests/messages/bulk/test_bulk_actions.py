"""Update, move and delete many messages."""

import asyncio
from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.event_types import EventType
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_message_ids,
    list_messages,
    load_mailbox_path_by_subject,
    run_message_mutation,
    undo_mutation,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


FLAG_UPDATES: list[tuple[list[str], dict[str, Any], list[str]]] = [
    ([], {"seen": True}, ["\\Seen"]),
    (["\\Seen"], {"seen": False, "flagged": True}, ["\\Flagged"]),
    ([], {"draft": True, "answered": True, "deleted": True},
     ["\\Answered", "\\Deleted", "\\Draft"]),
    (["a"], {"addFlags": ["b", "\\SEEN", "b"]}, ["\\Seen", "a", "b"]),
    (["a", "b", "\\Seen"], {"removeFlags": ["b", "\\seen", "x"]}, ["a"]),
    (["a", "\\Seen"], {"addFlags": ["b"], "removeFlags": ["a"]}, ["\\Seen", "b"]),
    (["a", "\\Seen"], {"flags": ["$Forwarded", "\\Flagged", "$Forwarded"]},
     ["\\Flagged", "$Forwarded"]),
    (["a", "\\Seen"], {"flags": []}, []),
    (["a"], {"addFlags": [], "seen": False}, ["a"]),
    (["Blue"], {"addFlags": ["blue", "BLUE", "Red", "red"]}, ["Blue", "Red"]),
    (["Blue", "a"], {"removeFlags": ["bLUE"]}, ["a"]),
    (["Blue"], {"addFlags": ["blue"]}, ["Blue"]),
    (["Blue", "a"], {"flags": ["blue", "BLUE", "b"]}, ["Blue", "b"]),
    ([], {"flags": ["Blue", "blue"]}, ["Blue"]),
    (["É"], {"addFlags": ["é"]}, ["É", "é"]),
]  # fmt: skip


async def test_message_update_adds_removes_and_replaces_flags(ada_with_mail: GraphQLClient) -> None:
    for case in each_case(FLAG_UPDATES):
        with case as (before, set_, after):
            select = {"ids": [(await list_message_ids(ada_with_mail))[0]]}
            await run_message_mutation(
                ada_with_mail, "messageUpdate", select=select, set={"flags": before}
            )
            last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
            answer = await run_message_mutation(
                ada_with_mail, "messageUpdate", select=select, set=set_
            )
            assert (answer["errors"], answer["messages"][0]["imap"]["flags"]) == ([], after)
            kinds = [
                kind
                for kind, _ in await load_journal_entries(
                    ada_with_mail.environment, ada_with_mail.user.id, last
                )
            ]
            assert kinds == ([] if sorted(before) == sorted(after) else [EventType.MESSAGE_UPDATED])


async def test_message_update_keeps_absent_fields_and_clears_null(
    ada_with_mail: GraphQLClient,
) -> None:
    select = {"ids": [(await list_message_ids(ada_with_mail))[0]]}
    expires_at = "2031-01-01T00:00:00Z"
    for set_, expected in (
        ({"expiresAt": expires_at, "metadata": {"a": [1]}}, (expires_at, {"a": [1]})),
        ({"seen": True}, (expires_at, {"a": [1]})),
        ({"expiresAt": None}, (None, {"a": [1]})),
        ({"metadata": None}, (None, None)),
    ):
        (message,) = (
            await run_message_mutation(ada_with_mail, "messageUpdate", select=select, set=set_)
        )["messages"]
        assert (message["expiresAt"], message["metadata"]) == expected


INVALID_UPDATES: list[tuple[dict[str, Any], list[str], str, int | None]] = [
    ({}, ["set"], "REQUIRED", None),
    ({"addFlags": []}, ["set"], "REQUIRED", None),
    ({"addFlags": ["ok", "\\Recent"]}, ["set", "addFlags"], "PATTERN", 1),
    ({"addFlags": ["two words"]}, ["set", "addFlags"], "PATTERN", 0),
    ({"removeFlags": ["a(b"]}, ["set", "removeFlags"], "PATTERN", 0),
    ({"flags": [""]}, ["set", "flags"], "PATTERN", 0),
    ({"flags": ["x" * 129]}, ["set", "flags"], "PATTERN", 0),
    ({"flags": ["a"], "addFlags": ["b"]}, ["set", "flags"], "EXCLUSIVE", None),
    ({"addFlags": [f"k{n}" for n in range(65)]}, ["set", "addFlags"], "MAX", None),
    ({"metadata": [1]}, ["set", "metadata"], "OBJECT", None),
]


async def test_invalid_message_update_changes_nothing(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    message_ids = await list_message_ids(ada_with_mail)
    for case in each_case(INVALID_UPDATES):
        with case as (set_, path, constraint, index):
            answer = await run_message_mutation(
                ada_with_mail, "messageUpdate", select={"ids": message_ids}, set=set_
            )
            errors = [(field_path(e), e["constraint"], item_index(e)) for e in answer["errors"]]
            assert errors == [(path, constraint, index)]
            position = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
            assert position == last


async def test_bulk_update_writes_one_journal_entry(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    message_ids = [
        global_ids.decode("Message", text) for text in await list_message_ids(ada_with_mail)
    ]
    for _ in range(2):  # the second time nothing changes
        await run_message_mutation(
            ada_with_mail,
            "messageUpdate",
            select={"ids": await list_message_ids(ada_with_mail)},
            set={"seen": True},
        )
    ((kind, changed_ids),) = await load_journal_entries(
        ada_with_mail.environment, ada_with_mail.user.id, last
    )
    assert (kind, changed_ids) == (EventType.MESSAGE_UPDATED, message_ids)
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last + 3
    modseqs = await select_rows(ada_with_mail.environment, "SELECT DISTINCT modseq FROM messages")
    assert modseqs == [(last + 3,)]


async def test_update_with_outdated_if_unchanged_since_is_refused(
    ada_with_mail: GraphQLClient,
) -> None:
    select = {"ids": await list_message_ids(ada_with_mail)}
    modseq_before = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    first = await run_message_mutation(
        ada_with_mail, "messageUpdate", select={"ids": select["ids"][:1]}, set={"seen": True}
    )
    newest_modseq = first["messages"][0]["imap"]["modseq"]
    for extra in ({}, {"async": True}):
        answer = await run_message_mutation(
            ada_with_mail, "messageUpdate", select=select, set={"flagged": True},
            ifUnchangedSince=modseq_before, **extra,
        )  # fmt: skip
        assert [(e["code"], e["currentModseq"], e["path"]) for e in answer["errors"]] == [
            ("STALE", newest_modseq, ["ifUnchangedSince"])
        ]
    answer = await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=select,
        set={"flagged": True},
        ifUnchangedSince=newest_modseq,
    )
    assert (answer["errors"], answer["updatedCount"]) == ([], 3)


SUBJECTS_BY_SELECTION: list[tuple[dict[str, Any], str]] = [
    (inbox_selection("1"), "a"),
    (inbox_selection("2:*"), "bc"),
    (inbox_selection("3,1"), "ac"),
    (inbox_selection("9:*"), "c"),
    (inbox_selection("7"), ""),
    ({"mailbox": {"path": "inbox"}}, "abc"),
    ({"mailbox": {"path": "Keep"}}, ""),
    ({"filter": {"subject": "B"}}, "b"),
    ({"all": True}, "abc"),
    ({"ids": []}, ""),
    ({"filter": {"query": "c"}}, "c"),
]


async def test_update_applies_to_selected_messages(ada_with_mail: GraphQLClient) -> None:
    for case in each_case(SUBJECTS_BY_SELECTION):
        with case as (select, subjects):
            answer = await run_message_mutation(
                ada_with_mail, "messageUpdate", select=select, set={"flagged": True}
            )
            assert (answer["errors"], answer["updatedCount"]) == ([], len(subjects))
            assert (answer["undo"] is None) is (not subjects)
            flagged_subjects = [
                node["subject"]
                for node in await list_messages(ada_with_mail)
                if node["imap"]["flags"]
            ]
            assert flagged_subjects == list(subjects)
        await run_message_mutation(
            ada_with_mail, "messageUpdate", select={"all": True}, set={"flagged": False}
        )


INVALID_SELECTIONS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({}, "VALIDATION", ["select"]),
    ({"ids": [], "all": True}, "VALIDATION", ["select"]),
    ({"filter": {}}, "VALIDATION", ["select", "filter"]),
    ({"filter": {"subject": "B"}, "all": True}, "VALIDATION", ["select", "all"]),
    (inbox_selection(""), "VALIDATION", ["select", "uids"]),
    ({"ids": [], "mailbox": {"path": "INBOX"}}, "VALIDATION", ["select"]),
    ({"mailbox": {"path": "INBOX"}, "all": True}, "VALIDATION", ["select"]),
    ({"uids": "1"}, "VALIDATION", ["select"]),
    ({"all": True, "uids": "1"}, "VALIDATION", ["select"]),
    (inbox_selection("x"), "VALIDATION", ["select", "uids"]),
    ({"mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["select", "mailbox"]),
    ({"ids": ["msg_nonsense"]}, "VALIDATION", ["select", "ids", "0"]),
    ({"ids": [global_ids.encode("Message", 7)] * 1001}, "VALIDATION", ["select", "ids"]),
]


async def test_invalid_selection_is_refused(ada_with_mail: GraphQLClient) -> None:
    for case in each_case(INVALID_SELECTIONS):
        with case as (select, code, path):
            for name, extra in (("messageUpdate", {"set": {"seen": True}}), ("messageDelete", {})):
                answer = await run_message_mutation(ada_with_mail, name, select=select, **extra)
                (error,) = answer["errors"]
                assert (error["code"], error["path"]) == (code, path)
            assert len(await list_message_ids(ada_with_mail)) == 3


async def test_unknown_or_foreign_message_id_refuses_whole_request(
    ada_with_mail: GraphQLClient, bob: GraphQLClient
) -> None:
    foreign_id = global_ids.encode("Message", (await deliver_to(bob)).message_id)
    own_id = (await list_message_ids(ada_with_mail))[0]
    for wrong_id in (foreign_id, global_ids.encode("Message", 7)):
        for name, extra in (
            ("messageUpdate", {"set": {"seen": True}}),
            ("messageMove", {"to": {"path": "Keep"}}),
            ("messageDelete", {"permanent": True}),
        ):
            answer = await run_message_mutation(
                ada_with_mail, name, select={"ids": [own_id, wrong_id]}, **extra
            )
            assert [(e["code"], field_path(e), item_index(e)) for e in answer["errors"]] == [
                ("NOT_FOUND", ["select", "ids"], 1)
            ]
    assert {tuple(node["imap"]["flags"]) for node in await list_messages(ada_with_mail)} == {()}
    foreign_mailbox = {"id": global_ids.encode("Mailbox", (await bob.load_mailbox()).id)}
    for name, arguments in (
        ("messageMove", {"select": {"ids": [own_id]}, "to": foreign_mailbox}),
        ("messageDelete", {"select": {"mailbox": foreign_mailbox}}),
    ):
        assert (await run_message_mutation(ada_with_mail, name, **arguments))["errors"][0][
            "code"
        ] == "NOT_FOUND"
    assert (await bob.load_mailbox()).message_count == 1


async def test_moved_messages_get_new_uids_in_order(ada_with_mail: GraphQLClient) -> None:
    a, _, c = await list_message_ids(ada_with_mail)
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    answer = await run_message_mutation(
        ada_with_mail, "messageMove", select={"ids": [c, a]}, to={"path": "Brief"}
    )
    assert answer["movedCount"] == 2
    assert [(item["oldUid"], item["newUid"]) for item in answer["moved"]] == [(1, 1), (3, 2)]
    message = answer["moved"][0]["message"]
    assert (message["id"], message["mailbox"]) == (
        a,
        {"path": "Brief", "messageCount": 2, "unseenCount": 2},
    )
    assert message["expiresAt"] == "2030-01-02T00:00:03Z"
    ((kind, changed_ids),) = await load_journal_entries(
        ada_with_mail.environment, ada_with_mail.user.id, last
    )
    assert (kind, changed_ids) == (
        EventType.MESSAGE_MOVED,
        [global_ids.decode("Message", k) for k in (a, c)],
    )
    moved_back = await run_message_mutation(
        ada_with_mail, "messageMove", select={"ids": [a]}, to={"specialUse": "INBOX"}
    )
    assert (moved_back["moved"][0]["newUid"], moved_back["moved"][0]["message"]["expiresAt"]) == (
        4,
        None,
    )


async def test_message_move_sets_flags_and_expiry(ada_with_mail: GraphQLClient) -> None:
    (a, *_) = await list_message_ids(ada_with_mail)
    arguments = {"seen": True, "addFlags": ["x"], "expiresAt": "2031-01-01T00:00:00Z"}
    answer = await run_message_mutation(
        ada_with_mail, "messageMove", select={"ids": [a]}, to={"path": "Brief"}, set=arguments
    )
    message = answer["moved"][0]["message"]
    assert (message["imap"]["flags"], message["expiresAt"]) == (
        ["\\Seen", "x"],
        "2031-01-01T00:00:00Z",
    )
    assert message["mailbox"] == {"path": "Brief", "messageCount": 1, "unseenCount": 0}


async def test_concurrent_moves_leave_all_messages_in_one_mailbox(
    ada_with_mail: GraphQLClient,
) -> None:
    moves = [("messageMove", "Keep"), ("messageMove", "Brief"), ("messageMove", "Sent")] * 3
    answers = await asyncio.gather(
        *(
            run_message_mutation(ada_with_mail, name, select={"all": True}, to={"path": path})
            for name, path in moves
        )
    )
    assert [answer["errors"] for answer in answers] == [[]] * 9
    assert [answer["movedCount"] for answer in answers] == [3] * 9
    messages = await list_messages(ada_with_mail)
    assert sorted(node["subject"] for node in messages) == ["a", "b", "c"]
    assert len({node["mailbox"]["path"] for node in messages}) == 1


async def test_expired_messages_are_archived(
    ada_with_mail: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    for uids, expires_at in (
        ("1:2", "2030-01-01T01:00:00Z"),
        ("2", None),
        ("3", "2020-01-01T00:00:00Z"),
    ):
        await run_message_mutation(
            ada_with_mail,
            "messageUpdate",
            select=inbox_selection(uids),
            set={"expiresAt": expires_at},
        )
    await run_message_mutation(
        ada_with_mail, "messageCopy", select=inbox_selection("1"), to={"path": "Brief"}
    )
    await housekeeping.run_housekeeping_round(environment)
    assert await load_mailbox_path_by_subject(ada_with_mail) == {"a": "Brief", "b": "INBOX"}
    clock.tick(hours=1)
    await housekeeping.run_housekeeping_round(environment)
    assert sorted(node["mailbox"]["path"] for node in await list_messages(ada_with_mail)) == [
        "Brief",
        "INBOX",
    ]
    clock.tick(days=1)
    await housekeeping.run_housekeeping_round(environment)
    assert await load_mailbox_path_by_subject(ada_with_mail) == {"b": "INBOX"}
    archived = await select_rows(
        environment, "SELECT subject FROM messages WHERE mailbox_id IS NULL ORDER BY 1"
    )
    assert archived == [("a",), ("a",), ("c",)]


async def test_move_into_same_mailbox_changes_nothing(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    answer = await run_message_mutation(
        ada_with_mail, "messageMove", select=inbox_selection("1:2"), to={"path": "INBOX"}
    )
    assert [(item["oldUid"], item["newUid"]) for item in answer["moved"]] == [(1, 1), (2, 2)]
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last


async def test_move_to_missing_mailbox_is_refused(ada_with_mail: GraphQLClient) -> None:
    answer = await run_message_mutation(
        ada_with_mail, "messageMove", select=inbox_selection("1"), to={"path": "Nowhere"}
    )
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("NOT_FOUND", ["to"])]


async def test_deleted_messages_are_archived(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    (a, b, _) = await list_message_ids(ada_with_mail)
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select={"ids": [b]}, set={"draft": True}
    )
    last = await load_stream_position(environment, ada_with_mail.user.id)
    answer = await run_message_mutation(ada_with_mail, "messageDelete", select={"ids": [a, b]})
    assert (answer["deletedCount"], answer["errors"]) == (2, [])
    assert await load_mailbox_path_by_subject(ada_with_mail) == {"c": "INBOX"}
    sql = "SELECT subject, deleted_from, purge_at FROM messages WHERE mailbox_id IS NULL ORDER BY 1"
    (message, draft) = await select_rows(environment, sql)
    assert (message[:2], draft[:2]) == (("a", "INBOX"), ("b", "INBOX"))
    assert str(draft[2])[:16] < str(message[2])[:16]
    ((kind, changed_ids),) = await load_journal_entries(environment, ada_with_mail.user.id, last)
    assert (kind, len(changed_ids)) == (EventType.MESSAGE_DELETED, 2)
    repeated = await run_message_mutation(ada_with_mail, "messageDelete", select={"ids": [a]})
    assert repeated["errors"][0]["code"] == "NOT_FOUND"


async def test_permanent_delete_removes_all_rows(
    ada_with_mail: GraphQLClient, environment: Environment
) -> None:
    last = await load_stream_position(environment, ada_with_mail.user.id)
    answer = await run_message_mutation(
        ada_with_mail, "messageDelete", select={"all": True}, permanent=True
    )
    assert (answer["deletedCount"], answer["undo"]) == (3, None)
    for table in ("messages", "message_blobs", "threads"):
        sql = f"SELECT count(*) FROM {table}"  # noqa: S608 - table names of this test
        assert await select_rows(environment, sql) == [(0,)]
    assert [
        kind for kind, _ in await load_journal_entries(environment, ada_with_mail.user.id, last)
    ] == [EventType.MESSAGE_PURGED]


async def test_bulk_delete_with_same_idempotency_key_runs_once(
    ada_with_mail: GraphQLClient,
) -> None:
    arguments = {"select": {"mailbox": {"path": "INBOX"}}, "options": {"idempotencyKey": "k"}}
    await run_message_mutation(ada_with_mail, "messageDelete", **arguments)
    await deliver_to(ada_with_mail, "d")
    repeated = await run_message_mutation(ada_with_mail, "messageDelete", **arguments)
    assert repeated["deletedCount"] == 3
    assert await load_mailbox_path_by_subject(ada_with_mail) == {"d": "INBOX"}


async def test_validate_only_changes_nothing(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    for name, extra in (("messageUpdate", {"set": {"seen": True}}), ("messageDelete", {})):
        arguments = {"select": {"all": True}, "options": {"validateOnly": True}, **extra}
        answer = await run_message_mutation(ada_with_mail, name, **arguments)
        assert answer["errors"] == []
        assert [n for key, n in answer.items() if key.endswith("Count")] == [3]
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last


async def test_bulk_statement_count_is_independent_of_message_count(
    ada_with_mail: GraphQLClient, statements: list[str], clock: ManualClock
) -> None:
    async def count_statements() -> list[int]:
        counts = []
        for set_ in ({"seen": True}, {"addFlags": ["x"], "expiresAt": "2031-01-01T00:00:00Z"}):
            for name, extra in (
                ("messageUpdate", {"set": set_}),
                ("messageMove", {"to": {"path": "Brief"}}),
                ("messageDelete", {}),
            ):
                del statements[:]
                answer = await run_message_mutation(
                    ada_with_mail, name, select={"all": True}, **extra
                )
                await undo_mutation(ada_with_mail, answer)
                counts.append(
                    len([statement for statement in statements if "api_keys" not in statement])
                )
        return counts

    expected = await count_statements()
    for n in range(40):
        await deliver_to(ada_with_mail, f"more {n}")
        clock.tick(seconds=1)
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select={"all": True}, set={"flags": []}
    )
    assert await count_statements() == expected
