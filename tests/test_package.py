import importlib

import pytest
from conftest import python

import concept_erase
from concept_erase import errors


@pytest.mark.parametrize("name", concept_erase.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(concept_erase, name)
    assert value.__doc__
    assert value.__name__ == name
    assert name in dir(concept_erase)
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'erasee'"):
        _ = concept_erase.erasee


def test_importing_the_package_imports_nothing_heavy():
    done = python(
        "-c", "import sys, concept_erase; print(*{'torch', 'diffusers', 'typer', 'numpy'} & set(sys.modules))"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "code"),
    [("InputError", 2), ("BaseMismatchError", 2), ("AdapterFileError", 2), ("MissingModelError", 2),
     ("NumericalError", 2), ("OutputError", 74), ("BusyError", 75)],
)  # fmt: skip
def test_errors_carry_their_documented_exit_code(name, code):
    error = getattr(errors, name)
    assert issubclass(error, errors.ConceptEraseError)
    assert error.exit_code == code
