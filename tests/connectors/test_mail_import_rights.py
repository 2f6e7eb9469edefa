"""Mail imports: who can import for whom, invalid input, trials and repeats."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, client_context, make_client, raw_message
from tests.support.accounts.import_runs import (
    TEN_SUBJECTS,
    crash_worker,
    load_run,
    load_subjects_by_mailbox,
    mbox_file,
    message_counts,
    run_due_imports,
    run_mutation_on_id,
    start_import,
    start_import_runs,
    ten_message_mbox,
    upload_content,
)
from tests.support.accounts.user_exports import (
    change_flags,
    error_codes_and_paths,
    load_account_state,
    store_raw_message,
)
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
    user_global_id,
)
from tests.support.schema.error_paths import item_index
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_import_for_many_users_has_one_run_each(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    users = {"usernames": ["bob", "ada"]}
    first, second = sorted((ada, bob), key=lambda entry: entry.user.id)
    run_ids = await start_import_runs(
        admin_client, mbox_file([raw_message("All")]), users=users, parentMailbox={"path": "New"}
    )
    assert len(await select_rows(admin_client.environment, "SELECT id FROM import_archives")) == 2
    await run_due_imports(admin_client.environment)
    for client, run_id in zip((first, second), run_ids, strict=True):
        assert (await load_run(client, run_id))["state"] == "SUCCEEDED"
        assert await load_subjects_by_mailbox(client) == {"New/INBOX": ["All"]}
    assert await load_run(first, run_ids[1]) is None
    assert (await load_run(admin_client, run_ids[1]))["state"] == "SUCCEEDED"
    assert await select_rows(admin_client.environment, "SELECT id FROM import_archives") == []
    assert await load_subjects_by_mailbox(admin_client) == {}
    await start_import_runs(
        admin_client, ten_message_mbox(), users=users, parentMailbox={"specialUse": "SENT"}
    )
    await run_due_imports(admin_client.environment)
    for client in (ada, bob):
        assert await load_subjects_by_mailbox(client) == {
            "New/INBOX": ["All"],
            "Sent/INBOX": TEN_SUBJECTS,
        }
    for parent in ({"id": "x"}, {"objectId": "0" * 32}):
        payload = await start_import(
            admin_client,
            {"upload": await upload_content(admin_client, mbox_file([raw_message("x")]))},
            users=users,
            parentMailbox=parent,
        )
        assert error_codes_and_paths(payload)[0][1] == ["parentMailbox"]
    answer = await admin_client("{ auditLog { nodes { mutation target { __typename } } } }")
    assert [entry["mutation"] for entry in answer["auditLog"]["nodes"]].count("mailImport") == 2 * 2


@pytest.mark.usefixtures("ada")
async def test_import_for_users_of_several_domains_shares_the_archive(
    admin_client: GraphQLClient,
) -> None:
    domain = await execute_mutation(
        admin_client, "domainCreate", "domain { name }", name="example.net"
    )
    assert domain["errors"] == []
    eve, errors = await try_create_user(admin_client, address="eve@example.net", username="eve")
    assert errors == []
    run_ids = await start_import_runs(
        admin_client, mbox_file([raw_message("x")]), users={"usernames": ["ada", eve["username"]]}
    )
    await run_due_imports(admin_client.environment)
    for run_id in run_ids:
        assert message_counts(await load_run(admin_client, run_id)) == (1, 1, 0)


async def test_import_for_other_users_needs_rights_over_them(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    content = mbox_file([raw_message("x")])
    sync_admin = await make_admin_of_domain(root, AdminPermission.CONNECTORS)
    login_admin = await make_admin_of_domain(root, AdminPermission.IMPERSONATE, name="bare")
    users = {"ids": [user_global_id(bob)]}
    cases = [
        (ada, "NOT_FOUND"),
        (login_admin, "FORBIDDEN"),
        (sync_admin, None),
        (admin_client, None),
    ]
    for client, code in cases:
        payload = await start_import(
            client, {"upload": await upload_content(client, content)}, users=users
        )
        assert [error["code"] for error in payload["errors"]] == ([code] if code else []), (
            client.user
        )
        assert len(payload["connectorRuns"]) == (not code)
    (bobs_run_id,) = await start_import_runs(bob, content)
    assert await load_run(ada, bobs_run_id) is None
    payload = await run_mutation_on_id(ada, "connectorRunCancel", bobs_run_id)
    assert error_codes_and_paths(payload) == [("NOT_FOUND", ["connectorRuns", "0"])]
    assert (await load_run(bob, bobs_run_id))["state"] == "QUEUED"
    adas_source = {"upload": await upload_content(ada, content)}
    payload = await start_import(bob, adas_source)
    assert error_codes_and_paths(payload) == [("NOT_FOUND", ["source", "upload"])]
    assert await select_rows(
        ada.environment, "SELECT id FROM uploads WHERE user_id = :u", u=ada.user.id
    )


async def test_import_of_another_account_keeps_all_facts(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Deep/er"]))
    await store_raw_message(ada, raw_message("In"), seen=True, envelope_from="carol@example.com")
    await store_raw_message(ada, raw_message("Mine"), "Sent")
    flagged_id = await store_raw_message(
        ada, raw_message("Deep"), "Deep/er", at=ada.environment.now() - timedelta(days=9)
    )
    await change_flags(ada, flagged_id, "\\Flagged", "$work")
    deleted_id = await store_raw_message(ada, raw_message("Gone"))
    document = "mutation ($i: MessageDeleteInput!) { messageDelete(input: $i) { errors { code } } }"
    delete_input = {"select": {"ids": [global_ids.encode("Message", deleted_id)]}}
    await ada.execute(document, i=delete_input)
    arguments = {"users": {"usernames": ["bob"]}}
    refused = await start_import(
        root,
        {"user": {"username": "ada"}},
        filter={"subject": "x", "uids": "none"},
        **arguments,
    )
    assert refused["errors"]
    query = "SELECT action FROM security_events WHERE user_id = :u"
    assert ("MESSAGES_READ",) not in await select_rows(root.environment, query, u=ada.user.id)
    payload = await start_import(root, {"user": {"username": "ada"}}, **arguments)
    assert payload["errors"] == []
    await run_due_imports(root.environment)
    import_run = await load_run(bob, payload["connectorRuns"][0]["id"])
    subjects_by_path = await load_subjects_by_mailbox(ada)
    assert (import_run["state"], int(import_run["importedCount"])) == (
        "SUCCEEDED",
        sum(map(len, subjects_by_path.values())),
    )
    assert await load_subjects_by_mailbox(bob) == subjects_by_path
    adas_mail = (await load_account_state(ada))["mail"]
    bobs_mail = (await load_account_state(bob))["mail"]
    facts = [
        [(path, raw, flags, times[0]) for path, raw, flags, times in mail]
        for mail in (adas_mail, bobs_mail)
    ]
    assert sorted(facts[0], key=repr) == sorted(facts[1], key=repr)
    events = await select_rows(root.environment, query, u=ada.user.id)
    assert ("MESSAGES_READ",) in events
    repeated = await start_import(root, {"user": {"username": "ada"}}, **arguments)
    await run_due_imports(root.environment)
    assert message_counts(await load_run(bob, repeated["connectorRuns"][0]["id"])) == (
        int(import_run["seenCount"]), 0, int(import_run["seenCount"])
    )  # fmt: skip


async def test_account_that_cannot_be_read_is_not_imported(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    payload = await start_import(ada, {"user": {"username": "bob"}})
    assert error_codes_and_paths(payload) == [("NOT_FOUND", ["source", "user"])]
    payload = await start_import(ada, {"user": {"username": "ada"}})
    assert error_codes_and_paths(payload) == [("VALIDATION", ["source", "user"])]
    payload = await start_import(
        admin_client, {"user": {"username": "bob"}}, users={"usernames": ["ada"]}
    )
    assert error_codes_and_paths(payload)[0][0] == "FORBIDDEN"
    both_users = {"users": {"usernames": ["ada", "bob"]}}
    payload = await start_import(root, {"user": {"username": "bob"}}, **both_users)
    assert error_codes_and_paths(payload) == [("VALIDATION", ["source", "user"])]
    assert await select_rows(ada.environment, "SELECT id FROM connectors") == []
    await store_raw_message(admin_client, raw_message("Ours"))
    payload = await start_import(admin_client, {"user": {"username": "over"}}, **both_users)
    assert payload["errors"] == []
    await run_due_imports(admin_client.environment)
    assert (
        await load_subjects_by_mailbox(ada)
        == await load_subjects_by_mailbox(bob)
        == {"INBOX": ["Ours"]}
    )


async def test_path_source_needs_root_and_the_import_folder(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    folder = tmp_path / "imports"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.mbox").write_bytes(ten_message_mbox())
    (tmp_path / "outside.mbox").write_bytes(ten_message_mbox())
    source, users = {"path": "sub/a.mbox"}, {"users": {"usernames": ["ada"]}}
    payload = await start_import(root, source, **users)
    assert error_codes_and_paths(payload) == [("FORBIDDEN_OPERATION", ["source", "path"])]
    object.__setattr__(
        ada.environment, "options", replace(ada.environment.options, import_folder=folder)
    )
    for client in (ada, admin_client):
        assert (
            error_codes_and_paths(await start_import(client, source, **users))[0][0] == "FORBIDDEN"
        )
    for path in ("../outside.mbox", str(tmp_path / "outside.mbox"), "none", "sub"):
        payload = await start_import(root, {"path": path}, **users)
        assert error_codes_and_paths(payload) == [("NOT_FOUND", ["source", "path"])], path
    payload = await start_import(root, source, **users)
    await run_due_imports(ada.environment)
    assert message_counts(await load_run(ada, payload["connectorRuns"][0]["id"])) == (10, 10, 0)
    payload = await start_import(root, source, **users)
    (folder / "sub" / "a.mbox").unlink()
    await run_due_imports(ada.environment)
    assert (await load_run(ada, payload["connectorRuns"][0]["id"]))["state"] == "FAILED"


@pytest.mark.usefixtures("small_transfer_chunks")
async def test_changed_file_fails_the_interrupted_run(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    object.__setattr__(
        ada.environment, "options", replace(ada.environment.options, import_folder=tmp_path)
    )
    (tmp_path / "a.mbox").write_bytes(ten_message_mbox())
    payload = await start_import(root, {"path": "a.mbox"}, users={"usernames": ["ada"]})
    await crash_worker(ada.environment, 1)
    (tmp_path / "a.mbox").write_bytes(ten_message_mbox(7))
    await deregister_as_dead(ada.environment)
    await run_due_imports(ada.environment)
    import_run = await load_run(ada, payload["connectorRuns"][0]["id"])
    assert (import_run["state"], message_counts(import_run)) == ("FAILED", (4, 4, 0))
    assert "changed" in import_run["error"]


async def test_invalid_import_is_refused_before_it_is_queued(
    ada: GraphQLClient, environment: Environment
) -> None:
    valid_source = {"upload": await upload_content(ada, ten_message_mbox())}
    invalid_source = {"upload": await upload_content(ada, b"\x7fELF\0")}
    cases: list[tuple[Any, dict[str, Any], tuple[str, list[str]]]] = [
        (invalid_source, {}, ("VALIDATION", ["source", "upload"])),
        (valid_source, {"users": {"ids": [user_global_id(7)]}},
         ("NOT_FOUND", ["users", "ids", "0"])),
        (valid_source, {"parentMailbox": {"objectId": "0" * 32}}, ("NOT_FOUND", ["parentMailbox"])),
        (valid_source, {"filter": {"uids": "1", "mailbox": {"path": "a"}}},
         ("VALIDATION", ["filter", "uids"])),
        (valid_source, {"filter": {"not": {"or": [{"seen": True}, {"snoozed": True}]}}},
         ("VALIDATION", ["filter", "not", "or", "1", "snoozed"])),
        (valid_source, {"filter": {"mailbox": {"specialUse": "SENT"}}},
         ("VALIDATION", ["filter", "mailbox"])),
        (valid_source, {"filter": {"query": "-"}}, ("VALIDATION", ["filter", "query"])),
    ]  # fmt: skip
    for source, arguments, expected_error in cases:
        assert error_codes_and_paths(await start_import(ada, source, **arguments)) == [
            expected_error
        ]
    for source in ({}, {**valid_source, "path": "x"}):
        answer = await ada.execute(
            "mutation ($i: MailImportInput!) { mailImport(input: $i) { errors { code } } }",
            i={"source": source},
        )
        assert answer["errors"]
    payload = await start_import(
        ada, valid_source, filter={"and": [{"seen": True}, {"modifiedSince": "5"}]}
    )
    assert (payload["errors"][0]["constraint"], item_index(payload["errors"][0])) == (
        "UNSUPPORTED",
        1,
    )
    assert await select_rows(environment, "SELECT id FROM connectors") == []
    assert len(await select_rows(environment, "SELECT id FROM uploads")) == 2


async def test_validate_only_stores_nothing_and_repeat_runs_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    source = {"upload": await upload_content(ada, ten_message_mbox())}
    payload = await start_import(ada, source, options={"validateOnly": True})
    assert (payload["errors"], len(payload["connectorRuns"])) == ([], 1)
    for table in ("connectors", "connector_runs", "import_archives"):
        assert await select_rows(environment, f"SELECT id FROM {table}") == []  # noqa: S608 - ours
    idempotent_options = {"options": {"idempotencyKey": "k"}}
    first = await start_import(ada, source, **idempotent_options)
    repeated = await start_import(ada, source, **idempotent_options)
    assert repeated == {**first, "replayed": True}
    assert first["connectorRuns"][0]["id"] == first["connectorRuns"][0]["id"]
    assert len(await select_rows(environment, "SELECT id FROM connectors")) == 1
    assert error_codes_and_paths(await start_import(ada, source)) == [
        ("NOT_FOUND", ["source", "upload"])
    ]
    await run_due_imports(environment)
    assert (await load_subjects_by_mailbox(ada))["INBOX"] == TEN_SUBJECTS


async def test_imports_are_not_listed_as_connectors(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await start_import_runs(ada, ten_message_mbox())
    for client in (ada, admin_client):
        assert (await client("{ connectors { nodes { id } totalCount } }"))["connectors"] == {
            "nodes": [], "totalCount": 0
        }  # fmt: skip
    ((connector_id,),) = await select_rows(ada.environment, "SELECT id FROM connectors")
    for mutation in ("connectorStart", "connectorDelete"):
        payload = await run_mutation_on_id(
            ada, mutation, global_ids.encode("Connector", connector_id)
        )
        assert error_codes_and_paths(payload) == [("NOT_FOUND", ["connectors", "0"])]


async def test_number_of_waiting_imports_is_limited(ada: GraphQLClient) -> None:
    for _ in range(10):
        await start_import_runs(ada, mbox_file([raw_message("x")]))
    payload = await start_import(ada, {"upload": await upload_content(ada, ten_message_mbox())})
    assert error_codes_and_paths(payload) == [("LIMIT_REACHED", ["users"])]
    await run_due_imports(ada.environment)
    assert (await load_subjects_by_mailbox(ada))["INBOX"].count("x") >= 1
    await start_import_runs(ada, ten_message_mbox())


async def test_import_for_many_users_needs_a_constant_number_of_statements(
    admin_client: GraphQLClient, statements: list[str]
) -> None:
    statement_counts = []
    for user_count in (2, 20):
        for n in range(user_count):
            await make_client(admin_client.environment, admin_client.http, f"u{user_count}x{n}")
        source = {"upload": await upload_content(admin_client, ten_message_mbox())}
        del statements[:]
        payload = await start_import(admin_client, source, users={"patterns": [f"u{user_count}x*"]})
        assert len(payload["connectorRuns"]) == user_count
        statement_counts.append(
            len([statement for statement in statements if "api_keys" not in statement])
        )
    assert statement_counts[0] == statement_counts[1]
