import json

import pytest
from conftest import python
from pydantic import ValidationError

from concept_erase.concepts import Concept, Kind
from concept_erase.errors import InputError
from concept_erase.schema import LONGEST_NAME, LONGEST_TAG, MOST_NAMES, MOST_TAGS, Entry, Job, build, explain


def problems(schema, **values):
    with pytest.raises(ValidationError) as caught:
        schema(**values)
    return dict(explain(schema, caught.value))


# -- entries -------------------------------------------------------------------------------------------------------


def test_an_entry_is_a_concept_with_its_method_and_tags():
    entry = Entry(
        target=" Van  Gogh ",
        kind="Style ",
        anchor="a painting",
        preserve="Monet; Klee |Dali",
        method="UCE",
        tags=["dead", "Dutch"],
    )
    assert entry.concept == Concept("Van Gogh", Kind.STYLE, "a painting", ("Monet", "Klee", "Dali"))
    assert (entry.method, entry.tags) == ("uce", ("dead", "Dutch"))


def test_an_entry_needs_a_target_only():
    assert Entry(target="cat").model_dump() == {
        "target": "cat", "kind": "style", "anchor": None, "preserve": (), "method": None, "tags": ()
    }  # fmt: skip


def test_entries_survive_json():
    entry = Entry(target="Cézanne 🐱", kind="object", preserve=["A;B", "C"], tags="x|y")
    assert Entry(**json.loads(entry.model_dump_json())) == entry
    assert hash(entry) == hash(entry.model_copy())


def test_names_in_a_list_keep_their_semicolons_and_those_in_a_text_are_split():
    assert Entry(target="cat", preserve=["AC;DC"]).preserve == ("AC;DC",)
    assert Entry(target="cat", preserve="AC;DC;\n;x|").preserve == ("AC", "DC", "x")


def test_tags_are_the_same_up_to_case():
    assert Entry(target="cat", tags="Old;old; New").tags == ("Old", "New")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("target", "", "target is blank: ''"),
        ("target", "\u200b", "target is blank"),
        ("target", "a\u202eb", r"U+202E"),
        ("target", 7, "target must be text, got int"),
        ("target", None, "target must be text"),
        ("target", "x" * (LONGEST_NAME + 1), "target has 401 characters"),
        ("kind", "stile", "kind is 'stile'; use one of style, object"),
        ("kind", 3, "kind is 3"),
        ("anchor", "\u200b", "anchor is blank"),
        ("anchor", "CAT", "target and anchor are the same: 'cat'"),
        ("anchor", ["x"], "anchor must be text, got list"),
        ("preserve", ["dog", ""], "preserve is blank"),
        ("preserve", "dog; Cat", "'cat' is both erased and preserved"),
        ("preserve", 3, "preserve must be a list"),
        ("preserve", {"dog": 1}, "preserve must be a list"),
        ("preserve", [f"n{i}" for i in range(MOST_NAMES + 1)], "preserve has 1,001 names"),
        ("method", "magic", "there is no method 'magic'; choose one of "),
        ("method", 3, "method must be text, got 3"),
        ("tags", "All", "'All', which stands for the whole list"),
        ("tags", "x" * (LONGEST_TAG + 1), "tags has 65 characters"),
        ("tags", "../up", "use words of letters"),
        ("tags", "a\\b", "use words of letters"),
        ("tags", ".hidden", "use words of letters"),
        ("tags", "!?", "use words of letters"),
        ("tags", "a\x07b", "U+0007"),
        ("tags", [f"t{i}" for i in range(MOST_TAGS + 1)], "tags has 33 names"),
        ("nam", "x", "there is no field 'nam'; use target, kind, anchor"),
    ],
)
def test_what_does_not_fit_is_told_by_field_and_value(field, value, told):
    found = problems(Entry, **{"target": "cat", field: value})
    assert list(found) == [field]
    assert told in found[field]
    assert len(found[field]) < 600


def test_a_name_may_be_as_long_as_the_limit_says():
    assert len(Entry(target="x" * LONGEST_NAME, tags="y" * LONGEST_TAG).target) == LONGEST_NAME


def test_all_that_is_wrong_with_a_row_is_told_at_once():
    found = problems(Entry, target="", kind="x", anchor="\u202e", preserve=[""], method="x", tags="all", more=1)
    assert set(found) == {"target", "kind", "anchor", "preserve", "method", "tags", "more"}
    assert problems(Entry, kind="style") == {"target": "target is missing; name a concept."}


def test_a_schema_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValidationError):
        Entry(target="cat").target = "dog"
    with pytest.raises(ValidationError):
        Job().steps = 3


# -- jobs ----------------------------------------------------------------------------------------------------------


def test_a_job_has_the_defaults_of_the_command_line():
    job = Job()
    assert (job.model, job.method, job.pictures, job.steps, job.guidance) == (None, "uce", 24, 25, None)
    assert (job.half, job.joint, job.strict, job.settings) == (False, True, False, {})
    assert Job(**json.loads(Job(settings={"rank": 3}).model_dump_json())).settings == {"rank": 3}


def test_a_blank_model_or_scorer_is_none():
    assert (Job(model=" ").model, Job(scorer="").scorer, Job(model="a/b").model) == (None, None, "a/b")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("pictures", -1, "pictures is -1"),
        ("steps", 0, "steps is 0"),
        ("steps", 1001, "steps is 1001"),
        ("steps", "many", "steps is 'many'"),
        ("guidance", float("nan"), "guidance is nan"),
        ("guidance", -1, "guidance is -1"),
        ("method", "magic", "there is no method 'magic'"),
        ("half", "perhaps", "half is 'perhaps'"),
        ("settings", 3, "settings is 3"),
        ("engine", "x", "there is no field 'engine'"),
    ],
)
def test_a_job_tells_what_does_not_fit(field, value, told):
    found = problems(Job, **{field: value})
    assert list(found) == [field]
    assert told in found[field]


# -- both ----------------------------------------------------------------------------------------------------------


def test_build_raises_the_error_that_the_command_line_knows():
    assert build(Entry, {"target": "cat"}).target == "cat"
    with pytest.raises(InputError, match=r"target is blank.* there is no method 'x'.*") as caught:
        build(Entry, {"target": "", "method": "x"})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("schema", [Entry, Job])
def test_every_field_says_what_it_means(schema):
    for name, field in schema.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert "`" not in field.description, name


def test_nothing_heavy_is_imported():
    code = "import sys, concept_erase.lists, concept_erase.batch.gallery; print(*{'torch', 'numpy'} & set(sys.modules))"
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
