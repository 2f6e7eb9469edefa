"""The MIME structures of demo messages, and the genres that use them."""

from collections.abc import Callable
from dataclasses import dataclass

from merganser.demo import attachment_messages, report_messages, text_messages
from merganser.demo.mime import Part
from merganser.demo.text_library import Desk, Note

WORLD = "world"  # the genre of messages in other languages than English
_PEOPLE = ("family", "pond", "club", "team")
_MACHINES = ("shop", "travel", "bank", "alert", "forge")
_FRIENDS = ("family", "pond", "club", WORLD)
_LETTERS = ("newsletter", "newsletter", "newsletter", "spam", "shop")
_WORK = ("work",)

Build = Callable[[Desk, Note], Part]


def named(build: Callable[..., object]) -> str:
    """The name of a shape: that of its function with hyphens."""
    return str(getattr(build, "__name__", "")).replace("_", "-")


@dataclass(frozen=True)
class Shape:
    """A function that builds a message, and its genres. `weight` makes it more frequent."""

    build: Build
    genres: tuple[str, ...]
    weight: int = 0

    @property
    def name(self) -> str:
        """The name of the shape."""
        return named(self.build)


SHAPES = (
    Shape(text_messages.as_is, (*_PEOPLE, "cron", "list", "spam", WORLD), 9),
    Shape(text_messages.quoted, (*_PEOPLE, WORLD), 8),
    Shape(text_messages.in_base64, (WORLD, "spam"), 6),
    Shape(text_messages.flowed, (*_PEOPLE, "list"), 4),
    Shape(text_messages.uuencoded, ("cron", "list")),
    Shape(text_messages.utf16, ("spam", WORLD)),
    Shape(text_messages.utf7, ("club", "list")),
    Shape(text_messages.html_only, ("spam", "alert", WORLD), 6),
    Shape(text_messages.newsletter_only, _LETTERS, 3),
    Shape(text_messages.markdown_only, ("team", "list")),
    Shape(text_messages.uuencode_inline, ("list", "club")),
    Shape(text_messages.empty, ("family", "spam")),
    Shape(text_messages.clearsigned, ("list", "team")),
    Shape(text_messages.alternative, (*_PEOPLE, *_MACHINES, WORLD), 12),
    Shape(text_messages.alternative_letter, _LETTERS, 4),
    Shape(text_messages.alternative_single, ("spam", "shop")),
    Shape(text_messages.alternative_markdown, ("team", "forge")),
    Shape(text_messages.alternative_enriched, ("club", "family")),
    Shape(text_messages.alternative_amp, ("newsletter", "shop")),
    Shape(text_messages.languages, (WORLD,)),
    Shape(text_messages.related, ("family", "club", WORLD), 1),
    Shape(text_messages.alternative_related, (*_FRIENDS, "newsletter"), 1),
    Shape(text_messages.related_alternative, (*_FRIENDS, "travel")),
    Shape(text_messages.related_letter, ("newsletter",), 3),
    Shape(text_messages.related_many, ("family", "pond")),
    Shape(text_messages.related_start, ("club", "bank")),
    Shape(text_messages.related_location, ("club", "newsletter")),
    Shape(attachment_messages.handbook, ("pond", WORLD), 1),
    Shape(attachment_messages.photo, _FRIENDS, 1),
    Shape(attachment_messages.receipt, ("shop", "travel", "bank"), 4),
    Shape(attachment_messages.alternative_handbook, ("pond", WORLD)),
    Shape(attachment_messages.related_photo, ("family", "pond")),
    Shape(attachment_messages.four_levels, ("pond", WORLD)),
    Shape(attachment_messages.jpeg, _FRIENDS, 1),
    Shape(attachment_messages.zipped, ("team", "family")),
    Shape(attachment_messages.document, ("club", "pond", WORLD)),
    Shape(attachment_messages.open_document, ("club", WORLD)),
    Shape(attachment_messages.table, ("pond",)),
    Shape(attachment_messages.patch, ("team", "list"), 1),
    Shape(attachment_messages.log, ("team", "forge")),
    Shape(attachment_messages.card, ("club", "pond")),
    Shape(attachment_messages.sound, ("pond", "family")),
    Shape(attachment_messages.film, ("pond", "family")),
    Shape(attachment_messages.drawing, ("team", "club")),
    Shape(attachment_messages.web_page, ("bank", "spam")),
    Shape(attachment_messages.nameless, ("spam", "cron")),
    Shape(attachment_messages.nothing, ("team",)),
    Shape(attachment_messages.many, ("club", "shop")),
    Shape(attachment_messages.foreign_name, (WORLD,)),
    Shape(attachment_messages.long_name, ("de", "family")),
    Shape(attachment_messages.worded_name, ("de", "shop")),
    Shape(attachment_messages.two_texts, ("pond", "family")),
    Shape(attachment_messages.page_in_three, ("club", "team")),
    Shape(attachment_messages.single, ("list", WORLD)),
    Shape(attachment_messages.mixed_in_mixed, ("family", "travel")),
    Shape(attachment_messages.commented, ("list", "team")),
    Shape(attachment_messages.only_document, ("pond",)),
    Shape(attachment_messages.only_picture, ("family",)),
    Shape(attachment_messages.voice, ("family",)),
    Shape(attachment_messages.parallel, ("club",)),
    Shape(attachment_messages.two_forks, ("club", "family")),
    Shape(attachment_messages.winmail, ("work", "club")),
    Shape(attachment_messages.form, ("spam", WORLD)),
    Shape(attachment_messages.footer, ("list",), 4),
    Shape(report_messages.forward, (*_PEOPLE, WORLD), 1),
    Shape(report_messages.forward_file, _PEOPLE),
    Shape(report_messages.forward_nested, _PEOPLE),
    Shape(report_messages.forward_several, ("team", "club")),
    Shape(report_messages.forward_bare, ("team", "pond")),
    Shape(report_messages.digest, ("list",)),
    Shape(report_messages.digest_framed, ("list",)),
    Shape(report_messages.dsn_failed, ("bounce",)),
    Shape(report_messages.dsn_delayed, ("delay",)),
    Shape(report_messages.dsn_delivered, ("delivered",)),
    Shape(report_messages.mdn, ("read",)),
    Shape(report_messages.complaint, ("report",)),
    Shape(report_messages.dmarc, ("report",)),
    Shape(report_messages.tls_report, ("report",)),
    Shape(report_messages.signed_pgp, ("list", "team", WORLD)),
    Shape(report_messages.signed_mixed, ("pond",)),
    Shape(report_messages.signed_smime, ("bank", "work")),
    Shape(report_messages.encrypted_pgp, ("team",)),
    Shape(report_messages.encrypted_smime, ("bank",)),
    Shape(report_messages.invite, _WORK, 2),
    Shape(report_messages.invite_alternative, _WORK, 1),
    Shape(report_messages.cancel, _WORK),
    Shape(report_messages.accept, _WORK),
    Shape(report_messages.event_only, _WORK),
    Shape(report_messages.event_file, ("club", "work")),
    Shape(report_messages.elsewhere, ("team", "pond")),
    Shape(report_messages.partial, ("club",)),
)
# The shapes of replies; repeated ones are more frequent.
ANSWERS = (
    *[text_messages.as_is, text_messages.quoted, text_messages.flowed, text_messages.alternative]
    * 4,
    *[
        text_messages.html_only,
        text_messages.alternative_markdown,
        attachment_messages.jpeg,
        attachment_messages.document,
    ]
    * 2,
    *[
        attachment_messages.photo,
        attachment_messages.handbook,
        attachment_messages.card,
        attachment_messages.commented,
        text_messages.related,
    ],
    *[report_messages.signed_pgp, attachment_messages.single, report_messages.forward],
)
