"""Parsing of received messages (RFC 5322, MIME).

Functions take bytes of any content and never raise because of them.
"""

from mail.mime.address_lists import MailAddress, addresses
from mail.mime.authentication_results import Stamp, believed
from mail.mime.byte_source import OnDisk, Source, Whole
from mail.mime.calendar_events import CalendarEvent, calendars, events
from mail.mime.encoded_words import collapsed, decode_words
from mail.mime.header_fields import Header, date_of, headers, message_ids
from mail.mime.html_content.sanitizer import Safe, html_to_text, sanitize
from mail.mime.imap_structure import bodystructure, envelope_imap
from mail.mime.message_facts import Attached, Facts, attached, facts, files
from mail.mime.mime_tree import Part, find, part_json, part_of, walk, within
from mail.mime.parser import split
from mail.mime.part_content import content, text_of
from mail.mime.preview_text import preview, shortened
from mail.mime.reader_threads import close_readers, read, worked
from mail.mime.spam_headers import Opinion
from mail.mime.text_bodies import body_html, body_text, is_body, text_to_html
from mail.mime.thread_references import base_subject, thread_keys

__all__ = [
    "Attached",
    "CalendarEvent",
    "Facts",
    "Header",
    "MailAddress",
    "OnDisk",
    "Opinion",
    "Part",
    "Safe",
    "Source",
    "Stamp",
    "Whole",
    "addresses",
    "attached",
    "base_subject",
    "believed",
    "body_html",
    "body_text",
    "bodystructure",
    "calendars",
    "close_readers",
    "collapsed",
    "content",
    "date_of",
    "decode_words",
    "envelope_imap",
    "events",
    "facts",
    "files",
    "find",
    "headers",
    "html_to_text",
    "is_body",
    "message_ids",
    "part_json",
    "part_of",
    "preview",
    "read",
    "sanitize",
    "shortened",
    "split",
    "text_of",
    "text_to_html",
    "thread_keys",
    "walk",
    "within",
    "worked",
]
