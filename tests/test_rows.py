"""Every format to rows: text and JSON, CSV, YAML."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from concept_erase.errors import InputError
from concept_erase.lists import documents, rows
from concept_erase.lists.documents import read_yaml
from concept_erase.lists.rows import read_json, read_jsonl, read_text
from concept_erase.lists.tables import is_table, read_csv


def targets(found):
    return {row: values["target"] if isinstance(values, dict) else values for row, values in found.rows}


def told(found):
    return {problem.row: problem.message for problem in found.problems}


# -- plain text ----------------------------------------------------------------------------------------------------


def test_text_has_one_name_a_line_and_comments():
    found = read_text("# artists\n\n  Van Gogh \n\t# none\nC# in a name\n'-M-\n")
    assert targets(found) == {3: "Van Gogh", 5: "C# in a name", 6: "-M-"}


@pytest.mark.parametrize(
    ("text", "names", "told"),
    [
        ("- Van Gogh\n- -M-\n- 2Pac\n", ["Van Gogh", "-M-", "2Pac"], "bullets (3 lines)"),
        ("* Van Gogh\n•  Monet\n", ["Van Gogh", "Monet"], "bullets (2 lines)"),
        ("1. Van Gogh\n2. 3 Doors Down\n10. 1. FC Köln\n", ["Van Gogh", "3 Doors Down", "1. FC Köln"], "numbers (3"),
        ("1) Van Gogh\n(2) Monet\n3\tKlee\n", ["Van Gogh", "Monet", "Klee"], "numbers (3 lines)"),
        ("- 1. a\n- 2. b\n", ["a", "b"], "bullets (2 lines), numbers (2 lines)"),
        ("'Van Gogh'\n“Monet”\n«Klee»\n", ["Van Gogh", "Monet", "Klee"], "quotes (3 lines)"),
        ('"Van Gogh",\n"Monet"\n', ["Van Gogh", "Monet"], "commas at the end (1 line), quotes (2 lines)"),
        ('cat\n"Doe, John"\ndog\n', ["cat", "Doe, John", "dog"], "quotes (1 line)"),
    ],
)
def test_what_a_list_has_around_its_names_is_taken_off_with_one_notice(text, names, told):
    found = read_text(text)
    assert list(targets(found).values()) == names
    (notice,) = found.notices
    assert notice.startswith(f"taken off around the names: {told}")
    assert list(targets(read_csv(text.replace(",", ""))).values()) == [n.replace(",", "") for n in names]


@pytest.mark.parametrize(
    "text",
    ["-M-\n2Pac\n3 Doors Down\n1. FC Köln\n", "1. FC Köln\n1. FC Nürnberg\n", "- x\ncat\ndog\n", '"Heroes"\ncat\ndog\n',
     "1. FC Köln\n", '"Weird Al" Yankovic\n"A" and "B"\n', "100 Gecs\n50 Cent\n"],
)  # fmt: skip
def test_names_that_begin_so_by_themselves_stay(text):
    found = read_text(text)
    assert list(targets(found).values()) == text.splitlines()
    assert found.notices == []


@pytest.mark.parametrize(
    "line", ["twemoji, noto, blob", "twemoji; noto; blob", "twemoji\tnoto\tblob", "twemoji|noto|blob"]
)
def test_a_line_of_several_names_is_a_problem_that_says_what_to_do(line):
    found = read_text(f"cat\n{line}\ndog\n")
    assert targets(found) == {1: "cat", 3: "dog"}
    assert "holds 3 names ('twemoji', 'noto', 'blob'); write one name a line" in told(found)[2]


# -- JSON ----------------------------------------------------------------------------------------------------------


def test_json_lines_are_names_and_objects_by_line():
    found = read_jsonl('"cat"\n\n{"target": "dog", "tags": ["x"]}\n')
    assert found.rows == [(1, "cat"), (3, {"target": "dog", "tags": ["x"]})]


def test_lines_that_are_no_json_are_told_with_their_row_and_the_rest_goes_on():
    found = read_jsonl('{"target": "dog"\n"cat"\n{"a": 1, "a": 2}\n' + "[" * 100_000 + "\n" + "1" * 5000 + "\n")
    assert targets(found) == {2: "cat"}
    assert list(told(found)) == [1, 3, 4, 5]
    assert "no JSON" in told(found)[1]
    assert "'a' is given twice" in told(found)[3]


def test_a_line_separator_inside_of_json_is_no_end_of_line():
    assert targets(read_jsonl('"a\u2028b"\n"c"')) == {1: "a\u2028b", 2: "c"}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('["cat", {"target": "dog"}]', [(1, "cat"), (2, {"target": "dog"})]),
        ('{"target": "dog"}', [(1, {"target": "dog"})]),
        ('{"concepts": ["cat"], "defaults": {"kind": "object"}}', [(1, "cat")]),
        ('"cat"\n"dog"', [(1, "cat"), (2, "dog")]),
    ],
)
def test_a_json_file_may_be_a_list_or_lines(text, rows):
    assert read_json(text).rows == rows


def test_json_has_defaults():
    assert read_json('{"concepts": ["cat"], "defaults": {"kind": "object"}}').defaults == {"kind": "object"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "no JSON"),
        ("3", "must be a list of names"),
        ('{"concepts": "cat"}', "concepts must be a list"),
        ('{"concepts": [], "defaults": ["x"]}', "defaults must be fields"),
        ('{"concepts": [], "other": 1}', "'other' beside 'concepts'"),
        ('{"concepts": [], "concepts": []}', "'concepts' is given twice"),
    ],
)
def test_json_of_another_form_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_json(text)


# -- CSV -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("target", ["target", "Concept", " NAME ", "\ufefftarget", '"target"'])
def test_the_delimiter_and_the_columns_are_found_in_any_order(delimiter, target):
    text = "\n".join(delimiter.join(line) for line in [("Kind", target, "id"), ("object", '"A,;\t""B"""', "1")])
    found = read_csv(text)
    assert found.rows == [(2, {"kind": "object", "target": 'A,;\t"B"'})]
    assert found.notices == found.problems == []


def test_a_first_line_of_excel_names_the_delimiter_and_is_not_counted():
    assert targets(read_csv("sep=|\ntarget|kind\nA,B|style\n")) == {2: "A,B"}
    assert targets(read_csv('"sep=;"\ntarget;kind\nA,B;style\n')) == {2: "A,B"}


def test_rows_are_counted_as_a_spreadsheet_counts_them():
    found = read_csv('target,kind\n\ncat,object\n,,\n"two\nlines",style\ndog,object\n')
    assert targets(found) == {3: "cat", 5: "two\nlines", 6: "dog"}


def test_missing_cells_are_left_out_and_empty_ones_past_the_header_do_not_matter():
    assert read_csv("target,kind,anchor\ncat\ndog,object,,,\n").rows == [
        (2, {"target": "cat"}), (3, {"target": "dog", "kind": "object", "anchor": ""})
    ]  # fmt: skip


def test_a_name_with_an_unquoted_comma_is_told():
    found = read_csv("id,target\n1,Huey, Dewey and Louie\n2,cat\n")
    assert targets(found) == {3: "cat"}
    assert told(found) == {2: "the row has 3 cells, the header 2; put names that hold ',' in quotes."}


def test_other_columns_are_noticed_and_counters_are_not():
    found = read_csv("id,#,target,year,\n1,1,cat,1890,x\n")
    assert found.notices == ["column 'year' is not used; the columns are target, kind, anchor, preserve, method, tags."]


def test_the_best_of_several_columns_of_targets_is_used():
    found = read_csv("name,concept\nx,cat\n")
    assert targets(found) == {2: "cat"}
    assert found.notices == ["column 'name' is not used; the targets are taken from 'concept'."]


def test_a_single_column_needs_no_header():
    found = read_csv("Van Gogh\n\nMonet\n")
    assert targets(found) == {1: "Van Gogh", 3: "Monet"}
    assert found.notices == ["the list has no header: every row is taken as a name, 'Van Gogh' as the first."]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("artist", "style"), ("Artists", "style"), ("ARTIST NAME", "style"), ("artist_name", "style"),
        ("Künstler", "style"), ("作者", "style"), ("style", "style"), ("object", "object"), ("items", "object"),
        ("celebrity", "identity"), ("person", "identity"), ("character", None), ("keyword", None), ("Brand", None),
        ("franchise", None), ("nom", None), ("Title", None), ("concept name", None), ("label", None), ("IP", None),
    ],
)  # fmt: skip
def test_headings_that_people_write_are_known_and_said(heading, kind):
    found = read_csv(f"{heading}\nVan Gogh\n")
    assert (targets(found), found.kind) == ({2: "Van Gogh"}, kind)
    (notice,) = found.notices
    assert notice.startswith(f"the first row is read as headings: {heading!r} as the targets")
    assert (f"of kind {kind}" in notice) == (kind is not None)


def test_a_heading_that_may_be_a_name_says_how_to_keep_it():
    assert "If 'person' is a name itself, put a row 'target' above it." in read_csv("person\ncar\n").notices[0]
    assert targets(read_csv("target\nperson\ncar\n")) == {2: "person", 3: "car"}
    assert not is_table("person\ncar\n")
    assert is_table("artist\nMonet\n")


def test_other_columns_have_names_of_their_own_too():
    found = read_csv("Artist;replaced by;keep;category;kind\nMonet;art;Klee;French;style\n")
    assert found.rows == [
        (2, {"target": "Monet", "anchor": "art", "preserve": "Klee", "tags": "French", "kind": "style"})
    ]
    assert found.kind is None
    assert found.notices == [
        "the first row is read as headings: 'Artist' as the targets; 'replaced by' as anchor; 'keep' as preserve; "
        "'category' as tags."
    ]


def test_of_two_columns_of_one_field_the_better_known_is_used():
    found = read_csv("title,artist,tags,group\nSunflowers,Van Gogh,Dutch,x\n")
    assert found.rows == [(2, {"target": "Van Gogh", "tags": "Dutch"})]
    assert found.notices[:2] == [
        "column 'title' is not used; the targets are taken from 'artist'.",
        "column 'group' is not used; the tags are taken from 'tags'.",
    ]
    assert read_csv("name,style\ncat,blue\n").rows == [(2, {"target": "cat"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "wer,kind\nVan Gogh,style\n",
            "no column is called 'target', 'concept' or 'name'; the first row has 'wer'",
        ),
        ("target,kind,Kind\na,b,c\n", "two columns hold 'kind'"),
        ("target,target\na,b\n", "two columns hold 'target'"),
    ],
)
def test_a_header_that_cannot_be_understood_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_csv(text)


def test_a_stray_quote_costs_its_rows_and_says_which_lines_are_lost():
    found = read_csv('target\nMonet\n"Van Gogh\nKlee\n"Dali"\nGiger\n')
    assert targets(found) == {2: "Monet", 4: "Giger"}
    assert "lines 3 to 5 were not read" in told(found)[3]
    found = read_csv('target\nMonet\n"Van Gogh\nKlee\n')
    assert targets(found) == {2: "Monet"}
    assert told(found)[3] == "a quote opens in this row and never closes; close it; lines 3 to 4 were not read."
    found = read_csv('target\n"Weird Al" Yankovic\nDwayne "The Rock" Johnson\n"""Weird Al"" Yankovic"\n')
    assert targets(found) == {3: 'Dwayne "The Rock" Johnson', 4: '"Weird Al" Yankovic'}
    assert list(told(found)) == [2]


def test_a_huge_cell_costs_its_row():
    found = read_csv("target\n" + "a" * 200_000 + "\ncat\n")
    assert targets(found) == {3: "cat"}
    assert "field limit" in told(found)[2]


def test_cells_that_were_escaped_for_spreadsheets_are_read_as_they_were():
    assert targets(read_csv("target\n'-M-\n'@artist\n't Hooft\n")) == {2: "-M-", 3: "@artist", 4: "'t Hooft"}


@pytest.mark.parametrize(("text", "table"), [("id;concept\n", True), ("sep=;\nx", True), ("Van Gogh\nMonet\n", False)])
def test_a_table_is_known_by_its_header(text, table):
    assert is_table(text) is table


# -- YAML ----------------------------------------------------------------------------------------------------------


def test_yaml_names_are_text_as_written():
    found = read_yaml("# mine\n- Van Gogh\n- No\n- 1984\n- 2001-01-01\n- 'null'\n- nan\n- {target: on, anchor: ~}\n")
    assert found.rows == [
        (2, "Van Gogh"), (3, "No"), (4, "1984"), (5, "2001-01-01"), (6, "null"), (7, "nan"),
        (8, {"target": "on", "anchor": None}),
    ]  # fmt: skip


def test_yaml_may_have_defaults():
    found = read_yaml("defaults:\n  kind: object\n  preserve: [a, b]\nconcepts:\n  - cat\n  - target: dog\n")
    assert found.defaults == {"kind": "object", "preserve": ["a", "b"]}
    assert found.rows == [(5, "cat"), (6, {"target": "dog"})]


def test_a_few_aliases_are_welcome():
    found = read_yaml("- target: cat\n  preserve: &pets [dog, bird]\n- target: horse\n  preserve: *pets\n")
    assert found.rows[1] == (3, {"target": "horse", "preserve": ["dog", "bird"]})


def test_a_field_that_is_given_twice_costs_its_row():
    found = read_yaml("- {target: cat, target: dog}\n- bird\n- {[a]: b}\n")
    assert targets(found) == {2: "bird"}
    assert "'target' is given twice" in told(found)[1]
    assert "a list or mapping as its name" in told(found)[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- !!python/object/apply:os.system ['touch pwned']", r"the YAML tag .*os\.system.*line 1.*refused"),
        ("- cat\n- !!str dog", "line 2"),
        ("- !mine {a: b}", "tags are refused"),
        ("--- !!set {cat, dog}", "tags are refused"),
        ("- &a [*a]", "inside of what it refers to"),
        ("&a {concepts: *a}", "inside of what it refers to"),
        ("[" * 1_000_000, "nested more than 10 deep"),
        ("- " * 10_000, "nested more than 10 deep"),
        ("{a: " * 10_000, "nested more than 10 deep"),
        ("a: [x", r"no YAML .line \d+: "),
        ("- a\n\t- b", "no YAML .line 2"),
        ("- *nothing", "no YAML .line 1: found undefined alias"),
        ("- a\x07b", "no YAML"),
        ("--- [a]\n--- [b]", "no YAML .line 2: but found another document"),
        ("cat", "concepts must be a list.*got a single text"),
        ("# nothing", "got nothing"),
        ("concepts: cat", "concepts must be a list"),
        ("names: [cat]", "has 'names' but no 'concepts'"),
        ("{concepts: [a], concepts: [b]}", "'concepts' is given twice"),
        ("{concepts: [a], more: [b]}", "'more' beside 'concepts'"),
        ("{concepts: [a], defaults: [b]}", "defaults must be fields"),
        ("? [a]\n: b", "a list or mapping as its name"),
    ],
)
def test_yaml_that_is_dangerous_or_of_another_form_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_yaml(text)


def test_a_bomb_of_aliases_is_refused_before_it_is_written_out():
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]  # 9^9 names
    with pytest.raises(InputError, match="once its aliases are written out"):
        read_yaml("\n".join(lines))
    chain = "\n".join(f"- &a{i} [{f'*a{i - 1}' if i else 'x'}]" for i in range(1500))  # deep, not wide
    with pytest.raises(InputError, match="nested more than 10 deep, once"):
        read_yaml(chain)


def test_more_aliases_or_items_than_a_list_can_need_are_refused(monkeypatch):
    monkeypatch.setattr(documents, "MOST_ROWS", 3)
    with pytest.raises(InputError, match="aliases; split it"):
        read_yaml("- &a x\n" + "- *a\n" * 4)
    monkeypatch.setattr(documents, "MOST_NODES", 10)
    with pytest.raises(InputError, match="more than 10 items"):
        read_yaml("- x\n" * 20)


# -- all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "line", "header"),
    [(read_text, "cat", ""), (read_csv, "cat", "target\n"), (read_csv, '"', "target\n"), (read_jsonl, '"cat"', ""),
     (read_jsonl, "{", ""), (read_yaml, "- cat", ""), (read_yaml, "- {a: b, a: c}", "")],
)  # fmt: skip
def test_a_list_with_too_many_rows_is_refused(reader, line, header, monkeypatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    lines = [line] * 3 if line != '"' else ['"a" b'] * 3
    reader(header + "\n".join(lines))
    with pytest.raises(InputError, match="more than 3 rows; split it"):
        reader(header + "\n".join([*lines, lines[0]]))


@given(st.text(max_size=60))
def test_any_text_gives_rows_or_an_input_error(text):
    for reader in (read_text, read_csv, read_jsonl, read_json, read_yaml):
        try:
            found = reader(text)
        except InputError:
            continue
        assert all(row >= 1 for row, _ in found.rows), reader


@given(st.text(alphabet=st.sampled_from("[]{}&*!-:,\"' \n|>?#ab%@`"), max_size=40))
def test_any_yaml_is_read_like_the_reference_reads_it(text):
    try:
        found = [values for _, values in read_yaml(f"- {text}").rows]
    except InputError:
        return
    reference = yaml.load(f"- {text}", Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    assert [json.dumps(v).replace("null", '""') for v in found] == [json.dumps(v) for v in reference]
