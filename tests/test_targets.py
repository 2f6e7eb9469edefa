"""Whose data an operation may touch: `targets` of tests/matrix.toml decides, a server is tried."""

import os
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from graphql import get_named_type

from models.roles import AdminPermission, Role, Scope
from models.world import World
from resolvers import usercreate
from resolvers.context import Context, Viewer
from resolvers.usercreate import NewUser
from tests.administrators import make_domain_admin
from tests.conftest import make_client, make_key, make_user
from tests.printed import SDL
from tests.test_matrix import sample, token_of

FILE = tomllib.loads(Path(__file__).with_name("matrix.toml").read_text())
ALLOWED, REFUSED = "allowed", "refused"
DECISIONS = {  # by operation: what it reads or changes, and the class of its decision
    name: (touched, decision)
    for touched, decisions in FILE["targets"].items()
    for name, decision in decisions.items()
}
CLASSES = {
    name: {caller: allowed.split() for caller, allowed in of.items()}
    for name, of in FILE["target-classes"].items()
}
CALLERS = ("user", "domain-bare", "domain-admin", "admin", "root-key")  # the weakest first
RELATIONS = ("self", "user", "above", "other")
REFS = ("UserRef", "UserSelection")
# inputs that name an account in another way than by `user` or `users`
PLACES = {
    "bccRuleCreate": "match",
    "mailboxShareSet": None,  # names whom a folder is shared with: not whose data it is
    "messageCopy": "select",
    "messageDeduplicate": "select",
    "messageDelete": "select",
    "messageMove": "select",
    "messageTierMove": "select",
    "messageUpdate": "select",
    "queueDelete": None,
    "queueFlush": None,
    "senderRuleCreate": "scope",
    "accountImport": None,  # needs an upload of the account: tests/test_imports.py
    "connectorUpdate": None,
    "filterApply": None,  # needs a filter of the account: tests/test_filters_applied.py
    "userRestore": None,
    "mailImport": None,  # needs an upload of the caller: tests/test_mail_import_rights.py
}
# members that make an input whole, so that nothing but the target speaks against it
SELECTED = {"filter": {"query": "x"}}
GIVEN: dict[str, dict[str, Any]] = {
    "addressCreate": {"address": "fresh@example.org"},
    "archiveRestore": {"start": "2029-01-01T00:00:00Z", "end": "2030-01-01T00:00:00Z"},
    "autoreplySet": {"set": {"text": "Away"}},
    "filterCreate": {"query": {"subject": "x"}, "action": {"seen": True}},
    "filterImport": {"content": "keep;"},
    "mailboxMetadataSet": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxMetadataUnset": {"key": "/private/comment", "mailbox": {"path": "INBOX"}},
    "mailboxStateSet": {"mailbox": {"path": "INBOX"}, "minNextUid": 7},
    "mailboxUpdate": {"mailboxes": [{"path": "INBOX"}], "set": {"subscribed": True}},
    "messageDeduplicate": {"select": SELECTED},
    "messageDelete": {"select": SELECTED},
    "messageUpdate": {"select": SELECTED, "set": {"seen": True}},
    "sieveScriptPut": {"content": "keep;"},
    "spamPolicySet": {"level": 10},
    "userRoleSet": {"role": "USER"},
    "userUpdate": {"set": {"name": "X"}},
    "userUpdate fromWhitelist": {"set": {"fromWhitelist": ["x@elsewhere.example"]}},
    "userUpdate password": {"set": {"password": "correct horse battery"}},
    "userUpdate targets": {"set": {"targets": ["x@elsewhere.example"]}},
    "webhookCreate": {"types": ["user.*"]},
}


def operations() -> Iterator[str]:
    """The mutations that name an account, beside those that `PLACES` leaves out."""
    root: Any = SDL.mutation_type
    for name, field in root.fields.items():
        kind = get_named_type(field.args["input"].type)
        named = any(get_named_type(one.type).name in REFS for one in kind.fields.values())
        if PLACES.get(name, "user") is not None and (named or name in PLACES):
            yield name
    yield from (name for name in GIVEN if " " in name)


def document(name: str) -> str:
    """The mutation; what stands behind a space in `name` tells apart what it changes."""
    root: Any = SDL.mutation_type
    name = name.partition(" ")[0]
    field = root.fields[name]
    kind = get_named_type(field.args["input"].type)
    asked = "errors { code message path }"
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {asked} }} }}"


def variables(name: str, username: str) -> dict[str, Any]:
    """An input that names this account; whatever it changes is only tried."""
    root: Any = SDL.mutation_type
    plain = name.partition(" ")[0]
    kind: Any = get_named_type(root.fields[plain].args["input"].type)
    given = {**sample(kind), **GIVEN.get(name, {})}
    given["options"] = {"validateOnly": True, "reason": "a trial"}
    match PLACES.get(plain):
        case "match":
            given["match"] = (
                f"{username}@{'far.example' if username == 'faraway' else 'example.org'}"
            )
        case "scope":
            given["scope"] = {"user": {"username": username}}
        case "select":
            given["select"] = {**given.get("select", {}), "users": {"usernames": [username]}}
        case _:
            member = "users" if "users" in kind.fields else "user"
            one = get_named_type(kind.fields[member].type).name == "UserRef"
            given[member] = {"username": username} if one else {"usernames": [username]}
    return given


@dataclass
class Server:
    """A server with accounts in every relation to every caller."""

    http: httpx.AsyncClient
    secrets: dict[str, str]
    accounts: dict[tuple[str, str], str]  # by caller and relation

    async def tried(self, name: str, caller: str, relation: str) -> str:
        """Allowed or refused, or else why the try says nothing."""
        given = variables(name, self.accounts[caller, relation])
        body = {"query": document(name), "variables": {"input": given}}
        headers = {"authorization": f"Bearer {self.secrets[caller]}"}
        answer = (await self.http.post("/graphql", json=body, headers=headers)).json()
        return verdict(name, answer)


TARGET = {"match", "scope", "select", "sourceUser", "user", "users"}  # members that name it


def verdict(name: str, answer: Any) -> str:
    """Allowed, unless the target is refused, or not found. Other refusals come after that."""
    if "errors" in answer:
        error = answer["errors"][0]
        code: str = error["extensions"]["code"]
        return REFUSED if code == "FORBIDDEN" else f"{code}: {error['message']}"
    for error in answer["data"][name.partition(" ")[0]]["errors"]:
        named = not error["path"] or error["path"][0] in TARGET
        if error["code"] == "FORBIDDEN" or (error["code"] == "NOT_FOUND" and named):
            return REFUSED
        if error["code"] == "VALIDATION" and name in GIVEN:
            return f"VALIDATION: {error['message']}"  # then it says nothing about the target
    return ALLOWED


@pytest.fixture
async def server(world: World, http: httpx.AsyncClient) -> Server:
    bare = await make_domain_admin(world, http, "bare")
    every = await make_domain_admin(world, http, "every", list(AdminPermission))
    over = await make_client(world, http, "over", role=Role.ADMIN)
    user = await make_user(world, "ada")
    await make_user(world, "bob")
    await make_client(world, http, "top", role=Role.ROOT)
    root = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    far = NewUser(username="faraway", address="faraway@far.example", password_disabled=True)
    await usercreate.create(root, far)
    own = {"user": "ada", "domain-bare": "bare", "domain-admin": "every", "admin": "over"}
    accounts = {(caller, "user"): "bob" for caller in CALLERS}
    accounts |= {(caller, "other"): "faraway" for caller in CALLERS}
    accounts |= {(caller, "above"): "over" for caller in CALLERS[:3]}
    accounts |= {(caller, "above"): "top" for caller in CALLERS[3:]}
    accounts |= {(caller, "self"): name for caller, name in own.items()}
    secrets = {
        "user": await token_of(world, user),
        "domain-bare": await token_of(world, bare.user),
        "domain-admin": await token_of(world, every.user),
        "admin": await token_of(world, over.user),
        "root-key": await make_key(world, "root-key", role=Role.ROOT),
    }
    return Server(http, secrets, accounts)


def decided(name: str, caller: str, relation: str) -> str:
    """What the table says."""
    return ALLOWED if relation in CLASSES[DECISIONS[name][1]].get(caller, ()) else REFUSED


async def compare(server: Server, cells: Iterable[tuple[str, str, str]]) -> None:
    """Try these cells, and name those that are not as the table says."""
    wrong = []
    for name, caller, relation in cells:
        if (caller, relation) in server.accounts:
            found = await server.tried(name, caller, relation)
            if found != decided(name, caller, relation):
                wrong.append((name, caller, relation, found))
    assert not wrong


def borders() -> Iterator[tuple[str, str, str]]:
    """Of each operation and relation, the weakest caller allowed and the strongest refused."""
    for name in DECISIONS:
        for relation in RELATIONS:
            there = [one for one in CALLERS if (one, relation) != ("root-key", "self")]
            allowed = [one for one in there if decided(name, one, relation) == ALLOWED]
            refused = [one for one in there if one not in allowed]
            yield from ((name, one, relation) for one in [*allowed[:1], *refused[-1:]])


def test_every_operation_on_an_account_has_its_decision() -> None:
    assert set(operations()) == set(DECISIONS)
    assert {decision for _, decision in DECISIONS.values()} == set(CLASSES)
    assert {touched for touched, _ in DECISIONS.values()} == set(FILE["touches"])
    for allowed in CLASSES.values():
        assert set(allowed) <= set(CALLERS)
        assert set().union(*allowed.values()) <= set(RELATIONS) == set(FILE["relations"])


async def test_borders_of_whose_data_is_touched(server: Server) -> None:
    await compare(server, borders())


@pytest.mark.skipif("LONG" not in os.environ, reason="make conformance tries all cells")
async def test_whose_data_is_touched(server: Server) -> None:
    every = [(name, *cell) for name in DECISIONS for cell in server.accounts]
    await compare(server, every)
