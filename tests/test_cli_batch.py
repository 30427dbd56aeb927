import json
import re
import shutil

import pytest
from batches import ROWS, TOO_LONG, hashes, job_of, listed
from commands import Command, list_file
from conftest import names_in, python, untouched
from filelock import FileLock
from typer.testing import CliRunner

from concept_erase import erase_list
from concept_erase.batch import engines, runner
from concept_erase.cli import app, common
from concept_erase.errors import InputError, MissingModelError
from concept_erase.lists import Listing
from concept_erase.schema import Job

RUN = "from concept_erase import cli; cli.run()"
HEAVY = "import atexit; atexit.register(lambda: print('heavy:', *{'torch', 'diffusers'} & set(sys.modules)))"
QUICK = ("--set", "contexts=2", "--set", "preserve_prompts=20")
SETTINGS = {"contexts": "2", "preserve_prompts": "20"}


def invoke(*arguments):
    return CliRunner().invoke(app, ["batch", *(str(a) for a in arguments)], env={"COLUMNS": "200"})


def command(*arguments, before: str = ""):
    """The command line in a process of its own; `before` is run first."""
    return python("-c", f"import sys; sys.argv[1:] = {['batch', *map(str, arguments)]!r}\n{before}\n{RUN}")


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def _quiet_again(monkeypatch):
    """How progress is told is kept by the program for its only command; tests run many."""
    monkeypatch.setattr(common, "_mode", common.ProgressMode.AUTO)


@pytest.fixture
def csv(tmp_path):
    """A list with two good rows, three bad ones and a duplicate; rows 2 to 7 of the spreadsheet."""
    file = tmp_path / "list.csv"
    file.write_text(
        "target,kind,anchor,tags\nTwemoji,style,fluent,flat\n,style,,\ncat,mood,,\nblob,,noto,flat\n"
        "dog,object,Dog,\ntwemoji,,,\n"
    )
    return file


class Recorded:
    """Stands in for the erasure of a list: remembers what it was asked for."""

    def __init__(self, states=()):
        self.states = states

    def __call__(self, listing, job, out, *, engine=None, progress=None):
        self.listing, self.job, self.out, self.engine = listing, job, out, engine
        entries = [{"state": s, "row": 1, "target": "x", "error": "told"} for s in self.states]
        return {"entries": entries, "joint": [], "problems": []}


@pytest.fixture
def recorded(monkeypatch):
    stand_in = Recorded()
    monkeypatch.setattr(runner, "erase_list", stand_in)
    return stand_in


# -- usage ---------------------------------------------------------------------------------------------------------


def test_help_names_every_field_of_a_job_and_every_column(tmp_path):
    shown = flat(invoke("--help").stdout)
    for option in (
        "pictures",
        "scorer",
        "steps",
        "guidance",
        "half",
        "joint",
        "strict",
        "force",
        "model",
        "method",
        "set",
    ):
        assert f"--{option}" in shown
    for option in ("--dry-run", "--workers", "--progress", "--out", "--engine", "--address", "--kind"):
        assert option in shown
    assert "target, kind, anchor, preserve, method, tags" in shown
    assert "Exit code 1 means that some rows failed" in shown


@pytest.mark.parametrize(
    "arguments",
    [[], ["list.txt"], ["list.txt", "-o", "x", "--workers", "0"], ["list.txt", "-o", "x", "-n", "-1"],
     ["list.txt", "-o", "x", "--engine", "steam"], ["list.txt", "-o", "x", "--steps", "0"],
     ["list.txt", "-o", "x", "--progress", "loud"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("cat\n")
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert names_in(tmp_path) == ["list.txt"]


def test_every_option_reaches_the_job(csv, tmp_path, recorded):
    options = ["-m", "base", "--method", "encoder", "--set", "rank=3", "--set", "lr=none", "-n", 7, "--scorer", "judge"]
    options += ["--steps", 9, "--guidance", 2.5, "--half", "--no-joint", "--force", "--workers", 2]
    result = invoke(csv, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1, result.output
    assert recorded.job == Job(
        model="base", method="encoder", settings={"rank": "3", "lr": None}, pictures=7, scorer="judge", steps=9,
        guidance=2.5, half=True, joint=False, strict=False, force=True,
    )  # fmt: skip
    assert recorded.out == tmp_path / "out"
    assert [(e.target, e.kind.value) for e in recorded.listing.entries] == [("Twemoji", "style"), ("blob", "style")]
    assert isinstance(recorded.engine, engines.Processes)
    assert recorded.engine._workers == 2


def test_the_defaults_are_those_of_the_schema(tmp_path, recorded):
    result = invoke(list_file(tmp_path, "cat", "dog"), "-o", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0, result.output
    assert recorded.job == Job()
    assert isinstance(recorded.engine, engines.Here)


@pytest.mark.parametrize(("rows", "workers", "expected"), [(1, 8, None), (2, 8, 2), (9, 3, 3)])
def test_there_are_no_more_workers_than_concepts(tmp_path, recorded, rows, workers, expected):
    file = list_file(tmp_path, *(f"artist {i}" for i in range(rows)))
    invoke(file, "-o", tmp_path / "out", "--workers", workers)
    assert getattr(recorded.engine, "_workers", None) == expected


def test_an_address_without_ray_is_refused(tmp_path, recorded):
    error = invoke(list_file(tmp_path, "cat"), "-o", tmp_path / "out", "--address", "auto").exception
    assert isinstance(error, InputError)
    assert "add --engine ray" in str(error)


# -- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "bad_rows", "code"),
    [(["done"] * 2, False, 0), (["done", "failed"], False, 1), (["done"], True, 1), (["failed"], True, 1)],
)
def test_the_exit_code_says_whether_rows_failed(tmp_path, recorded, states, bad_rows, code):
    recorded.states = states
    rows = ["cat", {"target": "dog", "kind": "mood"}] if bad_rows else ["cat"]
    assert invoke(list_file(tmp_path, *rows), "-o", tmp_path / "out").exit_code == code


BAD = {
    "no such file": (["no-such-file.csv"], "no-such-file.csv"),
    "no list": (["picture.png"], "picture.png"),
    "nothing in it": (["blank.txt"], "blank.txt is empty"),
    "nothing usable": (["useless.csv"], "holds no row that can be used: row 2: kind"),
    "unknown method": (["list.txt", "--method", "magic"], "there is no method 'magic'"),
    "setting without value": (["list.txt", "--set", "rank"], "write NAME=VALUE"),
    "guidance": (["list.txt", "--guidance", "nan"], "guidance"),
    "strict": (["wrong.csv", "--strict"], "row 3"),
    "unknown method of a row": (["method.csv", "--strict"], "row 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_2_in_one_message_and_without_torch(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("cat\ndog\n")
    (tmp_path / "blank.txt").write_text("\n\n")
    (tmp_path / "useless.csv").write_text("target,kind\ncat,mood\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "wrong.csv").write_text("target,kind\ncat,object\ndog,mood\n")
    (tmp_path / "method.csv").write_text("target,method\ncat,magic\ndog,uce\n")
    before = names_in(tmp_path)
    arguments, message = BAD[case]
    done = command(*arguments, "-o", "out", before=HEAVY)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "heavy:"), done.stderr
    assert flat(done.stderr).startswith("error: ")
    assert message in flat(done.stderr)
    assert "Traceback" not in done.stderr
    assert names_in(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["-m", "/no/such/base"], MissingModelError, "is no folder"),
        (["--set", "rank=many"], InputError, "setting rank of uce is 'many'"),
        (["--set", "magic=1"], InputError, "no setting 'magic'"),
    ],
    ids=str,
)
def test_what_only_the_run_can_know_exits_with_2_too(base_folder, tmp_path, options, kind, message):
    result = invoke(list_file(tmp_path, "cat"), "-o", tmp_path / "out", "-m", base_folder, "-n", 0, *options)
    assert isinstance(result.exception, kind)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)
    assert not list((tmp_path / "out").glob("concepts/*"))
    assert message in (tmp_path / "out" / "log.txt").read_text()


def test_a_folder_that_cannot_be_written_exits_with_74(base_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = command(list_file(tmp_path, "cat"), "-o", tmp_path / "file" / "out", "-m", base_folder, "-n", 0)
    assert done.returncode == 74
    assert "choose another --out" in flat(done.stderr)
    assert "Traceback" not in done.stderr


def test_a_folder_in_use_exits_with_75_and_says_so_to_programs(base_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        waiting = Command("batch", list_file(tmp_path, "cat"), "-o", out, "-m", base_folder, "-n", 0)
        assert waiting.wait() == 75
    event = waiting.events[-1]
    assert (event["event"], event["exit_code"]) == ("error", 75)
    assert "another process writes to" in event["message"]
    assert waiting.stderr == []
    assert not (out / "index.json").exists()


# -- dry run -------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_rows_plan_time_and_disk_at_once_and_creates_nothing(csv, base_folder, tmp_path):
    with untouched(tmp_path):
        done = command(
            csv, "-o", tmp_path / "not" / "yet", "-m", base_folder, "-n", 3, "--half", "--dry-run", "--workers", 2,
            before=HEAVY,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    shown = flat(done.stdout)
    assert re.search(r"2 Twemoji style fluent flat", shown)
    assert re.search(r"5 blob style noto flat", shown)
    assert "2 concepts, 3 problems" in shown
    assert "'Twemoji' is listed 2 times" in shown
    assert "2 and 2 joint; 3 pictures of each group before and after" in shown
    assert re.search(r"disk about \d+ \wiB \(\d+ \wiB an adapter\), [\d,.]+ GiB free", shown)
    assert re.search(r"time about \d+ (s|min) with 2 workers", shown)
    assert not (tmp_path / "not").exists()


def test_problems_are_told_together_with_their_rows(csv, tmp_path):
    done = command(csv, "-o", tmp_path / "out", "--dry-run")
    told = flat(done.stderr)
    for row, field, message in ((3, "target", "blank"), (4, "kind", "'mood'"), (6, "anchor", "the same")):
        assert re.search(rf"row {row}, {field}: [^:]*{message}", told), told
    assert told.count("row ") == 3


def test_a_long_list_of_problems_is_cut_and_counted(tmp_path):
    rows = [{"target": f"x{i}", "kind": "mood"} for i in range(30)]
    result = invoke(list_file(tmp_path, "cat", *rows), "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0
    assert "and 18 more problems" in flat(result.stderr)
    assert "1 concepts, 30 problems" in flat(result.stdout)


def test_markup_in_a_name_is_shown_as_it_is(tmp_path):
    name = "[red]cat[/red] [link=http://x]y"
    result = invoke(list_file(tmp_path, name, {"target": "[/]", "kind": "[bold]"}), "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert name in flat(result.stdout)
    assert "[bold]" in flat(result.stderr)


def test_a_dry_run_of_a_base_that_is_not_here_says_what_is_not_known(tmp_path):
    result = invoke(list_file(tmp_path, "cat"), "-o", tmp_path / "out", "-m", "nobody/nothing", "--dry-run")
    assert result.exit_code == 0
    assert "disk not known" in flat(result.stdout)
    assert "not known: nobody/nothing is not on this disk" in flat(result.stdout)


@pytest.mark.parametrize("setting", ["rank=many", "magic=1"])
def test_a_dry_run_refuses_what_the_run_would_refuse(base_folder, tmp_path, setting):
    file = list_file(tmp_path, "cat")
    done = command(file, "-o", tmp_path / "out", "-m", base_folder, "--set", setting, "--dry-run")
    assert done.returncode == 2, done.stdout
    assert setting.partition("=")[0] in done.stderr
    assert "Traceback" not in done.stderr


# -- the way through -----------------------------------------------------------------------------------------------


def test_a_batch_leaves_what_erase_list_leaves_and_tells_of_it(base_folder, tmp_path):
    rows = [*ROWS[:2], {"target": TOO_LONG}, {"target": "dog", "kind": "mood"}]
    file, out = list_file(tmp_path, *rows), tmp_path / "out"
    arguments = [file, "-o", out, "-m", base_folder, "-n", 0, "--workers", 1, *QUICK]
    result = invoke(*arguments)
    assert result.exit_code == 1, result.output
    shown = flat(result.stdout)
    assert "3 concepts, 1 problems" in shown
    assert "2 adapters, 1 failed, 1 rows with problems" in shown
    assert re.search(r"all +2 +\d+", shown)
    assert "row 4, kind:" in flat(result.stderr)
    assert re.search(r"row 3, very very .*shorten it", flat(result.stderr))
    assert str(out / "index.html") in "".join(result.stdout.split("\n"))
    index = erase_list(listed(*rows), job_of(base_folder, settings=SETTINGS), tmp_path / "same")
    assert json.loads((out / "index.json").read_text()) == index
    assert hashes(out) == hashes(tmp_path / "same")
    log = (out / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ INFO ", log)
    assert "0 of 3 concepts are done already" in log
    assert "done: 2 adapters, 3 joint, 1 failed" in log
    assert "shorten it" in log
    assert invoke(*arguments).exit_code == 1
    more = (out / "log.txt").read_text()
    assert more.startswith(log)
    assert "of 3 concepts are done already" in more[len(log) :]


def test_progress_for_programs_is_one_object_a_line(base_folder, tmp_path):
    rows = [*ROWS[:2], {"target": TOO_LONG}, {"target": "dog", "kind": "mood"}]
    out = tmp_path / "out"
    done = Command("batch", list_file(tmp_path, *rows), "-o", out, "-m", base_folder, "-n", 0, "--workers", 1, *QUICK)
    assert done.wait() == 1
    assert done.stderr == [], "nothing but objects"
    *progress, last = done.events
    assert (last["event"], last["folder"]) == ("done", str(out))
    told = [e for e in progress if e["event"] == "progress"]
    for event in told:
        assert set(event) == {"at", "event", "what", "done", "total", "left_s"}
        assert 0 <= event["done"] <= event["total"]
        assert event["left_s"] is None or event["left_s"] >= 0
    assert {"concepts", "joint adapters", "interference"} <= {e["what"] for e in told}
    assert [e["done"] for e in told if e["what"] == "concepts"][-1] == 3


def test_an_error_for_programs_is_an_object_too(tmp_path):
    done = Command("batch", "no-such-file.csv", "-o", tmp_path / "out")
    assert done.wait() == 2
    (event,) = done.events
    assert (event["event"], event["exit_code"]) == ("error", 2)
    assert "no-such-file.csv" in event["message"]
    assert done.stderr == []


def test_progress_none_is_silent_on_standard_error(base_folder, tmp_path):
    options = ["-m", base_folder, "-n", 0, "--workers", 1, "--progress", "none", *QUICK]
    result = invoke(list_file(tmp_path, ROWS[0]), "-o", tmp_path / "out", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 adapters, 0 failed" in flat(result.stdout)


def test_kinds_of_the_command_fill_what_rows_leave_open(tmp_path, recorded):
    rows = ["dog", {"target": "Van Gogh", "kind": "style"}]
    invoke(list_file(tmp_path, *rows), "-o", tmp_path / "out", "--kind", "object")
    assert [e.kind.value for e in recorded.listing.entries] == ["object", "style"]


def test_strict_stops_at_a_warning_or_a_row_that_the_base_cannot_take(base_folder, tmp_path):
    for rows, told in (
        ([ROWS[0], {"target": "blob", "anchor": "twemoji icons"}], "contains 'twemoji'"),
        ([ROWS[0], TOO_LONG], "shorten it"),
    ):
        out = tmp_path / "out"
        result = invoke(list_file(tmp_path, *rows), "-o", out, "-m", base_folder, "-n", 0, "--strict", *QUICK)
        assert isinstance(result.exception, InputError)
        assert told in str(result.exception)
        assert not (out / "concepts").exists()
        shutil.rmtree(out, ignore_errors=True)


def test_the_listing_is_what_the_runner_gets(csv, tmp_path, recorded):
    invoke(csv, "-o", tmp_path / "out")
    assert isinstance(recorded.listing, Listing)
    assert recorded.listing.rows == (2, 5)
    assert [p.row for p in recorded.listing.problems] == [3, 4, 6]
