"""My style without a page: what is said while it works, how it ends early, and what is never offered."""

import threading

import pytest
from PIL import Image

from concept_erase.errors import InputError
from concept_erase.recognise import Recognition, Verdict
from demos.models import Generators, StoppedError, stoppable
from demos.studio import Found, Studio
from demos.tabs.style import Pace, found_page, thumbnails


@pytest.fixture
def studio(tmp_path):
    made = Studio(tmp_path / "demo")
    yield made
    made.close()


def upload(studio, *names):
    place = studio.uploads / "abc"
    place.mkdir(exist_ok=True)
    paths = []
    for number, name in enumerate(names):
        Image.new("RGB", (40, 30), (30 * number, 90, 120)).save(place / name)
        paths.append(str(place / name))
    return paths


def found(verdict, closeness):
    r = Recognition(
        verdict, "blob", (("blob", closeness), ("noto", 0.02)), closeness, 0.5, (0.6, 0.9), (0.0, 0.4), 2, 7
    )
    return Found(r, [], [], [])


def test_unknown_says_how_near_in_numbers_and_bands():
    page = found_page(found(Verdict.UNKNOWN, 0.31))
    assert "It does not seem to know this style." in page
    assert "Your pictures: 0.31; its own styles: 0.60 to 0.90; styles it never saw: 0.00 to 0.40." in page
    assert page.count("ce-band") == 2
    assert "nothing of yours to erase" in page


def test_known_says_what_would_be_erased():
    page = found_page(found(Verdict.KNOWS, 0.8))
    assert "To it, this is blob." in page
    assert "What you can erase is blob" in page


def test_a_look_ends_when_nobody_wants_it(studio):
    """Before it opens a generator, and with the lock free afterwards."""
    steps = []
    with pytest.raises(StoppedError):
        studio.recognise(upload(studio, "a.png"), progress=lambda *step: steps.append(step), stopped=lambda: True)
    assert studio.generators._lock.acquire(timeout=1)


def test_whoever_waits_for_the_generator_is_told_and_may_leave(tmp_path):
    generators, told, leave = Generators(tmp_path), [], threading.Event()

    def tell(done, total, what):
        told.append(what)
        leave.set()

    held, done = threading.Event(), threading.Event()

    def hold():
        with generators._lock:
            held.set()
            done.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(5)
    with pytest.raises(StoppedError):
        generators.recognise([], "", None, tell, leave.is_set)
    done.set()
    other.join()
    assert told == ["Waiting for the generator, which is busy"]


def test_drawing_stops_at_the_next_denoising_step(model):
    """And leaves the generator as it was."""
    from concept_erase.generate import Sampling, generate

    asked = []
    with pytest.raises(StoppedError), stoppable(model, lambda: asked.append(1) or len(asked) > 2):
        generate(model, ["a cat"], [1], sampling=Sampling(steps=20), variant=None)
    assert len(asked) == 3
    assert len(generate(model, ["a cat"], [1], sampling=Sampling(steps=2), variant=None)) == 1


def test_the_same_file_is_read_once(studio, monkeypatch):
    (path,) = upload(studio, "a.png")
    first = studio.look(path)
    monkeypatch.setattr("demos.studio.open_picture", lambda *_: pytest.fail("it was read again"))
    assert studio.look(path) == first


def test_a_file_that_was_changed_is_read_again(studio):
    (path,) = upload(studio, "a.png")
    first = studio.look(path)
    Image.new("RGB", (60, 60), "white").save(path)
    assert studio.look(path) != first


def test_bad_ones_are_named_and_none_at_all_is_refused(studio):
    (path,) = upload(studio, "a.png")
    bad = studio.uploads / "abc" / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        studio.recognise([str(bad)])
    assert studio.look(path).is_file()


def test_a_count_comes_with_the_time_that_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("demos.tabs.style.time.monotonic", lambda: now[0])
    pace = Pace()
    assert "Opening the generator" in pace.bar(0, 0, "Opening the generator")
    assert "Drawing pictures of blob: 0 of 96." in pace.bar(0, 96, "pictures of blob")
    now[0] += 12
    assert "Drawing pictures of blob: 24 of 96. About 35 seconds left." in pace.bar(24, 96, "pictures of blob")


def test_thumbnails_name_files_only_for_those_who_ask(studio):
    (path,) = upload(studio, "a <b>.png")
    page = thumbnails([("a <b>.png", studio.look(path)), ("late.png", None)], ["'x.txt' is not a picture."] * 12)
    assert 'alt="a &lt;b&gt;.png"' in page
    assert "<b>" not in page
    assert page.count("<figure") == 2
    assert page.count("ce-bad") == 11
    assert "2 more files were left out." in page


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("", None),
        (" Base ", "base"),
        ("base+", "base"),
        ("base+ViT-B-32:x", "base+ViT-B-32:x"),
        ("ViT-B-32:x", "ViT-B-32:x"),
    ],
)
def test_a_scorer_is_the_generator_itself_or_a_model_of_open_clip(studio, typed, taken):
    assert studio.scorer(typed) == taken


@pytest.mark.parametrize("typed", ["basis", "base+../no such", "base+https://x.org/m", "/no/such"])
def test_what_is_no_scorer_is_refused(studio, typed):
    with pytest.raises(InputError, match="scorer"):
        studio.scorer(typed)
