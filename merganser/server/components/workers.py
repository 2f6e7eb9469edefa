"""The background workers of a process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from graph.notifications.webhooks import delivery_body
from graph.types import global_ids
from mail.maintenance import housekeeping, snooze_worker
from mail.outbound import accepted_results
from mail.outbound import worker as outbound_worker
from mail.routing.mx_hosts import OutboundSettings
from mail.scanners import training_worker
from mail.search import index_worker
from mail.throttling import list_hosts
from merganser.server.components.worker_component import (
    WorkerComponent,
    WorkerDefinition,
    WorkerFunction,
)
from merganser.server.processes.process_roles import ProcessRole
from merganser.server.shutdown import GracefulShutdown
from models.admin.tasks import Task
from models.certificates import Certificate
from models.connectors import Connector
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import WebhookLane
from models.runtime.environment import Environment
from models.spam.training import TrainingMessage
from resolvers.admin import tasks
from resolvers.certificates import acme_worker
from resolvers.changes import stream_reader, wakeups
from resolvers.cluster import platform_follower
from resolvers.cluster import worker as cluster_worker
from resolvers.connectors import worker as connector_worker
from resolvers.domains import dkim_rotation
from resolvers.identity_providers import account_checks
from resolvers.notifications import push_worker, webhook_worker


@asynccontextmanager
async def running_workers(
    environment: Environment,
    outbound: OutboundSettings,
    shutdown: GracefulShutdown,
    spool: Path,
    process_role: ProcessRole,
) -> AsyncGenerator[list[WorkerComponent]]:
    """Run the workers, and stop them at the end. If one fails, the server stops.

    Each process follows events; only one of several processes runs the other workers.
    """
    workers = _create_followers(environment, shutdown, process_role)
    if process_role.runs_workers:
        workers += _create_workers(environment, outbound, shutdown, spool)
    for worker in workers:
        environment.components.add(worker)
    try:
        for worker in workers:
            await worker.start()
        yield workers
    finally:
        await asyncio.gather(*(worker.close() for worker in workers))
        for worker in workers:
            environment.components.remove(worker)


def _create_followers(
    environment: Environment, shutdown: GracefulShutdown, process_role: ProcessRole
) -> list[WorkerComponent]:
    """Create the workers of each process. None can be held: other components depend on them."""
    functions: dict[str, WorkerFunction] = {
        "changes": lambda _: stream_reader.poll_followed_streams_until_cancelled(environment),
        "wakeups": lambda _: wakeups.receive_wakeups_forever(environment),
        "platformChanges": lambda _: platform_follower.follow_platform_forever(environment),
    }
    if (address := environment.own_node.address) is not None:
        functions["node"] = lambda _: cluster_worker.keep_node_registered_forever(
            environment, address
        )
    if (fleet_metrics := process_role.fleet_metrics) is not None:
        functions["processMetrics"] = lambda _: fleet_metrics.write_metrics_until_cancelled()
    return [
        WorkerComponent(WorkerDefinition(name, run, can_be_held=False), environment, shutdown)
        for name, run in functions.items()
    ]


def _create_workers(
    environment: Environment, outbound: OutboundSettings, shutdown: GracefulShutdown, spool: Path
) -> list[WorkerComponent]:
    """Create the workers that one process of a server runs. All can be held."""
    unleased: dict[str, WorkerFunction] = {
        "searchIndex": lambda _: index_worker.index_new_messages_until_worker_stops(environment),
        "snooze": lambda _: snooze_worker.unsnooze_until_worker_stops(environment),
        "dkimRotation": lambda _: dkim_rotation.activate_or_delete_due_keys_forever(environment),
        "identityProviders": lambda _: account_checks.check_accounts_forever(environment),
        "listHosts": lambda _: list_hosts.resolve_list_hosts_until_worker_stops(environment),
    }
    leased: dict[str, tuple[type, WorkerFunction]] = {
        "spamTraining": (TrainingMessage, lambda _: training_worker.run_worker(environment)),
        "tasks": (Task, lambda _: tasks.run_worker(environment)),
        "webhooks": (
            WebhookLane,
            lambda _: webhook_worker.run_webhook_worker_until_stopped(environment, delivery_body),
        ),
        "push": (
            PushChannel,
            lambda _: push_worker.run_push_worker_until_stopped(environment, global_ids.encode),
        ),
        "acme": (
            Certificate,
            lambda _: acme_worker.order_and_renew_certificates_forever(environment),
        ),
        "connectors": (Connector, lambda _: connector_worker.run_worker(environment)),
    }
    definitions = [
        WorkerDefinition(
            "queue",
            lambda stop: outbound_worker.run_until_stopped(
                environment,
                outbound,
                stop=stop,
                accepted_results_path=spool.parent.parent / accepted_results.FILE_NAME,
            ),
            is_cancelled_at_end=False,
        ),
        WorkerDefinition(
            "housekeeping",
            lambda stop: housekeeping.run_until_stopped(environment, stop, spool),
            is_cancelled_at_end=False,
        ),
        *(WorkerDefinition(name, run) for name, run in unleased.items()),
        *(WorkerDefinition(name, run, leased_table=table) for name, (table, run) in leased.items()),
    ]
    return [WorkerComponent(definition, environment, shutdown) for definition in definitions]
