"""Scripts of accounts: put, read, renamed, deleted, tried; and nobody else's."""

from typing import Any

import pytest

from graph.types import global_ids
from models.users.roles import AdminPermission, Role, Scope
from resolvers.filters.sieve_script_mutations import MAX_SCRIPTS
from tests.conftest import Client, make_client, make_key, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import run
from tests.support.operations.sieve_operations import SHOWN, put
from tests.support.stores.counter_check import rows

LIST = """query ($first: Int, $after: String) { viewer { user {
  sieveScripts(first: $first, after: $after) {
    nodes { name active } pageInfo { hasNextPage endCursor } totalCount } } } }"""
ONE = (
    "query ($name: String!) { viewer { user { sieveScript(name: $name) { name content size } } } }"
)
CHECK = """query ($content: String!, $message: MessageRef, $user: UserRef) {
  sieveCheck(content: $content, message: $message, user: $user) {
    valid line column message requires actions problems { line column message }
    trace { line column script text } } }"""
COMPILE = "errors { __typename code message path ... on SieveCompileError { line column } }"


async def names(client: Client) -> dict[str, bool]:
    found = (await client(LIST, first=50))["viewer"]["user"]["sieveScripts"]["nodes"]
    return {node["name"]: node["active"] for node in found}


async def test_a_script_is_put_read_and_overwritten(ada: Client) -> None:
    text = 'require ["fileinto", "copy"];\nfileinto :copy "Grüße";\n'
    made = (await put(ada, text))["scripts"]
    (shown,) = made
    key = shown.pop("id")
    assert shown == {
        "name": "main",
        "content": text,
        "active": True,
        "size": len(text.encode()),
        "requires": ["copy", "fileinto"],
        "lastError": None,
    }
    (again,) = (await put(ada, "discard;", activate=False))["scripts"]
    assert (again["id"], again["content"], again["active"]) == (key, "discard;", True)
    assert (await ada(ONE, name="main"))["viewer"]["user"]["sieveScript"]["content"] == "discard;"
    assert (await ada(ONE, name="Main"))["viewer"]["user"]["sieveScript"] is None
    node = await ada("query ($id: ID!) { node(id: $id) { ... on SieveScript { name } } }", id=key)
    assert node == {"node": {"name": "main"}}


async def test_one_runs_at_most(ada: Client) -> None:
    for name in "abc":
        await put(ada, "keep;", name=name)
    assert await names(ada) == {"a": False, "b": False, "c": True}
    done = await run(ada, "sieveScriptActivate", SHOWN, name="a")
    assert [one["name"] for one in done["scripts"]] == ["a"]
    assert await names(ada) == {"a": True, "b": False, "c": False}
    done = await run(ada, "sieveScriptDeactivate", "users { username }")
    assert (done["users"], await names(ada)) == (
        [{"username": "ada"}],
        {"a": False, "b": False, "c": False},
    )
    done = await run(ada, "sieveScriptActivate", SHOWN, name="d")
    assert [(one["code"], one["path"]) for one in done["errors"]] == [("NOT_FOUND", ["name"])]


async def test_what_does_not_compile_is_refused_with_every_place(ada: Client) -> None:
    text = 'fileinto "x";\nkeep;\nredirect "ada";\n'
    document = f"""mutation ($input: SieveScriptPutInput!) {{
      sieveScriptPut(input: $input) {{ scripts {{ id }} {COMPILE} }} }}"""
    done = (await ada(document, input={"name": "a", "content": text}))["sieveScriptPut"]
    assert [(one["code"], one["line"], one["column"]) for one in done["errors"]] == [
        ("SIEVE_COMPILE", 1, 1),
        ("SIEVE_COMPILE", 3, 1),
    ]
    assert {tuple(one["path"]) for one in done["errors"]} == {("content",)}
    assert done["errors"][0]["message"] == 'fileinto is there with require "fileinto"'
    assert await names(ada) == {}


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "\x85", "\u2028", "x" * 129])
async def test_names_are_plain(ada: Client, name: str) -> None:
    done = await run(ada, "sieveScriptPut", SHOWN, name=name, content="keep;")
    assert [(one["code"], one["path"]) for one in done["errors"]] == [("VALIDATION", ["name"])]
    await put(ada, "keep;")
    done = await run(ada, "sieveScriptRename", SHOWN, name="main", newName=name)
    assert [(one["code"], one["path"]) for one in done["errors"]] == [("VALIDATION", ["newName"])]


async def test_scripts_have_limits(ada: Client) -> None:
    done = await run(ada, "sieveScriptPut", SHOWN, name="a", content="#" * ((64 << 10) + 1))
    assert [(one["constraint"], one["path"]) for one in done["errors"]] == [("max", ["content"])]
    for number in range(MAX_SCRIPTS):
        await put(ada, "keep;", name=f"{number}", activate=False)
    done = await run(ada, "sieveScriptPut", SHOWN, name="more", content="keep;")
    assert [(one["code"], one["limit"]) for one in done["errors"]] == [
        ("LIMIT_REACHED", MAX_SCRIPTS)
    ]
    assert (await put(ada, "discard;", name="0"))["errors"] == []


async def test_what_is_included_and_not_there_is_a_warning(ada: Client) -> None:
    text = 'require "include"; include "lists"; include :personal "main";'
    done = await put(ada, text)
    told = 'there is no script "lists" to include'
    assert done["warnings"] == [{"code": "SIEVE_INCLUDE_MISSING", "message": told}]


async def test_a_script_is_called_otherwise(ada: Client) -> None:
    await put(ada, "keep;", name="a")
    await put(ada, "keep;", name="b", activate=False)
    done = await run(ada, "sieveScriptRename", SHOWN, name="a", newName="b")
    assert [(one["code"], one["path"]) for one in done["errors"]] == [("CONFLICT", ["newName"])]
    done = await run(ada, "sieveScriptRename", SHOWN, name="a", newName="Ab")
    assert [(one["name"], one["active"]) for one in done["scripts"]] == [("Ab", True)]
    assert await names(ada) == {"Ab": True, "b": False}


async def test_the_active_one_is_not_deleted_unasked(ada: Client) -> None:
    await put(ada, "keep;", name="a")
    await put(ada, "keep;", name="b", activate=False)
    done = await run(ada, "sieveScriptDelete", "deletedNames", names=["b", "a"])
    assert [(e["code"], e["path"], e["index"]) for e in done["errors"]] == [
        ("CONFLICT", ["names"], 1)
    ]
    done = await run(ada, "sieveScriptDelete", "deletedNames", names=["b", "c"])
    assert [(e["code"], e["index"]) for e in done["errors"]] == [("NOT_FOUND", 1)]
    assert await names(ada) == {"a": True, "b": False}
    done = await run(
        ada, "sieveScriptDelete", "deletedNames", names=["b", "a", "b"], ignoreActive=True
    )
    assert (done["deletedNames"], await names(ada)) == (["b", "a"], {})


async def test_lists_go_on_by_name(ada: Client) -> None:
    for name in ("b", "a", "É", "Z"):
        await put(ada, "keep;", name=name, activate=False)
    page = (await ada(LIST, first=3))["viewer"]["user"]["sieveScripts"]
    assert [node["name"] for node in page["nodes"]] == ["Z", "a", "b"]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (4, True)
    rest = await ada(LIST, first=3, after=page["pageInfo"]["endCursor"])
    assert [one["name"] for one in rest["viewer"]["user"]["sieveScripts"]["nodes"]] == ["É"]


async def test_many_accounts_are_asked_together(
    ada: Client, root: Client, http: Any, statements: list[str]
) -> None:
    await put(ada, "keep;")
    document = """{ users { nodes { sieveScript(name: "main") { size }
      sieveScripts { nodes { name requires } totalCount } } } }"""

    async def cost() -> int:
        await root(document)
        del statements[:]
        found = (await root(document))["users"]["nodes"]
        assert all(one["sieveScripts"]["totalCount"] == 1 for one in found)
        return len([one for one in statements if "sieve_scripts" in one])

    one = await cost()
    for number in range(19):
        await put(await make_client(ada.world, http, f"user{number}"), "keep;")
    assert await cost() == one == 3


async def test_new_places_that_mail_goes_to_are_noted(ada: Client, bob: Client) -> None:
    async def noted(client: Client) -> list[str]:
        document = """{ viewer { user { authLog(filter: {action: "sieve forward"}) {
          nodes { detail count } } } } }"""
        found = (await client(document))["viewer"]["user"]["authLog"]["nodes"]
        return sorted(one["detail"]["target"] for one in found for _ in range(one["count"]))

    text = 'if true { redirect "Dave@example.com"; } else { keep; }'
    await put(ada, text, activate=False)
    assert await noted(ada) == ["dave@example.com"]
    await put(ada, f'{text} redirect "eve@example.com";', activate=False)
    await put(ada, f'{text} redirect "eve@example.com"; # the same')
    assert await noted(ada) == ["dave@example.com"] * 2 + ["eve@example.com"] * 2
    await put(ada, 'require "variables"; redirect "${to}@example.com";')
    assert await noted(ada) == ["*", *["dave@example.com"] * 2, *["eve@example.com"] * 2]
    assert await noted(bob) == []


# ---------------------------------------------------------------- trying


async def test_all_mistakes_are_told(ada: Client) -> None:
    found = (await ada(CHECK, content='fileinto "x";\nstop;\nredirect "ada";'))["sieveCheck"]
    assert (found["valid"], found["line"], found["column"]) == (False, 1, 1)
    assert [(one["line"], one["column"]) for one in found["problems"]] == [(1, 1), (3, 1)]
    assert (found["actions"], found["trace"], found["requires"]) == ([], [], [])
    good = (await ada(CHECK, content='require "vacation"; vacation "x";'))["sieveCheck"]
    assert (good["valid"], good["message"], good["requires"]) == (True, None, ["vacation"])


async def test_it_is_run_dry_against_a_message(ada: Client) -> None:
    placed = await receive(ada, "Hello")
    await put(ada, 'require "imap4flags"; setflag "\\\\Seen";', name="marks", activate=False)
    message = {"id": global_ids.encode("Message", placed.message_id)}
    text = (
        'require ["fileinto", "include", "mailbox", "copy", "envelope", "imap4flags"];\n'
        'include "marks";\n'
        'if envelope "from" "carol@example.com" { fileinto :copy :create "C \\"x\\""; }\n'
        'redirect "dave@example.com";'
    )
    found = (await ada(CHECK, content=text, message=message))["sieveCheck"]
    assert (found["valid"], found["message"]) == (True, None)
    assert found["actions"] == [
        'fileinto :flags "\\\\Seen" :create "C \\"x\\""',
        'redirect "dave@example.com"',
    ]
    trace = [(one["script"], one["line"], one["column"], one["text"]) for one in found["trace"]]
    assert trace[1] == ("marks", 1, 23, "setflag: \\Seen")
    assert (None, 3, 4, "envelope: true") in trace
    boxes = await rows(ada.world, "SELECT path FROM mailboxes WHERE path LIKE 'C%'")
    assert (boxes, await rows(ada.world, "SELECT id FROM deliveries")) == ([], [])


async def test_a_run_that_fails_says_where(ada: Client) -> None:
    placed = await receive(ada, "Hello")
    message = {"id": global_ids.encode("Message", placed.message_id)}
    text = 'require ["include", "fileinto"];\nfileinto "x";\ninclude "gone";'
    found = (await ada(CHECK, content=text, message=message))["sieveCheck"]
    assert (found["valid"], found["line"], found["column"]) == (True, 3, 1)
    assert (found["message"], found["actions"]) == ('there is no script "gone" that compiles', [])
    assert found["trace"][0]["text"] == "fileinto: x"


# ---------------------------------------------------------------- whose they are


async def test_another_user_sees_and_changes_nothing(ada: Client, bob: Client) -> None:
    (script,) = (await put(ada, "keep;"))["scripts"]
    placed = await receive(ada, "Hello")
    her = {"ids": [global_ids.encode("User", ada.user.id)]}
    user = "query ($id: ID!) { user(by: {id: $id}) { sieveScripts { nodes { name } } } }"
    assert (await bob(user, id=her["ids"][0])) == {"user": None}
    node = await bob("query ($id: ID!) { node(id: $id) { id } }", id=script["id"])
    assert node == {"node": None}
    message = {"id": global_ids.encode("Message", placed.message_id)}
    for more in ({"message": message}, {"user": {"username": "ada"}}):
        answer = await bob.raw(CHECK, content="keep;", **more)
        assert [one["extensions"]["code"] for one in answer["errors"]] == ["NOT_FOUND"]
    for name, given in (
        ("sieveScriptPut", {"name": "main", "content": "discard;"}),
        ("sieveScriptActivate", {"name": "main"}),
        ("sieveScriptDeactivate", {}),
        ("sieveScriptDelete", {"names": ["main"], "ignoreActive": True}),
        ("sieveScriptRename", {"name": "main", "newName": "x"}),
    ):
        done = await run(bob, name, "errors { code }", users=her, **given)
        assert [one["code"] for one in done["errors"]] == ["NOT_FOUND"], name
    found = (await ada(ONE, name="main"))["viewer"]["user"]["sieveScript"]
    assert (found["content"], await names(ada)) == ("keep;", {"main": True})


async def test_administrators_need_the_permission(ada: Client, http: Any) -> None:
    her = {"ids": [global_ids.encode("User", ada.user.id)]}
    seen = "query ($id: ID!) { user(by: {id: $id}) { sieveScripts { nodes { name } } } }"
    for number, permissions in enumerate(([], [AdminPermission.FILTERS])):
        chief = await make_domain_admin(ada.world, http, f"chief{number}", permissions)
        given = {"name": "main", "content": "keep;", "users": her}
        done = await run(chief, "sieveScriptPut", SHOWN, **given)
        shown = (await chief(seen, id=her["ids"][0]))["user"]["sieveScripts"]["nodes"]
        if permissions:
            assert (done["errors"], shown) == ([], [{"name": "main"}])
        else:
            assert [(one["code"], one["requires"]) for one in done["errors"]] == [
                ("FORBIDDEN", "FILTERS")
            ]
            assert shown == []


async def test_a_key_for_scripts_is_good_for_them_alone(ada: Client, http: Any) -> None:
    secret = await make_key(
        ada.world, "sieve", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SIEVE]
    )
    client = Client(http, ada.world, ada.user, secret)
    (script,) = (await put(client, "keep;"))["scripts"]
    assert script["content"] == "keep;"
    refused = await client.raw(LIST)
    assert "FORBIDDEN" in str(refused["errors"])
