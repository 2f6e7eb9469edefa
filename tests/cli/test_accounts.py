"""`merganser user` and `merganser token`."""

import asyncio
import io

import pytest

from merganser.settings import read
from models.database import Database
from models.errors import AuthenticationFailed
from models.roles import Role, Scope
from models.world import World
from resolvers.auth import Attempt, authenticate, settle, sign_in
from resolvers.context import Context, Viewer
from tests.cli.conftest import Shell


def world_of(database: Database) -> World:
    return World(database, blobs=None, secret=b"s" * 32, options=read().options())  # type: ignore[arg-type]


def signs_in(name: str, password: str) -> bool:
    async def tried() -> bool:
        database = Database(read().store)
        ctx = Context(world_of(database), Viewer())
        try:
            return bool(await authenticate(ctx, name, password, Attempt()))
        except AuthenticationFailed:
            return False
        finally:
            await database.close()

    return asyncio.run(tried())


def viewer_of(secret: str) -> Viewer:
    async def asked() -> Viewer:
        database = Database(read().store)
        try:
            world = world_of(database)
            return await sign_in(world, {"authorization": f"Bearer {secret}"}, ip=None)
        finally:
            await settle(world)
            await database.close()

    return asyncio.run(asked())


def test_a_user_is_made_listed_and_signs_in(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse\n"))
    said = shell(
        "user", "add", "ada@example.org", "--password-stdin", "--quota", "5 GiB", "--role", "ADMIN"
    )
    assert (said.code, said.err) == (0, "")
    (row,) = shell("user", "list", "--json").json
    assert (row["username"], row["address"]) == ("ada@example.org", "ada@example.org")
    assert (row["role"], row["quota"]) == ("ADMIN", 5 << 30)
    assert "ada@example.org" in shell("user", "list").out
    assert signs_in("ada@example.org", "correct horse")
    assert not signs_in("ada@example.org", "correct house")


def test_another_password_ends_the_old_one(ada: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for password in ("first one", "second one"):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
        assert ada("user", "passwd", "ada", "--password-stdin").code == 0
    assert signs_in("ada@example.org", "second one")
    assert not signs_in("ada@example.org", "first one")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("user", "add", "ada", "--no-password"), "the user name is taken"),
        (("user", "add", "bob", "--address", "ada@example.org", "--no-password"), "is taken"),
        (("user", "add", "bob", "--no-password"), "has an address"),
        (("user", "add", "b@x.org", "--no-password", "--quota", "much"), "write a size"),
        (("user", "add", "b@x.org"), "--password-stdin"),
        (("user", "passwd", "bob", "--password-stdin"), "there is no password on stdin"),
        (("token", "create", "--name", "x"), "say whose key it is"),
        (("token", "create", "--name", "x", "--user", "bob"), "there is no user bob"),
        (("token", "create", "--name", "x", "--user", "ada", "--role", "ROOT"), "ROOT"),
        (("token", "create", "--name", "x", "--user", "ada", "--expires", "soon"), "30 days"),
        (("token", "revoke", "nonsense"), "no id of a key"),
        (("token", "revoke", "key_A3ZQadz2HH4"), "there is no key"),
    ],
)
def test_a_refusal_is_one_sentence(
    ada: Shell, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    if words[:3] == ("user", "add", "ada"):
        words = (*words, "--address", "ada2@example.org")
    said = ada(*words)
    assert said.code in (1, 2)
    assert said.out == ""
    assert said.err.startswith("merganser: ")
    assert said.err.count("\n") == 1
    assert sentence in said.err


def test_a_key_is_shown_once_works_and_is_revoked(ada: Shell) -> None:
    said = ada(
        "token", "create", "--name", "backup", "--user", "ada", "--scope", "MAIL_READ",
        "--read-only", "--expires", "30 days",
    )  # fmt: skip
    assert said.code == 0
    secret = said.out.strip()  # and nothing else: it may go into a variable
    viewer = viewer_of(secret)
    assert (viewer.role, viewer.scopes, viewer.read_only) == (
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        True,
    )
    listed = ada("token", "list", "--json")
    (row,) = listed.json
    assert (row["name"], row["user"], row["scopes"]) == ("backup", "ada", ["MAIL_READ"])
    assert secret not in listed.out
    assert ada("token", "revoke", row["id"]).code == 0
    assert ada("token", "list", "--json").json == []
    with pytest.raises(Exception, match="sign in first"):
        viewer_of(secret)


def test_a_key_of_the_platform_belongs_to_nobody(shell: Shell) -> None:
    secret = shell("token", "create", "--name", "root", "--role", "ROOT").out.strip()
    viewer = viewer_of(secret)
    assert (viewer.user_id, viewer.role) == (0, Role.ROOT)
