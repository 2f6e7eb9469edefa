"""Tests that two companies that follow docs/tutorials/company.md exchange authenticated mail.

Names, paths and pauses of the page are replaced. NSD serves the zones of both companies. Each
server has a network namespace, in which its listeners have the ports of the page. Three services
differ: the fixture starts the server instead of systemd, Pebble issues the certificates, and it
reads its challenges from the server without a reverse proxy.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import dns.reversename
import pytest

from bench.servers.ports import free_port
from tests.support.clients.page_commands import (
    block_texts,
    run_program,
    run_shell,
    substitute,
)
from tests.support.mail_servers.dns_zone_server import txt_rdata
from tests.support.mail_servers.nsd_server import DnsRecords, NsdServer, run_nsd
from tests.support.servers.acme.pebble_server import run_pebble
from tests.support.servers.forked_program import forked_program
from tests.support.servers.host_network import (
    Host,
    HostNetwork,
    connected_hosts,
    require_networks,
)
from tests.support.servers.merganser_server import ROOT, HttpClient, MerganserProcess
from tests.support.time_limits import HANG_SECONDS

PAGE = ROOT / "docs/tutorials/company.md"
DOMAINS = ("example.org", "example.net")
ALL_PASSED = "spf=PASS dkim=PASS dmarc=PASS"
DSN_SUBJECT = "Your message could not be delivered"
CHANGES = """subscription ($after: Cursor!) { changes(after: $after) {
  events { ... on MessageChange { message { subject mailbox { specialUse } } } } } }"""
PROGRESS = """subscription ($id: ID!) {
  submissionProgress(submission: {id: $id}) { recipients { state lastResponse } } }"""
NEWEST_MESSAGE = """{ viewer { user { mailbox(by: {specialUse: INBOX}) { messages(first: 1) {
  nodes { subject receivedTls { version }
  authentication { header spf { domain } dkim { domain selector } dmarc { domain } } } } } } } }"""


@dataclass
class CompanyServer(MerganserProcess):
    """The server of a company, with the settings file of the page."""

    host: Host = field(kw_only=True)
    domain: str = ""
    other_domain: str = ""
    program_folder: Path = Path()  # has `merganser-admin`

    @property
    def url(self) -> str:
        return f"http://{self.host.address}:{self.http_port}"

    @property
    def process_env(self) -> dict[str, str]:
        variables = super().process_env
        for name in ("HOSTNAME", "AUTO_CREATE_DOMAINS"):  # the environment precedes the file
            del variables[f"MERGANSER_{name}"]
        return {
            **variables,
            "MERGANSER_HTTP_LISTEN": f"{self.host.address}:{self.http_port}",
            "MERGANSER_CONFIG": str(self.folder / "merganser.toml"),
            "PATH": f"{self.program_folder}:{os.environ['PATH']}",
        }

    def substitute(self, text: str) -> str:
        """Return a text of the page with the names, addresses, paths and pauses of this server."""
        replacements = {
            "example.org": self.domain,
            "example.net": self.other_domain,
            "0.0.0.0": self.host.listen_address,  # noqa: S104 - as the page prints it
            "/var/lib/merganser": str(self.folder / "var"),
            "-o merganser ": "",
            "sleep 10": "sleep 2",
        }
        return substitute(text, replacements)

    def start(self) -> Self:
        with self.host.enter():
            return super().start()

    async def run_block(self, block: str, report_line: Callable[[str], None] | None = None) -> str:
        """Run the commands of a block, which must succeed, and return their output."""
        commands = self.substitute(block)
        return await run_shell(
            commands, self.folder, self.process_env, report_line, self.host.command_prefix
        )

    async def run_mail_program(self, *arguments: str) -> str:
        """Run the program of the page as ada, and return its output."""
        (text,) = block_texts(PAGE, "python")
        program = self.folder / "mail.py"
        program.write_text(text)
        env = {
            **self.process_env,
            "ENDPOINT": self.url,
            "USERNAME": f"ada@{self.domain}",
            "PASSWORD": self.password_of_ada(),
        }
        command = (*self.host.command_prefix, sys.executable, str(program), *arguments)
        return await run_program(*command, folder=self.folder, env=env)

    def password_of_ada(self) -> str:
        """Return the password of ada in the file of users on the page."""
        passwords = re.findall(r"^ada@\S+,Ada Lovelace,(\S+)$", PAGE.read_text(), re.MULTILINE)
        return str(passwords[0])

    async def sign_in(self) -> None:
        """Sign in as ada and as the administrator; `open_client` uses their tokens."""
        passwords = {
            "ada": self.password_of_ada(),
            "postmaster": (self.folder / "postmaster-password").read_text().rstrip("\n"),
        }
        async with self.open_client() as client:
            for name, password in passwords.items():
                credentials = {"username": f"{name}@{self.domain}", "password": password}
                payload = await client.run_mutation("authenticate", credentials, "token")
                self.secrets[name] = payload["token"]


async def publish_addresses(server: CompanyServer, name_server: NsdServer) -> None:
    """Publish the records that the page lists in its table."""
    reverse_name = dns.reversename.from_address(server.host.address).to_text(omit_final_dot=True)
    await name_server.publish(
        {
            (f"mx.{server.domain}", "A"): [server.host.address],
            (f"mail.{server.domain}", "A"): [server.host.address],
            (reverse_name, "PTR"): [f"mx.{server.domain}."],
        }
    )


def printed_records(output: str) -> DnsRecords:
    """Return the records with a value that `domain dns --json` has printed."""
    return {
        (record["name"], record["type"]): [txt_rdata(value) if record["type"] == "TXT" else value]
        for record in json.loads(output)
        if (value := record["value"])
    }


async def publish_while_command_waits(
    server: CompanyServer, name_server: NsdServer, polling: str, records: DnsRecords
) -> None:
    """Publish records after the polling command has reported that DNS lacks them."""
    waits_or_has_ended, waiting_lines = asyncio.Event(), list[str]()

    def notice_waiting(line: str) -> None:
        if line.startswith("Waiting for ") and f"TXT _dmarc.{server.domain}" in line:
            waiting_lines.append(line)
            waits_or_has_ended.set()

    async with asyncio.timeout(HANG_SECONDS), asyncio.TaskGroup() as group:
        command = group.create_task(server.run_block(polling, notice_waiting))
        command.add_done_callback(lambda _: waits_or_has_ended.set())
        await waits_or_has_ended.wait()
        assert waiting_lines
        await name_server.publish(records)


async def set_up_company(server: CompanyServer, name_server: NsdServer) -> None:
    """Follow the page up to the running server with its certificate."""
    accounts, users, records, polling, signing, start, certificate = block_texts(PAGE, "sh company")
    (settings,) = block_texts(PAGE, "toml")
    server.folder.mkdir()
    (server.folder / "merganser.toml").write_text(server.substitute(settings))
    await server.run_block(accounts)
    assert "10 accounts created, 0 refused." in await server.run_block(users)
    output = await server.run_block(f"{records.rstrip()} --json")
    await publish_addresses(server, name_server)
    await publish_while_command_waits(server, name_server, polling, printed_records(output))
    await server.run_block(signing)
    assert start == "systemctl enable --now merganser\n"
    await asyncio.to_thread(server.start)
    await server.run_block(certificate)
    await server.sign_in()


@pytest.fixture
def network() -> Iterator[HostNetwork]:
    """The hosts of both companies."""
    require_networks()
    with connected_hosts() as network:
        yield network


@pytest.fixture
async def name_server(network: HostNetwork, tmp_path: Path) -> AsyncIterator[NsdServer]:
    """NSD with the zones of both companies, and the reverse zone of their addresses."""
    reverse_zone = dns.reversename.from_address(network.hosts[0].address).parent()
    zone_names = (*DOMAINS, reverse_zone.to_text(omit_final_dot=True))
    async with run_nsd(tmp_path / "nsd", network.service_address, *zone_names) as server:
        yield server


@pytest.fixture
async def companies(
    network: HostNetwork,
    name_server: NsdServer,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[CompanyServer, CompanyServer]]:
    """The servers of both companies, set up as the page shows."""
    program_folder, validation_port = tmp_path_factory.mktemp("admin"), free_port()
    with forked_program(program_folder / "merganser-admin"):
        async with run_pebble(
            tmp_path / "pebble", validation_port, name_server.port, network.service_address
        ) as pebble:
            common_settings = {
                "DNS_RESOLVER": name_server.resolver,
                "MX_ALLOW_PRIVATE_NETWORKS": "on",
                "QUEUE_RETRY_DELAYS": "1h",  # only `queueFlush` tries again
                "DMARC_ON_FAILURE": "reject",  # as large mail services do
                "ACME_DIRECTORY": pebble.directory_url,
                "ACME_CA": str(pebble.ca),
            }
            org, net = (
                CompanyServer(
                    tmp_path / domain,
                    extra_settings={
                        **common_settings,
                        "ACME_HTTP_LISTEN": f"{host.listen_address}:{validation_port}",
                    },
                    host=host, domain=domain, other_domain=other_domain,
                    program_folder=program_folder,
                )
                for domain, other_domain, host in zip(
                    DOMAINS, reversed(DOMAINS), network.hosts, strict=True
                )
            )  # fmt: skip
            try:
                async with asyncio.TaskGroup() as group:
                    for server in (org, net):
                        group.create_task(set_up_company(server, name_server))
                yield org, net
            finally:
                async with asyncio.TaskGroup() as group:
                    for server in (org, net):
                        if server.is_running:
                            group.create_task(asyncio.to_thread(server.stop))


async def wait_for_received_message(client: HttpClient, cursor: str, subject: str) -> None:
    """Wait until the INBOX has a message with this subject that arrived after the cursor."""
    expected = {"message": {"subject": subject, "mailbox": {"specialUse": "INBOX"}}}
    async with client.subscribe_by_sse(CHANGES, after=cursor) as events:
        while expected not in (await events.read_event())["data"]["changes"]["events"]:
            pass


async def send_and_check_message(sender: CompanyServer, receiver: CompanyServer) -> None:
    """Send a message to the other company, and check what its server has verified."""
    async with receiver.open_client("ada") as client:
        cursor = await client.load_cursor()
        await sender.run_mail_program("send", f"ada@{receiver.domain}", "Hello", "How are you?")
        await wait_for_received_message(client, cursor, "Hello")
        inbox = (await client(NEWEST_MESSAGE))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert f"{ALL_PASSED} ada@{sender.domain} Hello" in await receiver.run_mail_program("inbox")
    (message,) = inbox
    assert message["receivedTls"] == {"version": "TLSv1.3"}
    authentication = message["authentication"]
    header = authentication.pop("header")
    for expected in (
        f"mx.{receiver.domain};", f"spf=pass smtp.mailfrom={sender.domain}",
        f"dkim=pass header.d={sender.domain}", f"header.from={sender.domain}",
    ):  # fmt: skip
        assert expected in header
    assert authentication == {
        "spf": {"domain": sender.domain},
        "dkim": {"domain": sender.domain, "selector": "dkim"},
        "dmarc": {"domain": sender.domain},
    }
    assert f"ada@{receiver.domain} DELIVERED 250" in await sender.run_mail_program("status")


def commands_for_refusal(reason: str) -> list[str]:
    """Return the commands that the page recommends for replies with this reason."""
    (row,) = (line for line in PAGE.read_text().splitlines() if f"*{reason}*" in line)
    return re.findall(r"`(merganser-admin [^`]+)`", row)


async def check_refusal_by_dmarc_policy(
    sender: CompanyServer, receiver: CompanyServer, name_server: NsdServer
) -> None:
    """Send with wrong records: the message is refused. Then correct them as the page says."""
    compare_records, list_keys = commands_for_refusal("DMARC")
    (polling,) = (text for text in block_texts(PAGE, "sh company") if "--wait" in text)
    recipient = f"ada@{receiver.domain}"
    spf_record, key_record = (sender.domain, "TXT"), (f"dkim._domainkey.{sender.domain}", "TXT")
    right_values = {name: name_server.records[name] for name in (spf_record, key_record)}
    await name_server.publish(
        {
            spf_record: [txt_rdata("v=spf1 ip4:192.0.2.1 -all")],  # of an earlier mail server
            key_record: right_values[key_record][0].split()[:1],  # the provider has cut it
            (f"_dmarc.{sender.domain}", "TXT"): [txt_rdata("v=DMARC1; p=reject")],
        }
    )
    async with sender.open_client("ada") as client:
        cursor = await client.load_cursor()
        await sender.run_mail_program("send", recipient, "Hello", "How are you?")
        await wait_for_received_message(client, cursor, DSN_SUBJECT)
    reply = f"550 5.7.1 Email rejected per DMARC policy for {sender.domain}"
    assert f"{recipient} BOUNCED {reply}" in await sender.run_mail_program("status")
    comparison = await sender.run_block(f"! {compare_records}")  # its exit code is 1
    wrong_records = re.findall(r"^MISMATCH +TXT +(\S+)", comparison, re.MULTILINE)
    assert sorted(wrong_records) == [key_record[0], spf_record[0]]
    assert "ACTIVE" in await sender.run_block(list_keys)
    await name_server.publish(right_values)
    assert "MISMATCH" not in await sender.run_block(polling)


async def check_unknown_recipient(sender: CompanyServer, receiver: CompanyServer) -> None:
    """Send to an unknown recipient: the sender gets a DSN, and the program shows the reply."""
    recipient = f"nobody@{receiver.domain}"
    async with sender.open_client("ada") as client:
        cursor = await client.load_cursor()
        await sender.run_mail_program("send", recipient, "Hello", "How are you?")
        await wait_for_received_message(client, cursor, DSN_SUBJECT)
    assert f"{recipient} BOUNCED 550 5.1.1" in await sender.run_mail_program("status")


async def run_page_mutation(client: HttpClient, server: CompanyServer, document: str) -> Any:
    """Run a mutation of the page and return its payload; fails on errors."""
    (payload,) = (await client(server.substitute(document))).values()
    assert payload["errors"] == []
    return payload


async def check_unreachable_server(sender: CompanyServer, receiver: CompanyServer) -> None:
    """Send to a server that is down: the message waits, and is delivered after `queueFlush`."""
    test_route, retry = block_texts(PAGE, "graphql tutorial")
    async with receiver.open_client("ada") as client:
        cursor = await client.load_cursor()
    await asyncio.to_thread(receiver.stop)
    recipient = f"ada@{receiver.domain}"
    submission_id = (await sender.run_mail_program("send", recipient, "Later", "Hello?")).strip()
    async with (
        sender.open_client("ada") as client,
        client.subscribe_by_sse(PROGRESS, id=submission_id) as events,
    ):
        state = ""
        while state != "DEFERRED":
            progress = (await events.read_event())["data"]["submissionProgress"]
            (state,) = (delivery["state"] for delivery in progress["recipients"])
    assert f"{recipient} DEFERRED" in await sender.run_mail_program("status")
    async with sender.open_client("postmaster") as admin:
        assert not (await run_page_mutation(admin, sender, test_route))["ok"]
        await asyncio.to_thread(receiver.start)
        route = await run_page_mutation(admin, sender, test_route)
        assert route["ok"], route["log"]
        assert (await run_page_mutation(admin, sender, retry))["scheduledCount"] == 1
    async with receiver.open_client("ada") as client:
        await wait_for_received_message(client, cursor, "Later")
    assert f"{ALL_PASSED} ada@{sender.domain} Later" in await receiver.run_mail_program("inbox")


async def test_companies_exchange_authenticated_mail(
    companies: tuple[CompanyServer, CompanyServer], name_server: NsdServer
) -> None:
    org, net = companies
    await check_refusal_by_dmarc_policy(org, net, name_server)  # the next message is accepted
    await send_and_check_message(org, net)
    await send_and_check_message(net, org)
    await check_unknown_recipient(org, net)
    await check_unreachable_server(org, net)
