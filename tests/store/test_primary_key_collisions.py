"""A primary key that two processes make at once is made again; a conflict of data stays one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlmodel import SQLModel, col

from models.files.blobs import Blob
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import core_table
from models.store.key_collision import KeyCollision, is_key_collision
from models.users.tables import User
from tests.conftest import Client, receive


@dataclass
class CollidingKeys:
    """Keys of which the first ones are those that another process has just used."""

    usual: Callable[[], int]
    taken: list[int] = field(default_factory=list)
    given: int = 0

    def __call__(self) -> int:
        if self.taken:
            self.given += 1
            return self.taken.pop(0)
        return self.usual()


def colliding(world: Environment, taken: Iterable[int] = ()) -> CollidingKeys:
    keys = CollidingKeys(world.new_id, list(taken))
    object.__setattr__(world, "new_id", keys)
    return keys


async def newest(world: Environment, table: type[SQLModel]) -> int:
    key = core_table(table).c.id
    return int((await world.database.read(select(key).order_by(key.desc()).limit(1)))[0].id)


async def test_a_mutation_whose_key_is_taken_runs_again(ada: Client, world: Environment) -> None:
    keys = colliding(world, [await newest(world, Mailbox)])
    done = await ada(
        """mutation { mailboxCreate(input: {paths: ["Taken"]}) {
          mailboxes { path } errors { code } } }"""
    )
    assert done["mailboxCreate"] == {"mailboxes": [{"path": "Taken"}], "errors": []}
    assert keys.given == 1


async def test_an_account_whose_key_is_taken_is_not_a_conflict(root: Client, ada: Client) -> None:
    keys = colliding(root.world, [ada.user.id])
    given = {"username": "grace", "address": "grace@example.org", "password": "long enough 17!"}
    document = """mutation ($input: UserCreateInput!) { userCreate(input: $input) {
      user { username } errors { code path } } }"""
    assert (await root(document, input=given))["userCreate"] == {
        "user": {"username": "grace"},
        "errors": [],
    }
    assert keys.given == 1
    again = (await root(document, input=given))["userCreate"]["errors"]
    assert [one["code"] for one in again] == ["CONFLICT"]


async def test_an_atomic_request_runs_again_as_a_whole(ada: Client, world: Environment) -> None:
    colliding(world, [await newest(world, Mailbox)])
    done = await ada(
        """mutation @atomic {
          a: mailboxCreate(input: {paths: ["A"]}) { errors { code } }
          b: mailboxCreate(input: {paths: ["B"]}) { errors { code } } }"""
    )
    assert done == {"a": {"errors": []}, "b": {"errors": []}}


async def test_a_delivery_whose_key_is_taken_is_stored(ada: Client, world: Environment) -> None:
    await receive(ada, "First")
    for table in (Message, Blob):
        keys = colliding(world)
        key = await newest(world, table)
        before = len(await world.database.read(select(col(Message.id))))
        keys.taken = [key]
        await receive(ada, f"Beside a {table.__tablename__}")
        assert len(await world.database.read(select(col(Message.id)))) == before + 1


@pytest.mark.usefixtures("ada")
async def test_only_generated_keys_count(world: Environment) -> None:
    def twice(turn: DatabaseTransaction, **changed: Any) -> None:
        row = turn.connection.execute(select(core_table(User))).mappings().first()
        assert row is not None
        turn.connection.execute(insert(core_table(User)), {**row, **changed})

    tried = list[int]()

    def same_key(turn: DatabaseTransaction) -> None:
        tried.append(1)
        twice(turn, username="other", username_key="other")

    def same_name(turn: DatabaseTransaction) -> None:
        tried.append(1)
        twice(turn, id=world.new_id())

    with pytest.raises(KeyCollision) as collided:
        await world.run_transaction(same_key)
    assert is_key_collision(collided.value)
    assert len(tried) == 3
    tried.clear()
    with pytest.raises(Exception, match=r"(?i)unique") as conflict:
        await world.run_transaction(same_name)
    assert not is_key_collision(conflict.value)
    assert len(tried) == 1
