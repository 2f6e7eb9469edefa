"""Counters match the rows after random operations of two accounts."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from models.errors import RequestError
from models.runtime.environment import Environment
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.rename import MailboxRename
from resolvers.messages.bulk import bulk_changes, undo
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to
from tests.support.stores.counter_check import assert_store_consistent

PATHS = ["INBOX", "Sent", "A", "A/B", "a", "C"]
Step = tuple[str, int, dict[str, Any]]  # operation, index of the client, arguments

paths = some.sampled_from(PATHS)
selectors = some.one_of(
    some.fixed_dictionaries({"mailbox": paths.map(lambda path: MailboxSelector(path=path))}),
    some.fixed_dictionaries(
        {
            "mailbox": paths.map(lambda path: MailboxSelector(path=path)),
            "uids": some.sampled_from(["1", "1:2", "3:*"]),
        }
    ),
    some.fixed_dictionaries(
        {
            "conditions": some.sampled_from(
                [MessageConditions(), MessageConditions(seen=True), MessageConditions(query="s")]
            )
        }
    ),
)
flag_lists = some.lists(some.sampled_from(["\\Seen", "\\Draft", "x", "y"]), max_size=2)
steps = some.one_of(
    some.tuples(
        some.just("deliver"),
        some.integers(0, 1),
        some.fixed_dictionaries({"size": some.integers(0, 99)}),
    ),
    some.tuples(
        some.just("update"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": selectors, "add": flag_lists, "remove": flag_lists}),
    ),
    some.tuples(
        some.just("move"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": selectors, "to": paths}),
    ),
    some.tuples(
        some.just("delete"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": selectors, "permanent": some.booleans()}),
    ),
    some.tuples(some.just("undo"), some.integers(0, 1), some.just({})),
    some.tuples(some.just("create"), some.integers(0, 1), some.fixed_dictionaries({"path": paths})),
    some.tuples(
        some.just("rename"),
        some.integers(0, 1),
        some.fixed_dictionaries({"path": paths, "to": paths}),
    ),
    some.tuples(
        some.just("drop"),
        some.integers(0, 1),
        some.fixed_dictionaries({"path": paths, "recursive": some.booleans()}),
    ),
)


class RandomOperations:
    """Operations of two accounts, with the undo tokens of each account."""

    def __init__(self, *clients: GraphQLClient) -> None:
        self.clients = clients
        self.tokens: list[list[str]] = [[] for _ in clients]
        self.delivered = 0

    async def step(self, operation: str, client_index: int, arguments: dict[str, Any]) -> None:
        methods: dict[str, Callable[..., Awaitable[None]]] = {
            "deliver": self.deliver,
            "update": self.update,
            "move": self.move,
            "delete": self.delete,
            "undo": self.undo,
            "create": self.create,
            "rename": self.rename,
            "drop": self.drop,
        }
        with suppress(RequestError):
            await methods[operation](client_index, **arguments)

    async def apply_request(self, client_index: int, request: BulkRequest) -> None:
        result = await bulk_changes.apply_or_queue_bulk_request(
            client_context(self.clients[client_index]), request
        )
        if result.undo_token:
            self.tokens[client_index].append(result.undo_token)

    async def deliver(self, client_index: int, *, size: int) -> None:
        self.delivered += 1
        await deliver_to(self.clients[client_index], f"s {self.delivered} " + "x" * size)

    async def update(
        self, client_index: int, *, select: Any, add: list[str], remove: list[str]
    ) -> None:
        changes = FlagChanges.from_flag_names({}, added=add, removed=remove)
        await self.apply_request(client_index, BulkRequest(MessageSelector(**select), changes))

    async def move(self, client_index: int, *, select: Any, to: str) -> None:
        mailbox = await mailbox_loaders.require_own_or_shared_mailbox(
            client_context(self.clients[client_index]), MailboxSelector(path=to)
        )
        await self.apply_request(
            client_index,
            BulkRequest(MessageSelector(**select), target_mailbox=MailboxSelector(id=mailbox.id)),
        )

    async def delete(self, client_index: int, *, select: Any, permanent: bool) -> None:
        await self.apply_request(
            client_index,
            BulkRequest(MessageSelector(**select), is_delete=True, is_permanent=permanent),
        )

    async def undo(self, client_index: int) -> None:
        if self.tokens[client_index]:
            await undo.undo_by_token(
                client_context(self.clients[client_index]), self.tokens[client_index].pop()
            )

    async def create(self, client_index: int, *, path: str) -> None:
        await mailbox_create.create_mailboxes(
            client_context(self.clients[client_index]), NewMailboxes([path])
        )

    async def rename(self, client_index: int, *, path: str, to: str) -> None:
        request = MailboxRename(MailboxSelector(path=path), to)
        await rename.rename_mailbox(client_context(self.clients[client_index]), request)

    async def drop(self, client_index: int, *, path: str, recursive: bool) -> None:
        ctx = client_context(self.clients[client_index])
        await mailbox_delete.delete_mailboxes(
            ctx, MailboxDeletion([MailboxSelector(path=path)], is_recursive=recursive)
        )


def run_on_loop(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run_coroutine_threadsafe(coroutine, loop).result()


async def test_counters_match_after_random_operations(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    operations, loop = RandomOperations(ada, bob), asyncio.get_running_loop()

    async def run_and_check(step_list: list[Step]) -> None:
        for step in step_list:
            clock.tick(seconds=1)
            await operations.step(*step)
        await assert_store_consistent(environment)

    @given(some.lists(steps, min_size=5, max_size=25))
    @settings(
        max_examples=25,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    def check_steps(step_list: list[Step]) -> None:
        run_on_loop(loop, run_and_check(step_list))

    await asyncio.to_thread(check_steps)
    assert operations.delivered


async def test_counters_match_after_concurrent_operations(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    operations = RandomOperations(ada, bob)
    awaitables: list[Awaitable[None]] = []
    for n in range(40):
        client_index, selector = n % 2, {"conditions": MessageConditions(seen=False)}
        awaitables.append(operations.step("deliver", client_index, {"size": n}))
        if n % 5 == 0:
            awaitables.append(
                operations.step("move", client_index, {"select": selector, "to": "Sent"})
            )
        if n % 7 == 0:
            awaitables.append(
                operations.step(
                    "update", client_index, {"select": selector, "add": ["\\Seen"], "remove": []}
                )
            )
        if n % 11 == 0:
            awaitables.append(operations.step("undo", client_index, {}))
    await asyncio.gather(*awaitables)
    await assert_store_consistent(environment)
    assert operations.delivered == 40
