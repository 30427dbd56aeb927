import base64
import copy
import hashlib
import re
import time
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import pytest

from concept_erase.batch import gallery
from concept_erase.batch.gallery import link, page
from concept_erase.statistics import rate

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus='alert(1)", "</style><b>", "{{ 7*7 }}",
    "javascript:alert(1)", "../../etc/passwd", "https://example.org/x", "<!--", "&lt;b&gt;", "ع 🐱",
]  # fmt: skip


def side(k, n=24):
    return rate(k, n).as_dict()


def scores(ua=24, ira=22, cra=23, n=24, known=24):
    return {
        "UA": {"before": side(n - known, n), "after": side(ua, n)},
        "IRA": {"before": side(n, n), "after": side(ira, n)},
        "CRA": {"before": side(n, n), "after": side(cra, n)},
        "H": {"before": side(0, n), "after": side(n, n)},
    }


def entry(target="twemoji", kind="style", **more):
    return {
        "row": 2, "target": target, "kind": kind, "anchor": "fluent", "preserve": [], "method": None, "tags": [],
        "state": "done", "error": None, "folder": "concepts/a-1", "adapter": "erase-a-uce.safetensors", "rank": 8,
        "bytes": 9_900_000, "picture": "before_after.png", "scores": scores(), "not_scored": None, "notes": [],
    } | more  # fmt: skip


def joint(tag="all", members=("twemoji", "noto"), **more):
    values = entry() | {"tag": tag, "members": list(members), "folder": f"joint/{tag}-1"} | more
    return {
        k: v for k, v in values.items() if k not in ("row", "target", "kind", "anchor", "preserve", "method", "tags")
    }


def index(*entries, **more):
    job = {"model": None, "method": "uce", "settings": {}, "pictures": 24, "steps": 25, "guidance": None}
    base = {"name": "embedded", "revision": None, "hash": "1b829fd5de1e27ed3ff7"}
    rest = {"joint": [], "problems": [], "notices": [], "interference": None}
    return {"version": "0.1.0", "base": base, "job": job, "entries": list(entries), **rest, **more}


class Parsed(HTMLParser):
    """All elements with their attributes, and the text that a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self._open = [], [], []
        self.feed(html)
        self.close()
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()
        if tag not in ("bdi", "b", "small", "abbr", "u", "span", "a"):
            self.words.append(" ")

    def handle_data(self, data):
        if not self._open:
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def links(self):
        return [a[key] for _, a in self.elements for key in ("href", "src", "action", "data") if a.get(key)]


def parsed(*entries, **more):
    return Parsed(page(index(*entries, **more)))


# -- what is shown -------------------------------------------------------------------------------------------------


def test_an_adapter_is_shown_with_its_pictures_scores_and_files():
    found = parsed(entry("Twemoji", tags=["flat", "icons"], notes=["strength 0.3: best of 7"]))
    assert found.all("img")[0]["src"] == "concepts/a-1/before_after.png"
    assert found.all("img")[0]["loading"] == "lazy"
    assert "Twemoji" in found.all("img")[0]["alt"]
    assert {"concepts/a-1/erase-a-uce.safetensors", "concepts/a-1/report.json"} <= set(found.links())
    for told in (
        "Twemoji, erased", "style, becomes fluent", "9.9 MB", "not recognised in 24 pictures", "flat",
        "strength 0.3: best of 7",
        "0 of 24 pictures are still recognised as Twemoji; at most 14%. Before, all were.",
        "22 of 24 pictures in other styles are still recognised; between 74% and 98%.",
        "23 of 24 of these pictures still show what they were asked to show; between 80% and 99%.",
        "the embedded generator", "1b829fd5de1e", "24 pictures of each group, 25 steps", "1 adapter",
    ):  # fmt: skip
        assert told in found.text, told


def test_the_joint_adapters_come_first_and_that_of_all_before_them():
    tagged = joint("icons", ["twemoji"], scores=scores(ua=24))
    found = parsed(entry(), entry("noto"), joint=[tagged, joint()])
    places = [found.text.index(told) for told in ("All 2 concepts together", "icons, 1 concept", "One by one")]
    assert places == sorted(places)
    assert "0 of 24 pictures are still recognised as what was erased" in found.text
    assert "One by one" not in parsed(entry()).text


def test_a_joint_adapter_of_thousands_names_some_and_folds_the_rest():
    names = [f"artist {i}" for i in range(1734)]
    found = parsed(*[entry(name) for name in names[:2]], joint=[joint(members=names)])
    assert "All 1,734 concepts together" in found.text
    assert "artist 11 and 1,722 more artist 12" in found.text


def test_all_concepts_together_are_told_in_one_sentence():
    found = parsed(entry("a"), entry("b", scores=scores(ua=20)), entry("c", scores=None))
    assert "a, b and c, erased" in found.text
    assert "4 of 48 pictures are still recognised as what was erased; between 3% and 20%." in found.text
    assert "of 24 pictures are still recognised as what was erased" not in parsed(entry()).text


def test_what_failed_and_what_was_not_used_is_told_with_its_reason():
    failed = entry("Klee", state="failed", error="NaN in the weights", folder=None, scores=None, picture=None, row=9)
    problems = [{"row": 7, "field": "kind", "message": "kind is 'stile'; use one of style."}]
    found = parsed(
        entry(), failed, problems=problems, notices=["'x' is listed 2 times; merged."],
        joint=[joint(state="failed", error="out of memory", scores=None)],
    )  # fmt: skip
    for told in ("row 9 Klee NaN in the weights", "joint All 2 concepts together out of memory",
                 "7 kind kind is 'stile'; use one of style.", "'x' is listed 2 times; merged.",
                 "1 adapter, 2 failed, 1 row problem"):  # fmt: skip
        assert told in found.text, told
    assert len([a for a in found.all("article") if "data-name" in a]) == 1


def test_a_batch_in_which_all_failed_has_a_page_too():
    found = parsed(entry(state="failed", error="why", folder=None, scores=None), version="1")
    assert "twemoji" in found.text
    assert "why" in found.text
    assert found.all("article") == []
    assert "Nothing was erased" in parsed().text


def test_thousands_of_problems_are_cut_with_a_word():
    problems = [{"row": i, "field": "target", "message": f"problem {i}."} for i in range(1000)]
    found = parsed(entry(), problems=problems, notices=[f"notice {i}." for i in range(201)])
    assert "problem 199." in found.text
    assert "problem 200." not in found.text
    assert "And 800 more, in index.json." in found.text
    assert "And 1 more, in index.json." in found.text


def test_why_nothing_was_scored_is_said_once_if_it_is_the_same_for_all():
    silent = {"scores": None, "picture": None, "not_scored": "scoring was switched off"}
    found = parsed(entry("a", **silent), entry("b", **silent))
    assert found.text.count("scoring was switched off") == 1
    assert found.all("img") == []
    found = parsed(entry("a", **silent), entry("b"))
    assert found.text.count("Not scored: scoring was switched off.") == 1


def test_interference_is_shown_with_the_worst_pairs():
    worst = [{"adapter": "Erases <a>", "concept": "noto", "moved": 0.314}]
    found = parsed(entry(), interference={"file": "interference.json", "picture": "interference.png", "worst": worst})
    assert "Erases <a> noto 31%" in found.text
    assert {"interference.json", "interference.png"} <= set(found.links())
    assert "How they touch each other" not in parsed(entry()).text


def test_the_verdict_says_when_there_was_little_to_erase():
    assert "not known before" in parsed(entry(scores=scores(ua=24, known=1))).text
    assert "still recognised" in parsed(entry(scores=scores(ua=0))).text


def test_what_the_base_did_not_know_is_shown_as_no_success():
    unknown = scores(ua=24, known=10) | {"nonsense": side(10)}
    found = parsed(entry("a", scores=unknown), entry("b", scores=scores() | {"nonsense": side(2)}))
    assert "not known before" in found.text
    assert "The base does not seem to know a: 10 of 24 pictures are recognised as it before" in found.text
    assert "what was erased; at most" not in found.text, "one known concept is no sum over all"
    cards = [a for a in found.all("article") if "data-name" in a]
    assert ["data-ua" in a for a in cards] == [False, True]
    assert [a["class"] for a in found.all("span") if "verdict" in a.get("class", "")] == [
        "verdict unknown",
        "verdict none",
    ]


def test_the_folder_of_a_base_is_not_published():
    base = {"name": "/home/ann/models/sd-1.4", "revision": None, "hash": "a" * 64}
    found = parsed(entry(), base=base)
    assert "sd-1.4" in found.text
    assert "ann" not in found.text
    hub = {"name": "CompVis/stable-diffusion-v1-4", "revision": "abc", "hash": None}
    assert "CompVis/stable-diffusion-v1-4, revision abc" in parsed(entry(), base=hub).text


# -- how it is used ------------------------------------------------------------------------------------------------


def test_cards_can_be_filtered_by_kind_and_tag_and_sorted():
    found = parsed(entry("a", tags=["Icons"]), entry("b", "object", tags=["icons", 'a"<b'], scores=None))
    assert [a["data-chip"] for a in found.all("button") if "data-chip" in a] == [
        "kind:object", "kind:style", "tag:icons", 'tag:a"<b'
    ]  # fmt: skip
    first, second = (a for a in found.all("article") if "data-name" in a)
    assert (first["data-chips"].split("\n"), first["data-ua"]) == (["kind:style", "tag:icons"], "100.0")
    assert (second["data-chips"].split("\n"), second.get("data-ua")) == (["kind:object", "tag:icons", 'tag:a"<b'], None)
    assert not [a for a in parsed(entry()).all("button") if "data-chip" in a]


def test_tools_that_need_the_script_are_hidden_until_it_runs():
    found = parsed(entry())
    assert all("hidden" in a for _, a in found.elements if a.get("id") in ("tools", "nothing"))
    script = (gallery.Path(gallery.__file__).with_name("gallery.js")).read_text()
    assert set(re.findall(r'at\("([a-z]+)"\)', script)) <= {a["id"] for _, a in found.elements if "id" in a}


def test_violent_pictures_wait_for_a_click_or_a_key():
    entries = [entry("bomb", "violence"), entry("cat", "object")]
    found = parsed(*entries, joint=[joint(members=["Bomb", "cat"]), joint("pets", ["cat"])])
    boxes = found.all("input")
    assert [box["aria-label"] for box in boxes if box["type"] == "checkbox"] == [
        "Show the pictures of All 2 concepts together, which may be violent",
        "Show the pictures of bomb, which may be violent",
    ]
    assert {box["id"] for box in boxes if box["type"] == "checkbox"} == {
        a["for"] for a in found.all("label") if "for" in a
    }
    style = (gallery.Path(gallery.__file__).with_name("gallery.css")).read_text()
    assert re.search(r"\.reveal:not\(:checked\) ~ a img \{[^}]*blur\(", style)


def test_every_picture_has_words_and_every_heading_its_place():
    found = parsed(entry(), entry("bomb", "violence"), joint=[joint()],
                   interference={"file": "i.json", "picture": "i.png", "worst": []})  # fmt: skip
    assert all(image["alt"] and image["loading"] == "lazy" for image in found.all("img"))
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        for key in ("aria-labelledby", "for"):
            assert attributes.get(key, ids[0]) in ids
    assert found.all("html")[0]["lang"] == "en"


def test_the_sheets_are_cut_where_picture_py_draws_its_lines():
    from concept_erase import picture

    block = 2 * (picture.TILE + picture.GAP) + 26
    style = (gallery.Path(gallery.__file__).with_name("gallery.css")).read_text()
    assert (picture.HEAD, block, picture.LABEL) == tuple(
        int(n) for n in re.search(r"(\d+) px of heading, (\d+) for a concept, (\d+) of names", style).groups()
    )
    shifts = re.findall(r"translate\(-?(\d+)p?x?, -(\d+)px\)", style)
    assert [int(down) for _, down in shifts] == [picture.HEAD + 1] * 2


# -- safety --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are_and_do_nothing(name):
    plain, evil = entry("cat", tags=["x"], notes=["n"]), entry(name, tags=[name], anchor=name, notes=[name])
    more = {"joint": [joint(name, [name])], "notices": [name], "version": name}
    worst = [{"adapter": name, "concept": name, "moved": 1}]
    more |= {"problems": [{"row": 3, "field": name, "message": name}],
             "interference": {"file": "i.json", "picture": "i.png", "worst": worst},
             "base": {"name": name, "revision": name, "hash": name}}  # fmt: skip
    failed = entry(name, state="failed", error=name, folder=None)
    found, expected = parsed(evil, failed, **more), parsed(plain, failed, **more)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected.elements]
    assert [sorted(a) for _, a in found.elements] == [sorted(a) for _, a in expected.elements]
    assert found.text.count(name) >= 10
    assert not [key for _, a in found.elements for key in a if key.startswith("on") or key == "style"]


@pytest.mark.parametrize("name", HOSTILE)
def test_links_stay_in_the_folder_whatever_the_files_are_called(name):
    evil = entry(folder=f"concepts/{name}", adapter=name, picture=name)
    found = parsed(evil, joint=[joint(folder=name, adapter=name, picture=name)],
                   interference={"file": name, "picture": name, "worst": []})  # fmt: skip
    for address in found.links():
        assert not re.match(r"[a-z]+:|/|\\", address), address
        assert ".." not in unquote(address).split("/")


def test_links_are_quoted_and_never_lead_out():
    assert link("concepts/van gogh-1", "a b#?%.png") == "concepts/van%20gogh-1/a%20b%23%3F%25.png"
    assert link("", "javascript:x") == "javascript%3Ax"
    for folder, name in (("..", "x"), ("a/../..", "x"), ("a", "../x"), ("/etc", "passwd"), ("", "//host/x"),
                         ("a\\..", "x"), ("a", None), (None, "x"), ("a", ""), (".", "x")):  # fmt: skip
        assert link(folder, name) is None


def test_only_its_own_style_and_script_may_run():
    html = page(index(entry()))
    found = Parsed(html)
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script>")
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src 'self' file:;")
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [a for _, a in found.elements if "style" in a or any(key.startswith("on") for key in a)]
    assert "http:" not in html
    assert "https:" not in html


def test_the_page_does_not_change_the_index_and_is_the_same_each_time():
    given = index(entry(), entry("bomb", "violence"), joint=[joint()])
    before = copy.deepcopy(given)
    assert page(given) == page(given)
    assert given == before


def test_thousands_of_entries_make_a_page_quickly_and_without_pictures_inside():
    many = index(*[entry(f"artist {i}", folder=f"concepts/a-{i}", notes=["n" * 100]) for i in range(1734)])
    page(index(entry()))  # the template is compiled once
    start = time.process_time()
    html = page(many)
    assert time.process_time() - start < 5
    assert len(html) < 1734 * 4_000
    assert "data:image" not in html
