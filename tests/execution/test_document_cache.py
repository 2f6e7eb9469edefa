"""The cache of parsed and validated documents."""

from graphql import DocumentNode, OperationType, TypeInfo, ValidationContext
from graphql.language import Visitor
from graphql.language.ast import QUERY_DOCUMENT_KEYS

from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import (
    BYTES_PER_COMPILED_TOKEN,
    BYTES_PER_PARSED_TOKEN,
    MAX_CACHED_LENGTH,
    MAX_DOCUMENT_LENGTH,
    RULES,
    DocumentCache,
    PreparedDocument,
    SizedLruCache,
)
from tests.support.servers.small_schema_server import make_schema

SCHEMA = make_schema().documents.schema


def new_cache() -> DocumentCache:
    return DocumentCache(SCHEMA, OperationLimits())


def test_document_is_parsed_once() -> None:
    cache = new_cache()
    first = cache.find_or_prepare_with_faults("{ hello }", None)
    assert (len(cache.used_once), len(cache.used_again)) == (1, 0)
    assert [cache.find_or_prepare_with_faults("{ hello }", None) for _ in range(2)] == [
        first,
        first,
    ]
    assert (len(cache.used_once), len(cache.used_again), len(cache.refused)) == (0, 1, 0)


def test_invalid_document_is_validated_once_and_cached_separately() -> None:
    cache = new_cache()
    for query in ("{ nothing }", "{ hello"):
        assert cache.find_or_prepare_with_faults(query, None) is cache.find_or_prepare_with_faults(
            query, None
        )
    assert (len(cache.used_once), len(cache.used_again), len(cache.refused)) == (0, 0, 2)


def test_each_response_gets_new_error_objects() -> None:
    (fault,) = new_cache().find_or_prepare_with_faults("{ nothing }", None).faults
    first, second = fault.to_error(), fault.to_error()
    assert first is not second
    assert first.formatted == second.formatted
    assert first.formatted["locations"] == [{"line": 1, "column": 3}]
    assert first.nodes is None  # else the error would keep the document in memory


def test_operations_of_one_document_are_selected_by_name() -> None:
    cache = new_cache()
    text = 'query a { hello } mutation b { change(text: "") } subscription c { count }'
    kinds = [cache.find_or_prepare_with_faults(text, name).operation_type for name in "abc"]
    assert kinds == [OperationType.QUERY, OperationType.MUTATION, OperationType.SUBSCRIPTION]
    for name in (None, "d"):
        assert [fault.code for fault in cache.find_or_prepare_with_faults(text, name).faults] == [
            "BAD_USER_INPUT"
        ]


def test_long_document_is_parsed_but_not_cached() -> None:
    cache = new_cache()
    for query in ("{ hello }", "{ nothing }"):
        prepared = cache.find_or_prepare_with_faults(query + " " * MAX_CACHED_LENGTH, None)
        assert bool(prepared.faults) == ("nothing" in query)
    assert (len(cache.used_once), len(cache.used_again), len(cache.refused)) == (0, 0, 0)


def test_too_long_document_is_refused_without_parsing() -> None:
    (fault,) = (
        new_cache()
        .find_or_prepare_with_faults("{ hello }" + " " * MAX_DOCUMENT_LENGTH, None)
        .faults
    )
    assert fault.code == "TOO_LARGE"


def test_number_of_comments_and_tokens_is_limited() -> None:
    for text in ("#\n" * 2000 + "{ hello }", "{ " + "hello " * 6000 + "}"):
        (fault,) = new_cache().find_or_prepare_with_faults(text, None).faults
        assert fault.code == "GRAPHQL_PARSE_FAILED"


def prepare_twice(cache: DocumentCache, text: str) -> PreparedDocument:
    cache.find_or_prepare_with_faults(text, None)
    return cache.find_or_prepare_with_faults(text, None)


def test_thousand_documents_are_cached_and_least_recent_is_evicted() -> None:
    cache = new_cache()
    first = prepare_twice(cache, "{ hello }")
    for number in range(999):
        prepare_twice(cache, f"{{ a{number}: hello }}")
    assert cache.find_or_prepare_with_faults("{ hello }", None) is first
    prepare_twice(cache, "{ item { name } }")
    assert cache.find_or_prepare_with_faults("{ hello }", None) is first
    assert len(cache.used_again) == 1000
    assert cache.used_again.get(("{ a0: hello }", None)) is None


def test_documents_used_once_do_not_evict_documents_used_again() -> None:
    cache = new_cache()
    first = prepare_twice(cache, "{ hello }")
    for number in range(600):
        cache.find_or_prepare_with_faults(f"{{ a{number}: hello }}", None)
    assert cache.find_or_prepare_with_faults("{ hello }", None) is first
    assert (len(cache.used_once), len(cache.used_again)) == (500, 1)


def test_invalid_documents_do_not_evict_valid_documents() -> None:
    cache = new_cache()
    first = cache.find_or_prepare_with_faults("{ hello }", None)
    for number in range(300):
        cache.find_or_prepare_with_faults(f"{{ nothing{number} }}", None)
    assert cache.find_or_prepare_with_faults("{ hello }", None) is first
    assert len(cache.refused) == 200


def test_cached_size_of_document_depends_on_its_tokens() -> None:
    cache = new_cache()
    # with the tokens of start and end of the file
    size = len("{ hello }") + 5 * (BYTES_PER_PARSED_TOKEN + BYTES_PER_COMPILED_TOKEN)
    cache.find_or_prepare_with_faults("{ hello }", None)
    assert (cache.used_once.used_bytes, cache.used_again.used_bytes) == (size, 0)
    cache.find_or_prepare_with_faults("{ hello }", None)
    assert (cache.used_once.used_bytes, cache.used_again.used_bytes) == (0, size)


def test_cached_size_counts_a_plan_for_each_directive_outcome() -> None:
    cache = new_cache()
    text = "query ($a: Boolean!, $b: Boolean!) { hello @skip(if: $a) x: hello @skip(if: $b) }"
    prepared = cache.find_or_prepare_with_faults(text, None)
    assert prepared.plan_cache is not None
    assert prepared.plan_cache.max_plan_count == 4
    assert cache.used_once.used_bytes == len(text) + 37 * (
        BYTES_PER_PARSED_TOKEN + 4 * BYTES_PER_COMPILED_TOKEN
    )


def test_lru_cache_is_limited_in_bytes() -> None:
    lru_cache: SizedLruCache[str] = SizedLruCache(max_entries=100, max_bytes=10)
    for key in "abc":
        lru_cache.put_unless_present_or_too_large(key, key, size=4)
    assert [lru_cache.get(key) for key in "abc"] == [None, "b", "c"]
    lru_cache.put_unless_present_or_too_large("d", "d", size=11)
    assert lru_cache.get("d") is None
    assert lru_cache.used_bytes == 8


def test_rules_with_cached_handlers_have_the_handlers_of_graphql_core() -> None:
    context = ValidationContext(SCHEMA, DocumentNode(definitions=()), TypeInfo(SCHEMA), print)
    handlers = []
    for rule_class in RULES:
        rule = rule_class(context)
        for kind in QUERY_DOCUMENT_KEYS:
            cached = rule.get_enter_leave_for_kind(kind)
            assert cached == Visitor.get_enter_leave_for_kind(rule, kind), (rule_class, kind)
            handlers += [handler for handler in cached if handler]
    assert len(handlers) >= len(RULES)
