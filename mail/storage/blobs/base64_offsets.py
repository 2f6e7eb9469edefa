"""Offsets of base64 characters in text that has line ends."""

import binascii

from mail.storage.blobs.message_layout import BlobSpan


class Base64LineOffsets:
    """Offsets of base64 characters in text with line ends. A quad is four characters."""

    def __init__(self, blob_span: BlobSpan) -> None:
        self.character_count = -(-blob_span.content_size // 3) * 4
        wrapping = blob_span.wrapping
        self.line_width = (wrapping.width if wrapping else 0) or self.character_count
        self.eol = wrapping.eol if wrapping else b""
        self.line_size = self.line_width + len(self.eol)

    def text_offset(self, character: int) -> int:
        """The offset of a character in the text."""
        return character + character // self.line_width * len(self.eol)

    def quad_start_at_or_before(self, text_offset: int) -> int:
        """The last character that begins a quad at or before an offset of the text."""
        row, column = divmod(text_offset, self.line_size)
        return (row * self.line_width + min(column, self.line_width - 1)) // 4 * 4

    def quad_start_at_or_after(self, text_offset: int) -> int:
        """The first character that begins a quad at or after an offset of the text."""
        return min(self.quad_start_at_or_before(max(text_offset - 1, 0)) + 4, self.character_count)

    def encode_from(self, content: bytes, first_character: int) -> bytes:
        """Encode `content` with line ends; its first character is number `first_character`.

        Each full line is followed by a line end, also the last line of the part: the caller
        cuts it off.
        """
        characters = binascii.b2a_base64(content, newline=False)
        character_count = len(characters)
        begun = -first_character % self.line_width  # characters until the first line is full
        lines = [characters[:begun]] if begun else []
        lines += [
            characters[nth : nth + self.line_width]
            for nth in range(begun, character_count, self.line_width)
        ]
        is_full = character_count and (first_character + character_count) % self.line_width == 0
        return self.eol.join([*lines, b""] if is_full else lines)
