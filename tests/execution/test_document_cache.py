"""What is kept of documents."""

from graphql import OperationType

from graph.execution.documents.cost_limits import Limits
from graph.execution.documents.document_cache import (
    KEPT_MAX,
    PLAN,
    TEXT_MAX,
    TOKEN,
    Documents,
    Known,
    Shelf,
)
from tests.support.servers.small_schema_server import make_schema

SCHEMA = make_schema().documents.schema


def documents() -> Documents:
    return Documents(SCHEMA, Limits())


def test_a_document_is_read_once() -> None:
    found = documents()
    first = found.find("{ hello }", None)
    assert (len(found.once), len(found.good)) == (1, 0)
    assert [found.find("{ hello }", None) for _ in range(2)] == [first, first]
    assert (len(found.once), len(found.good), len(found.bad)) == (0, 1, 0)


def test_a_bad_document_is_judged_once_and_lies_apart() -> None:
    found = documents()
    for query in ("{ nothing }", "{ hello"):
        assert found.find(query, None) is found.find(query, None)
    assert (len(found.once), len(found.good), len(found.bad)) == (0, 0, 2)


def test_errors_are_made_anew_for_each_answer() -> None:
    (fault,) = documents().find("{ nothing }", None).faults
    one, other = fault.error(), fault.error()
    assert one is not other
    assert one.formatted == other.formatted
    assert one.formatted["locations"] == [{"line": 1, "column": 3}]
    assert one.nodes is None  # or the document would be kept with it


def test_operations_of_one_document_are_told_apart() -> None:
    found = documents()
    text = 'query a { hello } mutation b { change(text: "") } subscription c { count }'
    kinds = [found.find(text, name).kind for name in "abc"]
    assert kinds == [OperationType.QUERY, OperationType.MUTATION, OperationType.SUBSCRIPTION]
    for name in (None, "d"):
        assert [fault.code for fault in found.find(text, name).faults] == ["BAD_USER_INPUT"]


def test_a_long_document_is_read_but_not_kept() -> None:
    found = documents()
    for query in ("{ hello }", "{ nothing }"):
        long = found.find(query + " " * KEPT_MAX, None)
        assert bool(long.faults) == ("nothing" in query)
    assert (len(found.once), len(found.good), len(found.bad)) == (0, 0, 0)


def test_a_document_that_is_too_long_is_not_read() -> None:
    (fault,) = documents().find("{ hello }" + " " * TEXT_MAX, None).faults
    assert fault.code == "TOO_LARGE"


def test_comments_and_tokens_are_bounded() -> None:
    for text in ("#\n" * 2000 + "{ hello }", "{ " + "hello " * 6000 + "}"):
        (fault,) = documents().find(text, None).faults
        assert fault.code == "GRAPHQL_PARSE_FAILED"


def twice(found: Documents, text: str) -> Known:
    found.find(text, None)
    return found.find(text, None)


def test_a_thousand_documents_are_kept_and_the_last_used_longest() -> None:
    found = documents()
    first = twice(found, "{ hello }")
    for number in range(999):
        twice(found, f"{{ a{number}: hello }}")
    assert found.find("{ hello }", None) is first
    twice(found, "{ item { name } }")
    assert found.find("{ hello }", None) is first
    assert len(found.good) == 1000
    assert found.good.get(("{ a0: hello }", None)) is None


def test_a_flood_of_different_documents_displaces_none_in_use() -> None:
    found = documents()
    first = twice(found, "{ hello }")
    for number in range(600):
        found.find(f"{{ a{number}: hello }}", None)
    assert found.find("{ hello }", None) is first
    assert (len(found.once), len(found.good)) == (500, 1)


def test_a_flood_of_bad_documents_displaces_no_good_one() -> None:
    found = documents()
    first = found.find("{ hello }", None)
    for number in range(300):
        found.find(f"{{ nothing{number} }}", None)
    assert found.find("{ hello }", None) is first
    assert len(found.bad) == 200


def test_a_document_weighs_what_its_tokens_take() -> None:
    found = documents()
    weight = len("{ hello }") + 5 * (TOKEN + PLAN)  # with both ends of the file
    found.find("{ hello }", None)
    assert (found.once.taken, found.good.taken) == (weight, 0)
    found.find("{ hello }", None)
    assert (found.once.taken, found.good.taken) == (0, weight)


def test_each_outcome_of_a_directive_weighs_as_a_plan() -> None:
    found = documents()
    deciding = "query ($a: Boolean!, $b: Boolean!) { hello @skip(if: $a) x: hello @skip(if: $b) }"
    known = found.find(deciding, None)
    assert known.book is not None
    assert known.book.outcomes == 4
    assert found.once.taken == len(deciding) + 37 * (TOKEN + 4 * PLAN)


def test_a_shelf_is_bounded_in_bytes() -> None:
    shelf: Shelf[str] = Shelf(entries=100, room=10)
    for key in "abc":
        shelf.put(key, key, size=4)
    assert [shelf.get(key) for key in "abc"] == [None, "b", "c"]
    shelf.put("d", "d", size=11)
    assert shelf.get("d") is None
    assert shelf.taken == 8
