import re

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_the_first_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found, "README.md has no python example"
    example, shortened = re.subn(r"\bn=24\b", "n=8", found.group(1))  # as it stands, with fewer pictures
    assert shortened == 2, "other numbers of pictures than this test shortens"
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("name", ["README.md", "weights/README.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.findall(r"@@\w+@@|TODO|FIXME", (ROOT / name).read_text())


def test_pictures_and_files_that_the_readme_links_are_there():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
