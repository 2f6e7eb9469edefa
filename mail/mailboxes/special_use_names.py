"""Names of the mailboxes that the server creates, by language."""

from datetime import date

from mail.text.languages import text_in_language
from models.mailboxes.tables import SpecialUse

NAMED_USES = (SpecialUse.SENT, SpecialUse.TRASH, SpecialUse.DRAFTS, SpecialUse.JUNK)
ENGLISH_NAMES = ("Sent", "Trash", "Drafts", "Junk")
NAMES_BY_LANGUAGE = {  # in the order of NAMED_USES
    "af": ("Gestuur", "Asblik", "Konsepte", "Gemorspos"),
    "ar": ("المرسلة", "المهملات", "المسودات", "غير مرغوب فيها"),
    "az": ("Göndərilmiş", "Zibil qutusu", "Qaralamalar", "Spam"),
    "be": ("Адпраўленыя", "Сметніца", "Чарнавікі", "Спам"),
    "bg": ("Изпратени", "Кошче", "Чернови", "Нежелана поща"),
    "bn": ("প্রেরিত", "আবর্জনা", "খসড়া", "স্প্যাম"),
    "ca": ("Enviats", "Paperera", "Esborranys", "Correu brossa"),
    "cs": ("Odeslané", "Koš", "Koncepty", "Nevyžádaná pošta"),
    "cy": ("Anfonwyd", "Sbwriel", "Drafftiau", "Sothach"),
    "da": ("Sendt", "Papirkurv", "Kladder", "Uønsket post"),
    "de": ("Gesendet", "Papierkorb", "Entwürfe", "Spam"),
    "el": ("Απεσταλμένα", "Κάδος απορριμμάτων", "Πρόχειρα", "Ανεπιθύμητα"),
    "en": ENGLISH_NAMES,
    "eo": ("Senditaj", "Rubujo", "Malnetoj", "Trudmesaĝoj"),
    "es": ("Enviados", "Papelera", "Borradores", "Correo no deseado"),
    "et": ("Saadetud", "Prügikast", "Mustandid", "Rämpspost"),
    "eu": ("Bidalita", "Zakarrontzia", "Zirriborroak", "Zabor-posta"),
    "fa": ("فرستاده‌شده", "زباله‌دان", "پیش‌نویس‌ها", "هرزنامه"),
    "fi": ("Lähetetyt", "Roskakori", "Luonnokset", "Roskaposti"),
    "fr": ("Envoyés", "Corbeille", "Brouillons", "Indésirables"),
    "ga": ("Seolta", "Bruscar", "Dréachtaí", "Dramhphost"),
    "gl": ("Enviados", "Lixo", "Borradores", "Correo lixo"),
    "he": ("נשלחו", "אשפה", "טיוטות", "דואר זבל"),
    "hi": ("भेजे गए", "कचरा", "प्रारूप", "स्पैम"),
    "hr": ("Poslano", "Smeće", "Skice", "Neželjena pošta"),
    "hu": ("Elküldött", "Kuka", "Piszkozatok", "Levélszemét"),
    "hy": ("Ուղարկված", "Աղբարկղ", "Սևագրեր", "Թափոն"),
    "id": ("Terkirim", "Sampah", "Draf", "Spam"),
    "is": ("Sendur póstur", "Rusl", "Drög", "Ruslpóstur"),
    "it": ("Inviata", "Cestino", "Bozze", "Indesiderata"),
    "ja": ("送信済み", "ゴミ箱", "下書き", "迷惑メール"),
    "ka": ("გაგზავნილი", "ურნა", "მონახაზები", "სპამი"),
    "kk": ("Жіберілген", "Себет", "Шимайлар", "Спам"),
    "ko": ("보낸 편지함", "휴지통", "임시 보관함", "스팸 편지함"),
    "lt": ("Išsiųsti", "Šiukšlinė", "Juodraščiai", "Brukalas"),
    "lv": ("Nosūtītie", "Miskaste", "Melnraksti", "Mēstules"),
    "mk": ("Испратени", "Корпа", "Нацрти", "Несакана пошта"),
    "ms": ("Dihantar", "Sampah", "Draf", "Spam"),
    "nb": ("Sendt", "Papirkurv", "Utkast", "Søppelpost"),
    "nl": ("Verzonden", "Prullenbak", "Concepten", "Ongewenst"),
    "nn": ("Sendt", "Papirkorg", "Utkast", "Søppelpost"),
    "pl": ("Wysłane", "Kosz", "Szkice", "Niechciane"),
    "pt": ("Enviados", "Lixo", "Rascunhos", "Spam"),
    "ro": ("Trimise", "Coș de gunoi", "Ciorne", "Nedorite"),
    "ru": ("Отправленные", "Корзина", "Черновики", "Спам"),
    "sk": ("Odoslané", "Kôš", "Koncepty", "Nevyžiadaná pošta"),
    "sl": ("Poslano", "Smeti", "Osnutki", "Neželena pošta"),
    "sq": ("Të dërguar", "Hedhurina", "Skica", "Të padëshiruar"),
    "sr": ("Послато", "Смеће", "Нацрти", "Непожељно"),
    "sv": ("Skickat", "Papperskorg", "Utkast", "Skräppost"),
    "th": ("ส่งแล้ว", "ถังขยะ", "ฉบับร่าง", "จดหมายขยะ"),
    "tr": ("Gönderilmiş", "Çöp kutusu", "Taslaklar", "Gereksiz"),
    "uk": ("Надіслані", "Кошик", "Чернетки", "Спам"),
    "ur": ("بھیجے گئے", "ردی", "مسودے", "فضول"),
    "uz": ("Yuborilgan", "Savat", "Qoralamalar", "Spam"),
    "vi": ("Đã gửi", "Thùng rác", "Thư nháp", "Thư rác"),
    "zh": ("已发送", "已删除", "草稿", "垃圾邮件"),
    "zh-hant": ("已傳送", "垃圾桶", "草稿", "垃圾郵件"),
}
RESTORED_NAMES = {  # the mailbox of restored messages
    "af": "Herstel", "bg": "Възстановени", "ca": "Restaurats", "cs": "Obnovené", "da": "Gendannet",
    "de": "Wiederhergestellt", "el": "Ανακτημένα", "en": "Restored", "es": "Restaurados",
    "et": "Taastatud", "fi": "Palautetut", "fr": "Restaurés", "gl": "Restaurados",
    "hr": "Vraćeno", "hu": "Visszaállított", "id": "Dipulihkan", "it": "Ripristinati",
    "ja": "復元済み", "ko": "복원됨", "lt": "Atkurti", "lv": "Atjaunotie", "nb": "Gjenopprettet",
    "nl": "Hersteld", "nn": "Gjenoppretta", "pl": "Przywrócone", "pt": "Restaurados",
    "ro": "Restaurate", "ru": "Восстановленные", "sk": "Obnovené", "sl": "Obnovljeno",
    "sv": "Återställda", "tr": "Geri yüklenenler", "uk": "Відновлені", "vi": "Đã khôi phục",
    "zh": "已恢复", "zh-hant": "已還原",
}  # fmt: skip

SNOOZED_NAMES = {  # the mailbox of snoozed messages
    "ca": "Posposats", "cs": "Odložené", "da": "Udsat", "de": "Zurückgestellt", "el": "Σε αναβολή",
    "en": "Snoozed", "es": "Pospuestos", "et": "Edasi lükatud", "fi": "Lykätyt",
    "fr": "En attente", "gl": "Adiados", "hr": "Odgođeno", "hu": "Elhalasztott", "id": "Ditunda",
    "it": "Posticipati", "ja": "スヌーズ中", "ko": "다시 알림", "lt": "Atidėti", "lv": "Atliktie",
    "nb": "Utsatt", "nl": "Uitgesteld", "nn": "Utsett", "pl": "Odłożone", "pt": "Adiados",
    "ro": "Amânate", "ru": "Отложенные", "sk": "Odložené", "sl": "Preloženo", "sv": "Uppskjutet",
    "tr": "Ertelenenler", "uk": "Відкладені", "vi": "Đã tạm ẩn", "zh": "已延后",
    "zh-hant": "已延後",
}  # fmt: skip


SCHEDULED_NAMES = {  # the mailbox of messages that are sent later
    "ca": "Programats", "cs": "Naplánované", "da": "Planlagt", "de": "Geplant",
    "el": "Προγραμματισμένα", "en": "Scheduled", "es": "Programados", "et": "Ajastatud",
    "fi": "Ajoitetut", "fr": "Programmés", "gl": "Programados", "hr": "Zakazano",
    "hu": "Ütemezett", "id": "Terjadwal", "it": "Programmati", "ja": "予約送信", "ko": "예약됨",
    "lt": "Suplanuota", "lv": "Ieplānotie", "nb": "Planlagt", "nl": "Gepland", "nn": "Planlagt",
    "pl": "Zaplanowane", "pt": "Agendados", "ro": "Programate", "ru": "Запланированные",
    "sk": "Naplánované", "sl": "Načrtovano", "sv": "Schemalagt", "tr": "Zamanlananlar",
    "uk": "Заплановані", "vi": "Đã lên lịch", "zh": "定时发送", "zh-hant": "排定傳送",
}  # fmt: skip


def default_mailbox_names(language: str | None) -> dict[SpecialUse, str]:
    """Return the names of the special-use mailboxes in a language such as `de` or `pt-BR`.

    Unknown languages get English names.
    """
    return dict(
        zip(NAMED_USES, text_in_language(language, NAMES_BY_LANGUAGE) or ENGLISH_NAMES, strict=True)
    )


def restored_mailbox_name(language: str | None, day: date) -> str:
    """Return the name of the mailbox of messages that are restored on a day."""
    return (
        f"{text_in_language(language, RESTORED_NAMES) or RESTORED_NAMES['en']} ({day.isoformat()})"
    )


def snoozed_mailbox_name(language: str | None) -> str:
    """Return the name of the mailbox of snoozed messages."""
    return text_in_language(language, SNOOZED_NAMES) or SNOOZED_NAMES["en"]


def scheduled_mailbox_name(language: str | None) -> str:
    """Return the name of the mailbox of held and scheduled messages."""
    return text_in_language(language, SCHEDULED_NAMES) or SCHEDULED_NAMES["en"]
