"""Examples of mutations, made from their sample calls."""

import re
from typing import Any

from graphql import parse, print_ast

from graph.types import global_ids
from tests.support.reference.examples import Example
from tests.support.sample_mutations import MutationCall

WORD = re.compile(r"[A-Z][a-z0-9]*")
# Members with random values, and the text that stands for them.
PLACEHOLDERS = {
    "cert": "CERTIFICATE_PEM",
    "privateKey": "PRIVATE_KEY_PEM",
    "queueId": "QUEUE_ID",
    "totp": "TOTP_CODE",
    "token": "TOKEN",
    "rawId": "CREDENTIAL_ID",
    "clientDataJSON": "CLIENT_DATA",
    "attestationObject": "ATTESTATION_OBJECT",
    "authenticatorData": "AUTHENTICATOR_DATA",
    "signature": "SIGNATURE",
}


def with_placeholders(value: Any) -> Any:
    """The variables with a placeholder for each id and random value."""
    if isinstance(value, dict):
        members = {name: with_placeholders(member) for name, member in value.items()}
        known = {
            name: PLACEHOLDERS[name]
            for name, member in members.items()
            if name in PLACEHOLDERS and isinstance(member, str)
        }
        if "rawId" in members:
            known["id"] = PLACEHOLDERS["rawId"]
        return {**members, **known}
    if isinstance(value, list):
        return [with_placeholders(member) for member in value]
    prefix, mark, text = str(value).partition("_")
    if mark and prefix in global_ids.TYPE_NAMES and len(text) == global_ids.KEY_CHARACTERS:
        return f"{'_'.join(WORD.findall(global_ids.TYPE_NAMES[prefix])).upper()}_ID"
    return value


def example_of_call(call: MutationCall) -> Example:
    """The example of a mutation, made from its sample call."""
    name = call.name[0].upper() + call.name[1:]
    payload = f"{call.payload} errors {{ code message path }}"
    field = f"{call.name}(input: $input) {{ {payload} }}"
    document = print_ast(parse(f"mutation {name}($input: {call.input_type}!) {{ {field} }}"))
    return Example(document, {"input": with_placeholders(call.input)})
