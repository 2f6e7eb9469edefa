"""Test Sieve scripts: store, rename, activate, delete and check, and access of other users."""

from typing import Any

from graph.types import global_ids
from models.users.roles import AdminPermission, Role, Scope
from resolvers.filters.sieve_script_mutations import MAX_SCRIPTS
from tests.conftest import GraphQLClient, deliver_to, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.sieve_operations import SIEVE_SCRIPTS_FIELDS, put_sieve_script
from tests.support.stores.counter_check import select_rows

SCRIPTS_QUERY = """query ($first: Int, $after: String) { viewer { user {
  sieveScripts(first: $first, after: $after) {
    nodes { name active } pageInfo { hasNextPage endCursor } totalCount } } } }"""
SCRIPT_QUERY = (
    "query ($name: String!) { viewer { user { sieveScript(name: $name) { name content size } } } }"
)
SIEVE_CHECK = """query ($content: String!, $message: MessageSourceInput, $user: UserRef) {
  sieveTest(content: $content, message: $message, user: $user) {
    valid line column message requires actions problems { line column message }
    trace { line column script text } } }"""
COMPILE_ERRORS = "errors { __typename code message path ... on SieveCompileError { line column } }"


async def load_active_flags(client: GraphQLClient) -> dict[str, bool]:
    nodes = (await client(SCRIPTS_QUERY, first=50))["viewer"]["user"]["sieveScripts"]["nodes"]
    return {node["name"]: node["active"] for node in nodes}


async def test_script_is_stored_read_and_replaced(ada: GraphQLClient) -> None:
    text = 'require ["fileinto", "copy"];\nfileinto :copy "Grüße";\n'
    scripts = (await put_sieve_script(ada, text))["sieveScripts"]
    (script,) = scripts
    script_id = script.pop("id")
    assert script == {
        "name": "main",
        "content": text,
        "active": True,
        "size": len(text.encode()),
        "requires": ["copy", "fileinto"],
        "lastError": None,
    }
    (replaced,) = (await put_sieve_script(ada, "discard;", activate=False))["sieveScripts"]
    assert (replaced["id"], replaced["content"], replaced["active"]) == (
        script_id,
        "discard;",
        True,
    )
    assert (await ada(SCRIPT_QUERY, name="main"))["viewer"]["user"]["sieveScript"][
        "content"
    ] == "discard;"
    assert (await ada(SCRIPT_QUERY, name="Main"))["viewer"]["user"]["sieveScript"] is None
    node = await ada(
        "query ($id: ID!) { node(id: $id) { ... on SieveScript { name } } }", id=script_id
    )
    assert node == {"node": {"name": "main"}}


async def test_at_most_one_script_is_active(ada: GraphQLClient) -> None:
    for name in "abc":
        await put_sieve_script(ada, "keep;", name=name)
    assert await load_active_flags(ada) == {"a": False, "b": False, "c": True}
    answer = await execute_mutation(
        ada, "sieveScriptActivate", SIEVE_SCRIPTS_FIELDS, sieveScript={"name": "a"}
    )
    assert [item["name"] for item in answer["sieveScripts"]] == ["a"]
    assert await load_active_flags(ada) == {"a": True, "b": False, "c": False}
    answer = await execute_mutation(ada, "sieveScriptDeactivate", "users { username }")
    assert (answer["users"], await load_active_flags(ada)) == (
        [{"username": "ada"}],
        {"a": False, "b": False, "c": False},
    )
    answer = await execute_mutation(
        ada, "sieveScriptActivate", SIEVE_SCRIPTS_FIELDS, sieveScript={"name": "d"}
    )
    assert [(item["code"], item["path"]) for item in answer["errors"]] == [
        ("NOT_FOUND", ["sieveScript", "name"])
    ]


async def test_uncompilable_script_reports_every_position(ada: GraphQLClient) -> None:
    text = 'fileinto "x";\nkeep;\nredirect "ada";\n'
    document = f"""mutation ($input: SieveScriptSetInput!) {{
      sieveScriptSet(input: $input) {{ sieveScripts {{ id }} {COMPILE_ERRORS} }} }}"""
    answer = (await ada(document, input={"name": "a", "content": text}))["sieveScriptSet"]
    assert [(item["code"], item["line"], item["column"]) for item in answer["errors"]] == [
        ("SIEVE_COMPILE", 1, 1),
        ("SIEVE_COMPILE", 3, 1),
    ]
    assert {tuple(item["path"]) for item in answer["errors"]} == {("content",)}
    assert answer["errors"][0]["message"] == 'The script must require "fileinto" to use fileinto.'
    assert await load_active_flags(ada) == {}


async def test_invalid_script_name_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(["", " ", "a/b", "a\nb", "\x85", "\u2028", "x" * 129]):
        with case as name:
            answer = await execute_mutation(
                ada, "sieveScriptSet", SIEVE_SCRIPTS_FIELDS, name=name, content="keep;"
            )
            assert [(item["code"], item["path"]) for item in answer["errors"]] == [
                ("VALIDATION", ["name"])
            ]
            await put_sieve_script(ada, "keep;")
            answer = await execute_mutation(
                ada,
                "sieveScriptRename",
                SIEVE_SCRIPTS_FIELDS,
                sieveScript={"name": "main"},
                newName=name,
            )
            assert [(item["code"], item["path"]) for item in answer["errors"]] == [
                ("VALIDATION", ["newName"])
            ]


async def test_script_size_and_count_are_limited(ada: GraphQLClient) -> None:
    answer = await execute_mutation(
        ada, "sieveScriptSet", SIEVE_SCRIPTS_FIELDS, name="a", content="#" * ((64 << 10) + 1)
    )
    assert [(item["constraint"], item["path"]) for item in answer["errors"]] == [
        ("MAX", ["content"])
    ]
    for number in range(MAX_SCRIPTS):
        await put_sieve_script(ada, "keep;", name=f"{number}", activate=False)
    answer = await execute_mutation(
        ada, "sieveScriptSet", SIEVE_SCRIPTS_FIELDS, name="more", content="keep;"
    )
    assert [(item["code"], item["limit"]) for item in answer["errors"]] == [
        ("LIMIT_REACHED", MAX_SCRIPTS)
    ]
    assert (await put_sieve_script(ada, "discard;", name="0"))["errors"] == []


async def test_missing_include_is_a_warning(ada: GraphQLClient) -> None:
    text = 'require "include"; include "lists"; include :personal "main";'
    answer = await put_sieve_script(ada, text)
    message = 'There is no script "lists" to include.'
    assert answer["warnings"] == [{"code": "SIEVE_INCLUDE_MISSING", "message": message}]


async def test_script_is_renamed(ada: GraphQLClient) -> None:
    await put_sieve_script(ada, "keep;", name="a")
    await put_sieve_script(ada, "keep;", name="b", activate=False)
    answer = await execute_mutation(
        ada, "sieveScriptRename", SIEVE_SCRIPTS_FIELDS, sieveScript={"name": "a"}, newName="b"
    )
    assert [(item["code"], item["path"]) for item in answer["errors"]] == [
        ("CONFLICT", ["newName"])
    ]
    answer = await execute_mutation(
        ada, "sieveScriptRename", SIEVE_SCRIPTS_FIELDS, sieveScript={"name": "a"}, newName="Ab"
    )
    assert [(item["name"], item["active"]) for item in answer["sieveScripts"]] == [("Ab", True)]
    assert await load_active_flags(ada) == {"Ab": True, "b": False}


async def test_active_script_is_deleted_only_with_ignore_active(ada: GraphQLClient) -> None:
    await put_sieve_script(ada, "keep;", name="a")
    await put_sieve_script(ada, "keep;", name="b", activate=False)
    answer = await execute_mutation(
        ada, "sieveScriptDelete", "deletedIds", sieveScripts=[{"name": "b"}, {"name": "a"}]
    )
    assert [(error["code"], error["path"]) for error in answer["errors"]] == [
        ("CONFLICT", ["sieveScripts", "1"])
    ]
    answer = await execute_mutation(
        ada, "sieveScriptDelete", "deletedIds", sieveScripts=[{"name": "b"}, {"name": "c"}]
    )
    assert [(error["code"], error["path"]) for error in answer["errors"]] == [
        ("NOT_FOUND", ["sieveScripts", "1", "name"])
    ]
    assert await load_active_flags(ada) == {"a": True, "b": False}
    answer = await execute_mutation(
        ada,
        "sieveScriptDelete",
        "deletedIds",
        sieveScripts=[{"name": "b"}, {"name": "a"}, {"name": "b"}],
        ignoreActive=True,
    )
    assert (len(answer["deletedIds"]), await load_active_flags(ada)) == (2, {})


async def test_scripts_are_paged_by_name(ada: GraphQLClient) -> None:
    for name in ("b", "a", "É", "Z"):
        await put_sieve_script(ada, "keep;", name=name, activate=False)
    page = (await ada(SCRIPTS_QUERY, first=3))["viewer"]["user"]["sieveScripts"]
    assert [node["name"] for node in page["nodes"]] == ["Z", "a", "b"]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (4, True)
    rest = await ada(SCRIPTS_QUERY, first=3, after=page["pageInfo"]["endCursor"])
    assert [item["name"] for item in rest["viewer"]["user"]["sieveScripts"]["nodes"]] == ["É"]


async def test_script_statement_count_is_independent_of_users(
    ada: GraphQLClient, root: GraphQLClient, http: Any, statements: list[str]
) -> None:
    await put_sieve_script(ada, "keep;")
    document = """{ users { nodes { sieveScript(name: "main") { size }
      sieveScripts { nodes { name requires } totalCount } } } }"""

    async def count_statements() -> int:
        await root(document)
        del statements[:]
        users = (await root(document))["users"]["nodes"]
        assert all(item["sieveScripts"]["totalCount"] == 1 for item in users)
        return len([item for item in statements if "sieve_scripts" in item])

    expected = await count_statements()
    for number in range(19):
        await put_sieve_script(await make_client(ada.environment, http, f"user{number}"), "keep;")
    assert await count_statements() == expected == 3


async def test_new_redirect_targets_are_logged(ada: GraphQLClient, bob: GraphQLClient) -> None:
    async def load_logged_targets(client: GraphQLClient) -> list[str]:
        document = """{ viewer { user { securityLog(filter: {action: SIEVE_FORWARDING_ADDED}) {
          nodes { detail count } } } } }"""
        entries = (await client(document))["viewer"]["user"]["securityLog"]["nodes"]
        return sorted(entry["detail"]["target"] for entry in entries for _ in range(entry["count"]))

    text = 'if true { redirect "Dave@example.com"; } else { keep; }'
    await put_sieve_script(ada, text, activate=False)
    assert await load_logged_targets(ada) == ["dave@example.com"]
    await put_sieve_script(ada, f'{text} redirect "eve@example.com";', activate=False)
    await put_sieve_script(ada, f'{text} redirect "eve@example.com"; # the same')
    assert await load_logged_targets(ada) == ["dave@example.com"] * 2 + ["eve@example.com"] * 2
    await put_sieve_script(ada, 'require "variables"; redirect "${to}@example.com";')
    assert await load_logged_targets(ada) == [
        "*",
        *["dave@example.com"] * 2,
        *["eve@example.com"] * 2,
    ]
    assert await load_logged_targets(bob) == []


async def test_sieve_check_reports_all_problems(ada: GraphQLClient) -> None:
    check = (await ada(SIEVE_CHECK, content='fileinto "x";\nstop;\nredirect "ada";'))["sieveTest"]
    assert (check["valid"], check["line"], check["column"]) == (False, 1, 1)
    assert [(problem["line"], problem["column"]) for problem in check["problems"]] == [
        (1, 1),
        (3, 1),
    ]
    assert (check["actions"], check["trace"], check["requires"]) == ([], [], [])
    valid_check = (await ada(SIEVE_CHECK, content='require "vacation"; vacation "x";'))["sieveTest"]
    assert (valid_check["valid"], valid_check["message"], valid_check["requires"]) == (
        True,
        None,
        ["vacation"],
    )


async def test_sieve_check_runs_script_on_message(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada, "Hello")
    await put_sieve_script(
        ada, 'require "imap4flags"; setflag "\\\\Seen";', name="marks", activate=False
    )
    message = {"stored": {"id": global_ids.encode("Message", inserted.message_id)}}
    text = (
        'require ["fileinto", "include", "mailbox", "copy", "envelope", "imap4flags"];\n'
        'include "marks";\n'
        'if envelope "from" "carol@example.com" { fileinto :copy :create "C \\"x\\""; }\n'
        'redirect "dave@example.com";'
    )
    check = (await ada(SIEVE_CHECK, content=text, message=message))["sieveTest"]
    assert (check["valid"], check["message"]) == (True, None)
    assert check["actions"] == [
        'fileinto :flags "\\\\Seen" :create "C \\"x\\""',
        'redirect "dave@example.com"',
    ]
    trace = [
        (step["script"], step["line"], step["column"], step["text"]) for step in check["trace"]
    ]
    assert trace[1] == ("marks", 1, 23, "setflag: \\Seen")
    assert (None, 3, 4, "envelope: true") in trace
    raw = {"raw": "From: carol@example.com\r\nSubject: Hello\r\n\r\nx\r\n"}
    check = (await ada(SIEVE_CHECK, content=text, message=raw))["sieveTest"]
    assert check["actions"] == ['redirect "dave@example.com"']
    mailboxes = await select_rows(
        ada.environment, "SELECT path FROM mailboxes WHERE path LIKE 'C%'"
    )
    assert (mailboxes, await select_rows(ada.environment, "SELECT id FROM queue_entries")) == (
        [],
        [],
    )


async def test_sieve_check_reports_position_of_failure(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada, "Hello")
    message = {"stored": {"id": global_ids.encode("Message", inserted.message_id)}}
    text = 'require ["include", "fileinto"];\nfileinto "x";\ninclude "gone";'
    check = (await ada(SIEVE_CHECK, content=text, message=message))["sieveTest"]
    assert (check["valid"], check["line"], check["column"]) == (True, 3, 1)
    assert (check["message"], check["actions"]) == ('There is no valid script "gone".', [])
    assert check["trace"][0]["text"] == "fileinto: x"


async def test_script_of_another_user_is_not_found(ada: GraphQLClient, bob: GraphQLClient) -> None:
    (script,) = (await put_sieve_script(ada, "keep;"))["sieveScripts"]
    inserted = await deliver_to(ada, "Hello")
    ada_selection = {"ids": [global_ids.encode("User", ada.user.id)]}
    document = "query ($id: ID!) { user(by: {id: $id}) { sieveScripts { nodes { name } } } }"
    assert (await bob(document, id=ada_selection["ids"][0])) == {"user": None}
    node = await bob("query ($id: ID!) { node(id: $id) { id } }", id=script["id"])
    assert node == {"node": None}
    message = {"stored": {"id": global_ids.encode("Message", inserted.message_id)}}
    for extra in ({"message": message}, {"user": {"username": "ada"}}):
        answer = await bob.execute(SIEVE_CHECK, content="keep;", **extra)
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["NOT_FOUND"]
    for name, arguments in (
        ("sieveScriptSet", {"name": "main", "content": "discard;"}),
        ("sieveScriptActivate", {"sieveScript": {"name": "main"}}),
        ("sieveScriptDeactivate", {}),
        ("sieveScriptDelete", {"sieveScripts": [{"name": "main"}], "ignoreActive": True}),
        ("sieveScriptRename", {"sieveScript": {"name": "main"}, "newName": "x"}),
    ):
        refused = await execute_mutation(
            bob, name, "errors { code }", users=ada_selection, **arguments
        )
        assert [error["code"] for error in refused["errors"]] == ["NOT_FOUND"], name
    unchanged_script = (await ada(SCRIPT_QUERY, name="main"))["viewer"]["user"]["sieveScript"]
    assert (unchanged_script["content"], await load_active_flags(ada)) == ("keep;", {"main": True})


async def test_admin_needs_filters_permission_for_scripts(ada: GraphQLClient, http: Any) -> None:
    ada_selection = {"ids": [global_ids.encode("User", ada.user.id)]}
    document = "query ($id: ID!) { user(by: {id: $id}) { sieveScripts { nodes { name } } } }"
    for number, permissions in enumerate(([], [AdminPermission.FILTERS])):
        domain_admin = await make_domain_admin(ada.environment, http, f"chief{number}", permissions)
        arguments = {"name": "main", "content": "keep;", "users": ada_selection}
        answer = await execute_mutation(
            domain_admin, "sieveScriptSet", SIEVE_SCRIPTS_FIELDS, **arguments
        )
        scripts = (await domain_admin(document, id=ada_selection["ids"][0]))["user"][
            "sieveScripts"
        ]["nodes"]
        if permissions:
            assert (answer["errors"], scripts) == ([], [{"name": "main"}])
        else:
            assert [(error["code"], error["requires"]) for error in answer["errors"]] == [
                ("FORBIDDEN", "FILTERS")
            ]
            assert scripts == []


async def test_sieve_scope_key_accesses_only_scripts(ada: GraphQLClient, http: Any) -> None:
    secret = await make_api_key(
        ada.environment, "sieve", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SIEVE]
    )
    client = GraphQLClient(http, ada.environment, ada.user, secret)
    (script,) = (await put_sieve_script(client, "keep;"))["sieveScripts"]
    assert script["content"] == "keep;"
    refused = await client.execute(SCRIPTS_QUERY)
    assert "FORBIDDEN" in str(refused["errors"])


async def test_scripts_are_named_by_id(ada: GraphQLClient, bob: GraphQLClient) -> None:
    (script,) = (await put_sieve_script(ada, "keep;", activate=False))["sieveScripts"]
    ref = {"id": script["id"]}
    calls: list[tuple[str, dict[str, Any]]] = [
        ("sieveScriptActivate", {"sieveScript": ref}),
        ("sieveScriptRename", {"sieveScript": ref, "newName": "renamed"}),
        ("sieveScriptDelete", {"sieveScripts": [ref], "ignoreActive": True}),
    ]
    for name, arguments in calls:
        refused = await execute_mutation(bob, name, "replayed", **arguments)
        field_path = (
            ["sieveScripts", "0", "id"] if name.endswith("Delete") else ["sieveScript", "id"]
        )
        assert [(error["code"], error["path"]) for error in refused["errors"]] == [
            ("NOT_FOUND", field_path)
        ]
    for name, arguments in calls[:2]:
        answer = await execute_mutation(ada, name, SIEVE_SCRIPTS_FIELDS, **arguments)
        assert [item["id"] for item in answer["sieveScripts"]] == [script["id"]]
    assert await load_active_flags(ada) == {"renamed": True}
    answer = await execute_mutation(ada, calls[2][0], "deletedIds", **calls[2][1])
    assert (answer["deletedIds"], await load_active_flags(ada)) == ([script["id"]], {})


async def test_name_beside_an_id_selects_no_script_of_another_user(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    (first,) = (await put_sieve_script(ada, "keep;", name="a", activate=False))["sieveScripts"]
    await put_sieve_script(ada, "keep;", name="y", activate=False)
    answer = await execute_mutation(
        root, "sieveScriptDelete", "deletedIds", sieveScripts=[{"id": first["id"]}, {"name": "y"}]
    )
    assert [(error["code"], error["path"]) for error in answer["errors"]] == [
        ("VALIDATION", ["sieveScripts"])
    ]
    assert await load_active_flags(ada) == {"a": False, "y": False}
