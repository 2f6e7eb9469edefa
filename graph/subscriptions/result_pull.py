"""Results of a shared subscription, pulled one by one."""

import asyncio
from collections.abc import AsyncGenerator

from graph.http.graphql_request import GraphqlRequest
from graph.subscriptions.result_queue import ResultQueue
from graph.subscriptions.result_stream import StreamResult
from graph.subscriptions.shared_subscriptions import Subscriber, SubscriptionGroups
from resolvers.context import Context


class PullSink(asyncio.Queue[StreamResult | None]):
    """A sink for a reader that pulls results one by one."""

    async def send(self, result: StreamResult | None) -> None:
        """Pass a result to the reader; returns when the reader asks for the next one."""
        await self.put(result)
        await self.join()


async def pull_results(
    groups: SubscriptionGroups, request: GraphqlRequest, context: Context
) -> AsyncGenerator[StreamResult]:
    """Yield the results of an operation; the next is read when the reader asks for it."""
    outbox, sink = ResultQueue[Subscriber](), PullSink(1)
    seat = Subscriber(groups, request, context, outbox, sink)
    seat.start()
    try:
        while (result := await sink.get()) is not None:
            yield result
            sink.task_done()
    finally:
        seat.leave()
        outbox.close()
