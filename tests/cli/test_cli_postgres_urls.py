"""Addresses of PostgreSQL that can't be used end the start with one sentence."""

import pytest

from tests.support.clients.command_line import CommandLine

WRONG = {
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


@pytest.mark.parametrize("more", WRONG)
def test_wrong_parameter_ends_the_start_with_a_sentence(bare: CommandLine, more: str) -> None:
    bare.set_settings(store=f"postgresql://ada:secret-password@127.0.0.1:1/mail?{more}")
    said = bare("init")
    assert said.code == 2
    assert WRONG[more] in said.err
    assert "Traceback" not in said.err
    assert "secret-password" not in said.err


def test_missing_certificate_ends_the_start_with_a_sentence(bare: CommandLine) -> None:
    for more in ("sslmode=verify-full", "sslmode=require&sslrootcert=/nowhere.pem"):
        bare.set_settings(store=f"postgres://ada:secret-password@127.0.0.1:1/mail?{more}")
        said = bare("init")
        assert said.code == 2
        assert "sslrootcert" in said.err
        assert "Traceback" not in said.err
    bare.set_settings(store="postgres://ada:secret-password@127.0.0.1:1/mail?sslmode=require")
    said = bare("init")
    assert said.code == 1
    assert "cannot use the store" in said.err
    assert "secret-password" not in said.err
