"""The MIME structures of demo messages, and the genres that use them."""

from collections.abc import Callable
from dataclasses import dataclass

from merganser.demo import attachment_messages, report_messages, text_messages
from merganser.demo.mime import DemoPart
from merganser.demo.text_library import GeneratorState, MessageText

FOREIGN_LANGUAGE = "world"  # the genre of messages in other languages than English
_PEOPLE = ("family", "pond", "club", "team")
_MACHINES = ("shop", "travel", "bank", "alert", "forge")
_FRIENDS = ("family", "pond", "club", FOREIGN_LANGUAGE)
_NEWSLETTER_GENRES = ("newsletter", "newsletter", "newsletter", "spam", "shop")
_WORK = ("work",)

BuildPart = Callable[[GeneratorState, MessageText], DemoPart]


def shape_name(build: Callable[..., object]) -> str:
    """The name of a shape: that of its function with hyphens."""
    return str(getattr(build, "__name__", "")).replace("_", "-")


@dataclass(frozen=True)
class MessageShape:
    """A function that builds a message, and its genres. `weight` makes it more frequent."""

    build: BuildPart
    genres: tuple[str, ...]
    weight: int = 0

    @property
    def name(self) -> str:
        """The name of the shape."""
        return shape_name(self.build)


SHAPES = (
    MessageShape(
        text_messages.unencoded_text, (*_PEOPLE, "cron", "list", "spam", FOREIGN_LANGUAGE), 9
    ),
    MessageShape(text_messages.quoted_printable_text, (*_PEOPLE, FOREIGN_LANGUAGE), 8),
    MessageShape(text_messages.base64_text, (FOREIGN_LANGUAGE, "spam"), 6),
    MessageShape(text_messages.flowed_text, (*_PEOPLE, "list"), 4),
    MessageShape(text_messages.uuencoded_text, ("cron", "list")),
    MessageShape(text_messages.utf16_text, ("spam", FOREIGN_LANGUAGE)),
    MessageShape(text_messages.utf7_text, ("club", "list")),
    MessageShape(text_messages.html_only, ("spam", "alert", FOREIGN_LANGUAGE), 6),
    MessageShape(text_messages.newsletter_only, _NEWSLETTER_GENRES, 3),
    MessageShape(text_messages.markdown_only, ("team", "list")),
    MessageShape(text_messages.text_with_inline_uuencode, ("list", "club")),
    MessageShape(text_messages.empty_body, ("family", "spam")),
    MessageShape(text_messages.clearsigned_text, ("list", "team")),
    MessageShape(text_messages.text_and_html, (*_PEOPLE, *_MACHINES, FOREIGN_LANGUAGE), 12),
    MessageShape(text_messages.text_and_newsletter, _NEWSLETTER_GENRES, 4),
    MessageShape(text_messages.alternative_with_one_part, ("spam", "shop")),
    MessageShape(text_messages.text_markdown_and_html, ("team", "forge")),
    MessageShape(text_messages.text_and_enriched, ("club", "family")),
    MessageShape(text_messages.text_amp_and_html, ("newsletter", "shop")),
    MessageShape(text_messages.multilingual, (FOREIGN_LANGUAGE,)),
    MessageShape(text_messages.html_with_picture, ("family", "club", FOREIGN_LANGUAGE), 1),
    MessageShape(text_messages.text_and_html_with_picture, (*_FRIENDS, "newsletter"), 1),
    MessageShape(text_messages.alternative_in_related, (*_FRIENDS, "travel")),
    MessageShape(text_messages.newsletter_with_pictures, ("newsletter",), 3),
    MessageShape(text_messages.html_with_seven_pictures, ("family", "pond")),
    MessageShape(text_messages.related_with_start, ("club", "bank")),
    MessageShape(text_messages.related_with_location, ("club", "newsletter")),
    MessageShape(attachment_messages.text_with_handbook, ("pond", FOREIGN_LANGUAGE), 1),
    MessageShape(attachment_messages.text_with_photo, _FRIENDS, 1),
    MessageShape(attachment_messages.alternative_with_receipt, ("shop", "travel", "bank"), 4),
    MessageShape(attachment_messages.alternative_with_handbook, ("pond", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.html_with_picture_and_photo, ("family", "pond")),
    MessageShape(attachment_messages.four_levels_with_handbook, ("pond", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.text_with_jpeg, _FRIENDS, 1),
    MessageShape(attachment_messages.text_with_zip, ("team", "family")),
    MessageShape(attachment_messages.text_with_docx, ("club", "pond", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.text_with_odt, ("club", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.text_with_inline_csv, ("pond",)),
    MessageShape(attachment_messages.text_with_inline_patch, ("team", "list"), 1),
    MessageShape(attachment_messages.text_with_log_files, ("team", "forge")),
    MessageShape(attachment_messages.text_with_vcard, ("club", "pond")),
    MessageShape(attachment_messages.text_with_wav, ("pond", "family")),
    MessageShape(attachment_messages.text_with_avi, ("pond", "family")),
    MessageShape(attachment_messages.text_with_svg, ("team", "club")),
    MessageShape(attachment_messages.text_with_html_file, ("bank", "spam")),
    MessageShape(attachment_messages.text_with_unnamed_file, ("spam", "cron")),
    MessageShape(attachment_messages.text_with_empty_file, ("team",)),
    MessageShape(attachment_messages.text_with_many_files, ("club", "shop")),
    MessageShape(attachment_messages.photo_with_foreign_file_name, (FOREIGN_LANGUAGE,)),
    MessageShape(attachment_messages.photo_with_long_file_name, ("de", "family")),
    MessageShape(attachment_messages.photo_with_encoded_word_name, ("de", "shop")),
    MessageShape(attachment_messages.photo_between_texts, ("pond", "family")),
    MessageShape(attachment_messages.html_around_document, ("club", "team")),
    MessageShape(attachment_messages.mixed_with_one_part, ("list", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.mixed_in_mixed, ("family", "travel")),
    MessageShape(attachment_messages.multipart_with_preamble, ("list", "team")),
    MessageShape(attachment_messages.document_only, ("pond",)),
    MessageShape(attachment_messages.picture_only, ("family",)),
    MessageShape(attachment_messages.voice_message, ("family",)),
    MessageShape(attachment_messages.parallel_parts, ("club",)),
    MessageShape(attachment_messages.appledouble_file, ("club", "family")),
    MessageShape(attachment_messages.text_with_tnef, ("work", "club")),
    MessageShape(attachment_messages.form_data, ("spam", FOREIGN_LANGUAGE)),
    MessageShape(attachment_messages.text_with_list_footer, ("list",), 4),
    MessageShape(report_messages.text_with_message, (*_PEOPLE, FOREIGN_LANGUAGE), 1),
    MessageShape(report_messages.text_with_eml_file, _PEOPLE),
    MessageShape(report_messages.nested_messages, _PEOPLE),
    MessageShape(report_messages.text_with_three_messages, ("team", "club")),
    MessageShape(report_messages.message_only, ("team", "pond")),
    MessageShape(report_messages.multipart_digest, ("list",)),
    MessageShape(report_messages.digest_with_contents_and_footer, ("list",)),
    MessageShape(report_messages.dsn_failed, ("bounce",)),
    MessageShape(report_messages.dsn_delayed, ("delay",)),
    MessageShape(report_messages.dsn_delivered, ("delivered",)),
    MessageShape(report_messages.disposition_notification, ("read",)),
    MessageShape(report_messages.abuse_report, ("report",)),
    MessageShape(report_messages.dmarc_report, ("report",)),
    MessageShape(report_messages.tls_report, ("report",)),
    MessageShape(report_messages.pgp_signed_text, ("list", "team", FOREIGN_LANGUAGE)),
    MessageShape(report_messages.pgp_signed_text_with_handbook, ("pond",)),
    MessageShape(report_messages.smime_signed_text, ("bank", "work")),
    MessageShape(report_messages.pgp_encrypted_message, ("team",)),
    MessageShape(report_messages.smime_encrypted_message, ("bank",)),
    MessageShape(report_messages.invitation_with_file, _WORK, 2),
    MessageShape(report_messages.text_with_invitation, _WORK, 1),
    MessageShape(report_messages.cancellation, _WORK),
    MessageShape(report_messages.invitation_reply, _WORK),
    MessageShape(report_messages.event_only, _WORK),
    MessageShape(report_messages.text_with_event_file, ("club", "work")),
    MessageShape(report_messages.text_with_external_body, ("team", "pond")),
    MessageShape(report_messages.partial_message, ("club",)),
)
# The shapes of replies; repeated ones are more frequent.
REPLY_BUILDERS = (
    *[
        text_messages.unencoded_text,
        text_messages.quoted_printable_text,
        text_messages.flowed_text,
        text_messages.text_and_html,
    ]
    * 4,
    *[
        text_messages.html_only,
        text_messages.text_markdown_and_html,
        attachment_messages.text_with_jpeg,
        attachment_messages.text_with_docx,
    ]
    * 2,
    *[
        attachment_messages.text_with_photo,
        attachment_messages.text_with_handbook,
        attachment_messages.text_with_vcard,
        attachment_messages.multipart_with_preamble,
        text_messages.html_with_picture,
    ],
    *[
        report_messages.pgp_signed_text,
        attachment_messages.mixed_with_one_part,
        report_messages.text_with_message,
    ],
)
