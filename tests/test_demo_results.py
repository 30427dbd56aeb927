"""What the demo says of a result, on its cards and of interference, in words that an artist reads."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason="the demo needs gradio")

from demos import results
from demos.library import Item
from demos.tabs import library
from demos.view import esc, table


def estimate(k, n, low=0.0, high=100.0):
    return {"value": 100 * k / n, "n": n, "k": k, "low": low, "high": high}


def item(
    tmp_path, targets=("twemoji",), *, still=0, knew=6, n=6, base="embedded", origin="erasure", place="erasures/x"
):
    """An adapter of the library, recognised in `knew` of n pictures before and in `still` after."""
    concepts = [{"target": t, "kind": "style", "anchor": "fluent"} for t in targets]
    kept = estimate(n, n, 61.0)
    before, after = estimate(n - knew, n), estimate(n - still, n, 61.0)
    scores = {"before": {"UA": before, "IRA": kept, "CRA": kept}, "after": {"UA": after, "IRA": kept, "CRA": kept}}
    report = {
        "concepts": concepts, "method": {"name": "uce"}, "base": {"name": base}, "scores": scores,
        "notes": ["read from /etc/passwd"],
    }  # fmt: skip
    return Item("0" * 12, tmp_path / place, report, origin, 0.0)


def test_the_headline_is_what_it_became(tmp_path, monkeypatch):
    from PIL import Image

    folder = tmp_path / "erasures/x/pictures"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    rows = [{"after": "0.png", "before": "0.png", "erased": erased} for erased in (True, True, True, False)]
    (folder / "pictures.json").write_text(json.dumps(rows))
    seen = iter([["noto"] * 3, ["noto", "blob", "fluent"], ["twemoji"] * 3])
    monkeypatch.setattr(results, "judged", lambda images: (next(seen)[: len(images)], ["cat"] * len(images)))
    for told in ("noto", "something else", "something else"):
        results._became.clear()
        assert results.headline(item(tmp_path)) == f"Asked for twemoji, it now draws {told}."


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"still": 6}, "still draws twemoji."),
        ({"still": 3}, "still draws twemoji now and then."),
        ({"knew": 0}, "It hardly knew twemoji before"),
        ({"base": "name/model"}, "it now draws something else."),
    ],
)
def test_the_headline_never_claims_more_than_was_counted(tmp_path, kind, told):
    assert told in results.headline(item(tmp_path, **kind))


def test_few_pictures_offer_the_firmer_test(tmp_path):
    for n, more in ((6, 60), (24, 60), (60, 200)):
        told = results.words(item(tmp_path, n=n, knew=n), "erase")
        assert f'data-pictures="{more}"' in told
        assert "up to 39 in 100" in told
    assert "ce-firmer" not in results.words(item(tmp_path, n=200, knew=200), "erase")
    assert "ce-firmer" not in results.words(item(tmp_path), "library"), "only where the job is known"


def test_how_to_use_a_file_is_that_of_its_generator(tmp_path):
    own, other = (results.how_to_use(item(tmp_path, base=base)) for base in ("embedded", "name/model"))
    assert "built-in generator only" in own
    assert "models/loras" not in own
    for program in ("ComfyUI", "A1111", "InvokeAI", "load_lora_weights"):
        assert program in other


def test_notes_name_no_place(tmp_path):
    assert "read from passwd" in results.notes(item(tmp_path))


# -- cards ---------------------------------------------------------------------------------------------------------


def card(made):
    return library._card(made, lambda images: [""] * len(images))


def test_a_composed_card_names_all_and_can_be_read_in_full(tmp_path):
    names = ("twemoji", "noto", "blob", "a style with a rather long name & a sign")
    told = card(item(tmp_path, names, origin="composed"))
    assert f'title="{esc(" + ".join(names))}"' in told
    assert "composed" in told


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("batches/a/joint/toys-1a2b3c4d", "tag: toys"),
        ("batches/a/joint/all-1a2b3c4d", "the whole list"),
        ("batches/a/concepts/twemoji-1a2b3c4d", "from a batch"),
    ],
)
def test_cards_of_equal_names_say_which_is_a_tags(tmp_path, place, told):
    assert told in card(item(tmp_path, origin="batch", place=place))


def interference(kept):
    moved = [[1.0, 0.1, kept], [0.1, 1.0, 0.02]]
    return SimpleNamespace(
        adapters=["Erases twemoji", "Erases violin"], concepts=["twemoji", "violin", "blob"],
        erased=[True, True, False], own=[[True, False, False], [False, True, False]], moved=moved,
        together=[1.0, 1.0, 0.01],
    )  # fmt: skip


def test_interference_says_in_a_sentence_what_matters():
    assert library.matters(interference(0.08)) == "Nothing that should stay moves by more than 0.08."
    assert "Erasing twemoji also moves blob by 0.40" in library.matters(interference(0.4))
    assert "library-matters" in library.matrix(interference(0.4))


def test_cells_of_a_table_know_their_heading():
    assert '<td data-head="Row">2</td>' in table(["Row", "Forget"], [["2", "cat"]], "x", "y")
