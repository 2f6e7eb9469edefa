"""Mail imports: who can import for whom, invalid input, trials and repeats."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, context, make_client, raw_message
from tests.support.accounts.account_exports import codes, flag, place, told
from tests.support.accounts.import_runs import (
    MANY,
    begin,
    begun,
    counted,
    crash,
    ended,
    held,
    many,
    mbox,
    sent,
    upon,
    work,
)
from tests.support.accounts.user_operations import chief, create, id_of, run
from tests.support.stores.counter_check import rows
from tests.support.stores.other_processes import taken_for_dead

pytestmark = pytest.mark.usefixtures("examined")


async def test_import_for_many_users_has_one_run_each(
    over: Client, ada: Client, bob: Client
) -> None:
    users = {"usernames": ["bob", "ada"]}
    first, second = sorted((ada, bob), key=lambda entry: entry.user.id)
    run_ids = await begun(
        over, mbox([raw_message("All")]), users=users, parentMailbox={"path": "New"}
    )
    assert len(await rows(over.world, "SELECT id FROM import_archives")) == 2
    await work(over.world)
    for client, run_id in zip((first, second), run_ids, strict=True):
        assert (await ended(client, run_id))["state"] == "SUCCEEDED"
        assert await held(client) == {"New/INBOX": ["All"]}
    assert await ended(first, run_ids[1]) is None
    assert (await ended(over, run_ids[1]))["state"] == "SUCCEEDED"
    assert await rows(over.world, "SELECT id FROM import_archives") == []
    assert await held(over) == {}
    await begun(over, many(), users=users, parentMailbox={"specialUse": "SENT"})
    await work(over.world)
    for client in (ada, bob):
        assert await held(client) == {"New/INBOX": ["All"], "Sent/INBOX": MANY}
    for parent in ({"id": "x"}, {"guid": "0" * 32}):
        payload = await begin(over, {"upload": await sent(over, mbox([raw_message("x")]))},
                           users=users, parentMailbox=parent)  # fmt: skip
        assert codes(payload)[0][1] == ["parentMailbox"]
    answer = await over("{ adminLog { nodes { mutation target { __typename } } } }")
    assert [entry["mutation"] for entry in answer["adminLog"]["nodes"]].count("mailImport") == 2 * 2


@pytest.mark.usefixtures("ada")
async def test_import_for_users_of_several_domains_shares_the_archive(over: Client) -> None:
    domain = await run(over, "domainCreate", "domain { name }", name="example.net")
    assert domain["errors"] == []
    eve, errors = await create(over, address="eve@example.net", username="eve")
    assert errors == []
    run_ids = await begun(
        over, mbox([raw_message("x")]), users={"usernames": ["ada", eve["username"]]}
    )
    await work(over.world)
    for run_id in run_ids:
        assert counted(await ended(over, run_id)) == (1, 1, 0)


async def test_import_for_other_users_needs_rights_over_them(
    ada: Client, bob: Client, root: Client, over: Client
) -> None:
    content = mbox([raw_message("x")])
    sync_admin = await chief(root, AdminPermission.SYNCJOBS)
    login_admin = await chief(root, AdminPermission.LOGIN_AS, name="bare")
    users = {"ids": [id_of(bob)]}
    cases = [(ada, "NOT_FOUND"), (login_admin, "FORBIDDEN"), (sync_admin, None), (over, None)]
    for client, code in cases:
        payload = await begin(client, {"upload": await sent(client, content)}, users=users)
        assert [error["code"] for error in payload["errors"]] == ([code] if code else []), (
            client.user
        )
        assert len(payload["runs"]) == (not code)
    (bobs_run_id,) = await begun(bob, content)
    assert await ended(ada, bobs_run_id) is None
    payload = await upon(ada, "connectorCancel", bobs_run_id)
    assert codes(payload) == [("NOT_FOUND", ["ids"])]
    assert (await ended(bob, bobs_run_id))["state"] == "QUEUED"
    adas_source = {"upload": await sent(ada, content)}
    payload = await begin(bob, adas_source)
    assert codes(payload) == [("NOT_FOUND", ["source", "upload"])]
    assert await rows(ada.world, "SELECT id FROM uploads WHERE user_id = :u", u=ada.user.id)


async def test_import_of_another_account_keeps_all_facts(
    root: Client, ada: Client, bob: Client
) -> None:
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Deep/er"]))
    await place(ada, raw_message("In"), seen=True, envelope_from="carol@example.com")
    await place(ada, raw_message("Mine"), "Sent")
    flagged_id = await place(
        ada, raw_message("Deep"), "Deep/er", at=ada.world.now() - timedelta(days=9)
    )
    await flag(ada, flagged_id, "\\Flagged", "$work")
    deleted_id = await place(ada, raw_message("Gone"))
    document = "mutation ($i: MessageDeleteInput!) { messageDelete(input: $i) { errors { code } } }"
    delete_input = {"select": {"ids": [global_ids.encode("Message", deleted_id)]}}
    await ada.raw(document, i=delete_input)
    arguments = {"users": {"usernames": ["bob"]}}
    payload = await begin(root, {"user": {"username": "ada"}}, **arguments)
    assert payload["errors"] == []
    await work(root.world)
    import_run = await ended(bob, payload["run"]["id"])
    subjects_by_path = await held(ada)
    assert (import_run["state"], int(import_run["imported"])) == (
        "SUCCEEDED",
        sum(map(len, subjects_by_path.values())),
    )
    assert await held(bob) == subjects_by_path
    adas_mail, bobs_mail = (await told(ada))["mail"], (await told(bob))["mail"]
    facts = [
        [(path, raw, flags, times[0]) for path, raw, flags, times in mail]
        for mail in (adas_mail, bobs_mail)
    ]
    assert sorted(facts[0], key=repr) == sorted(facts[1], key=repr)
    events = await rows(root.world, "SELECT action FROM auth_events WHERE user_id = :u",
                        u=ada.user.id)  # fmt: skip
    assert ("read mail",) in events
    repeated = await begin(root, {"user": {"username": "ada"}}, **arguments)
    await work(root.world)
    assert counted(await ended(bob, repeated["run"]["id"])) == (
        int(import_run["seen"]), 0, int(import_run["seen"])
    )  # fmt: skip


async def test_account_that_cannot_be_read_is_not_imported(
    ada: Client, bob: Client, over: Client, root: Client
) -> None:
    payload = await begin(ada, {"user": {"username": "bob"}})
    assert codes(payload) == [("NOT_FOUND", ["source", "user"])]
    payload = await begin(ada, {"user": {"username": "ada"}})
    assert codes(payload) == [("VALIDATION", ["source", "user"])]
    payload = await begin(over, {"user": {"username": "bob"}}, users={"usernames": ["ada"]})
    assert codes(payload)[0][0] == "FORBIDDEN"
    both_users = {"users": {"usernames": ["ada", "bob"]}}
    payload = await begin(root, {"user": {"username": "bob"}}, **both_users)
    assert codes(payload) == [("VALIDATION", ["source", "user"])]
    assert await rows(ada.world, "SELECT id FROM connectors") == []
    await place(over, raw_message("Ours"))
    payload = await begin(over, {"user": {"username": "over"}}, **both_users)
    assert payload["errors"] == []
    await work(over.world)
    assert await held(ada) == await held(bob) == {"INBOX": ["Ours"]}


async def test_path_source_needs_root_and_the_import_folder(
    ada: Client, over: Client, root: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "imports"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.mbox").write_bytes(many())
    (tmp_path / "outside.mbox").write_bytes(many())
    source, users = {"path": "sub/a.mbox"}, {"users": {"usernames": ["ada"]}}
    payload = await begin(root, source, **users)
    assert codes(payload) == [("FORBIDDEN_OPERATION", ["source", "path"])]
    object.__setattr__(ada.world, "options", replace(ada.world.options, import_folder=folder))
    for client in (ada, over):
        assert codes(await begin(client, source, **users))[0][0] == "FORBIDDEN"
    for path in ("../outside.mbox", str(tmp_path / "outside.mbox"), "none", "sub"):
        payload = await begin(root, {"path": path}, **users)
        assert codes(payload) == [("NOT_FOUND", ["source", "path"])], path
    payload = await begin(root, source, **users)
    await work(ada.world)
    assert counted(await ended(ada, payload["run"]["id"])) == (10, 10, 0)
    payload = await begin(root, source, **users)
    (folder / "sub" / "a.mbox").unlink()
    await work(ada.world)
    assert (await ended(ada, payload["run"]["id"]))["state"] == "FAILED"


@pytest.mark.usefixtures("chunked")
async def test_changed_file_fails_the_interrupted_run(
    ada: Client, root: Client, tmp_path: Path
) -> None:
    object.__setattr__(ada.world, "options", replace(ada.world.options, import_folder=tmp_path))
    (tmp_path / "a.mbox").write_bytes(many())
    payload = await begin(root, {"path": "a.mbox"}, users={"usernames": ["ada"]})
    await crash(ada.world, 1)
    (tmp_path / "a.mbox").write_bytes(many(7))
    await taken_for_dead(ada.world)
    await work(ada.world)
    import_run = await ended(ada, payload["run"]["id"])
    assert (import_run["state"], counted(import_run)) == ("FAILED", (4, 4, 0))
    assert "changed" in import_run["error"]


async def test_invalid_import_is_refused_before_it_is_queued(
    ada: Client, world: Environment
) -> None:
    valid_source = {"upload": await sent(ada, many())}
    invalid_source = {"upload": await sent(ada, b"\x7fELF\0")}
    cases: list[tuple[Any, dict[str, Any], tuple[str, list[str]]]] = [
        (invalid_source, {}, ("VALIDATION", ["source", "upload"])),
        (valid_source, {"users": {"ids": [id_of(7)]}}, ("NOT_FOUND", ["users", "ids"])),
        (valid_source, {"parentMailbox": {"guid": "0" * 32}}, ("NOT_FOUND", ["parentMailbox"])),
        (valid_source, {"filter": {"uids": "1", "mailbox": {"path": "a"}}},
         ("VALIDATION", ["filter", "uids"])),
        (valid_source, {"filter": {"not": {"or": [{"seen": True}, {"snoozed": True}]}}},
         ("VALIDATION", ["filter", "not", "or", "snoozed"])),
        (valid_source, {"filter": {"mailbox": {"specialUse": "SENT"}}},
         ("VALIDATION", ["filter", "mailbox"])),
        (valid_source, {"filter": {"query": "-"}}, ("VALIDATION", ["filter", "query"])),
    ]  # fmt: skip
    for source, arguments, expected_error in cases:
        assert codes(await begin(ada, source, **arguments)) == [expected_error]
    for source in ({}, {**valid_source, "path": "x"}):
        answer = await ada.raw(
            "mutation ($i: MailImportInput!) { mailImport(input: $i) { errors { code } } }",
            i={"source": source},
        )
        assert answer["errors"]
    payload = await begin(
        ada, valid_source, filter={"and": [{"seen": True}, {"modifiedSince": "5"}]}
    )
    assert (payload["errors"][0]["constraint"], payload["errors"][0]["index"]) == ("unsupported", 1)
    assert await rows(world, "SELECT id FROM connectors") == []
    assert len(await rows(world, "SELECT id FROM uploads")) == 2


async def test_validate_only_stores_nothing_and_repeat_runs_once(
    ada: Client, world: Environment
) -> None:
    source = {"upload": await sent(ada, many())}
    payload = await begin(ada, source, options={"validateOnly": True})
    assert (payload["errors"], len(payload["runs"])) == ([], 1)
    for table in ("connectors", "connector_runs", "import_archives"):
        assert await rows(world, f"SELECT id FROM {table}") == []  # noqa: S608 - ours
    idempotent_options = {"options": {"idempotencyKey": "k"}}
    first = await begin(ada, source, **idempotent_options)
    repeated = await begin(ada, source, **idempotent_options)
    assert repeated == {**first, "replayed": True}
    assert first["run"]["id"] == first["runs"][0]["id"]
    assert len(await rows(world, "SELECT id FROM connectors")) == 1
    assert codes(await begin(ada, source)) == [("NOT_FOUND", ["source", "upload"])]
    await work(world)
    assert (await held(ada))["INBOX"] == MANY


async def test_imports_are_not_listed_as_connectors(ada: Client, over: Client) -> None:
    await begun(ada, many())
    for client in (ada, over):
        assert (await client("{ connectors { nodes { id } totalCount } }"))["connectors"] == {
            "nodes": [], "totalCount": 0
        }  # fmt: skip
    ((connector_id,),) = await rows(ada.world, "SELECT id FROM connectors")
    for mutation in ("connectorRun", "connectorDelete"):
        payload = await upon(ada, mutation, global_ids.encode("Connector", connector_id))
        assert codes(payload) == [("NOT_FOUND", ["ids"])]


async def test_number_of_waiting_imports_is_limited(ada: Client) -> None:
    for _ in range(10):
        await begun(ada, mbox([raw_message("x")]))
    payload = await begin(ada, {"upload": await sent(ada, many())})
    assert codes(payload) == [("LIMIT_REACHED", ["users"])]
    await work(ada.world)
    assert (await held(ada))["INBOX"].count("x") >= 1
    await begun(ada, many())


async def test_import_for_many_users_needs_a_constant_number_of_statements(
    over: Client, statements: list[str]
) -> None:
    statement_counts = []
    for user_count in (2, 20):
        for n in range(user_count):
            await make_client(over.world, over.http, f"u{user_count}x{n}")
        source = {"upload": await sent(over, many())}
        del statements[:]
        payload = await begin(over, source, users={"masks": [f"u{user_count}x*"]})
        assert len(payload["runs"]) == user_count
        statement_counts.append(
            len([statement for statement in statements if "api_keys" not in statement])
        )
    assert statement_counts[0] == statement_counts[1]
