"""The names of Gmail's own labels in the files of Google Takeout, by language of the account."""

from itertools import chain

from mail.mailboxes.special_use_names import NAMED_USES, NAMES_BY_LANGUAGE
from models.mailboxes.tables import SpecialUse

UNREAD_NAMES = frozenset({
    "unread", "ungelesen", "non lu", "non lus", "no leído", "no leídos", "sin leer", "non letti",
    "non letto", "da leggere", "ongelezen", "não lido", "não lidos", "não lida", "não lidas",
    "nieprzeczytane", "oläst", "olästa", "ulæst", "ulæste", "ulest", "uleste", "lukematta",
    "lukemattomat", "nepřečtené", "neprečítané", "olvasatlan", "necitite", "непрочитанные",
    "непрочитані", "непрочетени", "μη αναγνωσμένα", "okunmamış", "未読", "未读", "未讀",
    "읽지않음", "읽지 않음",
})  # fmt: skip
STARRED_NAMES = frozenset({
    "starred", "markiert", "suivi", "suivis", "messages suivis", "destacado", "destacados",
    "speciali", "met ster", "com estrela", "oznaczone gwiazdką", "stjärnmärkt", "stjärnmärkta",
    "stjernemarkeret", "stjernemerket", "tähdellä merkityt", "s hvězdičkou", "помеченные",
    "із зірочкою", "yıldızlı", "スター付き", "已加星标", "已加星號", "별표편지함",
})  # fmt: skip
IMPORTANT_NAMES = frozenset({
    "important", "wichtig", "importante", "importantes", "importanti", "belangrijk", "ważne",
    "viktigt", "vigtigt", "viktig", "tärkeä", "důležité", "важное", "важливо", "önemli", "重要",
    "중요편지함",
})  # fmt: skip
# They say nothing about the mailbox: a message without another label was archived.
STATE_NAMES = frozenset({
    "opened", "geöffnet", "ouvert", "ouverts", "abierto", "abiertos", "aperto", "aperti", "geopend",
    "aberto", "abertos", "otwarte", "öppnat", "öppnade", "åbnet", "åpnet", "avattu", "otevřené",
    "открытые", "відкриті", "açıldı", "açılan", "開封済み", "已打开", "已開啟", "열림",
    "archived", "archiviert", "archivé", "archivés", "archivado", "archivados", "archiviato",
    "archiviati", "gearchiveerd", "arquivado", "arquivados", "zarchiwizowane", "arkiverat",
    "arkiverade", "arkiveret", "arkivert", "arkistoitu", "archivované", "архивные", "архив",
    "архівовані", "arşivlendi", "アーカイブ済み", "已归档", "已封存", "보관됨",
    "all mail", "alle nachrichten", "tous les messages", "todos", "tutti i messaggi", "chat",
})  # fmt: skip
CATEGORY_WORDS = (
    "category ", "kategorie", "catégorie", "categoría", "categoria", "categorie", "kategoria",
    "kategori ", "luokka ", "kategória", "категория", "категорія", "カテゴリ", "类别", "類別",
)  # fmt: skip
_INBOX_NAMES = (
    "inbox", "posteingang", "boîte de réception", "recibidos", "posta in arrivo", "postvak in",
    "caixa de entrada", "odebrane", "inkorgen", "inkorg", "indbakke", "innboks", "saapuneet",
    "doručená pošta", "doručené", "beérkező levelek", "mesaje primite", "входящие", "вхідні",
    "входящи", "εισερχόμενα", "gelen kutusu", "受信トレイ", "收件箱", "收件匣", "받은편지함",
)  # fmt: skip
_OTHER_NAMES = {
    SpecialUse.SENT: ("messages envoyés", "posta inviata", "inviati", "enviadas", "已发邮件",
                      "寄件備份", "보낸편지함"),
    SpecialUse.TRASH: ("bin", "lixeira", "papperskorgen", "已删除邮件"),
    SpecialUse.DRAFTS: ("draft", "rascunho", "brouillon", "wersje robocze", "임시보관함"),
    SpecialUse.JUNK: ("spam", "correo no deseado", "スパム", "스팸함"),
}  # fmt: skip


def _special_uses_by_label() -> dict[str, SpecialUse]:
    """Return the special use of each label that is a mailbox of Gmail, by name in lower case."""
    uses = dict.fromkeys(_INBOX_NAMES, SpecialUse.INBOX)
    for use, names in _OTHER_NAMES.items():
        for name in names:
            uses.setdefault(name.casefold(), use)
    pairs = (zip(names, NAMED_USES, strict=True) for names in NAMES_BY_LANGUAGE.values())
    for name, use in chain.from_iterable(pairs):
        uses.setdefault(name.casefold(), use)
    return uses


SPECIAL_USE_BY_LABEL = _special_uses_by_label()
