"""The table of trusted documents on both databases."""

import hashlib

import pytest

from merganser.server.environment_factory import root_context
from models.errors import Forbidden, NotFound
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.admin import trusted_documents
from resolvers.admin.trusted_documents import NewTrustedDocument, hash_of
from resolvers.context import MAX_BATCH_KEYS, Context
from resolvers.viewer import Viewer
from tests.conftest import ManualClock


def new_document(number: int) -> NewTrustedDocument:
    return NewTrustedDocument(f"query Q{number} {{ viewer {{ role }} }}", (f"Q{number}",))


def test_hash_is_sha256_of_the_utf8_text() -> None:
    assert hash_of("{ a } # ü").hex() == hashlib.sha256("{ a } # ü".encode()).hexdigest()


async def test_documents_are_added_once_listed_and_removed(
    environment: Environment, clock: ManualClock
) -> None:
    ctx = root_context(environment)
    assert (
        await trusted_documents.add_documents_and_count_new(
            ctx, [new_document(1), new_document(2), new_document(1)]
        )
        == 2
    )
    clock.tick(hours=1)
    assert (
        await trusted_documents.add_documents_and_count_new(ctx, [new_document(1), new_document(3)])
        == 1
    )
    rows = await trusted_documents.list_documents(ctx)
    assert sorted(row.operations[0] for row in rows) == ["Q1", "Q2", "Q3"]
    assert rows[-1].operations == ["Q3"]
    assert rows[-1].added_at == clock.time
    document_hash = hash_of(new_document(1).text)
    assert (
        await trusted_documents.find_document_text(environment, document_hash)
        == new_document(1).text
    )
    await trusted_documents.remove_trusted_documents(ctx, [document_hash])
    assert await trusted_documents.find_document_text(environment, document_hash) is None
    assert len(await trusted_documents.list_documents(ctx)) == 2


async def test_many_documents_are_added_in_few_statements(
    environment: Environment, statements: list[str]
) -> None:
    documents = [new_document(number) for number in range(2 * MAX_BATCH_KEYS + 1)]
    assert await trusted_documents.add_documents_and_count_new(
        root_context(environment), documents
    ) == len(documents)
    assert (
        len(
            [
                statement
                for statement in statements
                if statement.startswith("INSERT INTO trusted_documents")
            ]
        )
        == 3
    )
    assert len(await trusted_documents.list_documents(root_context(environment))) == len(documents)
    assert await trusted_documents.add_documents_and_count_new(root_context(environment), []) == 0


async def test_removal_is_all_or_nothing(environment: Environment) -> None:
    await trusted_documents.add_documents_and_count_new(
        root_context(environment), [new_document(1)]
    )
    document_hash = hash_of(new_document(1).text)
    with pytest.raises(NotFound) as raised:
        await trusted_documents.remove_trusted_documents(
            root_context(environment), [document_hash, b"\0" * 32]
        )
    assert (raised.value.ref, raised.value.index) == ("00" * 32, 1)
    assert (
        await trusted_documents.find_document_text(environment, document_hash)
        == new_document(1).text
    )


async def test_only_root_can_manage_trusted_documents(environment: Environment) -> None:
    admin = Context(environment, Viewer(1, Role.ADMIN, frozenset({Scope.FULL})))
    for operation in (
        trusted_documents.add_documents_and_count_new(admin, [new_document(1)]),
        trusted_documents.remove_trusted_documents(admin, [b"\0" * 32]),
        trusted_documents.list_documents(admin),
    ):
        with pytest.raises(Forbidden):
            await operation


async def test_non_ascii_text_is_stored_unchanged(environment: Environment) -> None:
    document = NewTrustedDocument("query Ä { viewer { role } } # \U0001f426 \r\n ü", ("Ä", "日本"))
    await trusted_documents.add_documents_and_count_new(root_context(environment), [document])
    assert (
        await trusted_documents.find_document_text(environment, hash_of(document.text))
        == document.text
    )
    (row,) = await trusted_documents.list_documents(root_context(environment))
    assert tuple(row.operations) == document.operations
