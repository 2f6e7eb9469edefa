"""Whatever two accounts do, in whatever order: what is counted is what is there."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from models.errors import RequestError
from models.runtime.environment import Environment
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.rename import MailboxRename
from resolvers.messages.bulk import bulk_changes, undo
from resolvers.messages.bulk.bulk_changes import BulkRequest
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import Client, Clock, context, receive
from tests.support.stores.counter_check import examine

PATHS = ["INBOX", "Sent", "A", "A/B", "a", "C"]
Step = tuple[str, int, dict[str, Any]]  # what, who, and how

paths = some.sampled_from(PATHS)
picks = some.one_of(
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
words = some.lists(some.sampled_from(["\\Seen", "\\Draft", "x", "y"]), max_size=2)
steps = some.one_of(
    some.tuples(
        some.just("deliver"),
        some.integers(0, 1),
        some.fixed_dictionaries({"size": some.integers(0, 99)}),
    ),
    some.tuples(
        some.just("update"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": picks, "add": words, "remove": words}),
    ),
    some.tuples(
        some.just("move"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": picks, "to": paths}),
    ),
    some.tuples(
        some.just("delete"),
        some.integers(0, 1),
        some.fixed_dictionaries({"select": picks, "permanent": some.booleans()}),
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


class Play:
    """The steps of two accounts, with the tokens they were given."""

    def __init__(self, *clients: Client) -> None:
        self.clients = clients
        self.tokens: list[list[str]] = [[] for _ in clients]
        self.delivered = 0

    async def step(self, what: str, who: int, how: dict[str, Any]) -> None:
        roads: dict[str, Callable[..., Awaitable[None]]] = {
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
            await roads[what](who, **how)

    async def carry_out(self, who: int, order: BulkRequest) -> None:
        done = await bulk_changes.apply_bulk_request(context(self.clients[who]), order)
        if done.undo_token:
            self.tokens[who].append(done.undo_token)

    async def deliver(self, who: int, *, size: int) -> None:
        self.delivered += 1
        await receive(self.clients[who], f"s {self.delivered} " + "x" * size)

    async def update(self, who: int, *, select: Any, add: list[str], remove: list[str]) -> None:
        changes = FlagChanges.from_flag_names({}, added=add, removed=remove)
        await self.carry_out(who, BulkRequest(MessageSelector(**select), changes))

    async def move(self, who: int, *, select: Any, to: str) -> None:
        box = await mailbox_loaders.require_mailbox(
            context(self.clients[who]), MailboxSelector(path=to)
        )
        await self.carry_out(
            who, BulkRequest(MessageSelector(**select), target_mailbox=MailboxSelector(id=box.id))
        )

    async def delete(self, who: int, *, select: Any, permanent: bool) -> None:
        await self.carry_out(
            who, BulkRequest(MessageSelector(**select), is_delete=True, is_permanent=permanent)
        )

    async def undo(self, who: int) -> None:
        if self.tokens[who]:
            await undo.undo_by_token(context(self.clients[who]), self.tokens[who].pop())

    async def create(self, who: int, *, path: str) -> None:
        await mailbox_loaders.create_mailboxes(context(self.clients[who]), NewMailboxes([path]))

    async def rename(self, who: int, *, path: str, to: str) -> None:
        asked = MailboxRename(MailboxSelector(path=path), to)
        await rename.rename_mailbox(context(self.clients[who]), asked)

    async def drop(self, who: int, *, path: str, recursive: bool) -> None:
        ctx = context(self.clients[who])
        await mailbox_delete.delete_mailboxes(
            ctx, MailboxDeletion([MailboxSelector(path=path)], is_recursive=recursive)
        )


def wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    asyncio.run_coroutine_threadsafe(work, loop).result()


async def test_counters_hold_whatever_is_done(
    ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    play, loop = Play(ada, bob), asyncio.get_running_loop()

    async def run(listed: list[Step]) -> None:
        for step in listed:
            clock.tick(seconds=1)
            await play.step(*step)
        await examine(world)

    @given(some.lists(steps, min_size=5, max_size=25))
    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    def hold(listed: list[Step]) -> None:
        wait(loop, run(listed))

    await asyncio.to_thread(hold)
    assert play.delivered


async def test_both_may_act_at_once(ada: Client, bob: Client, world: Environment) -> None:
    play = Play(ada, bob)
    work: list[Awaitable[None]] = []
    for n in range(40):
        who, pick = n % 2, {"conditions": MessageConditions(seen=False)}
        work.append(play.step("deliver", who, {"size": n}))
        if n % 5 == 0:
            work.append(play.step("move", who, {"select": pick, "to": "Sent"}))
        if n % 7 == 0:
            work.append(play.step("update", who, {"select": pick, "add": ["\\Seen"], "remove": []}))
        if n % 11 == 0:
            work.append(play.step("undo", who, {}))
    await asyncio.gather(*work)
    await examine(world)
    assert play.delivered == 40
