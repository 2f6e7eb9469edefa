"""A town whose people sign in."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlmodel import SQLModel, col

from models.domains.tables import Domain, DomainAlias
from models.errors import AuthenticationFailed, Unauthenticated
from models.events.journal import Stream
from models.runtime.environment import World
from models.store.columns import table_of
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.authentication import Authenticated
from resolvers.auth.passwords import password_hashes
from resolvers.auth.sign_in import Attempt
from resolvers.context import Context, Viewer
from tests.conftest import Clock

PASSWORD = "correct horse battery"  # noqa: S105 - a test's
MASTER = frozenset({Scope.MASTER})
TOKEN = Attempt(token=True)


@dataclass
class Town:
    """A world of its own, and its clock."""

    world: World
    clock: Clock
    domain_id: int = 0
    users: dict[str, int] = field(default_factory=dict)

    async def user(self, name: str, **facts: Any) -> int:
        key = self.world.key()
        now = self.clock()
        stored = await password_hashes.make(self.world, PASSWORD)
        row = {"password": stored, "tenant_id": self.domain_id, "created_at": now, **facts}
        async with self.world.write() as session:
            session.add(Stream(id=key))
            session.add(User(id=key, username=name, username_key=name, updated_at=now, **row))
        self.users[name] = key
        return key

    async def change(self, name: str, **facts: Any) -> None:
        """As another process would do it."""
        async with self.world.write() as session:
            mine = col(User.id) == self.users[name]
            await session.exec(update(User).where(mine).values(**facts))

    async def row(self, name: str) -> Any:
        mine = select(table_of(User)).where(col(User.id) == self.users[name])
        (row,) = await self.world.database.read(mine)
        return row

    def by(self, name: str, role: Role = Role.USER, scopes: frozenset[Scope] = MASTER) -> Context:
        return Context(self.world, Viewer(self.users[name], role, scopes))

    async def enter(
        self,
        name: str,
        password: str = PASSWORD,
        attempt: Attempt | None = None,
        ip: str | None = "192.0.2.1",
    ) -> Authenticated:
        ctx = Context(self.world, Viewer(), client_ip=ip)
        return await authentication.authenticate(ctx, name, password, attempt)

    async def token(self, name: str, **more: Any) -> str:
        done = await self.enter(name, attempt=replace(TOKEN, **more))
        assert done.token
        return done.token

    async def viewer(self, secret: str, **more: Any) -> Viewer:
        headers = {"authorization": f"Bearer {secret}"}
        return await authentication.sign_in(self.world, headers, ip="192.0.2.1", **more)

    async def refused(self, secret: str) -> bool:
        try:
            await self.viewer(secret)
        except Unauthenticated:
            return True
        return False


@pytest.fixture
async def town(world: World, clock: Clock) -> AsyncIterator[Town]:
    """ada of example.org, whose alias is example.com."""
    there, now = Town(world, clock, domain_id=world.key()), clock()
    async with world.write() as session:
        session.add(Domain(id=there.domain_id, name="example.org", created_at=now, updated_at=now))
        await session.flush()
        session.add(
            DomainAlias(
                id=world.key(), alias="example.com", domain_id=there.domain_id, created_at=now
            )
        )
    await there.user("ada")
    yield there
    await authentication.settle(world)


async def count(town: Town, table: type[SQLModel]) -> int:
    (row,) = await town.world.database.read(select(func.count().label("n")).select_from(table))
    return int(row.n)


async def fail(town: Town, name: str, times: int, ip: str | None = None) -> None:
    for _ in range(times):
        with pytest.raises(AuthenticationFailed):
            await town.enter(name, "wrong", ip=ip)


async def signed_in(town: Town, name: str) -> tuple[Context, str]:
    token = await town.token(name)
    return Context(town.world, await town.viewer(token)), token
