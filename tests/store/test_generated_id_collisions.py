"""Colliding generated IDs are generated again. Conflicts of data stay conflicts."""

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
from models.store.generated_id_collision import GeneratedIdCollision, is_generated_id_collision
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to


@dataclass
class CollidingIdGenerator:
    """An ID generator whose first IDs another process has just used."""

    generate: Callable[[], int]
    colliding_ids: list[int] = field(default_factory=list)
    collision_count: int = 0

    def __call__(self) -> int:
        if self.colliding_ids:
            self.collision_count += 1
            return self.colliding_ids.pop(0)
        return self.generate()


def use_colliding_ids(
    environment: Environment, colliding_ids: Iterable[int] = ()
) -> CollidingIdGenerator:
    generator = CollidingIdGenerator(environment.new_id, list(colliding_ids))
    object.__setattr__(environment, "new_id", generator)
    return generator


async def load_newest_id(environment: Environment, table: type[SQLModel]) -> int:
    id_column = core_table(table).c.id
    return int(
        (await environment.database.read(select(id_column).order_by(id_column.desc()).limit(1)))[
            0
        ].id
    )


async def test_mutation_with_colliding_id_runs_again(
    ada: GraphQLClient, environment: Environment
) -> None:
    generator = use_colliding_ids(environment, [await load_newest_id(environment, Mailbox)])
    payload = await ada(
        """mutation { mailboxCreate(input: {paths: ["Taken"]}) {
          mailboxes { path } errors { code } } }"""
    )
    assert payload["mailboxCreate"] == {"mailboxes": [{"path": "Taken"}], "errors": []}
    assert generator.collision_count == 1


async def test_user_with_colliding_id_is_not_a_conflict(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    generator = use_colliding_ids(root.environment, [ada.user.id])
    arguments = {"username": "grace", "address": "grace@example.org", "password": "long enough 17!"}
    document = """mutation ($input: UserCreateInput!) { userCreate(input: $input) {
      user { username } errors { code path } } }"""
    assert (await root(document, input=arguments))["userCreate"] == {
        "user": {"username": "grace"},
        "errors": [],
    }
    assert generator.collision_count == 1
    errors_ = (await root(document, input=arguments))["userCreate"]["errors"]
    assert [error["code"] for error in errors_] == ["CONFLICT"]


async def test_atomic_request_with_colliding_id_runs_again(
    ada: GraphQLClient, environment: Environment
) -> None:
    use_colliding_ids(environment, [await load_newest_id(environment, Mailbox)])
    payload = await ada(
        """mutation @atomic {
          a: mailboxCreate(input: {paths: ["A"]}) { errors { code } }
          b: mailboxCreate(input: {paths: ["B"]}) { errors { code } } }"""
    )
    assert payload == {"a": {"errors": []}, "b": {"errors": []}}


async def test_delivery_with_colliding_id_is_stored(
    ada: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "First")
    for table in (Message, Blob):
        generator = use_colliding_ids(environment)
        newest_id = await load_newest_id(environment, table)
        before = len(await environment.database.read(select(col(Message.id))))
        generator.colliding_ids = [newest_id]
        await deliver_to(ada, f"Beside a {table.__tablename__}")
        assert len(await environment.database.read(select(col(Message.id)))) == before + 1


@pytest.mark.usefixtures("ada")
async def test_only_generated_ids_are_collisions(environment: Environment) -> None:
    def insert_copy(transaction: DatabaseTransaction, **changes: Any) -> None:
        row = transaction.connection.execute(select(core_table(User))).mappings().first()
        assert row is not None
        transaction.connection.execute(insert(core_table(User)), {**row, **changes})

    attempts = list[int]()

    def insert_same_id(transaction: DatabaseTransaction) -> None:
        attempts.append(1)
        insert_copy(transaction, username="other", username_key="other")

    def insert_same_name(transaction: DatabaseTransaction) -> None:
        attempts.append(1)
        insert_copy(transaction, id=environment.new_id())

    with pytest.raises(GeneratedIdCollision) as collision:
        await environment.run_transaction(insert_same_id)
    assert is_generated_id_collision(collision.value)
    assert len(attempts) == 3
    attempts.clear()
    with pytest.raises(Exception, match=r"(?i)unique") as conflict:
        await environment.run_transaction(insert_same_name)
    assert not is_generated_id_collision(conflict.value)
    assert len(attempts) == 1
