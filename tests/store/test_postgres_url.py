"""PostgreSQL URLs as libpq documents them, with TLS and a real server."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import text

from merganser.server.store import store_lock
from merganser.settings.settings import database_url_with_driver
from models.events.bus.postgres_bus import PostgresBus
from models.store.database import Database
from models.store.outages import StorageUnavailable
from models.store.postgres.address import PostgresAddressError, parse_postgres_address
from models.store.postgres.connection import PostgresConnector
from tests.support.servers.postgres_proxy import PostgresProxy
from tests.support.stores import store_fixtures

POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


def write_certificate(folder: Path, name: str = "127.0.0.1") -> Path:
    """Write a self-signed certificate for an IP address with its key, and return the file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
async def tls_proxy(postgres: str, tmp_path: Path) -> AsyncIterator[tuple[PostgresProxy, Path]]:
    """Yield a TLS proxy of the PostgreSQL server, and the certificate to trust."""
    path = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    proxy = PostgresProxy(postgres, context)
    await proxy.start()
    yield proxy, path
    await proxy.cut_connections()


async def can_use_database(url: str) -> bool:
    database = Database(database_url_with_driver(url))
    try:
        await database.ping()
        await database.check_writable()
    finally:
        await database.close()
    return True


@POSTGRES
@pytest.mark.parametrize(
    "parameters",
    [
        "sslmode=require",
        "sslmode=prefer",
        "sslmode=verify-ca&sslrootcert={ca}",
        "sslmode=verify-full&sslrootcert={ca}&target_session_attrs=read-write",
        "sslmode=require&channel_binding=require&sslrootcert={ca}",
        "sslmode=require&sslrootcert={ca}&ssl_min_protocol_version=TLSv1.3&sslsni=0",
        "ssl=true&connect_timeout=10&keepalives_idle=5&application_name=mail&tcp_user_timeout=900",
    ],
)
async def test_tls_is_used_by_every_kind_of_connection(
    tls_proxy: tuple[PostgresProxy, Path], parameters: str
) -> None:
    proxy, ca_file = tls_proxy
    url = f"{proxy.url}?{parameters.format(ca=ca_file)}".replace("postgresql://", "postgres://")
    assert await can_use_database(url)
    connection_count = proxy.tls_request_count
    assert connection_count >= 2  # connections for reading and for writing
    bus = PostgresBus(database_url_with_driver(url))
    await bus.send("hello")
    await bus.close()
    async with store_lock.lock_as_server(database_url_with_driver(url)):
        pass
    assert proxy.tls_request_count == connection_count + 2


@POSTGRES
async def test_certificate_of_another_server_is_refused(
    tls_proxy: tuple[PostgresProxy, Path], tmp_path: Path
) -> None:
    proxy, ca_file = tls_proxy
    other_certificate = write_certificate(tmp_path, "127.0.0.2")
    for parameters in (
        f"sslmode=verify-ca&sslrootcert={other_certificate}",
        f"sslmode=require&sslrootcert={other_certificate}",
        "sslmode=require&channel_binding=require",
        "sslrootcert=system",
    ):
        with pytest.raises(StorageUnavailable) as failure:
            await can_use_database(f"{proxy.url}?{parameters}")
        assert isinstance(failure.value.__cause__, ssl.SSLCertVerificationError), parameters
    # the certificate contains the IP address
    host_name_url = proxy.url.replace("127.0.0.1", "localhost")
    with pytest.raises(StorageUnavailable):
        await can_use_database(f"{host_name_url}?sslmode=verify-full&sslrootcert={ca_file}")
    assert await can_use_database(f"{host_name_url}?sslmode=verify-ca&sslrootcert={ca_file}")
    other_host_url = proxy.url.replace("127.0.0.1", "mail.example")
    assert await can_use_database(
        f"{other_host_url}?hostaddr=127.0.0.1&sslmode=verify-ca&sslrootcert={ca_file}"
    )
    with pytest.raises(StorageUnavailable):
        await can_use_database(
            f"{other_host_url}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={ca_file}"
        )


@POSTGRES
async def test_sslmode_require_fails_without_tls(postgres: str) -> None:
    proxy = PostgresProxy(postgres)
    await proxy.start()
    try:
        with pytest.raises(StorageUnavailable):
            await can_use_database(f"{proxy.url}?sslmode=require")
        assert await can_use_database(f"{proxy.url}?sslmode=prefer")
        assert await can_use_database(f"{proxy.url}?sslmode=disable")
    finally:
        await proxy.cut_connections()


@POSTGRES
async def test_next_host_is_tried_after_a_failure(postgres: str) -> None:
    proxy = PostgresProxy(postgres)
    await proxy.start()
    try:
        path = urlsplit(proxy.unix_socket_url).path
        url = f"postgresql://postgres:x@127.0.0.1:1,127.0.0.1:{proxy.port}{path}"
        assert await can_use_database(
            f"{url}?target_session_attrs=primary&load_balance_hosts=random"
        )
        assert await can_use_database(f"{url}?target_session_attrs=prefer-standby")
        with pytest.raises(StorageUnavailable):
            await can_use_database(f"{url}?target_session_attrs=standby")
    finally:
        await proxy.cut_connections()


@POSTGRES
async def test_options_and_application_name_reach_the_server(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "options=-c%20statement_timeout%3D1234&application_name=mail%20one"
    database = Database(f"{postgres}&{options}")
    async with database.engine.connect() as connection:
        assert (await connection.execute(text("SHOW statement_timeout"))).scalar() == "1234ms"
        assert (await connection.execute(text("SHOW application_name"))).scalar() == "mail one"
    await database.close()
    service_file = tmp_path / "service"
    parts = urlsplit(postgres)
    socket_folder = parts.query.removeprefix("host=")
    service_file.write_text(
        f"[mail]\nhost={socket_folder}\ndbname={parts.path[1:]}\nuser=postgres\n"
    )
    assert await can_use_database(f"postgresql://?service=mail&servicefile={service_file}")
    monkeypatch.setenv("PGHOST", socket_folder)
    assert await can_use_database(f"postgresql://postgres@{parts.path}")
    connector = PostgresConnector(f"{postgres}&requirepeer=nobody-of-this-name")
    with pytest.raises(PostgresAddressError, match="requirepeer"):
        await connector.connect()


def test_url_is_parsed_as_libpq_parses_it() -> None:
    address = parse_postgres_address(
        "postgres://us%40er:p%2Fw@[::1]:1,b.example:2,%2Frun%2Fpg/da%20ta?sslmode=verify-full", {}
    )
    assert [(host.name, host.port) for host in address.hosts] == [
        ("::1", 1), ("b.example", 2), ("/run/pg", 5432),
    ]  # fmt: skip
    assert [address.get(name) for name in ("user", "password", "dbname")] == [
        "us@er", "p/w", "da ta",
    ]  # fmt: skip
    assert "p/w" not in repr(address)
    variables = {"PGHOST": "h.example", "PGPORT": "7", "PGSSLMODE": "require", "PGUSER": "eve"}
    address = parse_postgres_address("postgresql://", variables)
    assert [(host.name, host.port) for host in address.hosts] == [("h.example", 7)]
    assert (address.sslmode, address.get("user")) == ("require", "eve")
