"""Lists read only the columns and links that are requested, with one statement for many parents."""

import re
from itertools import product
from typing import Any

from graphql import GraphQLObjectType, get_named_type

from models.users.roles import Role
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to, make_user
from tests.support.case_loop import each_case
from tests.support.lists.list_fields import LISTS_OUTSIDE_THE_DATABASE
from tests.support.sample_mutations import SAMPLE_CALLS
from tests.support.schema.printed_schema import SDL

# Each list of the schema: its query, its table, and a large column that the query does not request.
CONNECTIONS = {
    "LegalHold.accessLog": (
        "legalHolds { nodes { accessLog { %s } } }", "legal_hold_accesses", "ip"
    ),
    "LegalHold.messages": ("legalHolds { nodes { messages { %s } } }", "held_copies", "preview"),
    "Domain.admins": ("domains { nodes { admins { %s } } }", "users", "password"),
    "Domain.aliases": ("domains { nodes { aliases { %s } } }", "domain_aliases", "created_at"),
    "Domain.addresses": ("domains { nodes { addresses { %s } } }", "addresses", "display_address"),
    "Domain.senderRules": ("domains { nodes { senderRules { %s } } }", "sender_rules", "comment"),
    "Domain.users": ("domains { nodes { users { %s } } }", "users", "password"),
    "Mailbox.messages": ("viewer { user { mailbox(by: {path: \"INBOX\"}) { messages { %s } } } }",
                         "messages", "preview"),
    "Query.addresses": ("addresses { %s }", "addresses", "display_address"),
    "Query.auditLog": ("auditLog { %s }", "audit_log", "before"),
    "Query.legalHolds": ("legalHolds { %s }", "legal_holds", "reason"),
    "BanPolicy.activeBans": ("banPolicy { activeBans { %s } }", "network_bans", "reason"),
    "Query.loginPenalties": ("loginPenalties { %s }", "throttles", "failures"),
    "Query.resources": ("resources { %s }", "resources", "booking_policy"),
    "Query.bccRules": ("bccRules { %s }", "bcc_rules", "bcc_to"),
    "Query.dkimKeys": ("dkimKeys { %s }", "dkim_keys", "public"),
    "Query.certificates": ("certificates { %s }", "certificates", "chain"),
    "Query.quarantine": ("quarantine { %s }", "quarantine_items", "symbols"),
    "Query.rateLimitHolds": ("rateLimitHolds { %s }", "rate_limit_holds", "messages"),
    "Query.rateLimits": ("rateLimits { %s }", "rate_limits", "messages"),
    "Query.queue": ("queue { %s }", "submissions", "envelope_from"),
    "Query.recipientRewrites": ("recipientRewrites { %s }", "recipient_rewrites", "target"),
    "Query.clusterNodes": ("clusterNodes { %s }", "cluster_nodes", "last_failure"),
    "Query.oauthClients": ("oauthClients { %s }", "oauth_clients", "redirect_uris"),
    "User.oauthGrants": ("viewer { user { oauthGrants { %s } } }", "oauth_grants", "scopes"),
    "Query.relayHosts": ("relayHosts { %s }", "relay_hosts", "username"),
    "Query.transports": ("transports { %s }", "transports", "username"),
    "Query.tlsPolicies": ("tlsPolicies { %s }", "tls_policies", "parameters"),
    "Query.forwardingHosts": ("forwardingHosts { %s }", "forwarding_hosts", "source"),
    "Query.securityLog": ("securityLog { %s }", "security_events", "detail"),
    "Query.apiKeys": ("apiKeys { %s }", "api_keys", "digest"),
    "SavedSearch.messages": ("viewer { user { savedSearches { messages { %s } } } }", "messages",
                             "preview"),
    "Setting.history": ('setting(by: {key: "undo.window"}) { history { %s } }',
                        "setting_history", "after"),
    "Connector.runs": ("connectors { nodes { runs { %s } } }", "connector_runs", "log"),
    "Query.connectors": ("connectors { %s }", "connectors", "folder_rewrites"),
    "User.connectors": ("viewer { user { connectors { %s } } }", "connectors", "folder_rewrites"),
    "Query.deletedUsers": ("deletedUsers { %s }", "deleted_users", "addresses"),
    "Query.aliasDomains": ("aliasDomains { %s }", "domain_aliases", "created_at"),
    "Query.domains": ("domains { %s }", "domains", "description"),
    "Query.mailboxes": ("mailboxes(users: {usernames: [\"ada\"]}) { %s }", "mailboxes", "objectId"),
    "Query.filters": ("filters { %s }", "filters", "public_metadata"),
    "Query.keyValues": ("keyValues { %s }", "key_value_entries", "value"),
    "Query.messages": ("messages { %s }", "messages", "preview"),
    "Query.senderRules": ("senderRules { %s }", "sender_rules", "comment"),
    "Query.tasks": ("tasks { %s }", "tasks", "result"),
    "Query.users": ("users { %s }", "users", "password"),
    "Query.webhooks": ("webhooks { %s }", "webhooks", "secret"),
    "Webhook.deliveries": ("webhooks { nodes { deliveries { %s } } }", "webhook_deliveries",
                           "body"),
    "Thread.messages": ("viewer { user { messages { nodes { thread { messages { %s } } } } } }",
                        "messages", "preview"),
    "User.addresses": ("viewer { user { addresses { %s } } }", "addresses", "display_address"),
    "User.deletedMessages": ("viewer { user { deletedMessages { %s } } }", "messages", "preview"),
    "User.securityLog": ("viewer { user { securityLog { %s } } }", "security_events", "detail"),
    "User.files": ("viewer { user { files { %s } } }", "files", "digest"),
    "User.filters": ("viewer { user { filters { %s } } }", "filters", "public_metadata"),
    "User.identities": ("viewer { user { identities { %s } } }", "addresses", "public_metadata"),
    "User.messages": ("viewer { user { messages { %s } } }", "messages", "preview"),
    "User.quarantine": ("viewer { user { quarantine { %s } } }", "quarantine_items", "symbols"),
    "User.sharedMailboxes": ("viewer { user { sharedMailboxes { %s } } }", "mailboxes", "objectId"),
    "User.temporaryAddresses": ("viewer { user { temporaryAddresses { %s } } }", "addresses",
                                "display_address"),
    "User.sieveScripts": ("viewer { user { sieveScripts { %s } } }", "sieve_scripts", "content"),
    "User.submissions": ("viewer { user { submissions { %s } } }", "submissions", "queue_id"),
    "User.accessTokens": ("viewer { user { accessTokens { %s } } }", "access_tokens", "digest"),
    "User.appPasswords": (
        "viewer { user { appPasswords { %s } } }", "application_passwords", "password"
    ),
    "User.exports": ("viewer { user { exports { %s } } }", "exports", "filename"),
    "User.administers": ("viewer { user { administers { %s } } }", "domains", "description"),
    "Viewer.administers": ("viewer { administers { %s } }", "domains", "description"),
    "RelayHost.usedByDomains": ("relayHosts { nodes { usedByDomains { %s } } }", "domains",
                                "description"),
}  # fmt: skip
LISTS_OF_ADMINS = {
    "Query.clusterNodes", "Query.oauthClients",
    "RelayHost.usedByDomains", "BanPolicy.activeBans", "Query.loginPenalties", "Query.resources",
    "LegalHold.accessLog", "LegalHold.messages", "Domain.addresses", "Domain.senderRules",
    "Domain.admins", "Domain.aliases", "Domain.users",
    "Query.addresses", "Query.auditLog", "Query.legalHolds", "Query.securityLog", "Query.bccRules",
    "Query.deletedUsers", "Query.dkimKeys", "Query.aliasDomains", "Query.domains",
    "Query.filters",
    "Query.rateLimitHolds",
    "Query.forwardingHosts", "Query.relayHosts", "Query.tlsPolicies", "Query.transports",
    "Query.rateLimits", "Query.recipientRewrites",
    "Query.certificates", "Query.users", "Query.webhooks", "Setting.history", "Webhook.deliveries",
}  # fmt: skip
# Lists whose rows have no `id`: see tests/search/test_search_index.py,
# tests/search/test_message_trace_search.py, tests/admin/test_stored_settings.py and
# tests/resources.
# Lists of few rows, which are read as a whole: tests/mailboxes/test_mailbox_listing.py and
# tests/messages/bulk/test_threads.py.
LISTS_IN_MEMORY = {"User.mailboxes", "Thread.mailboxes"}
LISTS_WITHOUT_ID = {
    "Query.deliveryTrace", "Query.settings", "SearchDiagnostics.hits",
    "Resource.bookings", *LISTS_OUTSIDE_THE_DATABASE,
}  # fmt: skip


def test_every_connection_of_the_schema_is_tested() -> None:
    connections = {
        f"{kind.name}.{name}"
        for kind in SDL.type_map.values()
        if isinstance(kind, GraphQLObjectType)
        for name, field in kind.fields.items()
        if get_named_type(field.type).name.endswith("Connection")
    }
    assert connections == {*CONNECTIONS, *LISTS_WITHOUT_ID, *LISTS_IN_MEMORY}


def selected_columns(statements: list[str], table: str) -> list[set[str]]:
    """Return the columns of this table that each SELECT of a page reads."""
    pages = [
        statement
        for statement in statements
        if f"FROM {table}" in statement and "LIMIT" in statement
    ]
    return [
        set(re.findall(rf"{table}\.\"?(\w+)", statement.partition("FROM")[0]))
        for statement in pages
    ]


SAMPLE_ROWS = (  # mutations that add the rows of lists, by whom
    ("legalHoldCreate", Role.ROOT),
    ("savedSearchCreate", Role.USER),
    ("relayHostCreate", Role.ROOT),
    ("sieveScriptSet", Role.USER),
    ("connectorStart", Role.USER),
    ("webhookTest", Role.ROOT),
)


async def test_list_reads_only_requested_columns(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    await deliver_to(ada, "Hello")
    for mutation, role in SAMPLE_ROWS:
        await (await SAMPLE_CALLS[mutation](ada, root))(root if role is Role.ROOT else ada)
    selections = ["nodes { id }", "edges { node { ...F } } nodes { id }"]
    for case in each_case(product(CONNECTIONS.items(), selections)):
        with case as ((name, (document, table, large_column)), selection):
            text = "{ %s }" % (document % selection)
            if "...F" in selection:
                node_type = get_named_type(_node_type(name)).name
                text += f" fragment F on {node_type} {{ ... on Node {{ id }} }}"
            client = root if name in LISTS_OF_ADMINS else ada
            for _ in range(3):  # parsed, then compiled, then from the cached plan
                del statements[:]
                await client(text)
                columns_per_select = selected_columns(statements, table)
                assert columns_per_select
                assert all(
                    "id" in read_columns and large_column not in read_columns
                    for read_columns in columns_per_select
                )


def _node_type(name: str) -> Any:
    parent, field = name.split(".")
    kind: Any = SDL.type_map[parent]
    connection: Any = get_named_type(kind.fields[field].type)
    return connection.fields["nodes"].type


NESTED_QUERY = """{ users(first: 50) { nodes {
  username domain { name } address { address }
  addresses(first: 2) { totalCount nodes { address domain { name } } }
  submissions(first: 2) { totalCount nodes { id recipients { recipient } } } } } }"""


async def test_many_parents_need_as_many_statements_as_one(
    root: GraphQLClient, ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await root(NESTED_QUERY)
        return len([statement for statement in statements if "api_keys" not in statement])

    statement_counts = [await count_statements()]
    for n in range(20):
        await make_user(ada.environment, f"n{n}")
    statement_counts += [await count_statements(), await count_statements()]
    assert len(set(statement_counts)) == 1


MAILBOXES_QUERY = """{ viewer { user { mailboxes { nodes { path
  messageCount unseenCount size parent { path }
  messages(first: 2) { totalCount nodes { subject mailbox { path } thread { subject } } }
} } } } }"""


async def test_many_mailboxes_need_as_many_statements_as_few(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await deliver_to(ada, "Hello")

    async def count_statements() -> int:
        del statements[:]
        await ada(MAILBOXES_QUERY)
        return len([statement for statement in statements if "api_keys" not in statement])

    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Box/0"]))
    expected_count = await count_statements()
    await mailbox_create.create_mailboxes(
        client_context(ada), NewMailboxes([f"Box/{n}" for n in range(1, 20)])
    )
    assert [await count_statements(), await count_statements()] == [expected_count, expected_count]


SEVERAL_LISTS = "{ viewer { user { %s } } }"
ONE_LIST = 'm%d: mailbox(by: {path: "%s"}) { messages(first: %d) { nodes { subject } } }'


async def test_lists_of_several_mailboxes_are_read_by_prepared_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    """By one for each length, and by none whose text depends on the number of lists."""
    paths = [f"Box {n}" for n in range(6)]
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(paths))
    for lengths in ((1, 2), (1, 2, 3, 4, 5, 6), (3, 3), (3, 3, 3, 3, 3, 3), (1, 2, 2, 1, 3)):
        parts = [ONE_LIST % (n, paths[n], length) for n, length in enumerate(lengths)]
        for _ in range(3):  # parsed, then compiled, then from the cached plan
            del statements[:]
            await ada(SEVERAL_LISTS % " ".join(parts))
            message_statements = [
                statement for statement in statements if "FROM messages" in statement
            ]
            assert len(message_statements) == len(set(lengths))
            assert not any("UNION" in statement for statement in message_statements)


async def test_lists_of_one_mailbox_need_as_many_statements_as_twenty(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await mailbox_create.create_mailboxes(
        client_context(ada), NewMailboxes([f"Box/{n}" for n in range(20)])
    )
    document = """{ viewer { user { mailboxes(filter: {patterns: ["%s"]}) { nodes {
      messages(first: 2) { %s } } } } } }"""

    async def count_statements(patterns: str) -> int:
        del statements[:]
        await ada(document % (patterns, "nodes { subject thread { id } }"))
        return len([statement for statement in statements if "api_keys" not in statement])

    statement_counts = [
        await count_statements(patterns) for patterns in ("Box/1", "Box/*", "Box/1", "Box/*")
    ]
    assert len(set(statement_counts)) == 1
