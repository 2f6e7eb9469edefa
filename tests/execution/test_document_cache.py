"""What is kept of documents."""

from graphql import OperationType

from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import (
    BYTES_PER_COMPILED_TOKEN,
    BYTES_PER_PARSED_TOKEN,
    MAX_CACHED_LENGTH,
    MAX_DOCUMENT_LENGTH,
    DocumentCache,
    PreparedDocument,
    SizedLruCache,
)
from tests.support.servers.small_schema_server import make_schema

SCHEMA = make_schema().documents.schema


def documents() -> DocumentCache:
    return DocumentCache(SCHEMA, OperationLimits())


def test_a_document_is_read_once() -> None:
    found = documents()
    first = found.find_or_read("{ hello }", None)
    assert (len(found.used_once), len(found.used_again)) == (1, 0)
    assert [found.find_or_read("{ hello }", None) for _ in range(2)] == [first, first]
    assert (len(found.used_once), len(found.used_again), len(found.refused)) == (0, 1, 0)


def test_a_bad_document_is_judged_once_and_lies_apart() -> None:
    found = documents()
    for query in ("{ nothing }", "{ hello"):
        assert found.find_or_read(query, None) is found.find_or_read(query, None)
    assert (len(found.used_once), len(found.used_again), len(found.refused)) == (0, 0, 2)


def test_errors_are_made_anew_for_each_answer() -> None:
    (fault,) = documents().find_or_read("{ nothing }", None).faults
    one, other = fault.to_error(), fault.to_error()
    assert one is not other
    assert one.formatted == other.formatted
    assert one.formatted["locations"] == [{"line": 1, "column": 3}]
    assert one.nodes is None  # or the document would be kept with it


def test_operations_of_one_document_are_told_apart() -> None:
    found = documents()
    text = 'query a { hello } mutation b { change(text: "") } subscription c { count }'
    kinds = [found.find_or_read(text, name).operation_type for name in "abc"]
    assert kinds == [OperationType.QUERY, OperationType.MUTATION, OperationType.SUBSCRIPTION]
    for name in (None, "d"):
        assert [fault.code for fault in found.find_or_read(text, name).faults] == ["BAD_USER_INPUT"]


def test_a_long_document_is_read_but_not_kept() -> None:
    found = documents()
    for query in ("{ hello }", "{ nothing }"):
        long = found.find_or_read(query + " " * MAX_CACHED_LENGTH, None)
        assert bool(long.faults) == ("nothing" in query)
    assert (len(found.used_once), len(found.used_again), len(found.refused)) == (0, 0, 0)


def test_a_document_that_is_too_long_is_not_read() -> None:
    (fault,) = documents().find_or_read("{ hello }" + " " * MAX_DOCUMENT_LENGTH, None).faults
    assert fault.code == "TOO_LARGE"


def test_comments_and_tokens_are_bounded() -> None:
    for text in ("#\n" * 2000 + "{ hello }", "{ " + "hello " * 6000 + "}"):
        (fault,) = documents().find_or_read(text, None).faults
        assert fault.code == "GRAPHQL_PARSE_FAILED"


def twice(found: DocumentCache, text: str) -> PreparedDocument:
    found.find_or_read(text, None)
    return found.find_or_read(text, None)


def test_a_thousand_documents_are_kept_and_the_last_used_longest() -> None:
    found = documents()
    first = twice(found, "{ hello }")
    for number in range(999):
        twice(found, f"{{ a{number}: hello }}")
    assert found.find_or_read("{ hello }", None) is first
    twice(found, "{ item { name } }")
    assert found.find_or_read("{ hello }", None) is first
    assert len(found.used_again) == 1000
    assert found.used_again.get(("{ a0: hello }", None)) is None


def test_a_flood_of_different_documents_displaces_none_in_use() -> None:
    found = documents()
    first = twice(found, "{ hello }")
    for number in range(600):
        found.find_or_read(f"{{ a{number}: hello }}", None)
    assert found.find_or_read("{ hello }", None) is first
    assert (len(found.used_once), len(found.used_again)) == (500, 1)


def test_a_flood_of_bad_documents_displaces_no_good_one() -> None:
    found = documents()
    first = found.find_or_read("{ hello }", None)
    for number in range(300):
        found.find_or_read(f"{{ nothing{number} }}", None)
    assert found.find_or_read("{ hello }", None) is first
    assert len(found.refused) == 200


def test_a_document_weighs_what_its_tokens_take() -> None:
    found = documents()
    weight = len("{ hello }") + 5 * (
        BYTES_PER_PARSED_TOKEN + BYTES_PER_COMPILED_TOKEN
    )  # with both ends of the file
    found.find_or_read("{ hello }", None)
    assert (found.used_once.used_bytes, found.used_again.used_bytes) == (weight, 0)
    found.find_or_read("{ hello }", None)
    assert (found.used_once.used_bytes, found.used_again.used_bytes) == (0, weight)


def test_each_outcome_of_a_directive_weighs_as_a_plan() -> None:
    found = documents()
    deciding = "query ($a: Boolean!, $b: Boolean!) { hello @skip(if: $a) x: hello @skip(if: $b) }"
    known = found.find_or_read(deciding, None)
    assert known.plan_cache is not None
    assert known.plan_cache.max_outcomes == 4
    assert found.used_once.used_bytes == len(deciding) + 37 * (
        BYTES_PER_PARSED_TOKEN + 4 * BYTES_PER_COMPILED_TOKEN
    )


def test_a_shelf_is_bounded_in_bytes() -> None:
    shelf: SizedLruCache[str] = SizedLruCache(max_entries=100, max_bytes=10)
    for key in "abc":
        shelf.put(key, key, size=4)
    assert [shelf.get(key) for key in "abc"] == [None, "b", "c"]
    shelf.put("d", "d", size=11)
    assert shelf.get("d") is None
    assert shelf.used_bytes == 8
