"""Tests that an unusable PostgreSQL URL is reported in one line."""

import pytest

from tests.support.clients.command_line import CommandLine

ERROR_BY_PARAMETERS = {
    "sslmode=strict": "sslmode must be",
    "schema=public": "'schema'",
    "pgbouncer=true": "'pgbouncer'",
    "connect_timeout=soon": "connect_timeout must be",
    "port=99999": "port must be",
    "target_session_attrs=leader": "target_session_attrs must be",
    "sslrootcert=system&sslmode=require": "sslrootcert=system",
    "sslmode=disable&channel_binding=require": "channel_binding",
    "sslnegotiation=direct&sslmode=prefer": "sslnegotiation",
    "options": "'options'",
    "replication=database": "replication",
    "require_auth=password": "require_auth",
    "service=nowhere": "'nowhere'",
    "application_name=%zz": "application_name",
    "application_name=%ff": "application_name",
    "host=a,b,c&port=1,2": "port",
}


@pytest.mark.parametrize("parameters", ERROR_BY_PARAMETERS)
def test_invalid_url_parameter_is_reported_in_one_line(
    shell_without_store: CommandLine, parameters: str
) -> None:
    shell_without_store.set_settings(
        database_url=f"postgresql://ada:secret-password@127.0.0.1:1/mail?{parameters}"
    )
    result = shell_without_store("init")
    assert result.code == 2
    assert ERROR_BY_PARAMETERS[parameters] in result.err
    assert "Traceback" not in result.err
    assert "secret-password" not in result.err


def test_missing_root_certificate_is_reported_in_one_line(shell_without_store: CommandLine) -> None:
    for parameters in ("sslmode=verify-full", "sslmode=require&sslrootcert=/nowhere.pem"):
        shell_without_store.set_settings(
            database_url=f"postgres://ada:secret-password@127.0.0.1:1/mail?{parameters}"
        )
        result = shell_without_store("init")
        assert result.code == 2
        assert "sslrootcert" in result.err
        assert "Traceback" not in result.err
    shell_without_store.set_settings(
        database_url="postgres://ada:secret-password@127.0.0.1:1/mail?sslmode=require"
    )
    result = shell_without_store("init")
    assert result.code == 1
    assert "Cannot use the database" in result.err
    assert "secret-password" not in result.err
