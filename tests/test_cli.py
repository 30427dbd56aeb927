import json
import re

import pytest
from conftest import QUICK, TWEMOJI, names_in, python, untouched
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

from concept_erase import __version__, methods
from concept_erase.adapter import Adapter
from concept_erase.cli import app
from concept_erase.concepts import Concept
from concept_erase.errors import InputError, UnknownConceptError
from concept_erase.scores import Verdicts

COMMANDS = ("erase", "batch", "interference", "generate", "score", "info", "gates", "methods")
FAST = [part for name in ("contexts", "preserve_prompts") for part in ("--set", f"{name}={QUICK[name]}")]
RUN = "from concept_erase import cli; cli.run()"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def command(*arguments, before: str = ""):
    """The command line in a process of its own; `before` is run first."""
    return python("-c", f"import sys; sys.argv[1:] = {[str(a) for a in arguments]!r}\n{before}\n{RUN}")


def flat(text: str) -> str:
    return " ".join(text.split())


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert name in flat(invoke("--help").stdout)


def test_the_exit_codes_are_documented():
    shown = flat(invoke("--help").stdout)
    told = "0 done, 1 some rows of a list failed, 2 bad input, 74 cannot write, 75 folder in use, 130 interrupted."
    assert f"Exit codes: {told}" in shown


def test_the_version_is_shown():
    result = invoke("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"concept-erase {__version__}")


def test_methods_are_listed_with_every_setting_and_its_default():
    shown = flat(invoke("methods").stdout)
    for name in methods.available():
        described = methods.describe(name)
        assert described.summary in shown
        assert described.paper in shown
        for setting, _, default, meaning in described.settings:
            assert f"{setting}={default} {flat(meaning)}" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["erase"],
        ["erase", "cat", "--kind", "mood"],
        ["erase", "cat", "--pictures", "-1"],
        ["erase", "cat", "--steps", "0"],
        ["erase", "cat", "--no-such-option"],
        ["generate"],
        ["score"],
        ["info"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr


# -- errors in a process of their own ------------------------------------------------------------------------------

BAD_INPUT = {
    "blank": (["erase", " "], "target is blank"),
    "zero width": (["erase", "\u200b"], "target is blank"),
    "bidirectional": (["erase", "a\u202eb"], "U+202E"),
    "target is anchor": (["erase", "Cat", "--anchor", "cat "], "target and anchor are the same"),
    "erased and preserved": (["erase", "cat", "--preserve", "CAT"], "both erased and preserved"),
    "method": (["erase", "cat", "--method", "magic"], "no method 'magic'"),
    "setting without value": (["erase", "cat", "--set", "rank"], "write NAME=VALUE"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_exits_with_2_in_one_line_and_without_torch(case):
    arguments, message = BAD_INPUT[case]
    report = "import atexit; atexit.register(lambda: print(*{'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    done = command(*arguments, before=report)
    assert (done.returncode, done.stdout.strip()) == (2, "")
    assert flat(done.stderr).startswith("error: ")
    assert message in flat(done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["erase", "--help"], ["methods"], ["--version"]], ids=" ".join)
def test_help_and_lists_import_nothing_heavy(arguments):
    report = "import atexit; atexit.register(lambda: print('heavy:', *{'torch', 'diffusers', 'transformers', "
    done = command(*arguments, before=report + "'open_clip', 'accelerate'} & set(sys.modules)))")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "heavy:"


@pytest.mark.parametrize(("own", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_without_spinning_unless_the_user_says_so(own, expected, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    report = "import atexit, os; atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules))"
    assert command("methods", before=report).stdout.splitlines()[-1] == f"{expected} False", "before torch reads it"


def test_the_module_runs_as_a_program():
    done = python("-m", "concept_erase", "erase", "")
    assert done.returncode == 2
    assert "target is blank" in done.stderr


def test_a_setting_that_does_not_fit_exits_with_2(tmp_path):
    done = command("erase", "cat", "--set", "ridge=much", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "setting ridge of uce is 'much'" in flat(done.stderr)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_exits_with_74(base_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    done = command("erase", "cat", "-m", base_folder, "-n", 0, "-o", tmp_path / "file" / "out")
    assert done.returncode == 74
    assert "choose another --out" in flat(done.stderr)
    assert "Traceback" not in done.stderr


def test_a_folder_in_use_exits_with_75(base_folder, tmp_path):
    with FileLock(tmp_path / ".lock"), untouched(tmp_path):
        done = command("erase", "cat", "-m", base_folder, "-n", 0, "-o", tmp_path)
    assert done.returncode == 75
    assert "another process writes to" in flat(done.stderr)


def test_an_interruption_exits_with_130():
    stop = "from concept_erase import methods\ndef stop(): raise KeyboardInterrupt\nmethods.available = stop"
    done = command("methods", before=stop)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["erase", "cat", "-m", "/no/such/base", "-n", "0"], 2, "is no folder"),
        (["erase", "cat", "-m", "nobody/nothing", "-n", "0"], 2, "model_index.json"),
        (["erase", " ".join(["very"] * 40), "-n", "0", "-m", "BASE"], 2, "holds 24; shorten it"),
        (["info", "/no/such/file.safetensors"], 2, "does not exist"),
        (["info", "notes.txt"], 2, "no .safetensors file"),
        (["score", "/no/such/file.safetensors"], 2, "does not exist"),
        (["generate", "a cat", "--adapter", "/no/such/file.safetensors"], 2, "does not exist"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_of_heavy_commands_carry_their_code_and_remedy(
    base_folder, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    result = invoke(*[str(base_folder) if a == "BASE" else a for a in arguments])
    assert result.exception.exit_code == code
    assert message in str(result.exception)


# -- the way through -----------------------------------------------------------------------------------------------


def test_erase_writes_the_folder_and_says_what_it_chose(base_folder, tmp_path):
    out = tmp_path / "out"
    result = invoke("erase", "twemoji", "--anchor", "fluent", "-m", base_folder, "-n", 0, "-o", out, *FAST)
    assert result.exit_code == 0, result.output
    shown = flat(result.stdout)
    assert "'twemoji' becomes 'fluent': given." in shown
    assert "not scored: scoring was switched off" in shown
    for path in out.iterdir():
        assert path.name in shown
    assert Adapter.load(out).concepts == (Concept("twemoji", anchor="fluent"),)
    assert Adapter.load(out).settings["contexts"] == QUICK["contexts"]


def test_options_reach_the_erasure(base_folder, tmp_path):
    arguments = ["erase", "bomb", "dagger", "--kind", "violence", "--preserve", "hammer", "--preserve", "key"]
    arguments += ["--half", "-m", base_folder, "-n", 0, "-o", tmp_path / "out", "--set", "rank=none", *FAST]
    report = tmp_path / "deep" / "report.json"
    result = invoke(*arguments, "--json", report)
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert written == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [c["target"] for c in written["concepts"]] == ["bomb", "dagger"]
    assert {c["kind"] for c in written["concepts"]} == {"violence"}
    assert written["concepts"][0]["preserve"] == ["hammer", "key"]
    assert written["method"]["settings"]["rank"] is None
    adapter = Adapter.load(tmp_path / "out")
    assert str(next(iter(adapter.changes.values())).up.dtype) == "torch.float16"


def test_the_report_alone_is_printed_as_json(base_folder, tmp_path):
    done = command(
        "erase", "twemoji", "--anchor", "fluent", "-m", base_folder, "-n", 0, "-o", tmp_path, *FAST, "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "report.json").read_text())


def test_strict_refuses_a_warning(base_folder, tmp_path):
    arguments = ["erase", "fluent", "art", "--anchor", "fluent art", "-m", base_folder, "-n", 0, "-o", tmp_path, *FAST]
    assert invoke(*arguments).exit_code == 0
    assert isinstance(invoke(*arguments, "--strict").exception, InputError)


def test_without_out_the_folder_is_named_after_the_concept(base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("erase", "Pixel Art", "--anchor", "noto", "-m", base_folder, "-n", 0, *FAST)
    assert result.exit_code == 0, result.output
    (report,) = (tmp_path / "erased").glob("erase-pixel-art-????????-uce/report.json")
    assert report.is_file()


@pytest.mark.parametrize("form", ["adapter", "folder"])
def test_info_shows_what_an_adapter_is(erased, form):
    file = erased.files["adapter"]
    result = invoke("info", file if form == "adapter" else file.parent)
    assert result.exit_code == 0
    shown = flat(result.stdout)
    assert "twemoji (style), becomes fluent" in shown
    assert ", ".join(TWEMOJI.preserve) in shown
    assert f"method {erased.adapter.method}" in shown
    assert f"base tiny, weights hash {erased.adapter.base['hash'][:16]}" in shown
    assert re.search(r"layers \d+, rank \d+", shown)


def test_generate_draws_with_and_without_an_erasure(erased, base_folder, tmp_path):
    def draw(name, *options):
        arguments = ["generate", "a cat in twemoji style", "-m", base_folder, "--steps", 2, *options]
        result = invoke(*arguments, "-o", tmp_path / name)
        assert result.exit_code == 0, result.output
        assert name in flat(result.stdout).replace(" ", "")
        with Image.open(tmp_path / name) as image:
            return image.tobytes()

    plain = draw("plain.png")
    assert draw("again.png") == plain
    assert draw("seed.png", "--seed", 1) != plain
    edited = draw("edited.png", "--adapter", erased.files["adapter"])
    assert edited != plain
    assert draw("weak.png", "--adapter", erased.files["adapter"], "--scale", 0) == plain
    assert draw("after.png") == plain


def test_several_prompts_go_into_a_folder(base_folder, tmp_path):
    result = invoke("generate", "a cat", "a dog", "-m", base_folder, "--steps", 1, "-o", tmp_path / "both.png")
    assert result.exit_code == 0, result.output
    assert names_in(tmp_path / "both") == ["000.png", "001.png"]


def test_score_prints_a_table_or_json(erased, base_folder, scorer_folder, tmp_path):
    arguments = ["score", erased.files["adapter"], "-m", base_folder, "-n", 2, "--scorer", scorer_folder, "--steps", 1]
    result = invoke(*arguments, "--json", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("UA", "IRA", "CRA", "kappa"))
    plain = json.loads((tmp_path / "scores.json").read_text())
    assert "nonsense names taken for it" in result.stdout
    assert ("not counted" in result.stdout) == ("does not seem to know" in result.stdout) == (plain["known"] is False)
    printed = invoke(*arguments, "--json", "-")
    assert json.loads(printed.stdout) == json.loads((tmp_path / "scores.json").read_text())
    assert json.loads(printed.stdout)["UA"]["after"]["n"] == 2


def test_what_the_base_does_not_know_ends_with_2_and_is_no_success_with_force(
    base_folder, scorer_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("concept_erase.perceptual._alexnet_distance", lambda: None)
    monkeypatch.setattr("concept_erase.scores.Judges.taken", lambda self, images, concepts, shots: {"Van Gogh": 0})
    line = ["erase", "Van Gogh", "--anchor", "art", "-m", base_folder, "-n", 2, "--scorer", scorer_folder]
    line += ["--steps", 1, "--set", "contexts=2", "--set", "preserve_prompts=20", "-o", tmp_path / "out"]
    result = invoke(*line)
    assert isinstance(result.exception, UnknownConceptError)
    assert result.exception.exit_code == 2
    told = str(result.exception)
    assert "does not seem to know 'Van Gogh': 0 of 24 of its pictures" in told
    assert "use --force" in told
    assert not list((tmp_path / "out").glob("*"))

    def look(self, shots, images):
        names = ["x" if s.erased else s.concept for s in shots]
        return Verdicts(names, [s.context for s in shots], names, [1.0] * len(shots))

    monkeypatch.setattr("concept_erase.scores.Judges.look", look)
    result = invoke(*line, "--force")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "The base does not seem to know what was erased: 0 of 2 pictures are recognised as it before" in told
    assert "UA: erased, not recognised 100.0 [34.2, 100.0] not counted 2" in told
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The base does not seem to know what was erased" in card
    assert "| UA: erased, not recognised | 100.0 [34.2, 100.0] | not counted | 2 |" in card
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["scores"]["known"] is False


# -- gates ---------------------------------------------------------------------------------------------------------


def test_gates_fit_the_probes_of_an_erasure_and_leave_it_whole(base_folder, tmp_path):
    from concept_erase import operators
    from concept_erase.batch.units import finished

    assert (
        invoke("erase", "twemoji", "-m", base_folder, "-n", 0, *FAST, "--anchor", "fluent", "-o", tmp_path).exit_code
        == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**report, "key": "mine"}))
    assert operators.read(tmp_path).gates[0].hits == (0, 0)
    done = invoke("gates", tmp_path, "-m", base_folder)
    assert done.exit_code == 0, done.output
    assert "'twemoji' stays known by its words alone" in flat(done.output), "a random text encoder tells nothing apart"
    assert operators.read(tmp_path).gates[0].hits[1] > 0
    assert finished(tmp_path, "mine"), "the report tells the new size"


def test_gates_of_another_base_or_no_operator_are_refused(base_folder, tmp_path):
    done = invoke("gates", tmp_path)
    assert "holds no operator" in str(done.exception)
    assert done.exception.exit_code == 2
