"""Results of introspection queries, which are the same for all callers."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from graphql import OperationType
from strawberry.types import ExecutionResult

from graph.execution.documents.document_cache import PreparedDocument
from graph.execution.json_encoding import encode_in_steps

INTROSPECTION_FIELDS = frozenset({"__schema", "__type"})
MAX_RESULTS = 4
MAX_RESULT_BYTES = 4 << 20  # of JSON


class IntrospectionResults:
    """The last results of queries that read only the schema and have no variables, as JSON.

    To execute the query of GraphiQL takes as much CPU time as hundreds of other requests.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[tuple[str, str | None], Mapping[str, bytes]] = OrderedDict()

    async def find_or_execute(
        self,
        document: PreparedDocument,
        execute: Callable[[], Awaitable[ExecutionResult]],
        max_response_bytes: int,
    ) -> ExecutionResult:
        """Return the result of a query that `is_introspection_only` and has no variables."""
        source = document.document.loc.source.body if document.document.loc else ""
        key = source, document.operation_name
        stored = self._results.get(key)
        if stored is not None and sum(map(len, stored.values())) < max_response_bytes:
            self._results.move_to_end(key)
            return _result_of_json(stored)
        result = await execute()
        if result.errors or not result.data:
            return result
        encoded = {
            name: await asyncio.to_thread(encode_in_steps, value)
            for name, value in result.data.items()
        }
        if sum(map(len, encoded.values())) <= MAX_RESULT_BYTES:
            self._results[key] = encoded
            if len(self._results) > MAX_RESULTS:
                self._results.popitem(last=False)
        return _result_of_json(encoded)


def is_introspection_only(document: PreparedDocument) -> bool:
    """True if all root fields of a query read the schema."""
    return (
        document.operation_type is OperationType.QUERY
        and bool(document.root_fields)
        and document.root_fields <= INTROSPECTION_FIELDS
    )


def _result_of_json(encoded: Mapping[str, bytes]) -> ExecutionResult:
    data: dict[str, Any] = {name: orjson.Fragment(value) for name, value in encoded.items()}
    return ExecutionResult(data, None)
