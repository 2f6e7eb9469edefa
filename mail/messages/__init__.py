"""Reading mail as it comes (RFC 5322, MIME): bytes in, offsets and facts out; never raises."""

from mail.messages.addresses import MailAddress, addresses
from mail.messages.authentication import Stamp, believed
from mail.messages.calendar import CalendarEvent, calendars, events
from mail.messages.content import content, text_of
from mail.messages.facts import Attached, Facts, attached, facts, files
from mail.messages.headers import Header, date_of, headers, message_ids
from mail.messages.html import Safe, html_to_text, sanitize
from mail.messages.imap import bodystructure, envelope_imap
from mail.messages.opinions import Opinion
from mail.messages.parts import Part, find, part_json, part_of, walk, within
from mail.messages.preview import preview, shortened
from mail.messages.read import close_readers, read, worked
from mail.messages.source import OnDisk, Source, Whole
from mail.messages.split import split
from mail.messages.text import body_html, body_text, is_body, text_to_html
from mail.messages.threads import base_subject, thread_keys
from mail.messages.words import collapsed, decode_words

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
