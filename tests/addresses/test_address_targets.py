"""Targets of addresses: forwards, relays with passwords, and limits."""

import pytest

from mail.recipients import forward_targets
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.operations import domain_operations
from tests.support.operations.address_operations import (
    create_address,
    load_address,
    load_address_row,
    try_create_address,
    try_update_addresses,
)
from tests.support.operations.domain_operations import error_summary

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_audit_log_shows_unlimited_forwards_as_null(root: GraphQLClient) -> None:
    unlimited = {"forwardsPerDay": None}
    await create_address(root, "list@own.example", forwardTo=["x@y.example"], limits=unlimited)
    for limits in ({"forwardsPerDay": 7}, unlimited):
        _, errors = await try_update_addresses(root, "list@own.example", limits=limits)
        assert errors == []
    log = '{ auditLog(filter: {mutation: "%s"}) { nodes { before after } } }'
    update_entries = (await root(log % "addressUpdate"))["auditLog"]["nodes"]
    values = [(entry["before"], entry["after"]) for entry in update_entries]
    unlimited_and_seven = [{"limits.forwardsPerDay": None}, {"limits.forwardsPerDay": 7}]
    assert sorted(values, key=str) == sorted(
        [tuple(unlimited_and_seven), tuple(reversed(unlimited_and_seven))], key=str
    )
    (entry,) = (await root(log % "addressCreate"))["auditLog"]["nodes"]
    assert entry["after"]["limits.forwardsPerDay"] is None


async def test_targets_are_unique_and_hide_relay_passwords(root: GraphQLClient) -> None:
    targets = [
        "Carol@Far.example", "carol@far.EXAMPLE", "https://hooks.example.com/a?b=c",
        "smtps://us%40er:p%2Fw@relay.example.com:465", "smtp://[2606:4700::1]",
    ]  # fmt: skip
    shown_targets = [
        "Carol@far.example", "https://hooks.example.com/a?b=c",
        "smtps://us%40er:***@relay.example.com:465", "smtp://[2606:4700::1]",
    ]  # fmt: skip
    address = await create_address(
        root, "list@own.example", forwardTo=targets, limits={"forwardsPerDay": 7}
    )
    assert (address["kind"], address["forwardTo"], address["user"]) == (
        "FORWARD",
        shown_targets,
        None,
    )
    assert address["limits"] == {"forwardsPerDay": {"limit": 7, "used": 0, "resetsAt": None}}
    row = await load_address_row(root.environment, "list@own.example")
    assert "p%2Fw" not in str(dict(row._mapping))  # noqa: SLF001
    assert (
        forward_targets.targets_with_passwords(root.environment, row)[2]
        == "smtps://us%40er:p%2Fw@relay.example.com:465"
    )

    # a client sends back the target without its password
    ((answer,), errors) = await try_update_addresses(
        root, "list@own.example", forwardTo=[shown_targets[2], "x@y.example"]
    )
    assert (errors, answer["forwardTo"]) == ([], [shown_targets[2], "x@y.example"])
    row = await load_address_row(root.environment, "list@own.example")
    assert (
        forward_targets.targets_with_passwords(root.environment, row)[0]
        == "smtps://us%40er:p%2Fw@relay.example.com:465"
    )
    _, errors = await try_update_addresses(
        root, "list@own.example", forwardTo=["smtp://a:***@relay.example.com"]
    )
    assert error_summary(errors) == ("VALIDATION", ["set", "forwardTo"], 0, "SECRET")
    ((answer,), errors) = await try_update_addresses(root, "list@own.example", inheritLimits=True)
    assert (errors, answer["limits"]["forwardsPerDay"]["limit"]) == ([], 2000)
    _, errors = await try_update_addresses(
        root, "list@own.example", inheritLimits=True, limits={"forwardsPerDay": None}
    )
    assert error_summary(errors) == ("VALIDATION", ["set", "inheritLimits"], None, "EXCLUSIVE")
    ((answer,), errors) = await try_update_addresses(
        root, "list@own.example", forwardTo=["x@y.example"]
    )
    assert (await load_address_row(root.environment, "list@own.example")).relays is None


async def test_secret_rotation_reencrypts_relay_passwords(root: GraphQLClient) -> None:
    environment = root.environment
    await create_address(root, "list@own.example", forwardTo=["smtp://u:word@relay.example.com"])
    ((name, key),) = environment.secret_box.keys.items()
    rotated = Environment(
        environment.database,
        environment.object_store,
        signing_secret=b"s",
        now=environment.now,
        secret_box=SecretBox({name: key, "newer": b"n" * 32}),
    )
    assert (await secret_rotation.reencrypt_all_secrets(rotated)).reencrypted_count == 1
    row = await load_address_row(environment, "list@own.example")
    assert row.relays.startswith("newer.")
    assert forward_targets.targets_with_passwords(rotated, row) == [
        "smtp://u:word@relay.example.com"
    ]
    # without the key, the client must send the password again
    _, errors = await try_update_addresses(root, "list@own.example", forwardTo=row.forward_to)
    assert error_summary(errors) == ("VALIDATION", ["set", "forwardTo"], 0, "SECRET")


INVALID_TARGETS: list[tuple[str, str]] = [
    ("carol", "ADDRESS"), ("c*@far.example", "PATTERN"), ("ftp://a.example", "URL"),
    ("smtp://", "URL"), ("smtp://a.example/path", "URL"), ("smtp://a.example?x=y", "URL"),
    ("smtp://user@a.example", "URL"), ("smtp://a.example:99999", "URL"),
    ("smtp://127.0.0.1", "PRIVATE_NETWORK"), ("smtps://u:p@relay.internal", "PRIVATE_NETWORK"),
    ("http://[::1]/", "PRIVATE_NETWORK"), ("http://169.254.169.254/latest", "PRIVATE_NETWORK"),
    ("https://u:p@a.example/", "URL"), ("https://" + "a" * 2048, "LENGTH"),
    ("smtp://a\n.example", "LENGTH"), ("list@own.example", "SELF"),
    ("L.ist+x@OWN.example", "SELF"), ("list@other.example", "SELF"),
]  # fmt: skip


async def test_invalid_target_is_refused(root: GraphQLClient) -> None:
    await create_address(root, "list@own.example", forwardTo=["carol@far.example"])
    _, errors = await domain_operations.run_mutation(
        root,
        domain_operations.ALIAS_DOMAIN_CREATE,
        alias="other.example",
        domain={"name": "own.example"},
    )
    assert errors == []
    for case in each_case(INVALID_TARGETS):
        with case as (target, rule):
            answer, errors = await try_update_addresses(
                root, "list@own.example", forwardTo=["ok@far.example", target]
            )
            assert (answer, error_summary(errors)) == (
                [],
                ("VALIDATION", ["set", "forwardTo"], 1, rule),
            )
            assert (await load_address(root, "list@own.example"))["forwardTo"] == [
                "carol@far.example"
            ]


async def test_number_of_targets_is_limited(root: GraphQLClient) -> None:
    targets = [f"a{n}@far.example" for n in range(101)]
    _, errors = await try_create_address(root, "list@own.example", forwardTo=targets)
    assert error_summary(errors) == ("VALIDATION", ["forwardTo"], None, "MAX")
    assert (
        len((await create_address(root, "list@own.example", forwardTo=targets[:100]))["forwardTo"])
        == 100
    )
