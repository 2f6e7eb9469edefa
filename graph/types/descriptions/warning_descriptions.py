"""Description of `warnings` in payloads of mutations that never add a warning."""

from graphql import GraphQLObjectType, GraphQLSchema

# tests/schema/test_payloads.py compares the names with the code that adds warnings.
PAYLOADS_WITH_WARNINGS = frozenset({
    "AddressPayload", "AddressesPayload", "CertificatePayload", "DkimKeysPayload",
    "FiltersPayload", "MessagePayload", "MessageSendPayload", "SettingsPayload",
    "SieveScriptsPayload", "UserPayload", "UsersPayload",
})  # fmt: skip
NO_WARNINGS = "Notes about a mutation that succeeded. Always empty."


def set_warning_descriptions(schema: GraphQLSchema) -> None:
    """Say in the other payloads that the list is always empty."""
    for name, kind in schema.type_map.items():
        if not isinstance(kind, GraphQLObjectType) or name in PAYLOADS_WITH_WARNINGS:
            continue
        if "MutationPayload" in (interface.name for interface in kind.interfaces):
            kind.fields["warnings"].description = NO_WARNINGS
