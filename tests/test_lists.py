import csv
import io
import json
import time
import unicodedata
from pathlib import Path

import pytest
import yaml
from conftest import no_space
from hypothesis import assume, example, given
from hypothesis import strategies as st

from concept_erase import lists
from concept_erase.concepts import Kind, normalise
from concept_erase.errors import InputError, OutputError
from concept_erase.lists import Problem, escaped, parse_list, problems_csv, read_list, write_problems
from concept_erase.names import folded
from concept_erase.schema import LONGEST_NAME, Entry

SHARED = Path(__file__).parents[2] / "shared" / "data" / "lists"


def listing(text, name="list.csv", **defaults):
    return parse_list(text if isinstance(text, bytes) else text.encode(), name, defaults=defaults)


def table(*rows):
    """A CSV text with all columns that the rows have."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def targets(found):
    return [entry.target for entry in found.entries]


# -- files ---------------------------------------------------------------------------------------------------------

FULL = [
    Entry(target="Van Gogh", anchor="a painting", preserve=("Monet", "Huey, Dewey"), tags=("dead", "Dutch")),
    Entry(target="bomb", kind="violence", method="uce"),
    Entry(target="Cézanne 北斎 🐱", kind="identity"),
]
FILES = {
    "list.csv": "kind,tags,target,anchor,method,preserve\r\n"
    'style,dead; Dutch,Van Gogh,a painting,,"Monet;Huey, Dewey"'
    "\r\nviolence,,bomb,,uce,\r\nIdentity,,Cézanne 北斎 🐱,,,\r\n",
    "list.yaml": "- {target: Van Gogh, anchor: a painting, preserve: [Monet, 'Huey, Dewey'], tags: dead|Dutch}\n"
    "- target: bomb\n  kind: violence\n  method: uce\n- concept: Cézanne 北斎 🐱\n  kind: identity\n",
    "list.jsonl": '{"name": "Van Gogh", "anchor": "a painting", "preserve": ["Monet", "Huey, Dewey"], "tags": '
    '"dead|Dutch"}\n{"target": "bomb", "kind": "violence", "method": "uce", "anchor": null}'
    '\n{"id": 3, "target": "C\\u00e9zanne 北斎 🐱", "kind": "identity", "anchor": ""}\n',
}  # fmt: skip
FILES["list.tsv"] = FILES["list.csv"].replace('"', "").replace("Huey, Dewey", "Huey\x00 Dewey").replace(",", "\t")
FILES["list.tsv"] = FILES["list.tsv"].replace("\x00", ",")
FILES["list.json"] = "[" + ",".join(FILES["list.jsonl"].strip().split("\n")) + "]"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep_suffix", [True, False])
def test_every_format_gives_the_same_entries_by_suffix_or_by_content(name, keep_suffix, tmp_path):
    path = tmp_path / (name if keep_suffix else "list")
    path.write_bytes(FILES[name].encode())
    found = read_list(path)
    assert (list(found.entries), found.problems, found.notices) == (FULL, (), ())
    assert len(found.rows) == 3


def test_plain_text_is_what_remains(tmp_path):
    (tmp_path / "names").write_text("# mine\nVan Gogh\n\nMonet\n")
    found = read_list(tmp_path / "names")
    assert (targets(found), found.rows) == (["Van Gogh", "Monet"], (2, 4))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_all_countries_are_read(encoding, end, delimiter):
    text = end.join(
        delimiter.join(row) for row in [("id", "Concept", "kind"), ("1", "Cézanne", "style"), ("2", "北斎", "")]
    )
    found = listing(text.encode(encoding))
    assert (targets(found), found.rows, found.problems, found.notices) == (["Cézanne", "北斎"], (2, 3), (), ())


def test_an_old_windows_table_is_read_with_a_notice():
    found = listing("target\nPaul Cézanne\nAlbrecht Dürer\n".encode("cp1252"))
    assert targets(found) == ["Paul Cézanne", "Albrecht Dürer"]
    assert found.notices[0].startswith("list.csv is not UTF-8 and was read as Windows-1252")
    with pytest.raises(InputError, match="not valid UTF-8"):
        listing("- Paul Cézanne\n".encode("cp1252"), "list.yaml")


@pytest.mark.parametrize(("name", "rows", "merged"), [("artists_1734.csv", 1734, 2), ("instances_1352.csv", 1352, 19)])
def test_lists_met_in_practice_read_without_a_problem(name, rows, merged):
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not part of the repository")
    found = read_list(SHARED / name)
    assert found.problems == ()
    assert len(found.entries) == rows - merged
    assert len(found.merged) == merged
    assert all("merged" in notice or "one name each" in notice for notice in found.notices)


def test_what_is_no_list_is_refused_and_nothing_is_fetched(tmp_path):
    for name in ("weights.pt", "weights.bin", "list.zip"):
        with pytest.raises(InputError, match="is not opened"):
            parse_list(b"target\ncat\n", name)
    with pytest.raises(InputError, match="nothing is fetched"):
        read_list("https://example.org/list.csv")
    (tmp_path / "link.csv").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="symbolic link"):
        read_list(tmp_path / "link.csv")


# -- rows ----------------------------------------------------------------------------------------------------------


def test_problems_of_all_rows_are_collected_with_the_number_that_a_spreadsheet_shows():
    found = listing(
        "target,kind,anchor,method,tags\ncat,,,,\n,object,,,\ndog,beast,dog,magic,all\n\u200b,,,,\nbird,,,,\n"
    )
    assert (targets(found), found.rows) == (["cat", "bird"], (2, 6))
    assert [(p.row, p.field) for p in found.problems] == [
        (3, "target"), (4, "kind"), (4, "anchor"), (4, "method"), (4, "tags"), (5, "target")
    ]  # fmt: skip
    assert str(found.problems[1]) == "row 4: kind is 'beast'; use one of style, object, identity, violence."


@pytest.mark.parametrize(
    ("row", "field", "told"),
    [
        ({"target": "a\u202eb"}, "target", "U+202E"),
        ({"target": "a\x07b"}, "target", "U+0007"),
        ({"target": "cat", "anchor": " CAT"}, "anchor", "the same"),
        ({"target": "Cézanne", "anchor": unicodedata.normalize("NFD", "cézanne")}, "anchor", "the same"),
        ({"target": "cat", "preserve": "dog;Cat"}, "preserve", "both erased and preserved"),
        ({"target": "x" * (LONGEST_NAME + 1)}, "target", "401 characters"),
        ({"target": '=HYPERLINK("http://x")'}, "target", "formula"),
        ({"target": "+A1"}, "target", "formula"),
        ({"target": "@SUM(A1)"}, "target", "formula"),
        ({"target": "'=A1"}, "target", "formula"),
        ({"target": "cat", "anchor": "=A1"}, "anchor", "formula"),
        ({"target": "cat", "preserve": "dog;=A1"}, "preserve", "formula"),
        ({"target": "cat\ndog"}, "target", "line break"),
    ],
)
def test_a_row_that_cannot_be_used_is_told_and_the_rest_goes_on(row, field, told):
    found = listing(table({"target": "bird", "anchor": "", "preserve": ""}, row))
    assert targets(found) == ["bird"]
    (problem,) = found.problems
    assert (problem.row, problem.field) == (3, field)
    assert told in problem.message


def test_an_unknown_field_is_a_problem_in_a_mapping():
    found = listing('{"target": "cat", "ancor": "dog"}\n"bird"\n{"target": "a", "concept": "b"}\n["x"]', "list.jsonl")
    assert targets(found) == ["bird"]
    assert [(p.row, p.field) for p in found.problems] == [(1, "ancor"), (3, "row"), (4, "target")]
    assert "target is given twice, by two of its names" in found.problems[1].message


def test_a_list_without_a_usable_row_is_refused_with_its_problems():
    with pytest.raises(InputError) as caught:
        listing("target\n" + "=A1\n" * 25)
    lines = str(caught.value).splitlines()
    assert lines[0] == "list.csv holds no row that can be used:"
    assert lines[1].startswith("  row 2: target '=A1' reads like")
    assert (len(lines), lines[-1]) == (22, "  and 5 more")
    assert caught.value.exit_code == 2
    for empty in ("target\n", "target,kind\n,\n"):
        with pytest.raises(InputError, match=r"list\.csv holds no row; name a concept\.$"):
            listing(empty)


def test_defaults_fill_what_rows_leave_out_and_those_of_the_file_go_first():
    text = "defaults: {kind: object, preserve: [dog]}\nconcepts:\n- cat\n"
    text += "- {target: Van Gogh, kind: style, preserve: Monet}\n"
    found = listing(text, "list.yaml", kind="identity", anchor="thing", tags="mine")
    assert [(e.target, e.kind, e.anchor, e.preserve, e.tags) for e in found.entries] == [
        ("cat", Kind.OBJECT, "thing", ("dog",), ("mine",)),
        ("Van Gogh", Kind.STYLE, "thing", ("Monet",), ("mine",)),
    ]
    found = listing("target,kind\ncat,\ndog,style\n", kind=Kind.OBJECT)
    assert [entry.kind for entry in found.entries] == [Kind.OBJECT, Kind.STYLE]


@pytest.mark.parametrize("defaults", [{"kind": "beast"}, {"colour": "red"}, {"method": "magic"}, {"target": "cat"}])
def test_defaults_that_do_not_fit_are_told_once(defaults):
    with pytest.raises(InputError, match=r"^defaults ") as caught:
        listing("target\ncat\ndog\n", **defaults)
    assert "row" not in str(caught.value).replace("one row", "")
    with pytest.raises(InputError, match=r"^defaults "):
        listing(json.dumps({"defaults": defaults, "concepts": ["cat"]}), "list.json")


# -- the list as a whole -------------------------------------------------------------------------------------------


def test_duplicates_are_merged_with_a_notice():
    found = listing(
        table(
            {"target": "Paul Cézanne", "preserve": "Monet", "tags": "a", "anchor": ""},
            {"target": "dog", "kind": "object"},
            {"target": unicodedata.normalize("NFD", "PAUL  cézanne "), "preserve": "Klee;monet", "tags": "b;A"},
            {"target": "Dog"},
            {"target": "paul cézanne", "anchor": "art"},
        )
    )
    assert [(e.target, e.kind.value) for e in found.entries] == [
        ("Paul Cézanne", "style"), ("dog", "object"), ("Dog", "style")
    ]  # fmt: skip
    assert found.rows == (2, 3, 5)
    assert (found.entries[0].preserve, found.entries[0].tags) == (("Monet", "Klee"), ("a", "b"))
    assert found.entries[0].anchor == "art"
    assert found.problems == ()
    assert found.notices == ("'Paul Cézanne' is listed 3 times (rows 2, 4, 6); merged.",)


def test_two_writings_are_merged_and_both_are_named():
    found = listing("target\nPaul Cézanne\nPAUL CÉZANNE\npaul cezanne\nThe Scream\nscream\n")
    assert (targets(found), found.merged) == (["Paul Cézanne", "The Scream"], (3, 4, 6))
    assert found.notices == (
        "'Paul Cézanne' is listed 3 times (rows 2, 3, 4), also as 'paul cezanne': 'Paul Cézanne' is what is erased; "
        "merged.",
        "'The Scream' is listed 2 times (rows 5, 6), also as 'scream': 'The Scream' is what is erased; merged.",
    )


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([{"target": "blob"}, {"target": "Blob", "preserve": "noto"}, {"target": "BLOB"}], "preserve"),
        ([{"target": "blob", "anchor": "the Noto"}, {"target": "Blob"}, {"target": "BLOB"}], "anchor"),
    ],
)
def test_merged_rows_that_fall_away_are_each_named_with_the_reason(rows, field):
    found = listing(table(*(({"anchor": "", "preserve": ""}) | row for row in rows), {"target": "noto"}))
    assert (targets(found), found.rows, found.merged, found.notices) == (["noto"], (5,), (), ())
    assert [(p.row, p.field) for p in found.problems] == [(2, field), (3, field), (4, field)]
    for problem in found.problems:
        assert "erased in row 5" in problem.message
        assert problem.message.endswith("Rows 2, 3, 4 are one entry; none of them is used.")


ROWS = st.fixed_dictionaries(
    {
        "target": st.sampled_from(
            ["Monet", "monet", "Cézanne", "cezanne", "a cat", "cat", "dog", "", "=A1", "Claude Monet"]
        ),
        "kind": st.sampled_from(["", "style", "object", "beast"]),
        "anchor": st.sampled_from(["", "art", "DOG", "the cat", "Bart"]),
        "preserve": st.sampled_from(["", "dog", "Cezanne;bird", "Claude Monet"]),
        "method": st.sampled_from(["", "uce", "encoder", "magic"]),
        "tags": st.sampled_from(["", "a", "all"]),
    }
)


@given(st.lists(ROWS, min_size=1, max_size=12))
def test_every_row_is_used_or_merged_or_a_problem(rows):
    bird = {"target": "bird"}  # so that one can be used
    try:
        found = listing(table(*rows, bird))
    except InputError:
        raise AssertionError("a row that can be used was lost") from None
    failed = {p.row for p in found.problems}
    given_rows = {i for i, row in enumerate(rows, 2) if any(row.values())} | {len(rows) + 2}
    assert sorted([*found.rows, *found.merged, *failed]) == sorted(given_rows)
    named = " ".join(found.notices)
    assert all(str(row) in named for row in found.merged)
    assert len({(e.kind, folded(e.target)) for e in found.entries}) == len(found.entries)
    erased = {folded(e.target) for e in found.entries}
    for entry in found.entries:
        assert not erased & {folded(p) for p in entry.preserve}
        assert folded(entry.anchor or "-") not in erased


@pytest.mark.parametrize(
    ("text", "name", "kind", "want"),
    [
        ("object\ncat\n", "list.csv", None, Kind.OBJECT),
        ("object\ncat\n", "list.csv", "identity", Kind.IDENTITY),
        ("object,kind\ncat,violence\n", "list.csv", None, Kind.VIOLENCE),
        ('{"person": "Ada"}', "list.jsonl", None, Kind.IDENTITY),
        ('{"artist": "Monet"}', "list.jsonl", "object", Kind.OBJECT),
    ],
)
def test_a_heading_speaks_of_the_kind_where_nobody_else_does(text, name, kind, want):
    assert listing(text, name, kind=kind).entries[0].kind is want


def test_names_with_commas_in_other_formats_stay_one_name_and_are_said():
    found = listing('target,preserve,anchor\n"Doe, John","Dog, bird","oil, ink"\n')
    assert (targets(found), found.entries[0].preserve) == (["Doe, John"], ("Dog, bird",))
    assert found.notices == (
        "taken as one name each: 'Doe, John' (row 2); write one name a row if they are several.",
        "anchors taken as one name each: 'oil, ink' (row 2); a concept becomes one other.",
        "preserved as one name each: 'Dog, bird' (row 2); put ';' between names if they are several.",
    )


def test_a_whole_list_in_one_line_is_asked_about():
    for name in ("list.txt", "list"):
        with pytest.raises(InputError, match=r"row 1: the line 'twemoji, noto' holds 2 names .*write one name a line"):
            listing("twemoji, noto", name)
    with pytest.raises(InputError, match="write one name a row"):
        listing("twemoji, noto", "list.csv")


def test_many_duplicates_do_not_make_many_notices():
    found = listing("\n".join(f"name {i % 200}" for i in range(400)), "list.txt")
    assert len(found.entries) == 200
    assert (len(found.notices), found.notices[-1]) == (101, "100 more concepts are listed more than once; merged.")
    assert len(listing("cat\n" * 5000, "list.txt").notices[0]) < 300


@pytest.mark.parametrize(
    ("one", "two", "field"),
    [({"anchor": "art"}, {"anchor": "a box"}, "anchor"), ({"method": "uce"}, {"method": "encoder"}, "method")],
)
def test_rows_that_contradict_each_other_are_named(one, two, field):
    found = listing(table({"target": "cat", **one}, {"target": "dog", field: ""}, {"target": "CAT", **two}))
    assert (targets(found), found.rows) == (["cat", "dog"], (2, 3))
    assert getattr(found.entries[0], field) == one[field]
    (problem,) = found.problems
    assert (problem.row, problem.field) == (4, field)
    assert problem.message == f"'CAT' has the {field} {two[field]!r} here and {one[field]!r} in row 2; keep one."


def test_a_concept_that_is_erased_and_preserved_is_told_with_all_pairs():
    found = listing(table({"target": "cat", "preserve": "Dog;fish;BIRD"}, {"target": "dog"}, {"target": "bird"}))
    assert targets(found) == ["dog", "bird"]
    (problem,) = found.problems
    assert (problem.row, problem.field) == (2, "preserve")
    assert problem.message == (
        "'Dog' is preserved here and erased in row 3; 'BIRD' is preserved here and erased in row 4; take each out of "
        "one of the two."
    )


def test_an_anchor_that_is_itself_erased_is_a_problem():
    found = listing(table({"target": "cat", "anchor": "DOG"}, {"target": "dog", "anchor": "cat"}, {"target": "bird"}))
    assert targets(found) == ["bird"]
    assert [(p.row, p.field) for p in found.problems] == [(2, "anchor"), (3, "anchor")]
    assert found.problems[0].message == "the anchor 'DOG' is itself erased in row 3; name another anchor."


def test_an_anchor_that_contains_an_erased_concept_is_a_warning():
    found = listing(
        table({"target": "cat", "anchor": "a Big dog"}, {"target": "cow", "anchor": "a big Dog"}, {"target": "dog"})
    )
    assert (len(found.entries), found.problems) == (3, ())
    assert found.notices == (
        "warning: the anchor 'a Big dog' of 'cat' (row 2), 'cow' (row 3) contains 'dog', erased in row 4.",
    )
    assert listing(table({"target": "art", "anchor": "Bart"}, {"target": "dog", "anchor": "dogma"})).notices == ()
    found = listing(table({"target": "cat", "anchor": "a cat-like box"}, {"target": "dog"}))
    assert found.notices == (
        "row 2: the anchor 'a cat-like box' contains 'cat' itself and may bring it back; it is taken because it was "
        "named.",
    )


def test_what_is_preserved_although_it_contains_an_erased_name_is_kept_and_said():
    found = listing(table({"target": "Monet", "preserve": "Claude Monet;Rembrandt"}, {"target": "Klee"}))
    assert found.entries[0].preserve == ("Claude Monet", "Rembrandt")
    assert found.notices == (
        "row 2: 'Claude Monet', which shall stay, contains 'Monet', erased; it is kept because it was named.",
    )


def test_the_order_of_rows_does_not_change_what_is_erased():
    rows = [
        {"target": "a", "anchor": "b"}, {"target": "b", "anchor": ""}, {"target": "c", "preserve": "d"},
        {"target": "d"}, {"target": "e", "anchor": "old d"},
    ]  # fmt: skip
    found, turned = listing(table(*rows)), listing(table(*rows[::-1]))
    assert set(targets(found)) == set(targets(turned)) == {"b", "d", "e"}
    assert sorted(p.field for p in found.problems) == sorted(p.field for p in turned.problems)


def test_thousands_of_rows_are_checked_quickly():
    text = "target,anchor\n" + "".join(f"name {i} of many,anchor {i}\n" for i in range(5000))
    start = time.process_time()
    found = listing(text)
    assert time.process_time() - start < 10
    assert (len(found.entries), found.notices) == (5000, ())


def test_a_list_made_to_be_slow_to_check_is_told(monkeypatch):
    monkeypatch.setattr(lists, "MOST_COMPARISONS", 1)
    found = listing(table({"target": "cat", "anchor": "a large box"}, {"target": "do"}))
    assert found.notices == ("the list has too many anchors to check whether one of them contains an erased concept.",)


# -- out and in again ----------------------------------------------------------------------------------------------

NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from(" ,;'\"=+-@#:{[&*!|>%\té\u0301ع🐱"),
    min_size=1, max_size=20,
)  # fmt: skip


def usable(name):
    try:
        clean = normalise(name, "target")
        return not lists.is_formula(clean) and len(clean) <= LONGEST_NAME and "\n" not in name
    except InputError:
        return False


def as_csv(names):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["target"], *([escaped(name)] for name in names)])
    return text.getvalue()


FORMATS = {
    "list.csv": as_csv,
    "list.yaml": lambda names: yaml.safe_dump(names, allow_unicode=True),
    "ascii.yaml": yaml.safe_dump,
    "list.jsonl": lambda names: "\n".join(json.dumps(name, ensure_ascii=False) for name in names),
    "ascii.jsonl": lambda names: "\n".join(json.dumps({"target": name}) for name in names),
    "list.json": json.dumps,
}


@given(st.lists(NAMES.filter(usable), min_size=1, max_size=5, unique_by=folded))
@example(
    ["-M-", "'-N-", "#1", "null", "~", "1984", "- x", "c: d", '"quoted"', "it's", "=^..^=", "'t Hooft", "@x", "a,b"]
)
def test_names_come_back_from_every_format(names):
    clean = [normalise(name, "x") for name in names]
    assume(not any(name.startswith("\ufeff") for name in names))
    for name, write in FORMATS.items():
        found = listing(write(names), name)
        assert (targets(found), found.problems) == (clean, ()), name


@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf\xef\xbb\xbftarget\ncat")
def test_any_bytes_give_a_list_or_an_input_error(data):
    for name in ("list", "list.csv", "list.yaml", "list.json", "list.jsonl", "list.txt"):
        try:
            found = parse_list(data, name)
        except InputError:
            continue
        assert found.entries
        assert len(found.rows) == len(found.entries)


# -- problems as a file --------------------------------------------------------------------------------------------


def test_problems_are_written_for_spreadsheets_and_nothing_in_them_is_computed(tmp_path):
    problems = (Problem(3, "target", '=HYPERLINK("x") is wrong; "really".'), Problem(4, "@x", "Cézanne,\nagain"))
    write_problems(tmp_path / "problems.csv", problems)
    data = (tmp_path / "problems.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert data.decode("utf-8-sig") == problems_csv(problems)
    assert list(csv.reader(io.StringIO(problems_csv(problems), newline=""))) == [
        ["row", "field", "problem"],
        ["3", "target", '\'=HYPERLINK("x") is wrong; "really".'],
        ["4", "'@x", "Cézanne,\nagain"],
    ]


def test_a_full_disk_leaves_the_old_problems(tmp_path, monkeypatch):
    (tmp_path / "problems.csv").write_text("old")
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OutputError):
        write_problems(tmp_path / "problems.csv", [Problem(1, "target", "x")])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
