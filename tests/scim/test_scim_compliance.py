"""The compliance checks of scim2-tester against a server on a socket."""

import asyncio
import sys
from contextlib import closing

from tests.support.scim.scim_client import ScimTestClient
from tests.support.servers.live_server import LiveServer


async def test_all_compliance_checks_succeed(scim: ScimTestClient, live_server: LiveServer) -> None:
    # Their import takes 3 s of CPU time in each process that collects the tests.
    from scim2_tester import Status, check_server

    from tests.support.scim.compliance_client import HttpxScimClient

    def run_checks() -> list[str]:
        client = HttpxScimClient(f"http://127.0.0.1:{live_server.port}/scim/v2", scim.secret)
        with closing(client):
            client.discover_with_addresses("example.org")
            results = check_server(client)
        report = [f"{result.status.name} {result.title}: {result.reason}" for result in results]
        sys.stdout.write("\n".join(report))
        return [
            f"{result.title}: {result.reason}"
            for result in results
            if result.status not in (Status.SUCCESS, Status.COMPLIANT, Status.ACCEPTABLE)
        ]

    assert await asyncio.to_thread(run_checks) == []
