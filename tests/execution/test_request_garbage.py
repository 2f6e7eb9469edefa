"""A request leaves no reference cycles: else its rows stay in memory until a garbage collection."""

import gc

from graph.execution.operation_execution import OperationContext
from resolvers.context import ContextLoader
from tests.conftest import GraphQLClient, deliver_to

PAGE_QUERY = "{ viewer { user { messages(first: 10) { nodes { id subject thread { id } } } } } }"


async def test_loaded_rows_are_freed_without_garbage_collection(ada: GraphQLClient) -> None:
    await deliver_to(ada)
    await ada(PAGE_QUERY)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(10):
            await ada(PAGE_QUERY)
        gc.collect()
        garbage = [type(found) for found in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert OperationContext not in garbage
    assert ContextLoader not in garbage
