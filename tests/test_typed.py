"""Names as they are typed: several in one text and one in several are asked about."""

import pytest
from conftest import python
from typer.testing import CliRunner

from concept_erase import typed
from concept_erase.cli import app
from concept_erase.errors import InputError
from concept_erase.names import several


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("twemoji, noto", ["twemoji", "noto"]),
        ("twemoji,noto,blob", ["twemoji", "noto", "blob"]),
        ("twemoji; noto", ["twemoji", "noto"]),
        ("北斎、広重", ["北斎", "広重"]),
        ("ماتيس، بيكاسو", ["ماتيس", "بيكاسو"]),
        ("Monet | Manet", ["Monet", "Manet"]),
        ("Monet, Robert Downey, Jr.", ["Monet", "Robert Downey, Jr."]),
    ],
)
def test_several_names_in_one_text_are_asked_about(text, parts):
    assert several(text) == parts
    with pytest.raises(InputError, match=f"reads like {len(parts)} names .*apart: one by one.*double quotes") as asked:
        typed.names([text], "what to forget:")
    assert all(repr(part) in str(asked.value) for part in parts)
    assert typed.names([typed.one(text)], "TARGET", shell=True) == ([text], [])


@pytest.mark.parametrize(
    "name", ["10,000 Maniacs", "Robert Downey, Jr.", "AC;DC", "AC/DC", "Simon & Garfunkel", "a cat"]
)
def test_one_name_is_not_asked_about(name):
    assert several(name) == [name]
    assert typed.names([name], "TARGET", shell=True) == ([name], [])


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["Van", "Gogh"], "the name 'Van Gogh'. Put a name of several words in quotes: 'Van Gogh';"),
        (["pixel", "art"], "the name 'pixel art'"),
        (["cat", "police", "car"], "in quotes: cat 'police car';"),
        (["claude", "monet"], "the name 'Claude Monet'"),
        (["Girl", "with", "a", "Pearl"], "hold 'with', which is no concept. Put .* in quotes: 'Girl with a Pearl';"),
    ],
)
def test_words_of_one_name_are_asked_about(texts, told):
    with pytest.raises(InputError, match=told):
        typed.names(texts, "TARGET", shell=True)
    apart = [typed.one(text) for text in texts]
    assert typed.names(apart, "TARGET", shell=True) == (texts, [])
    assert typed.names(texts, "what to forget:") == (texts, [])  # a form has a field for each


def test_other_words_go_on_with_a_notice():
    assert typed.names(["Xaver", "Quandt"], "TARGET", shell=True)[1] == [
        "2 concepts: 'Xaver' and 'Quandt'; put a name of several words in quotes."
    ]
    assert typed.names(["Van Gogh", "noto"], "TARGET", shell=True) == (["Van Gogh", "noto"], [])


@pytest.mark.parametrize("text", ["fluent, noto", "fluent;noto", "a photograph\ta painting", "写真、絵画"])
def test_a_field_that_takes_one_name_asks_as_well(text):
    with pytest.raises(
        InputError, match=r"reads like 2 names .*It takes one: choose one .*in double quotes: \""
    ) as asked:
        typed.single(text, "what it becomes:")
    assert "apart" not in str(asked.value)
    assert typed.single(typed.one(text), "--anchor", shell=True) == text


@pytest.mark.parametrize(
    ("text", "name"), [(None, None), ("", None), (" ", None), ("art", "art"), ("10,000 Maniacs", "10,000 Maniacs")]
)
def test_a_field_that_takes_one_name_takes_it(text, name):
    assert typed.single(text, "--anchor", shell=True) == name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["erase", "cat", "--anchor", "dog, bird"],
            "reads like 2 names ('dog', 'bird'). It takes one",
        ),
        (["batch", "list.csv", "-o", "out", "--anchor", "dog, bird"], "--anchor 'dog, bird' reads like 2 names"),
        (["interference", "a", "b", "--preserve", "dog, bird"], "apart: --preserve dog --preserve bird"),
    ],
)
def test_every_option_that_takes_a_name_asks(arguments, told):
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["twemoji, noto"], "apart: twemoji noto; if it is one name, in double quotes: '\"twemoji, noto\"'"),
        (["Van", "Gogh"], "together are the name 'Van Gogh'"),
        (["cat", "--preserve", "dog, bird"], "apart: --preserve dog --preserve bird"),
    ],
)
def test_the_command_line_asks(arguments, told):
    result = CliRunner().invoke(app, ["erase", *arguments])
    assert isinstance(result.exception, InputError)
    assert told in str(result.exception)


def test_asking_imports_nothing_heavy():
    code = (
        "import sys\nfrom concept_erase import typed\nfrom concept_erase.errors import InputError\n"
        "try:\n    typed.names(['Van', 'Gogh'], 'TARGET', shell=True)\nexcept InputError:\n"
        "    print(*{'torch', 'numpy', 'openpyxl', 'diffusers'} & set(sys.modules))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
