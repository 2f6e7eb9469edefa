"""The long form of the proof that no change is lost: on each store, over each bus there is."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress, TaskID

from bench.change_stream.change_stream_proof import ACTS, Plan, Verdict, prove
from bench.servers import bus_servers
from bench.servers.bus_servers import Bus
from bench.servers.compared_servers import postgres
from bench.servers.merganser_process import Server, bounded

LONGEST = 7200.0  # seconds of a whole run
EACH = 2500  # changes in which each thing goes wrong once
WORKERS = ("--workers", "2")
BROKERS = {
    "redis": (bus_servers.redis, "redis-server"),
    "nats": (bus_servers.nats, "nats-server"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A store, how many processes, and what takes wake-ups between them."""

    store: str
    words: tuple[str, ...] = ()
    bus: str = ""  # that of the store

    def __str__(self) -> str:
        """For people."""
        many = "several processes" if self.words else "one process"
        return f"{self.store}, {many}{', ' * bool(self.bus)}{self.bus}"

    @property
    def there(self) -> bool:
        """Whether its broker and the client for it are on this machine."""
        if not self.bus:
            return True
        return bool(shutil.which(BROKERS[self.bus][1]) and find_spec(self.bus))


KINDS = (
    Kind("sqlite"),
    Kind("sqlite", WORKERS),
    Kind("sqlite", WORKERS, "redis"),
    Kind("postgres"),
    Kind("postgres", WORKERS),
    Kind("postgres", WORKERS, "nats"),
)


@contextmanager
def place(kind: Kind, folder: Path, store: str | None) -> Iterator[tuple[Server, Bus]]:
    """A server on an empty folder and its bus, which ends behind the block."""
    server = Server(folder, store, kind.words)
    if not kind.bus:
        yield server, bus_servers.Notify(store) if store else bus_servers.Sockets(folder)
        return
    make, program = BROKERS[kind.bus]
    broker = make(program, folder)
    server.more["MERGANSER_WAKEUPS"] = broker.url
    broker.start()
    try:
        yield server, broker
    finally:
        broker.stop()


def run(changes: int, seed: int) -> bool:
    """Prove it on all kinds, and say what came of it; whether nothing differs."""
    console, verdicts = Console(highlight=False, width=120), list[Verdict]()
    kinds = [kind for kind in KINDS if kind.there]
    each = -(-changes // len(kinds))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for nth, kind in enumerate(kinds):
            plan = Plan(each, seed + nth, ACTS * max(1, each // EACH), longest=LONGEST)
            task = bar.add_task(f"Following, {kind}", total=each)

            async def work(kind: Kind = kind, plan: Plan = plan, task: TaskID = task) -> None:
                with tempfile.TemporaryDirectory(prefix="merganser-watch-") as name:
                    folder = Path(name)
                    store = postgres(folder) if kind.store == "postgres" else None
                    with place(kind, folder, store) as (server, bus):
                        verdicts.append(
                            await prove(
                                server, bus, plan, told=lambda at: bar.update(task, completed=at)
                            )
                        )

            uvloop.run(bounded(work(), LONGEST))
            bar.remove_task(task)
            console.print(f"{kind}, {verdicts[-1]}", markup=False)
            for line in verdicts[-1].differences:
                console.print(f"  {line}", markup=False)
    return not any(one.differences for one in verdicts)
