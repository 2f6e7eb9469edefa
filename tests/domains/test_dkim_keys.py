"""DKIM keys of domains: creation, import, copies, deletion, DNS records and permissions."""

import base64
import json
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from graph.types import global_ids
from mail.authentication import private_keys
from mail.authentication.private_keys import Algorithm
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.operations.domain_operations import (
    ALIAS_DOMAIN_CREATE,
    ALIAS_DOMAIN_DELETE,
    DOMAIN_DELETE,
    DOMAIN_RENAME,
    create_domain,
    error_summary,
    load_domain,
    load_domain_id,
    run_mutation,
)
from tests.support.operations.platform import dkim_key_operations
from tests.support.operations.platform.dkim_key_operations import (
    DKIM_KEY_ACTIVATE,
    DKIM_KEY_COPY,
    DKIM_KEY_DELETE,
    DKIM_KEY_QUERY,
    DKIM_KEY_ROTATE,
    DKIM_KEY_SET,
    DKIM_KEYS_QUERY,
    DNS_STATES_QUERY,
    domain_refs,
    list_keys,
    load_signing_key,
    load_states_by_selector,
)
from tests.support.stores import counter_check

NODE_QUERY = "query ($id: ID!) { node(id: $id) { ... on DkimKey { selector } } }"
DNS_RECORDS_QUERY = """query ($check: Boolean!) { domain(by: {name: "example.org"}) {
  dkimKey { selector } dnsRecords(check: $check) { type name value purpose state } } }"""
pytestmark = pytest.mark.usefixtures("ada")  # creates example.org


def make_pkcs1_pem(bits: int = 2048) -> str:
    key = generate_private_key(65537, bits)
    encoding = Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    return key.private_bytes(*encoding).decode()


async def test_key_is_created_read_listed_and_deleted(
    root: GraphQLClient, environment: Environment
) -> None:
    domain_id = await load_domain_id(environment, "example.org")
    positions_before = [
        await counter_check.load_stream_position(environment, stream)
        for stream in (PLATFORM, domain_id)
    ]
    dkim_key = await dkim_key_operations.create_dkim_key(
        root, selector=" S1.Mail ", description=" Ours "
    )
    assert (dkim_key["domain"], dkim_key["selector"], dkim_key["description"]) == (
        "example.org", "s1.mail", "Ours"
    )  # fmt: skip
    assert (dkim_key["algorithm"], dkim_key["keySize"], dkim_key["state"]) == (
        "RSA",
        2048,
        "ACTIVE",
    )
    assert dkim_key["dnsTxt"]["name"] == "s1.mail._domainkey.example.org"
    assert dkim_key["dnsTxt"]["value"] == f"v=DKIM1; k=rsa; p={dkim_key['publicKey']}"
    assert (len(dkim_key["fingerprint"]), len(dkim_key["fingerprintSha256"])) == (59, 95)
    assert dkim_key["activatedAt"] == dkim_key["createdAt"]
    assert await list_keys(root) == [dkim_key]
    assert await load_signing_key(root, "Example.ORG") == dkim_key
    assert (await root(DKIM_KEY_QUERY, by={"id": dkim_key["id"]}))["dkimKey"] == dkim_key
    assert (await root(NODE_QUERY, id=dkim_key["id"]))["node"] == {"selector": "s1.mail"}
    key_id = global_ids.decode("DkimKey", dkim_key["id"])
    payload, errors = await run_mutation(root, DKIM_KEY_DELETE, dkimKeys=[{"id": dkim_key["id"]}])
    assert (payload["deletedIds"], errors) == ([dkim_key["id"]], [])
    assert await load_signing_key(root, "example.org") is None
    assert await root(NODE_QUERY, id=dkim_key["id"]) == {"node": None}
    for stream, position in zip((PLATFORM, domain_id), positions_before, strict=True):
        assert await counter_check.load_journal_entries(environment, stream, position) == [
            (EventType.DKIM_KEY_CREATED, [key_id]),
            (EventType.DKIM_KEY_DELETED, [key_id]),
        ]


@pytest.mark.parametrize("key_format", ["pkcs1", "pkcs8", "ed25519", "raw"])
async def test_private_key_can_be_imported(root: GraphQLClient, key_format: str) -> None:
    seed = bytes(range(32))
    ed25519_key = private_keys.DkimPrivateKey(Ed25519PrivateKey.from_private_bytes(seed))
    private_key = {
        "pkcs1": make_pkcs1_pem(),
        "pkcs8": private_keys.generate_key(Algorithm.RSA).to_pem(),
        "ed25519": ed25519_key.to_pem(),
        "raw": base64.b64encode(seed).decode(),
    }[key_format]
    dkim_key = await dkim_key_operations.create_dkim_key(root, privateKey=private_key)
    assert (
        dkim_key["publicKey"] == private_keys.parse_dkim_private_key(private_key).public_key_text()
    )
    if key_format in ("ed25519", "raw"):
        assert (dkim_key["algorithm"], dkim_key["keySize"]) == ("ED25519", None)
        assert len(base64.b64decode(dkim_key["publicKey"])) == 32
        assert dkim_key["dnsTxt"]["value"].startswith("v=DKIM1; k=ed25519; p=")
        read_key = (await root(DKIM_KEY_QUERY, by={"id": dkim_key["id"]}))["dkimKey"]
        assert read_key == dkim_key  # a key that is read later has the raw public key too


async def test_short_key_is_accepted_with_a_warning(root: GraphQLClient) -> None:
    payload, errors = await run_mutation(
        root, DKIM_KEY_SET, domains=domain_refs("example.org"), keySize=1024
    )
    assert errors == []
    assert [warning["code"] for warning in payload["warnings"]] == ["WEAK_KEY"]
    assert payload["dkimKeys"][0]["keySize"] == 1024


REFUSED_KEY_INPUTS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"domains": domain_refs()}, ("VALIDATION", ["domains"], None, "REQUIRED")),
    ({"domains": domain_refs(*["example.org"] * 51)}, ("VALIDATION", ["domains"], None, "MAX")),
    (
        {"domains": [{"id": global_ids.encode("Domain", 1)}] * 51},
        ("VALIDATION", ["domains"], None, "MAX"),
    ),
    ({"domains": domain_refs("far.example")}, ("NOT_FOUND", ["domains"], 0, "far.example")),
    ({"domains": domain_refs("*", "a\u0001b")}, ("NOT_FOUND", ["domains"], 1, "a\u0001b")),
    ({"selector": ""}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "a b"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "a\r\nb"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "-a"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "a..b"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "ü"}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": "a" * 64}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"selector": ".".join(["a" * 60] * 4)}, ("VALIDATION", ["selector"], None, "SELECTOR")),
    ({"description": "x" * 1001}, ("VALIDATION", ["description"], None, "LENGTH")),
    ({"keySize": 512}, ("VALIDATION", ["keySize"], None, "ENUM")),
    ({"keySize": 1 << 30}, ("VALIDATION", ["keySize"], None, "ENUM")),
    ({"privateKey": ""}, ("VALIDATION", ["privateKey"], None, "KEY")),
    ({"privateKey": "junk"}, ("VALIDATION", ["privateKey"], None, "KEY")),
    ({"privateKey": "A" * 44}, ("VALIDATION", ["privateKey"], None, "KEY")),
    ({"privateKey": "A" * 100_000}, ("VALIDATION", ["privateKey"], None, "KEY")),
    ({"privateKey": "-----BEGIN PRIVATE KEY-----\nx"}, ("VALIDATION", ["privateKey"], None, "KEY")),
]


async def test_invalid_key_input_is_refused(root: GraphQLClient) -> None:
    for case in each_case(REFUSED_KEY_INPUTS):
        with case as (key_input, refusal):
            _, errors = await run_mutation(
                root, DKIM_KEY_SET, **{"domains": domain_refs("example.org"), **key_input}
            )
            assert error_summary(errors) == refusal
            assert await list_keys(root) == []


async def test_selector_can_have_underscores_which_the_error_names(root: GraphQLClient) -> None:
    key = await dkim_key_operations.create_dkim_key(root, selector="_s_1")
    assert key["selector"] == "_s_1"
    _, (error,) = await run_mutation(
        root, DKIM_KEY_SET, domains=domain_refs("example.org"), selector="-s"
    )
    assert "underscores" in error["message"]


async def test_dns_name_is_checked_with_the_selector_of_the_key(root: GraphQLClient) -> None:
    name = ".".join(["a" * 60] * 3 + ["b" * 49, "example"])  # 240 characters
    await create_domain(root, name)
    await dkim_key_operations.create_dkim_key(root, selector="longer")
    for document, arguments, path, index in (
        (
            DKIM_KEY_COPY,
            {"fromDomain": {"name": "example.org"}, "toDomains": domain_refs(name)},
            ["toDomains"],
            0,
        ),
        (DKIM_KEY_SET, {"domains": domain_refs(name), "selector": "longer"}, ["selector"], None),
    ):
        _, errors = await run_mutation(root, document, **arguments)
        assert error_summary(errors) == ("VALIDATION", path, index, "SELECTOR")
    await dkim_key_operations.create_dkim_key(root, domain=name, selector="s")  # 253 characters
    _, errors = await run_mutation(root, DKIM_KEY_ROTATE, domains=domain_refs(name))
    assert error_summary(errors) == ("VALIDATION", ["selector"], None, "SELECTOR")
    payload, errors = await run_mutation(
        root, DKIM_KEY_ROTATE, domains=domain_refs(name), selector="t"
    )
    assert (errors, payload["dkimKeys"][0]["selector"]) == ([], "t")
    payload, errors = await run_mutation(root, DKIM_KEY_DELETE, domains=domain_refs(name))
    assert (len(payload["deletedIds"]), errors) == (2, [])


async def test_domain_is_not_renamed_if_dns_name_of_a_key_would_be_too_long(
    root: GraphQLClient,
) -> None:
    await create_domain(root, "old.example")
    key = await dkim_key_operations.create_dkim_key(root, domain="old.example", selector="a" * 30)
    new_name = ".".join(["a" * 60] * 3 + ["b" * 35, "example"])  # 226 characters
    _, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "old.example"}, newName=new_name
    )
    assert error_summary(errors) == ("VALIDATION", ["newName"], None, "SELECTOR")
    assert (await load_signing_key(root, "old.example"))["id"] == key["id"]


async def test_second_key_replaces_is_added_or_is_refused(root: GraphQLClient) -> None:
    first = await dkim_key_operations.create_dkim_key(root)
    replacement = await dkim_key_operations.create_dkim_key(root)
    assert (replacement["id"], replacement["publicKey"] == first["publicKey"]) == (
        first["id"],
        False,
    )
    await dkim_key_operations.create_dkim_key(root, selector="e", algorithm="ED25519")
    assert await load_states_by_selector(root) == {"dkim": "ACTIVE", "e": "ACTIVE"}
    assert (await load_signing_key(root, "example.org"))["selector"] == "dkim"
    await dkim_key_operations.create_dkim_key(root, selector="new")
    assert await load_states_by_selector(root) == {
        "dkim": "RETIRED",
        "e": "ACTIVE",
        "new": "ACTIVE",
    }
    for arguments in ({"selector": "dkim"}, {"selector": "x"}, {"selector": "e"}):
        _, errors = await run_mutation(
            root, DKIM_KEY_SET, domains=domain_refs("example.org"), replace=False, **arguments
        )
        assert error_summary(errors)[:3] == ("CONFLICT", ["domains"], 0)


async def test_number_of_keys_of_a_domain_is_limited(root: GraphQLClient) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    for number in range(20):
        await dkim_key_operations.create_dkim_key(root, selector=f"s{number}", privateKey=raw)
    _, errors = await run_mutation(
        root, DKIM_KEY_SET, domains=domain_refs("example.org"), selector="x", privateKey=raw
    )
    assert error_summary(errors)[:2] == ("LIMIT_REACHED", ["domains"])
    for name in ("a.example", "b.example"):
        await create_domain(root, name)
    await dkim_key_operations.create_dkim_key(
        root, domains=domain_refs("b.example"), selector="x", privateKey=raw
    )
    _, errors = await run_mutation(
        root,
        DKIM_KEY_COPY,
        fromDomain={"name": "b.example"},
        toDomains=domain_refs("a.example", "example.org"),
    )
    assert error_summary(errors)[:3] == ("LIMIT_REACHED", ["toDomains"], 1)


async def test_no_response_log_or_row_has_the_private_key(
    root: GraphQLClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    private_key = private_keys.generate_key(Algorithm.RSA).to_pem()
    key_line = private_key.splitlines()[3]
    response = await root.execute(
        DKIM_KEY_SET, input={"domains": domain_refs("example.org"), "privateKey": private_key}
    )
    assert response["data"]["dkimKeySet"]["errors"] == []
    assert key_line not in json.dumps(response)
    ((encrypted,),) = await counter_check.select_rows(environment, "SELECT private FROM dkim_keys")
    assert key_line not in encrypted
    for table in ("changes", "audit_log", "idempotent_payloads"):
        assert key_line not in str(
            await counter_check.select_rows(environment, f"SELECT * FROM {table}")  # noqa: S608
        )
    assert key_line not in caplog.text
    fields = await root('{ __type(name: "DkimKey") { fields { name } } }')
    assert "privateKey" not in {field["name"] for field in fields["__type"]["fields"]}
    assert (
        await secret_rotation.count_encrypted_values_by_key(
            environment, [environment.secret_box.newest_key_name]
        )
    )[environment.secret_box.newest_key_name] == 1


async def test_key_list_has_pages_and_filters(root: GraphQLClient) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    names = ["a.example", "b.example", "c.example"]
    for name in names:
        await create_domain(root, name)
        await dkim_key_operations.create_dkim_key(root, domain=name, privateKey=raw)
    domains, after = [], None
    while True:
        page = (await root(DKIM_KEYS_QUERY, first=2, after=after))["dkimKeys"]
        domains += [key["domain"] for key in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert (domains, page["totalCount"]) == (names, 3)
    assert [key["domain"] for key in await list_keys(root, last=1)] == names[-1:]
    assert [key["domain"] for key in await list_keys(root, filter={"query": "B.ex"})] == [
        "b.example"
    ]
    assert await list_keys(root, filter={"query": "%"}) == []


async def test_domain_admin_manages_only_keys_of_own_domains(
    root: GraphQLClient, environment: Environment, http: httpx.AsyncClient, bob: GraphQLClient
) -> None:
    await create_domain(root, "far.example")
    other_key = await dkim_key_operations.create_dkim_key(root, domain="far.example")
    wildcard_key = await dkim_key_operations.create_dkim_key(root, domain="*")
    admin = await make_domain_admin(environment, http, "eve")
    own_key = await dkim_key_operations.create_dkim_key(admin)
    assert await list_keys(admin) == [own_key]
    assert (await admin(DKIM_KEYS_QUERY))["dkimKeys"]["totalCount"] == 1
    for key in (other_key, wildcard_key):
        assert await admin(NODE_QUERY, id=key["id"]) == {"node": None}
        assert (await admin(DKIM_KEY_QUERY, by={"id": key["id"]}))["dkimKey"] is None
        assert await load_signing_key(admin, key["domain"]) is None
        for document in (DKIM_KEY_DELETE, DKIM_KEY_ACTIVATE):
            _, errors = await run_mutation(admin, document, dkimKeys=[{"id": key["id"]}])
            assert error_summary(errors)[0] == "NOT_FOUND"
        for document in (DKIM_KEY_SET, DKIM_KEY_ROTATE, DKIM_KEY_DELETE):
            _, errors = await run_mutation(admin, document, domains=domain_refs(key["domain"]))
            expected_code = "FORBIDDEN" if key["domain"] == "*" else "NOT_FOUND"
            assert error_summary(errors)[0] == expected_code
    arguments = {"fromDomain": {"name": "example.org"}, "toDomains": domain_refs("far.example")}
    response = await admin.execute(DKIM_KEY_COPY, input=arguments)
    assert response["data"]["dkimKeyCopy"]["errors"][0]["code"] == "FORBIDDEN"
    response = await bob.execute(DKIM_KEYS_QUERY)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    response = await bob.execute(DKIM_KEY_SET, input={"domains": domain_refs("example.org")})
    assert response["data"]["dkimKeySet"]["errors"][0]["code"] == "FORBIDDEN"
    assert len(await list_keys(root)) == 3


async def test_domain_of_key_is_named_by_id_or_name(root: GraphQLClient) -> None:
    domain_id = (await root('{ domain(by: {name: "example.org"}) { id } }'))["domain"]["id"]
    payload, errors = await run_mutation(root, DKIM_KEY_SET, domains=[{"id": domain_id}])
    assert (errors, payload["dkimKeys"][0]["domain"]) == ([], "example.org")
    missing_id = global_ids.encode("Domain", 12345)
    for reference, path, code in (
        ({"id": missing_id}, ["domains", "1"], "NOT_FOUND"),
        ({"id": "usr_x"}, ["domains", "1", "id"], "VALIDATION"),
        ({"all": False}, ["domains", "1", "all"], "VALIDATION"),
        ({"name": "nowhere.example"}, ["domains", "1"], "NOT_FOUND"),
    ):
        references = [{"name": "example.org"}, reference]
        _, (error,) = await run_mutation(root, DKIM_KEY_ROTATE, domains=references)
        assert (error["code"], error["path"]) == (code, path)
    _, (error,) = await run_mutation(
        root, DKIM_KEY_COPY, fromDomain={"id": missing_id}, toDomains=domain_refs("example.org")
    )
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["fromDomain"])


async def test_keys_are_copied_with_their_selectors(
    root: GraphQLClient, environment: Environment
) -> None:
    for name in ("a.example", "b.example"):
        await create_domain(root, name)
    (rsa_key, ed25519_key) = await dkim_key_operations.create_key_of_each_algorithm(root)
    payload, errors = await run_mutation(
        root,
        DKIM_KEY_COPY,
        fromDomain={"name": "example.org"},
        toDomains=domain_refs("a.example", "b.example", "a.example"),
    )
    assert errors == []
    assert [(key["domain"], key["selector"]) for key in payload["dkimKeys"]] == [
        ("a.example", "r"), ("a.example", "e"), ("b.example", "r"), ("b.example", "e")
    ]  # fmt: skip
    assert {key["publicKey"] for key in payload["dkimKeys"]} == {
        rsa_key["publicKey"],
        ed25519_key["publicKey"],
    }
    private_rows = await counter_check.select_rows(environment, "SELECT private FROM dkim_keys")
    assert len(set(private_rows)) == 6  # each row is encrypted with its own context
    for targets, code in ((["example.org"], "VALIDATION"), (["c.example"], "NOT_FOUND")):
        _, errors = await run_mutation(
            root, DKIM_KEY_COPY, fromDomain={"name": "example.org"}, toDomains=domain_refs(*targets)
        )
        assert error_summary(errors)[:3] == (code, ["toDomains"], 0)
    await create_domain(root, "c.example")
    _, errors = await run_mutation(
        root, DKIM_KEY_COPY, fromDomain={"name": "c.example"}, toDomains=domain_refs("a.example")
    )
    assert error_summary(errors)[:2] == ("NOT_FOUND", ["fromDomain"])
    payload, errors = await run_mutation(root, DKIM_KEY_DELETE, domains=domain_refs("a.example"))
    assert (len(payload["deletedIds"]), errors) == (2, [])
    _, errors = await run_mutation(
        root, DKIM_KEY_DELETE, domains=domain_refs("b.example", "a.example")
    )
    assert error_summary(errors)[:3] == ("NOT_FOUND", ["domains"], 1)
    _, errors = await run_mutation(root, DKIM_KEY_DELETE)
    assert error_summary(errors)[0] == "VALIDATION"
    assert len(await list_keys(root)) == 4


async def test_renamed_domain_keeps_its_keys(root: GraphQLClient) -> None:
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="second.example", domain={"name": "example.org"}
    )
    await dkim_key_operations.create_key_of_each_algorithm(root)
    await dkim_key_operations.create_dkim_key(root, domain="second.example")
    payload, errors = await run_mutation(
        root, DOMAIN_RENAME, domain={"name": "example.org"}, newName="new.example"
    )
    assert errors == []
    assert sorted(key["domain"] for key in await list_keys(root)) == [
        "new.example", "new.example", "second.example"
    ]  # fmt: skip
    document = DOMAIN_RENAME.replace("userCount", "dkimKeyCount")
    payload, errors = await run_mutation(
        root, document, domain={"name": "new.example"}, newName="b.example"
    )
    assert (errors, payload["dkimKeyCount"]) == ([], 2)
    assert await load_domain(root, "b.example")
    assert (await load_signing_key(root, "b.example"))["dnsTxt"]["name"].endswith(
        "_domainkey.b.example"
    )


async def test_keys_are_deleted_with_their_domain_or_alias(root: GraphQLClient) -> None:
    await create_domain(root, "new.example")
    await run_mutation(
        root, ALIAS_DOMAIN_CREATE, alias="second.example", domain={"name": "new.example"}
    )
    for name in ("new.example", "second.example"):
        await dkim_key_operations.create_dkim_key(root, domain=name)
    await run_mutation(root, ALIAS_DOMAIN_DELETE, aliasDomains=[{"alias": "SECOND.example"}])
    assert [key["domain"] for key in await list_keys(root)] == ["new.example"]
    _, errors = await run_mutation(root, DOMAIN_DELETE, domains=[{"name": "new.example"}])
    assert errors == []
    assert await list_keys(root) == []


async def test_dns_records_of_domain_contain_each_key(root: GraphQLClient) -> None:
    (rsa_key, ed25519_key) = await dkim_key_operations.create_key_of_each_algorithm(root)
    await run_mutation(
        root, DKIM_KEY_ROTATE, domains=domain_refs("example.org"), algorithm="RSA", selector="next"
    )
    records = dkim_key_operations.dkim_txt_records([rsa_key, ed25519_key])
    records[ed25519_key["dnsTxt"]["name"]] = "v=DKIM1; p="
    async with run_dns_zone(make_dns_zone(records)) as resolver_address:
        dkim_key_operations.use_dns_server(root, resolver_address)
        domain = (await root(DNS_RECORDS_QUERY, check=True))["domain"]
    assert domain["dkimKey"] == {"selector": "r"}
    record_by_selector = {
        record["name"].partition(".")[0]: record
        for record in domain["dnsRecords"]
        if "_domainkey" in record["name"]
    }
    assert {name: record["state"] for name, record in record_by_selector.items()} == {
        "r": "OK", "e": "MISMATCH", "next": "MISSING"
    }  # fmt: skip
    assert record_by_selector["r"]["value"] == rsa_key["dnsTxt"]["value"]
    assert record_by_selector["next"]["purpose"] == "DKIM_PENDING"


async def test_dns_states_are_looked_up_together(root: GraphQLClient) -> None:
    raw = base64.b64encode(bytes(32)).decode()
    keys = [
        await dkim_key_operations.create_dkim_key(root, selector=f"s{number}", privateKey=raw)
        for number in range(10)
    ]
    await dkim_key_operations.create_dkim_key(root, domain="*", privateKey=raw)
    async with run_dns_zone(dkim_key_operations.make_dkim_zone(keys[:9])) as resolver_address:
        dkim_key_operations.use_dns_server(root, resolver_address)
        nodes = (await root(DNS_STATES_QUERY))["dkimKeys"]["nodes"]
    assert [node["dnsState"] for node in nodes] == ["UNKNOWN", *["OK"] * 9, "MISSING"]


async def test_secret_rotation_reencrypts_private_keys(
    root: GraphQLClient, environment: Environment
) -> None:
    await dkim_key_operations.create_key_of_each_algorithm(root)
    rows_before = await counter_check.select_rows(
        environment, "SELECT id, private FROM dkim_keys ORDER BY id"
    )
    new_box = environment.secret_box.with_new_key()
    object.__setattr__(
        environment.secret_box, "keys", {**environment.secret_box.keys, **new_box.keys}
    )
    result = await secret_rotation.reencrypt_all_secrets(environment)
    rows_after = await counter_check.select_rows(
        environment, "SELECT id, private FROM dkim_keys ORDER BY id"
    )
    assert (result.reencrypted_count, result.failed_contexts) == (2, [])
    assert not {row[1] for row in rows_before} & {row[1] for row in rows_after}
