"""The table of trusted documents, on each store."""

import hashlib

import pytest

from merganser.server.environment_factory import root_context
from models.errors import Forbidden, NotFound
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.admin import trusted_documents
from resolvers.admin.trusted_documents import NewTrustedDocument, hash_of
from resolvers.context import MAX_BATCH_KEYS, Context, Viewer
from tests.conftest import Clock


def made(number: int) -> NewTrustedDocument:
    return NewTrustedDocument(f"query Q{number} {{ viewer {{ role }} }}", (f"Q{number}",))


def test_a_hash_is_that_of_the_text_in_utf_8() -> None:
    assert hash_of("{ a } # ü").hex() == hashlib.sha256("{ a } # ü".encode()).hexdigest()


async def test_documents_are_added_once_listed_and_removed(
    world: Environment, clock: Clock
) -> None:
    ctx = root_context(world)
    assert await trusted_documents.add_documents(ctx, [made(1), made(2), made(1)]) == 2
    clock.tick(hours=1)
    assert await trusted_documents.add_documents(ctx, [made(1), made(3)]) == 1
    rows = await trusted_documents.list_documents(ctx)
    assert sorted(row.operations[0] for row in rows) == ["Q1", "Q2", "Q3"]
    assert rows[-1].operations == ["Q3"]
    assert rows[-1].added_at == clock.time
    key = hash_of(made(1).text)
    assert await trusted_documents.find_document_text(world, key) == made(1).text
    await trusted_documents.remove_documents(ctx, [key])
    assert await trusted_documents.find_document_text(world, key) is None
    assert len(await trusted_documents.list_documents(ctx)) == 2


async def test_many_are_added_in_few_statements(world: Environment, statements: list[str]) -> None:
    many = [made(number) for number in range(2 * MAX_BATCH_KEYS + 1)]
    assert await trusted_documents.add_documents(root_context(world), many) == len(many)
    assert len([one for one in statements if one.startswith("INSERT INTO documents")]) == 3
    assert len(await trusted_documents.list_documents(root_context(world))) == len(many)
    assert await trusted_documents.add_documents(root_context(world), []) == 0


async def test_removal_is_all_or_nothing(world: Environment) -> None:
    await trusted_documents.add_documents(root_context(world), [made(1)])
    key = hash_of(made(1).text)
    with pytest.raises(NotFound) as refused:
        await trusted_documents.remove_documents(root_context(world), [key, b"\0" * 32])
    assert (refused.value.ref, refused.value.index) == ("00" * 32, 1)
    assert await trusted_documents.find_document_text(world, key) == made(1).text


async def test_only_who_owns_the_machine_may(world: Environment) -> None:
    admin = Context(world, Viewer(1, Role.ADMIN, frozenset({Scope.MASTER})))
    for work in (
        trusted_documents.add_documents(admin, [made(1)]),
        trusted_documents.remove_documents(admin, [b"\0" * 32]),
        trusted_documents.list_documents(admin),
    ):
        with pytest.raises(Forbidden):
            await work


async def test_a_text_of_any_language_survives(world: Environment) -> None:
    strange = NewTrustedDocument("query Ä { viewer { role } } # \U0001f426 \r\n ü", ("Ä", "日本"))
    await trusted_documents.add_documents(root_context(world), [strange])
    assert await trusted_documents.find_document_text(world, hash_of(strange.text)) == strange.text
    (row,) = await trusted_documents.list_documents(root_context(world))
    assert tuple(row.operations) == strange.operations
