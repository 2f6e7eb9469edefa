"""API keys."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.auth.credentials import ApiKey
from models.errors import (
    Forbidden,
    Invalid,
    NotFound,
    Unauthenticated,
)
from models.store.keyset_pages import Ask
from models.users.roles import Role, Scope
from resolvers.auth import api_keys, authentication
from resolvers.auth.api_keys import NewKey
from resolvers.context import Context, Viewer
from tests.auth.conftest import MASTER, Town, count


async def test_a_key_is_what_it_was_made_for(town: Town) -> None:
    until = town.clock() + timedelta(days=1)
    new = NewKey("backup", scopes={Scope.MAIL_READ}, read_only=True, expires_at=until)
    row, secret = await api_keys.create_key(town.by("ada"), new)
    viewer = await authentication.sign_in(town.world, {"x-api-key": secret}, ip=None)
    assert viewer == await town.viewer(secret)
    assert viewer == Viewer(
        town.users["ada"],
        Role.USER,
        frozenset({Scope.MAIL_READ}),
        read_only=True,
        api_key_id=row.id,
        ends_at=until,
    )
    with pytest.raises(Unauthenticated):
        await authentication.sign_in(town.world, {"x-access-token": secret}, ip=None)
    town.clock.tick(days=1)
    assert await town.refused(secret)
    assert await authentication.ended(town.world, viewer)


async def test_a_key_without_scopes_may_do_all_of_its_role(town: Town) -> None:
    boss = town.by("ada", Role.ROOT)
    _, secret = await api_keys.create_key(boss, NewKey("boss", role=Role.ADMIN))
    viewer = await town.viewer(secret)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (0, Role.ADMIN, MASTER)


async def test_nobody_makes_a_key_above_themselves(town: Town) -> None:
    await town.user("rex", role=Role.ROOT)
    mighty = NewKey("k", role=Role.ADMIN)
    rexs = NewKey("k", user_id=town.users["rex"])
    for ctx, new in (
        (town.by("ada"), mighty),
        (town.by("ada", scopes=frozenset({Scope.MAIL})), NewKey("k")),
        (town.by("ada", Role.ADMIN), replace(mighty, user_id=town.users["ada"])),
        (town.by("ada", Role.ADMIN), rexs),
    ):
        with pytest.raises(Forbidden):
            await api_keys.create_key(ctx, new)
    with pytest.raises(NotFound):
        await api_keys.create_key(town.by("ada"), rexs)
    assert await count(town, ApiKey) == 0


@pytest.mark.parametrize(
    ("new", "path"),
    [
        (NewKey(" "), "name"),
        (NewKey("x" * 129), "name"),
        (NewKey("k", role=Role.PUBLIC), "role"),
        (NewKey("k", expires_at=datetime(2029, 12, 31, tzinfo=UTC)), "expiresAt"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(town: Town, new: NewKey, path: str) -> None:
    with pytest.raises(Invalid) as refusal:
        await api_keys.create_key(town.by("ada"), new)
    assert refusal.value.path == [path]


async def test_a_key_may_not_do_more_than_its_user_today(town: Town) -> None:
    await town.change("ada", role=Role.ADMIN)
    new = NewKey("k", role=Role.ADMIN, user_id=town.users["ada"])
    _, secret = await api_keys.create_key(town.by("ada", Role.ADMIN), new)
    assert (await town.viewer(secret)).role is Role.ADMIN
    await town.change("ada", role=Role.USER, auth_version=9)  # a key outlives a new password
    town.clock.tick(seconds=5)
    assert (await town.viewer(secret)).role is Role.USER
    await town.change("ada", suspended=True)
    town.clock.tick(seconds=5)
    assert await town.refused(secret)


async def test_keys_are_listed_newest_first_to_their_owner_and_to_admins(town: Town) -> None:
    await town.user("bob")
    for name in ("one", "two", "three"):
        await api_keys.create_key(town.by("ada"), NewKey(name))
    await api_keys.create_key(town.by("bob"), NewKey("bobs"))

    async def listed(ctx: Context, *asked: Any) -> list[str]:
        page = await api_keys.keys(ctx, Ask.of(api_keys.NEWEST, *asked))
        return [row.name for row in page.rows]

    first = (None,) * 4
    assert await listed(town.by("ada"), *first) == ["three", "two", "one"]
    assert await listed(town.by("ada"), None, None, 2, None) == ["two", "one"]
    assert await listed(town.by("bob", Role.ADMIN), *first) == ["bobs", "three", "two", "one"]
    assert await listed(Context(town.world, Viewer()), *first) == []
    assert await api_keys.count_keys(town.by("ada")) == 3
    page = await api_keys.keys(town.by("ada"), Ask.of(api_keys.NEWEST, *first), {"name"})
    assert not hasattr(page.rows[0], "digest")


async def test_a_deleted_key_is_refused_at_once(town: Town) -> None:
    await town.user("bob")
    row, secret = await api_keys.create_key(town.by("ada"), NewKey("k"))
    assert not await town.refused(secret)
    with pytest.raises(NotFound):
        await api_keys.delete_keys(town.by("bob"), [row.id])
    root, _ = await api_keys.create_key(town.by("ada", Role.ROOT), NewKey("r", role=Role.ROOT))
    with pytest.raises(Forbidden):
        await api_keys.delete_keys(town.by("bob", Role.ADMIN), [row.id, root.id])
    assert not await town.refused(secret)
    await api_keys.delete_keys(town.by("ada"), [row.id])
    assert await town.refused(secret)


async def test_the_use_of_a_key_is_noted(town: Town) -> None:
    row, secret = await api_keys.create_key(town.by("ada"), NewKey("k"))
    await town.viewer(secret)
    await authentication.settle(town.world)
    (now,) = await api_keys.keys_by_ids(town.by("ada"), [row.id])
    assert now
    assert now.last_used_at == town.clock()
