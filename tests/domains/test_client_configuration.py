"""The settings of mail programs, requested as Thunderbird and Outlook request them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from graph.app import create_app
from graph.http.admission_control import AdmissionControl
from graph.http.discovery.autoconfig import AUTOCONFIG_PATHS, AUTODISCOVER_PATHS, MAX_BODY_BYTES
from graph.http.graphql_endpoint import EndpointSettings
from graph.http.rate_budgets import PointRates, RateBudgets
from mail.domains.submission_servers import (
    SubmissionServer,
    SubmissionTlsMode,
    public_submission_servers,
    submission_server_of_profiles,
)
from models.runtime.environment import Environment
from tests.conftest import TEST_OPTIONS, GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.clients.plain_http import plain_client
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    DOMAIN_UPDATE,
    create_domain,
    run_mutation,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.servers.live_server import LiveServer
from tests.support.stores.log_stores import run_log_store

WELL_KNOWN_PATH, HOST_PATH = AUTOCONFIG_PATHS
LISTENERS = {"submission_listen": "0.0.0.0:587", "submission_tls_listen": "[::]:465"}
OUTLOOK_REQUEST = """<?xml version="1.0" encoding="utf-8"?>
<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006">
  <Request>
    <EMailAddress>{address}</EMailAddress>
    <AcceptableResponseSchema>{schema}</AcceptableResponseSchema>
  </Request>
</Autodiscover>"""
OUTLOOK_SCHEMA = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"
OUTLOOK_HEADERS = {
    "Content-Type": "text/xml; charset=utf-8",
    "User-Agent": "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17126; Pro)",
    "X-MapiHttpCapability": "1",
}
THUNDERBIRD_HEADERS = {
    "Accept": "*/*",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.5.0",
}
BILLION_LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol">ENTITIES]>
<Autodiscover><Request><EMailAddress>&j;@new.example</EMailAddress></Request></Autodiscover>"""
EXTERNAL_ENTITY = """<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<Autodiscover><Request><EMailAddress>&x;</EMailAddress></Request></Autodiscover>"""
AUTODISCOVER_LOGS = """{ logs(filter: {components: [AUTODISCOVER]}, orderBy: AT_ASC) { nodes {
  __typename component level message correlationId user { username } fields
  ... on AutodiscoverLogEntry { service userAgent domain httpStatus ip } } } }"""


def outlook_request(address: str, schema: str = OUTLOOK_SCHEMA) -> str:
    return OUTLOOK_REQUEST.format(address=address, schema=schema)


def billion_laughs() -> str:
    entities = "".join(
        f'<!ENTITY {name} "{f"&{used};" * 10}">'
        for used, name in zip("abcdefghi", "bcdefghij", strict=True)
    )
    return BILLION_LAUGHS.replace("ENTITIES", entities)


async def get_configuration(
    client: GraphQLClient, address: str | None, path: str = WELL_KNOWN_PATH, host: str = "test"
) -> httpx.Response:
    params = {} if address is None else {"emailaddress": address}
    headers = {**THUNDERBIRD_HEADERS, "Host": host}
    return await client.http.get(path, params=params, headers=headers)


async def post_autodiscover(
    client: GraphQLClient, body: str | bytes, path: str = AUTODISCOVER_PATHS[0]
) -> httpx.Response:
    return await client.http.post(path, content=body, headers=OUTLOOK_HEADERS)


async def load_autodiscover_logs(client: GraphQLClient) -> list[Any]:
    await client.environment.logs.flush_within_timeout()
    return list((await client(AUTODISCOVER_LOGS))["logs"]["nodes"])


@pytest.fixture
async def client_with_listeners(root: GraphQLClient) -> GraphQLClient:
    await create_domain(root, "new.example")
    await create_domain(root, "bücher.example")
    set_options(root.environment, **LISTENERS)
    return root


@pytest.fixture
async def logged_client(
    request: pytest.FixtureRequest, client_with_listeners: GraphQLClient, tmp_path: Path
) -> AsyncIterator[GraphQLClient]:
    environment = client_with_listeners.environment
    is_postgres = environment.database.dialect == "postgresql"
    url = request.getfixturevalue("postgres") if is_postgres else ""
    async with run_log_store(environment, url, tmp_path):
        yield client_with_listeners


async def test_thunderbird_gets_both_listeners_and_no_incoming_server(
    client_with_listeners: GraphQLClient,
) -> None:
    for case in each_case(AUTOCONFIG_PATHS):
        with case as path:
            response = await get_configuration(client_with_listeners, "someone@NEW.example", path)
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/xml; charset=utf-8"
            assert response.headers["cache-control"] == "public, max-age=3600"
            root_element = ElementTree.fromstring(response.content)  # noqa: S314 - of this server
            assert (root_element.tag, root_element.attrib) == ("clientConfig", {"version": "1.1"})
            (provider,) = root_element
            assert provider.attrib == {"id": "new.example"}
            assert provider.findtext("domain") == "new.example"
            assert provider.find("incomingServer") is None
            assert [
                {child.tag: child.text for child in server}
                for server in provider.iter("outgoingServer")
            ] == [
                {
                    "hostname": "mx.example.org",
                    "port": port,
                    "socketType": socket_type,
                    "authentication": "password-cleartext",
                    "username": "%EMAILADDRESS%",
                }
                for port, socket_type in (("465", "SSL"), ("587", "STARTTLS"))
            ]


@pytest.mark.parametrize("path", AUTODISCOVER_PATHS)
async def test_outlook_gets_the_preferred_listener(
    client_with_listeners: GraphQLClient, path: str
) -> None:
    body = outlook_request("o'neil&amp;co@new.example")
    response = await post_autodiscover(client_with_listeners, body, path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/xml; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    root_element = ElementTree.fromstring(response.content)  # noqa: S314 - of this server
    names = {"r": OUTLOOK_SCHEMA}
    assert root_element.tag.startswith("{http://schemas.microsoft.com/exchange/autodiscover/resp")
    assert root_element.findtext("r:Response/r:Account/r:Action", None, names) == "settings"
    (protocol,) = root_element.findall("r:Response/r:Account/r:Protocol", names)
    values = {child.tag.rpartition("}")[2]: child.text for child in protocol}
    assert values["LoginName"] == "o'neil&co@new.example"
    expected = {"Type": "SMTP", "Server": "mx.example.org", "Port": "465", "SSL": "on"}
    assert expected.items() <= values.items()
    assert (values["Encryption"], values["AuthRequired"], values["SPA"]) == ("SSL", "on", "off")


async def test_domain_is_found_by_host_name_alias_and_unicode(
    client_with_listeners: GraphQLClient,
) -> None:
    client = client_with_listeners
    await run_mutation(
        client, ALIAS_DOMAIN_CREATE, alias="second.example", domain={"name": "new.example"}
    )
    for host in ("autoconfig.new.example", "new.example:443", "autoconfig.second.example"):
        assert (await get_configuration(client, None, HOST_PATH, host)).status_code == 200
    for address in ("a@bücher.example", "a@xn--bcher-kva.example"):
        response = await get_configuration(client, address)
        assert "<domain>xn--bcher-kva.example</domain>" in response.text
    for host in ("autoconfig.far.example", "127.0.0.1", "[::1]:80", "autoconfig."):
        assert (await get_configuration(client, None, HOST_PATH, host)).status_code == 404


async def test_unknown_and_backup_domains_have_no_settings(
    client_with_listeners: GraphQLClient,
) -> None:
    client = client_with_listeners
    refused = [
        await get_configuration(client, "ada@far.example"),
        await post_autodiscover(client, outlook_request("ada@far.example")),
    ]
    _, errors = await run_mutation(
        client, DOMAIN_UPDATE, domains=[{"name": "new.example"}], set={"backupMx": True}
    )
    assert errors == []
    refused.append(await get_configuration(client, "ada@new.example"))
    set_options(client.environment, submission_listen=None, submission_tls_listen=None)
    refused.append(await get_configuration(client, "ada@bücher.example"))
    for response in refused:
        assert response.status_code == 404
        assert response.text == "There are no settings for this domain.\n"
        assert response.headers["cache-control"] == "no-store"


@pytest.mark.usefixtures("ada")
async def test_response_does_not_tell_whether_an_account_exists(
    client_with_listeners: GraphQLClient,
) -> None:
    known, unknown = [
        await get_configuration(client_with_listeners, f"{name}@example.org")
        for name in ("ada", "eva")
    ]
    assert known.status_code == 200
    assert known.content == unknown.content
    known, unknown = [
        await post_autodiscover(client_with_listeners, outlook_request(f"{name}@example.org"))
        for name in ("ada", "eva")
    ]
    assert known.status_code == 200
    assert known.text.replace("ada@", "eva@") == unknown.text


# for each case: the body, and the beginning of the response
BAD_REQUESTS: list[tuple[str | bytes, str]] = [
    ("", "The body is not well-formed XML."),
    ("not xml", "The body is not well-formed XML."),
    (outlook_request("a@new.example")[:-3], "The body is not well-formed XML."),
    (b"<a>\xff</a>", "The body is not well-formed XML."),
    ("<a>" * 4000, "The body is not well-formed XML."),
    (outlook_request("&undefined;"), "The body is not well-formed XML."),
    (billion_laughs(), "A document type declaration is not allowed."),
    (EXTERNAL_ENTITY, "A document type declaration is not allowed."),
    ("<Autodiscover/>", "The request has no EMailAddress."),
    (outlook_request(" "), "The request has no EMailAddress."),
    (outlook_request("nobody"), "Not an email address."),
    (outlook_request("a@-b.example"), "Not a domain name."),
    (outlook_request("a@new.example", "urn:other"), "AcceptableResponseSchema must be"),
]


async def test_bad_request_of_outlook_is_refused(client_with_listeners: GraphQLClient) -> None:
    for case in each_case(BAD_REQUESTS):
        with case as (body, message):
            response = await post_autodiscover(client_with_listeners, body)
            assert response.status_code == 400
            assert response.text.startswith(message)
            assert "root:" not in response.text


async def test_too_long_requests_are_refused(client_with_listeners: GraphQLClient) -> None:
    client = client_with_listeners
    limit_body = outlook_request("a@new.example").ljust(MAX_BODY_BYTES)
    assert (await post_autodiscover(client, limit_body)).status_code == 200
    assert (await post_autodiscover(client, limit_body + " ")).status_code == 413

    async def stream_chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    streamed = await client.http.post(AUTODISCOVER_PATHS[0], content=stream_chunks())
    assert streamed.status_code == 413
    headers = {"Content-Encoding": "gzip"}
    compressed = await client.http.post(AUTODISCOVER_PATHS[0], content=b"x", headers=headers)
    assert compressed.status_code == 415
    assert (await get_configuration(client, "a" * 2000 + "@new.example")).status_code == 414
    for address in ("a" * 400 + "@new.example", "nobody", "@new.example", "a@new.example\r\nX: y"):
        assert (await get_configuration(client, address)).status_code == 400


@pytest.mark.usefixtures("client_with_listeners")
async def test_requests_over_sockets_with_head_and_wrong_methods(
    live_server: LiveServer,
) -> None:
    async with plain_client(base_url=f"http://127.0.0.1:{live_server.port}") as http:
        params = {"emailaddress": "a@new.example"}
        got = await http.get(WELL_KNOWN_PATH, params=params, headers=THUNDERBIRD_HEADERS)
        head = await http.head(WELL_KNOWN_PATH, params=params, headers=THUNDERBIRD_HEADERS)
        assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
        assert head.headers["content-length"] == str(len(got.content))
        posted = await http.post(
            AUTODISCOVER_PATHS[1],
            content=outlook_request("a@new.example"),
            headers=OUTLOOK_HEADERS,
        )
        assert posted.status_code == 200
        assert (await http.get(AUTODISCOVER_PATHS[0])).status_code == 405
        assert (await http.post(WELL_KNOWN_PATH)).status_code == 405


async def test_a_network_has_a_rate_limit(
    client_with_listeners: GraphQLClient, tmp_path: Path
) -> None:
    guards = AdmissionControl(RateBudgets(PointRates(anonymous=1), clock=lambda: 0.0))
    app = create_app(
        client_with_listeners.environment,
        spool_folder=tmp_path,
        settings=EndpointSettings(guards=guards),
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        client = replace(client_with_listeners, http=http)
        statuses = [(await get_configuration(client, "x")).status_code for _ in range(250)]
        assert set(statuses) == {400}
        refused = await get_configuration(client, "a@new.example")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "100")
        posted = await post_autodiscover(client, outlook_request("a@new.example"))
        assert posted.status_code == 429
    await app.end_subscriptions()


async def test_each_request_has_a_log_entry_without_its_address(
    logged_client: GraphQLClient,
) -> None:
    client = logged_client
    await get_configuration(client, "canary@new.example")
    await post_autodiscover(client, outlook_request("canary@far.example"))
    await post_autodiscover(client, billion_laughs())
    nodes = await load_autodiscover_logs(client)
    assert {node["__typename"] for node in nodes} == {"AutodiscoverLogEntry"}
    assert [
        (node["service"], node["domain"], node["httpStatus"], node["message"]) for node in nodes
    ] == [
        ("autoconfig", "new.example", 200, "autoconfig for new.example: 200"),
        ("autodiscover", "far.example", 404, "autodiscover for far.example: 404"),
        ("autodiscover", None, 400, "autodiscover for no domain: 400"),
    ]
    assert "Thunderbird/128.5.0" in nodes[0]["userAgent"]
    assert nodes[1]["userAgent"].startswith("Microsoft Office/16.0")
    assert {node["user"] for node in nodes} == {None}
    assert all(node["correlationId"] for node in nodes)
    assert "canary" not in str(nodes)


async def test_domain_admin_sees_the_entries_of_own_domains(logged_client: GraphQLClient) -> None:
    environment: Environment = logged_client.environment
    admin = await make_domain_admin(
        environment, logged_client.http, "dora", domains=["new.example"]
    )
    for address in ("a@new.example", "a@bücher.example", "a@far.example"):
        await get_configuration(logged_client, address)
    nodes = await load_autodiscover_logs(admin)
    assert [node["domain"] for node in nodes] == ["new.example"]


def test_servers_follow_the_listeners_and_the_setting() -> None:
    def servers(**options: Any) -> list[tuple[str, int, str]]:
        return [
            (server.host, server.port, server.tls_mode)
            for server in public_submission_servers(replace(TEST_OPTIONS, **options))
        ]

    assert servers() == []
    assert servers(submission_listen="0.0.0.0:2587") == [("mx.example.org", 2587, "STARTTLS")]
    for address in ("127.0.0.1:465", "[::1]:465", "localhost:465"):
        assert servers(submission_tls_listen=address) == []
    assert servers(**LISTENERS, hostname="localhost") == []
    for address, mode in (
        ("smtp.example.org:465", "IMPLICIT"),
        ("smtp.example.org:587", "STARTTLS"),
        ("smtp.example.org:2587", "STARTTLS"),
        ("smtp.example.org:8465", "IMPLICIT"),
    ):
        host, _, port = address.partition(":")
        assert servers(profile_smtp_server=address, submission_listen="0.0.0.0:2587") == [
            (host, int(port), mode)
        ]
    assert submission_server_of_profiles(TEST_OPTIONS) == SubmissionServer(
        "mx.example.org", 465, SubmissionTlsMode.IMPLICIT
    )
    only_starttls = replace(TEST_OPTIONS, submission_listen="0.0.0.0:587")
    assert submission_server_of_profiles(only_starttls).port == 587
