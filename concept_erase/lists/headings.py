"""What the columns of a table and the keys of a mapping are called, as people write them. No torch here."""

from __future__ import annotations

from concept_erase.concepts import Kind
from concept_erase.lists.cells import unescaped
from concept_erase.names import folded

FIELDS = ("target", "kind", "anchor", "preserve", "method", "tags")
_OWN = ("target", "concept", "name")  # taken for what they are without a word

# Other names of the column of targets, with the kind that they speak of; of several that are there the first counts.
_TARGETS: dict[str, Kind | None] = {
    **dict.fromkeys(
        ("artist", "artiste", "artista", "künstler", "künstlerin", "painter", "peintre", "pintor", "maler", "author",
         "художник", "作者", "艺术家", "藝術家", "画家", "アーティスト"), Kind.STYLE),
    **dict.fromkeys(
        ("celebrity", "person", "people", "identity", "persona", "personne", "célébrité", "celebridad", "人物"),
        Kind.IDENTITY),
    **dict.fromkeys(
        ("character", "personnage", "personaje", "personagem", "figur", "instance", "ip", "franchise", "brand", "marke",
         "marque", "marca", "角色", "concepto", "conceito", "concetto", "konzept", "begriff", "概念", "entity", "nom",
         "nombre", "nome", "имя", "名称", "名前", "term", "terme", "keyword", "word", "subject"), None),
    **dict.fromkeys(("style", "stil", "estilo", "stile", "风格", "стиль"), Kind.STYLE),
    **dict.fromkeys(("object", "item", "thing", "objekt", "objet", "objeto", "oggetto", "物体"), Kind.OBJECT),
    **dict.fromkeys(("title", "label", "prompt"), None),
}  # fmt: skip
_OTHERS = {
    "kind": (),
    "anchor": ("becomes", "replacement", "replace with", "replace by", "replaced by", "replaced with", "map to",
               "maps to", "mapped to", "mapping", "substitute", "surrogate", "turns into", "anchor concept", "ersatz"),
    "preserve": ("keep", "kept", "retain", "retained", "preserved", "protect", "must stay", "behalten"),
    "method": (),
    "tags": ("tag", "group", "category", "gruppe", "groupe", "grupo", "kategorie", "catégorie", "categoría"),
}  # fmt: skip
# Headings that are also what somebody may want to erase: a list of objects may well begin with "person".
_DOUBTFUL = ("person", "people", "character", "figur", "brand", "title", "label", "word", "object", "item", "thing",
             "celebrity", "prompt", "stil", "subject")  # fmt: skip


def column(name: str) -> str:
    """A column or key as it is compared: in any writing, without marks around it."""
    return folded(unescaped(name).strip(" \t\ufeff*:"))


def _forms(word: str) -> tuple[str, ...]:
    return tuple(column(form) for form in (word, f"{word}s", f"{word} name", f"{word} names", f"{word}_to_erase"))


KINDS: dict[str, Kind] = {form: kind for word, kind in _TARGETS.items() if kind for form in _forms(word)}
PLAIN = frozenset(_OWN)
DOUBTFUL = frozenset(form for word in _DOUBTFUL for form in (column(word), column(f"{word}s")))
# What a column may be called -> its field. Of several names of a field the first one that is there counts.
NAMES: dict[str, str] = {
    **dict.fromkeys(_OWN, "target"),
    **dict.fromkeys((form for word in (*_OWN, *_TARGETS) for form in _forms(word)), "target"),
    **{column(word): field for field, words in _OTHERS.items() for word in (field, *words, *(f"{w}s" for w in words))},
}
COUNTERS = frozenset(("id", "#", "no", "nr", "number", "index", "row", "rank"))  # ignored without a word
