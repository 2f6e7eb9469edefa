"""Measure the CPU time of an operator's dashboard: one request for all that is shown."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.progress import Progress

from bench.figures.goals import DASHBOARD_CPU
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget, measure_documents
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import MerganserServer, run_until_exit
from merganser.server.environment_factory import open_environment, root_context
from models.users.roles import Role
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "operations: dashboard"
DOCUMENT = """query Dashboard($since: DateTime!) {
  health { ok version uptime checks { name state } }
  components(first: 100) { nodes { name state node latency } unresponsiveNodes }
  storageStatus { stores { store node size total usedPercent } }
  sessions(first: 20) { totalCount nodes { id service ip user { username } } }
  queue(first: 20) { nodes { id } }
  banPolicy { activeBans(first: 20) { nodes { network endsAt } } }
  statistics(since: $since, names: [
    MESSAGES_IN, MESSAGES_OUT, MESSAGES_JUNK, SIGN_IN_FAILURES, QUEUE_LENGTH, API_LATENCY_P95
  ]) { series { name points } } }"""
PERIOD = timedelta(hours=24)


async def measure_dashboard(
    database_kind: DatabaseKind, folder: Path, seconds: float, progress: Progress
) -> list[MeasuredValue]:
    """Return the CPU time of the server for each request, without the database on PostgreSQL."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "data", url)
    async with open_environment(server_settings(server), migrate=True) as environment:
        new_key = NewApiKey("root", Role.ROOT)
        _, secret = await api_key_mutations.create_api_key(root_context(environment), new_key)
    task = progress.add_task(TITLE, total=1)
    variables = {"since": (datetime.now(UTC) - PERIOD).isoformat()}
    bodies = {DASHBOARD_CPU: {"query": DOCUMENT, "variables": variables}}
    async with run_until_exit(server.start) as pid:
        target = BenchmarkTarget(server.http_port, pid, secret)
        figures = await measure_documents(target, bodies, connection_count=1, seconds=seconds)
    progress.remove_task(task)
    return [MeasuredValue(name, figure.cpu / 1000, "ms") for name, figure in figures.items()]
