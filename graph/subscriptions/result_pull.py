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


class PulledResults:
    """The results of one operation of any type, pulled one by one."""

    def __init__(
        self, groups: SubscriptionGroups, request: GraphqlRequest, context: Context
    ) -> None:
        self._outbox, self._sink = ResultQueue[Subscriber](), PullSink(1)
        self._subscriber = Subscriber(groups, request, context, self._outbox, self._sink)

    @property
    def is_subscription(self) -> bool:
        """True while a subscription runs, false for a query or mutation."""
        return self._subscriber.observer is not None

    async def pull_results(self) -> AsyncGenerator[StreamResult]:
        """Yield the results; the next is read when the reader asks for it."""
        self._subscriber.start()
        try:
            while (result := await self._sink.get()) is not None:
                yield result
                self._sink.task_done()
        finally:
            self._subscriber.end_subscription()
            self._outbox.close()
