"""The check of PostgreSQL: version, encoding, rights, number of connections, and TLS."""

from ipaddress import ip_address
from typing import Any

from sqlalchemy import text

from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.errors import CommandError
from merganser.server import environment_factory
from merganser.settings.settings import PREFIX, Settings
from models.store.postgres.limits import CONNECTIONS_PER_PROCESS

MIN_VERSION = 15  # major version
_SELECT_FACTS = text("""
SELECT current_setting('server_version') AS version,
    current_setting('server_version_num')::int / 10000 AS major_version,
    current_setting('server_encoding') AS encoding,
    current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int AS connections,
    has_schema_privilege(current_schema(), 'CREATE') AS can_create_tables,
    host(inet_server_addr()) AS address,
    (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()) AS has_tls
""")


async def check_postgres(settings: Settings) -> list[Finding]:
    """Check the server and the database of PostgreSQL. SQLite has no finding."""
    url = environment_factory.checked_database_url_without_password(settings)
    if url.get_backend_name() == "sqlite":
        return []
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                async with store.engine.connect() as connection:
                    facts = (await connection.execute(_SELECT_FACTS)).one()
        except CommandError:
            return []  # the check of the database reports why
    return findings_of_facts(facts)


def findings_of_facts(facts: Any) -> list[Finding]:
    """Return what must be changed, or that all is well. `facts` has the columns of the select."""
    name = CheckName.POSTGRES
    findings: list[Finding] = []
    if facts.major_version < MIN_VERSION:
        findings += action_finding(
            name, f"version {facts.version}", f"upgrade it to version {MIN_VERSION} or newer"
        )
    if facts.encoding != "UTF8":
        findings += action_finding(
            name,
            f"the database has the encoding {facts.encoding}",
            "create a database with ENCODING 'UTF8'",
        )
    if not facts.can_create_tables:  # None if the search path has no schema
        findings += action_finding(
            name,
            "the user of the URL can't create tables",
            "make this user the owner of the database",
        )
    process_count = facts.connections // CONNECTIONS_PER_PROCESS
    if not process_count:
        findings += hint_finding(
            name,
            f"{facts.connections} connections; a process of Merganser can need "
            f"{CONNECTIONS_PER_PROCESS}",
            "increase max_connections for all processes of all servers",
        )
    if not facts.has_tls and facts.address and not ip_address(facts.address).is_loopback:
        findings += hint_finding(
            name,
            f"the connection to {facts.address} is not encrypted",
            f"add sslmode=verify-full to {PREFIX}DATABASE_URL",
        )
    return findings or ok_finding(
        name,
        f"version {facts.version}, {facts.encoding}, "
        f"{facts.connections} connections, enough for "
        f"{'1 process' if process_count == 1 else f'{process_count} processes'}",
    )
