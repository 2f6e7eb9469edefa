"""The long form of the proof that no change is lost: on each database, over each event bus."""

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

from bench.change_stream.change_stream_proof import (
    DISTURBANCES,
    ProofPlan,
    ProofResult,
    prove_change_stream,
)
from bench.servers import bus_servers
from bench.servers.bus_servers import InterruptibleBus
from bench.servers.compared_servers import start_postgres
from bench.servers.merganser_process import MerganserServer, run_with_timeout

RUN_TIMEOUT = 7200.0  # seconds
CHANGES_PER_CYCLE = 2500  # of all disturbances
WORKER_OPTIONS = ("--workers", "2")
BROKERS = {
    "redis": (bus_servers.redis_broker, "redis-server"),
    "nats": (bus_servers.nats_broker, "nats-server"),
}


@dataclass(frozen=True, slots=True)
class ProofSetup:
    """A kind of database, the command line options of the server, and an event bus."""

    store: str
    serve_options: tuple[str, ...] = ()
    bus: str = ""  # empty: that of the database

    def __str__(self) -> str:
        """Return the setup as text for people."""
        processes = "several processes" if self.serve_options else "one process"
        return f"{self.store}, {processes}{', ' * bool(self.bus)}{self.bus}"

    @property
    def is_available(self) -> bool:
        """True if the broker and its client library are installed on this machine."""
        if not self.bus:
            return True
        return bool(shutil.which(BROKERS[self.bus][1]) and find_spec(self.bus))


SETUPS = (
    ProofSetup("sqlite"),
    ProofSetup("sqlite", WORKER_OPTIONS),
    ProofSetup("sqlite", WORKER_OPTIONS, "redis"),
    ProofSetup("postgres"),
    ProofSetup("postgres", WORKER_OPTIONS),
    ProofSetup("postgres", WORKER_OPTIONS, "nats"),
)


@contextmanager
def create_server_and_bus(
    setup: ProofSetup, folder: Path, store: str | None
) -> Iterator[tuple[MerganserServer, InterruptibleBus]]:
    """Create a server in an empty folder and its event bus, which stops at the end."""
    server = MerganserServer(folder, store, setup.serve_options)
    if not setup.bus:
        yield (
            server,
            bus_servers.PostgresNotifyBus(store) if store else bus_servers.SocketBus(folder),
        )
        return
    create_broker, program = BROKERS[setup.bus]
    broker = create_broker(program, folder)
    server.extra_environment["MERGANSER_EVENT_BUS_URL"] = broker.url
    broker.start()
    try:
        yield server, broker
    finally:
        broker.stop()


def prove_all_setups(changes: int, seed: int) -> bool:
    """Run the proof with all setups and print the results. True if there is no difference."""
    console, results = Console(highlight=False, width=120), list[ProofResult]()
    setups = [setup for setup in SETUPS if setup.is_available]
    changes_per_setup = -(-changes // len(setups))
    cycles = max(1, changes_per_setup // CHANGES_PER_CYCLE)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for nth, setup in enumerate(setups):
            plan = ProofPlan(
                changes_per_setup, seed + nth, DISTURBANCES * cycles, max_seconds=RUN_TIMEOUT
            )
            task = bar.add_task(f"Comparing the change stream, {setup}", total=changes_per_setup)

            async def work(
                setup: ProofSetup = setup, plan: ProofPlan = plan, task: TaskID = task
            ) -> None:
                with tempfile.TemporaryDirectory(prefix="merganser-watch-") as name:
                    folder = Path(name)
                    store = start_postgres(folder) if setup.store == "postgres" else None
                    with create_server_and_bus(setup, folder, store) as (server, bus):
                        results.append(
                            await prove_change_stream(
                                server,
                                bus,
                                plan,
                                report_progress=lambda at: bar.update(task, completed=at),
                            )
                        )

            uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
            bar.remove_task(task)
            console.print(f"{setup}, {results[-1]}", markup=False)
            for line in results[-1].differences:
                console.print(f"  {line}", markup=False)
    return not any(result.differences for result in results)
