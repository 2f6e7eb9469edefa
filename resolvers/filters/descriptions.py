"""Descriptions of filters for people, by language."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.filters.filter_compiler import required_queries
from mail.filters.filter_evaluation import ACTION_NAMES


@dataclass(frozen=True, slots=True)
class FilterTerms:
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
    present: str  # of a header field
    any: str
    not_: str
    seen: str
    flag: str
    delete: str
    spam: str
    mailbox: str
    copy: str
    forward: str
    keywords: str
    remove_keywords: str
    reply: str
    webhook: str
    stop: str
    yes: str
    no: str


ENGLISH_TERMS = FilterTerms(
    from_="From", to="To or Cc", subject="Subject", list_id="List", text="Text",
    attachment="Attachments", size="Size", larger="more than {size} bytes",
    smaller="less than {size} bytes", present="present", any="One of", not_="None of",
    seen="Mark as read", flag="Flag", delete="Delete", spam="Spam", mailbox="Move to",
    copy="Copy to", forward="Forward to", keywords="Add labels",
    remove_keywords="Do not add labels", reply="Reply", webhook="Call webhook",
    stop="No further filters", yes="yes", no="no",
)  # fmt: skip
TERMS_BY_LANGUAGE = {
    "de": FilterTerms(
        from_="Von", to="An oder Kopie", subject="Betreff", list_id="Liste", text="Text",
        attachment="Anhänge", size="Größe", larger="mehr als {size} Bytes",
        smaller="weniger als {size} Bytes", present="vorhanden", any="Eines von", not_="Nichts von",
        seen="Als gelesen markieren", flag="Kennzeichnen", delete="Löschen", spam="Spam",
        mailbox="Verschieben nach", copy="Kopieren nach", forward="Weiterleiten an",
        keywords="Schlagwörter vergeben", remove_keywords="Schlagwörter nicht vergeben",
        reply="Antworten",
        webhook="Webhook aufrufen", stop="Keine weiteren Filter", yes="ja", no="nein",
    ),
    "en": ENGLISH_TERMS,
    "es": FilterTerms(
        from_="De", to="Para o Cc", subject="Asunto", list_id="Lista", text="Texto",
        attachment="Adjuntos", size="Tamaño", larger="más de {size} bytes",
        smaller="menos de {size} bytes", present="presente", any="Uno de", not_="Ninguno de",
        seen="Marcar como leído", flag="Destacar", delete="Eliminar", spam="Spam",
        mailbox="Mover a", copy="Copiar a", forward="Reenviar a", keywords="Añadir etiquetas",
        remove_keywords="No añadir etiquetas", reply="Responder", webhook="Llamar al webhook",
        stop="Ningún filtro más", yes="sí", no="no",
    ),
    "fr": FilterTerms(
        from_="De", to="À ou Cc", subject="Objet", list_id="Liste", text="Texte",
        attachment="Pièces jointes", size="Taille", larger="plus de {size} octets",
        smaller="moins de {size} octets", present="présent", any="L'un de", not_="Aucun de",
        seen="Marquer comme lu", flag="Marquer", delete="Supprimer", spam="Spam",
        mailbox="Déplacer vers", copy="Copier vers", forward="Transférer à",
        keywords="Ajouter des étiquettes", remove_keywords="Ne pas ajouter d'étiquettes",
        reply="Répondre",
        webhook="Appeler le webhook", stop="Aucun autre filtre", yes="oui", no="non",
    ),
    "it": FilterTerms(
        from_="Da", to="A o Cc", subject="Oggetto", list_id="Lista", text="Testo",
        attachment="Allegati", size="Dimensione", larger="più di {size} byte",
        smaller="meno di {size} byte", present="presente", any="Uno tra", not_="Nessuno tra",
        seen="Segna come letto", flag="Contrassegna", delete="Elimina", spam="Spam",
        mailbox="Sposta in", copy="Copia in", forward="Inoltra a", keywords="Aggiungi etichette",
        remove_keywords="Non aggiungere etichette", reply="Rispondi", webhook="Chiama il webhook",
        stop="Nessun altro filtro", yes="sì", no="no",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelAndValue:
    """A test or an action of a filter in words: what it is called, and its value."""

    label: str
    value: str


def describe_query(terms: FilterTerms, query: Mapping[str, Any]) -> list[LabelAndValue]:
    """Describe the tests of a query for people."""
    return list(_query_descriptions(terms, query))


def _query_descriptions(terms: FilterTerms, query: Mapping[str, Any]) -> Iterator[LabelAndValue]:
    terms_by_field = {"from": terms.from_, "to": terms.to, "subject": terms.subject}
    terms_by_field |= {"listId": terms.list_id, "text": terms.text}
    for name, called in terms_by_field.items():
        if name in query:
            yield LabelAndValue(called, query[name])
    if "hasAttachment" in query:
        yield LabelAndValue(terms.attachment, _yes_or_no(terms, query["hasAttachment"]))
    yield from _size_descriptions(terms, query)
    if header := query.get("header"):
        value = header.get("value")
        yield LabelAndValue(header["key"], terms.present if value is None else value)
    if regex := query.get("regex"):
        yield LabelAndValue(regex.get("key") or terms.text, f"/{regex['pattern']}/")
    for nested_query in required_queries(query):
        yield from _query_descriptions(terms, nested_query)
    if alternatives := query.get("any"):
        yield LabelAndValue(terms.any, _describe_queries_inline(terms, alternatives))
    if none := query.get("not"):
        yield LabelAndValue(terms.not_, _describe_queries_inline(terms, none))


def _size_descriptions(terms: FilterTerms, query: Mapping[str, Any]) -> Iterator[LabelAndValue]:
    for name, text in (("larger", terms.larger), ("smaller", terms.smaller)):
        if name in query:
            yield LabelAndValue(terms.size, text.format(size=query[name]))


def _describe_queries_inline(terms: FilterTerms, queries: Sequence[Mapping[str, Any]]) -> str:
    """Describe queries in one line, each in brackets."""
    descriptions = (
        ", ".join(f"{part.label}: {part.value}" for part in _query_descriptions(terms, query))
        for query in queries
    )
    return " ".join(f"({description})" for description in descriptions)


def describe_filter_action(
    terms: FilterTerms, action: Mapping[str, Any], path_by_mailbox: Mapping[int, str]
) -> list[LabelAndValue]:
    """Describe an action for people."""
    return [
        describe_action_part(terms, name, action[name], path_by_mailbox)
        for name in ACTION_NAMES
        if name in action
    ]


def describe_action_part(
    terms: FilterTerms, action_name: str, value: Any, path_by_mailbox: Mapping[int, str]
) -> LabelAndValue:
    """Describe one part of an action as a pair of label and value."""
    if action_name in ("seen", "flag", "delete", "spam", "stop"):
        return LabelAndValue(getattr(terms, action_name), _yes_or_no(terms, value))
    if action_name in ("mailbox", "copyTo"):
        mailboxes = [value] if action_name == "mailbox" else value
        path = terms.mailbox if action_name == "mailbox" else terms.copy
        return LabelAndValue(
            path, ", ".join(path_by_mailbox.get(mailbox, "INBOX") for mailbox in mailboxes)
        )
    if action_name == "reply":
        return LabelAndValue(terms.reply, value["subject"] or terms.yes)
    if action_name == "webhook":
        return LabelAndValue(terms.webhook, terms.yes)
    called = {
        "forwardTo": terms.forward,
        "keywords": terms.keywords,
        "removeKeywords": terms.remove_keywords,
    }
    return LabelAndValue(called[action_name], ", ".join(value))


def _yes_or_no(terms: FilterTerms, value: bool) -> str:
    return terms.yes if value else terms.no
