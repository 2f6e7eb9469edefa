"""Parsing of received messages (RFC 5322, MIME).

Functions take bytes of any content and never raise because of them.
"""

from mail.mime.address_lists import ParsedAddress, parse_address_list
from mail.mime.authentication_results import (
    AuthenticationResultsField,
    results_of_trusted_servers_or_none,
)
from mail.mime.byte_source import ByteSource, FileSource, MemorySource
from mail.mime.calendar_events import ParsedCalendarEvent, calendar_parts, parse_events
from mail.mime.encoded_words import collapse_whitespace, decode_encoded_words_and_drop_controls
from mail.mime.header_fields import (
    DecodedField,
    decoded_fields,
    leading_keyword,
    parse_date_or_none,
    parse_message_ids,
)
from mail.mime.html_content.sanitizer import SanitizedHtml, html_to_text, sanitize_html
from mail.mime.imap_structure import imap_bodystructure, imap_envelope
from mail.mime.message_facts import (
    AttachmentFacts,
    MessageFacts,
    facts_from_message_bytes,
    file_parts,
    file_parts_outside_related,
)
from mail.mime.mime_tree import (
    ParsedPart,
    find_part,
    json_rows_from_tree,
    tree_from_json_rows,
    walk_own_parts_with_parents,
    walk_parts,
)
from mail.mime.parser import parse_structure
from mail.mime.part_content import decoded_content, part_text
from mail.mime.preview_text import build_preview, shorten_text_at_word_end
from mail.mime.reader_threads import close_readers, read_message_facts, run_by_message_size
from mail.mime.spam_headers import SpamHeaderField
from mail.mime.text_bodies import (
    body_html_parts,
    body_text,
    html_from_text,
    is_body_part,
    shown_body_parts,
)
from mail.mime.thread_references import base_subject, thread_keys

__all__ = [
    "AttachmentFacts",
    "AuthenticationResultsField",
    "ByteSource",
    "DecodedField",
    "FileSource",
    "MemorySource",
    "MessageFacts",
    "ParsedAddress",
    "ParsedCalendarEvent",
    "ParsedPart",
    "SanitizedHtml",
    "SpamHeaderField",
    "base_subject",
    "body_html_parts",
    "body_text",
    "build_preview",
    "calendar_parts",
    "close_readers",
    "collapse_whitespace",
    "decode_encoded_words_and_drop_controls",
    "decoded_content",
    "decoded_fields",
    "facts_from_message_bytes",
    "file_parts",
    "file_parts_outside_related",
    "find_part",
    "html_from_text",
    "html_to_text",
    "imap_bodystructure",
    "imap_envelope",
    "is_body_part",
    "json_rows_from_tree",
    "leading_keyword",
    "parse_address_list",
    "parse_date_or_none",
    "parse_events",
    "parse_message_ids",
    "parse_structure",
    "part_text",
    "read_message_facts",
    "results_of_trusted_servers_or_none",
    "run_by_message_size",
    "sanitize_html",
    "shorten_text_at_word_end",
    "shown_body_parts",
    "thread_keys",
    "tree_from_json_rows",
    "walk_own_parts_with_parents",
    "walk_parts",
]
