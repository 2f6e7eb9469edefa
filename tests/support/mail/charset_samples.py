"""Text in many scripts, and what each codec can encode of it."""

import codecs
import encodings
import pkgutil

NON_CHARSET_CODECS = {
    "aliases", "charmap", "idna", "mbcs", "oem", "punycode", "raw_unicode_escape", "undefined",
    "unicode_escape",
}  # fmt: skip
MULTISCRIPT_TEXT = (
    "Straße Ærø žluťoučký őűŐŰ ğışİ Ţţăîâ ŵŷ ĉĝ āēģķ þð "
    "Ελληνικά Українська ґєї Русский қазақ тоҷикӣ עברית العربية گچپژ ไทย "
    "日本語かなカナ 한국어 简体中文 繁體中文 ﺍﺏﺕ ٹڈ"
)
CHARSET_CODECS = [
    module.name
    for module in pkgutil.iter_modules(encodings.__path__)
    if module.name not in NON_CHARSET_CODECS and codecs.lookup(module.name)._is_text_encoding  # noqa: SLF001
]
MESSAGE_TEXT_BY_SUBJECT = {
    "Grüße aus Köln": "Die Straße ist gesperrt.",
    "Lunch": "Quack! The duck_pond freezes; ducks-and-geese leave.",
    "会议通知": "明天下午三点在北京大学开会。",
    "お知らせ": "東京タワーでお待ちしております。 東京 tower",
    "Ελληνικά": "Καλημέρα κόσμε",
    "O'Reilly (AND) NOT": 'owner:u1u "quoted" words* ^x NEAR(a b) a:b <-> c & d | !e \\ %',
    "Emoji": "Party 🎉 with 👩\u200d👩\u200d👧 and 👍🏽 in 🇩🇪 ❤\ufe0f ™",
    "שלום": "שָׁלוֹם עֲלֵיכֶם",
    "Arabic": "أهلاً وسهلاً بكم في المكتبـة",
    "Hindi": "हिन्दी भाषा",
    "Thai": "หนังสือพิมพ์ไทย",
    "Marks": "nai\u0308ve re\u0301sume\u0301 Zürich co\u00adoperate \ufb01ne \uff26\uff35ll",
    "Long": "the end " * 300 + "the needle " + "filler " * 3,
}


def text_in_codec(codec: str) -> str:
    """The characters of the multi-script text that a codec can encode."""
    encodable = ""
    # Python's big5 has kana and Cyrillic at other places than the standard, which has HKSCS there.
    for character in MULTISCRIPT_TEXT if codec != "big5" else "繁體中文 廣東話":
        try:
            if character.encode(codec).decode(codec) == character:
                encodable += character
        except UnicodeEncodeError:
            continue
    return " ".join(encodable.split())
