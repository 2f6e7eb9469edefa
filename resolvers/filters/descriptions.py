"""Descriptions of filters for people, by language."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.filters.filter_compiler import ACTIONS, required_of


@dataclass(frozen=True, slots=True)
class Words:
    """The names of a filter's tests and actions in one language. {size} is a number of bytes."""

    from_: str
    to: str
    subject: str
    list_id: str
    text: str
    attachment: str
    size: str
    larger: str
    smaller: str
    there: str  # of a header field
    any: str
    not_: str
    seen: str
    flag: str
    delete: str
    spam: str
    mailbox: str
    copy: str
    forward: str
    labels: str
    remove: str
    reply: str
    webhook: str
    stop: str
    yes: str
    no: str


ENGLISH = Words(
    from_="From", to="To or Cc", subject="Subject", list_id="List", text="Text",
    attachment="Attachments", size="Size", larger="more than {size} bytes",
    smaller="less than {size} bytes", there="present", any="One of", not_="None of",
    seen="Mark as read", flag="Flag", delete="Delete", spam="Spam", mailbox="Move to",
    copy="Copy to", forward="Forward to", labels="Add labels", remove="Do not add labels",
    reply="Reply", webhook="Call webhook", stop="No further filters", yes="yes", no="no",
)  # fmt: skip
WORDS = {
    "de": Words(
        from_="Von", to="An oder Kopie", subject="Betreff", list_id="Liste", text="Text",
        attachment="Anhänge", size="Größe", larger="mehr als {size} Bytes",
        smaller="weniger als {size} Bytes", there="vorhanden", any="Eines von", not_="Nichts von",
        seen="Als gelesen markieren", flag="Kennzeichnen", delete="Löschen", spam="Spam",
        mailbox="Verschieben nach", copy="Kopieren nach", forward="Weiterleiten an",
        labels="Schlagwörter vergeben", remove="Schlagwörter nicht vergeben", reply="Antworten",
        webhook="Webhook aufrufen", stop="Keine weiteren Filter", yes="ja", no="nein",
    ),
    "en": ENGLISH,
    "es": Words(
        from_="De", to="Para o Cc", subject="Asunto", list_id="Lista", text="Texto",
        attachment="Adjuntos", size="Tamaño", larger="más de {size} bytes",
        smaller="menos de {size} bytes", there="presente", any="Uno de", not_="Ninguno de",
        seen="Marcar como leído", flag="Destacar", delete="Eliminar", spam="Spam",
        mailbox="Mover a", copy="Copiar a", forward="Reenviar a", labels="Añadir etiquetas",
        remove="No añadir etiquetas", reply="Responder", webhook="Llamar al webhook",
        stop="Ningún filtro más", yes="sí", no="no",
    ),
    "fr": Words(
        from_="De", to="À ou Cc", subject="Objet", list_id="Liste", text="Texte",
        attachment="Pièces jointes", size="Taille", larger="plus de {size} octets",
        smaller="moins de {size} octets", there="présent", any="L'un de", not_="Aucun de",
        seen="Marquer comme lu", flag="Marquer", delete="Supprimer", spam="Spam",
        mailbox="Déplacer vers", copy="Copier vers", forward="Transférer à",
        labels="Ajouter des étiquettes", remove="Ne pas ajouter d'étiquettes", reply="Répondre",
        webhook="Appeler le webhook", stop="Aucun autre filtre", yes="oui", no="non",
    ),
    "it": Words(
        from_="Da", to="A o Cc", subject="Oggetto", list_id="Lista", text="Testo",
        attachment="Allegati", size="Dimensione", larger="più di {size} byte",
        smaller="meno di {size} byte", there="presente", any="Uno tra", not_="Nessuno tra",
        seen="Segna come letto", flag="Contrassegna", delete="Elimina", spam="Spam",
        mailbox="Sposta in", copy="Copia in", forward="Inoltra a", labels="Aggiungi etichette",
        remove="Non aggiungere etichette", reply="Rispondi", webhook="Chiama il webhook",
        stop="Nessun altro filtro", yes="sì", no="no",
    ),
}  # fmt: skip
Pair = list[str]


def of_query(words: Words, query: Mapping[str, Any]) -> list[Pair]:
    """Describe the tests of a query as pairs of label and value."""
    return list(_tests(words, query))


def _tests(words: Words, query: Mapping[str, Any]) -> Iterator[Pair]:
    named = {"from": words.from_, "to": words.to, "subject": words.subject}
    named |= {"listId": words.list_id, "text": words.text}
    for name, called in named.items():
        if name in query:
            yield [called, query[name]]
    if "hasAttachment" in query:
        yield [words.attachment, _said(words, query["hasAttachment"])]
    if size := query.get("size"):
        yield [words.size, (words.larger if size > 0 else words.smaller).format(size=abs(size))]
    if header := query.get("header"):
        value = header.get("value")
        yield [header["key"], words.there if value is None else value]
    if regex := query.get("regex"):
        yield [regex.get("key") or words.text, f"/{regex['pattern']}/"]
    for one in required_of(query):
        yield from _tests(words, one)
    if some := query.get("any"):
        yield [words.any, _joined(words, some)]
    if none := query.get("not"):
        yield [words.not_, _joined(words, none)]


def _joined(words: Words, queries: Sequence[Mapping[str, Any]]) -> str:
    """Describe queries in one line, each in brackets."""
    each = (", ".join(f"{name}: {value}" for name, value in _tests(words, one)) for one in queries)
    return " ".join(f"({one})" for one in each)


def of_action(words: Words, action: Mapping[str, Any], paths: Mapping[int, str]) -> list[Pair]:
    """Describe an action as pairs of label and value."""
    return [done(words, name, action[name], paths) for name in ACTIONS if name in action]


def done(words: Words, name: str, value: Any, paths: Mapping[int, str]) -> Pair:
    """Describe one part of an action as a pair of label and value."""
    if name in ("seen", "flag", "delete", "spam", "stop"):
        return [getattr(words, name), _said(words, value)]
    if name in ("mailbox", "copyTo"):
        mailboxes = [value] if name == "mailbox" else value
        place = words.mailbox if name == "mailbox" else words.copy
        return [place, ", ".join(paths.get(mailbox, "INBOX") for mailbox in mailboxes)]
    if name == "reply":
        return [words.reply, value["subject"] or words.yes]
    if name == "webhook":
        return [words.webhook, words.yes]
    called = {"targets": words.forward, "labels": words.labels, "removeLabels": words.remove}
    return [called[name], ", ".join(value)]


def _said(words: Words, value: bool) -> str:
    return words.yes if value else words.no
