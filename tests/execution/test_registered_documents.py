"""Registration of documents by their hash: invalid hashes, limits and eviction."""

import hashlib
from typing import Any, cast

import pytest
from graphql import build_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import (
    MAX_CACHED_LENGTH,
    MAX_DOCUMENT_LENGTH,
    DocumentCache,
    PreparedDocument,
)
from graph.execution.documents.documents_by_hash import (
    DocumentsByHash,
    UnknownDocumentRejected,
    parse_document_hash_or_none,
)
from graph.http.graphql_request import GraphqlRequest, RequestRejected
from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import ManualClock
from tests.support.clients.document_requests import (
    ANONYMOUS,
    BAD_INPUT,
    ECHO_QUERY,
    HELLO_QUERY,
    USER,
    request_by_apollo_hash,
    request_by_id,
    sha256_hex,
)


@pytest.mark.parametrize(
    "members",
    [
        {"documentId": "abc"},
        {"documentId": "sha256:"},
        {"documentId": "sha256:" + "A" * 64},
        {"documentId": "md5:" + "0" * 32},
        {"documentId": "x-mine:" + "0" * 64},
        {"documentId": "sha256:sha256:" + "0" * 64},
        {"documentId": " " + "0" * 64},
        {"documentId": "0" * 64 + "\n"},
        {"extensions": {"persistedQuery": {}}},
        {"extensions": {"persistedQuery": []}},
        {"extensions": {"persistedQuery": True}},
        {"extensions": {"persistedQuery": {"version": 2, "sha256Hash": "0" * 64}}},
        {"extensions": {"persistedQuery": {"version": True, "sha256Hash": "0" * 64}}},
        {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 63}}},
        {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": 0}}},
        {**request_by_id(HELLO_QUERY), **request_by_apollo_hash(ECHO_QUERY)},
        request_by_id(ECHO_QUERY, query=HELLO_QUERY),
        request_by_apollo_hash(ECHO_QUERY, query=HELLO_QUERY),
    ],
)
async def test_malformed_document_id_is_bad_input(members: dict[str, Any]) -> None:
    request = GraphqlRequest(
        members.get("query", ""),
        extensions=members.get("extensions"),
        document_id=members.get("documentId"),
    )
    for only_trusted in (False, True):
        with pytest.raises(RequestRejected) as rejection:
            await new_documents_by_hash({}, only_trusted=only_trusted).resolve_or_register_document(
                request, context_of()
            )
        assert (rejection.value.status, rejection.value.code) == (400, BAD_INPUT)


@settings(max_examples=50)
@given(st.text() | st.from_regex(r"\A(sha256:)?[0-9a-f]{64}\Z"))
def test_random_document_id_is_a_hash_or_refused(text: str) -> None:
    try:
        document_hash = parse_document_hash_or_none(GraphqlRequest("", document_id=text))
    except RequestRejected:
        return
    assert document_hash
    assert document_hash.digest.hex() == text.removeprefix("sha256:")


SCHEMA = build_schema("type Query { hello: String other(a: Int): String }")


def new_documents_by_hash(texts: dict[str, str], *, only_trusted: bool = False) -> DocumentsByHash:
    """Return documents by hash over a store with these texts, by the hex digits of their hashes."""

    async def find(digest: bytes) -> str | None:
        return texts.get(digest.hex())

    cache = DocumentCache(SCHEMA, OperationLimits())

    def prepare(_context: Context, text: str, name: str | None) -> PreparedDocument:
        return cache.find_or_prepare_with_faults(text, name)

    return DocumentsByHash(prepare, find, ManualClock(), only_trusted=only_trusted)


def context_of(viewer: Viewer = USER) -> Context:
    return Context(cast("Environment", None), viewer)  # no field reads the environment


async def register(documents_by_hash: DocumentsByHash, text: str, viewer: Viewer = USER) -> None:
    await documents_by_hash.resolve_or_register_document(
        GraphqlRequest(text, document_id=sha256_hex(text)), context_of(viewer)
    )


async def is_known(documents_by_hash: DocumentsByHash, text: str) -> bool:
    try:
        document = await documents_by_hash.resolve_or_register_document(
            GraphqlRequest("", document_id=sha256_hex(text)), context_of()
        )
    except UnknownDocumentRejected:
        return False
    return document.document_text == text


async def test_only_valid_documents_are_registered() -> None:
    documents_by_hash = new_documents_by_hash({})
    for text in (
        "{ hello",
        "{ nothing }",
        "{ hello }" + " " * MAX_CACHED_LENGTH,
        "x" * (MAX_DOCUMENT_LENGTH + 1),
    ):
        await register(documents_by_hash, text)
        assert not await is_known(documents_by_hash, text)
    await register(documents_by_hash, "{ hello }")
    assert await is_known(documents_by_hash, "{ hello }")


async def test_registered_documents_do_not_evict_trusted_documents() -> None:
    documents_by_hash = new_documents_by_hash({sha256_hex(HELLO_QUERY): HELLO_QUERY})
    assert await is_known(documents_by_hash, HELLO_QUERY)
    documents_by_hash.registered.max_entries = 50  # the default of 1,000 would take a second
    for number in range(100):
        await register(documents_by_hash, f"{{ other(a: {number}) }}")
    assert (len(documents_by_hash.registered), len(documents_by_hash.trusted)) == (50, 1)
    assert not await is_known(documents_by_hash, "{ other(a: 0) }")
    assert await is_known(documents_by_hash, "{ other(a: 99) }")
    assert documents_by_hash.trusted.get(hashlib.sha256(HELLO_QUERY.encode()).digest())


async def test_anonymous_registrations_do_not_evict_those_of_users() -> None:
    documents_by_hash = new_documents_by_hash({})
    await register(documents_by_hash, "{ hello }")
    for number in range(150):
        await register(documents_by_hash, f"{{ other(a: {number}) }}", ANONYMOUS)
    assert (len(documents_by_hash.registered_by_anonymous), len(documents_by_hash.registered)) == (
        100,
        1,
    )
    assert await is_known(documents_by_hash, "{ hello }")
    assert await is_known(documents_by_hash, "{ other(a: 149) }")


async def test_registered_documents_are_limited_in_bytes() -> None:
    documents_by_hash = new_documents_by_hash({})
    for number in range(100):
        await register(documents_by_hash, f"{{ other(a: {number}) }}" + "#" * 30_000, ANONYMOUS)
    assert documents_by_hash.registered_by_anonymous.used_bytes <= 1 << 20
    assert len(documents_by_hash.registered_by_anonymous) < 40


async def test_unknown_hashes_are_not_cached() -> None:
    documents_by_hash = new_documents_by_hash({})
    for number in range(1_000):
        assert not await is_known(documents_by_hash, str(number))
    assert (
        len(documents_by_hash.trusted),
        len(documents_by_hash.registered),
        len(documents_by_hash.registered_by_anonymous),
    ) == (0, 0, 0)
