"""The settings of mail programs as XML: Thunderbird's autoconfig, and Outlook's Autodiscover."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.parsers import expat

from mail.addresses.address_syntax import ascii_domain
from mail.domains.submission_servers import SubmissionServer, SubmissionTlsMode

SOCKET_TYPES = {SubmissionTlsMode.IMPLICIT: "SSL", SubmissionTlsMode.STARTTLS: "STARTTLS"}
OUTLOOK_ENCRYPTIONS = {SubmissionTlsMode.IMPLICIT: "SSL", SubmissionTlsMode.STARTTLS: "TLS"}
_OUTLOOK = "http://schemas.microsoft.com/exchange/autodiscover/outlook"
REQUEST_SCHEMA = f"{_OUTLOOK}/requestschema/2006"
OUTLOOK_RESPONSE_SCHEMA = f"{_OUTLOOK}/responseschema/2006a"
RESPONSE_SCHEMA = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"


class InvalidAutodiscoverRequest(ValueError):
    """The body of a request that is not the XML of Autodiscover."""


@dataclass(frozen=True, slots=True)
class AutodiscoverRequest:
    """The values of an Autodiscover request, not yet checked."""

    address: str
    response_schema: str | None  # None: the request names none


def thunderbird_configuration(domain: str, servers: Sequence[SubmissionServer]) -> bytes:
    """Return the configuration of a domain in Thunderbird's format, version 1.1.

    It has outgoing servers only, since this server has neither IMAP nor POP3. The program replaces
    `%EMAILADDRESS%`.
    """
    root = ElementTree.Element("clientConfig", version="1.1")
    provider = ElementTree.SubElement(root, "emailProvider", id=ascii_domain(domain))
    _append_texts(
        provider,
        {"domain": ascii_domain(domain), "displayName": domain, "displayShortName": domain},
    )
    for server in servers:
        _append_texts(
            ElementTree.SubElement(provider, "outgoingServer", type="smtp"),
            {
                "hostname": server.host,
                "port": str(server.port),
                "socketType": SOCKET_TYPES[server.tls_mode],
                "authentication": "password-cleartext",  # AUTH PLAIN inside TLS
                "username": "%EMAILADDRESS%",
            },
        )
    return _xml_bytes(root)


def outlook_settings(address: str, server: SubmissionServer) -> bytes:
    """Return the settings of an account in Outlook's format (MS-OXDSCLI, POX)."""
    root = ElementTree.Element("Autodiscover", xmlns=RESPONSE_SCHEMA)
    response = ElementTree.SubElement(root, "Response", xmlns=OUTLOOK_RESPONSE_SCHEMA)
    account = ElementTree.SubElement(response, "Account")
    _append_texts(account, {"AccountType": "email", "Action": "settings"})
    _append_texts(
        ElementTree.SubElement(account, "Protocol"),
        {
            "Type": "SMTP",
            "Server": server.host,
            "Port": str(server.port),
            "DomainRequired": "off",
            "LoginName": address,
            "SPA": "off",  # no NTLM
            "SSL": "on",
            "Encryption": OUTLOOK_ENCRYPTIONS[server.tls_mode],
            "AuthRequired": "on",
            "UsePOPAuth": "off",
            "SMTPLast": "off",
        },
    )
    return _xml_bytes(root)


def _append_texts(parent: ElementTree.Element, text_by_tag: dict[str, str]) -> None:
    """Append child elements with these texts."""
    for tag, text in text_by_tag.items():
        ElementTree.SubElement(parent, tag).text = text


def _xml_bytes(root: ElementTree.Element) -> bytes:
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


@dataclass(slots=True)
class _RequestReader:
    """Collects the texts of the elements in /Autodiscover/Request while expat parses."""

    path: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    def refuse_doctype(self, *_: object) -> None:
        raise InvalidAutodiscoverRequest("A document type declaration is not allowed.")

    def start_element(self, name: str, _attributes: object) -> None:
        self.path.append(name)

    def end_element(self, _name: str) -> None:
        self.path.pop()

    def add_text(self, text: str) -> None:
        if len(self.path) == _VALUE_DEPTH and self.path[:-1] == _REQUEST_PATH:
            name = self.path[-1]
            self.texts[name] = self.texts.get(name, "") + text


_REQUEST_PATH = [f"{REQUEST_SCHEMA} Autodiscover", f"{REQUEST_SCHEMA} Request"]
_VALUE_DEPTH = len(_REQUEST_PATH) + 1


def parse_autodiscover_request(body: bytes) -> AutodiscoverRequest:
    """Parse the body of an Autodiscover request in UTF-8 or UTF-16. The caller limits its size.

    A document type declaration is refused, so that there are no entities to expand. Raises
    InvalidAutodiscoverRequest for it, for malformed XML and for a request without an address.
    """
    reader = _RequestReader()
    parser = expat.ParserCreate("utf-8", namespace_separator=" ")
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    parser.StartElementHandler = reader.start_element
    parser.EndElementHandler = reader.end_element
    parser.CharacterDataHandler = reader.add_text
    try:
        parser.Parse(body, True)
    except expat.ExpatError as problem:
        raise InvalidAutodiscoverRequest("The body is not well-formed XML.") from problem
    address = reader.texts.get(f"{REQUEST_SCHEMA} EMailAddress", "").strip()
    if not address:
        raise InvalidAutodiscoverRequest("The request has no EMailAddress.")
    schema = reader.texts.get(f"{REQUEST_SCHEMA} AcceptableResponseSchema", "").strip()
    return AutodiscoverRequest(address, schema or None)
