"""How long a job of the demo takes, replayed from jobs that were recorded."""

import pytest

from demos.jobs import RUNNING, Job, Progress
from demos.pace import Pace, Trail, stage
from demos.view import FIRST, journey, time_left

# (seconds, what, done, total) as two erasures told them on two busy cores, and when they were done.
SMALL = (24, 68.1, [
    (9.3, "pictures of 'fluent'", 0, 16), (18.8, "pictures of 'fluent'", 16, 16), (22.6, "pictures before", 0, 48),
    (36.8, "pictures before", 32, 48), (44.0, "pictures before", 48, 48), (44.0, "pictures after", 0, 48),
    (56.0, "pictures after", 32, 48), (62.1, "pictures after", 48, 48),
])  # fmt: skip
LARGE = (48, 142.6, [
    (11.5, "pictures of 'noto'", 0, 16), (21.1, "pictures of 'noto'", 16, 16), (24.9, "pictures before", 0, 96),
    (41.7, "pictures before", 32, 96), (58.7, "pictures before", 64, 96), (76.5, "pictures before", 96, 96),
    (76.5, "pictures after", 0, 96), (94.9, "pictures after", 32, 96), (112.5, "pictures after", 64, 96),
    (130.4, "pictures after", 96, 96),
])  # fmt: skip
# The same with a look at what is known before the edit; its pictures are at hand when the scores want them.
LOOKED = (24, 82.0, [
    (9.0, "pictures before", 0, 48), (23.0, "pictures before", 32, 48), (30.0, "pictures before", 48, 48),
    (31.0, "pictures of nonsense words", 0, 16), (40.0, "pictures of nonsense words", 16, 16),
    (43.0, "pictures of 'noto'", 0, 16), (52.0, "pictures of 'noto'", 16, 16),
    (55.0, "pictures before", 48, 48), (55.1, "pictures after", 0, 48), (68.0, "pictures after", 32, 48),
    (75.0, "pictures after", 48, 48),
])  # fmt: skip
TRAINED = (12, 90.0, [
    (8.0, "training, loss 0.931", 1, 200), (28.0, "training, loss 0.4", 99, 200), (48.0, "training, loss 0", 200, 200),
    (52.0, "pictures before", 0, 24), (66.0, "pictures before", 24, 24), (66.0, "pictures after", 0, 24),
    (80.0, "pictures after", 24, 24),
])  # fmt: skip


def slower(record, factor):
    pictures, end, told = record
    return pictures, end * factor, [(at * factor, *rest) for at, *rest in told]


def arguments(record):
    return {"model": None, "method": "uce", "steps": 12, "pictures": record[0]}


def learn(pace, record):
    trail = Trail(0.0)
    for at, what, done, total in record[2]:
        trail.tell(what, done, total, at)
    pace.learn("erase", arguments(record), trail, record[1])


def replay(pace, record, step=0.5):
    """(seconds since the start, what is estimated, what is really left), every half second."""
    trail, waiting, at = Trail(0.0), list(record[2]), 0.0
    while at < record[1]:
        while waiting and waiting[0][0] <= at:
            when, what, done, total = waiting.pop(0)
            trail.tell(what, done, total, when)
        yield at, pace.left("erase", arguments(record), trail, at), record[1] - at
        at += step


@pytest.mark.parametrize(
    ("earlier", "now"),
    [
        pytest.param([SMALL], LARGE, id="more pictures than before"),
        pytest.param([LARGE], SMALL, id="fewer pictures"),
        pytest.param([SMALL, LARGE], LARGE, id="the same again"),
        pytest.param([SMALL], slower(LARGE, 1.8), id="a busier machine"),
        pytest.param([slower(SMALL, 1.8)], LARGE, id="a machine at rest"),
        pytest.param([LOOKED], LOOKED, id="with a look before"),
        pytest.param([LOOKED], slower(LOOKED, 1.7), id="with a look before, busier"),
        pytest.param([TRAINED], TRAINED, id="trained"),
        pytest.param([SMALL], LOOKED, id="stages that are new"),
        pytest.param([], LARGE, id="nothing measured here"),
    ],
)
def test_the_estimate_is_within_a_factor_of_two(tmp_path, earlier, now):
    pace = Pace(tmp_path / "pace.json")
    for record in earlier:
        learn(pace, record)
    pace = Pace(tmp_path / "pace.json")  # as it was kept
    for at, told, really in replay(pace, now):
        if told is None:
            assert not earlier or at < now[1] / 3
            continue
        if really > 20:
            assert "few seconds" not in time_left(told), at
        if at > now[1] / 3 and really > max(8, now[1] / 12):  # the very end is told in words
            assert really / 2 <= told <= 2 * really, (at, told, really)


def test_before_anything_was_measured_it_says_so(tmp_path):
    pace = Pace(tmp_path / "pace.json")
    assert pace.left("erase", arguments(SMALL), Trail(0.0), 1.0) is None
    assert pace.whole("erase", arguments(SMALL)) is None
    assert pace.batch(arguments(SMALL), 10) is None
    job = Job("0" * 16, "erase", arguments(SMALL), "", "", state=RUNNING)
    assert journey(job, Progress()) == ("Waking the generator", None, FIRST)


def test_what_is_to_come_is_told_before_it_begins(tmp_path):
    pace = Pace(tmp_path / "pace.json")
    learn(pace, SMALL)
    assert pace.whole("erase", arguments(SMALL)) == pytest.approx(SMALL[1], rel=0.05)
    assert pace.whole("erase", arguments(LARGE)) == pytest.approx(LARGE[1], rel=0.3)
    assert pace.whole("erase", arguments(SMALL) | {"steps": 50}) is None, "other steps were not measured"
    assert pace.whole("erase", arguments(SMALL) | {"model": "name/model"}) is None
    assert 200 < pace.batch(arguments(SMALL), 10) < 12 * SMALL[1]


def test_a_batch_is_told_from_a_batch(tmp_path):
    pace, trail = Pace(tmp_path / "pace.json"), Trail(0.0)
    for at, what, done, total in [(10, "concepts", 0, 5), (30, "concepts", 2, 5), (60, "concepts", 5, 5)]:
        trail.tell(what, done, total, float(at))
    pace.learn("batch", arguments(SMALL), trail, 66.0)
    assert pace.batch(arguments(SMALL), 5) == pytest.approx(66, abs=2)
    assert pace.batch(arguments(SMALL), 50) == pytest.approx(10 + 500 + 60, abs=5)
    assert pace.batch(arguments(LARGE), 5) is None, "more pictures for each concept"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"jobs": 3, "picture": {}}', '{"jobs": {}, "picture": {"a": "b"}}']
)
def test_damaged_measurements_are_made_anew(tmp_path, content):
    (tmp_path / "pace.json").write_text(content)
    pace = Pace(tmp_path / "pace.json")
    learn(pace, SMALL)
    assert Pace(tmp_path / "pace.json").whole("erase", arguments(SMALL)) is not None


def test_every_stretch_says_what_it_does():
    job = Job("0" * 16, "erase", arguments(SMALL), "", "", state=RUNNING)
    for what, done, total, words in [
        ("pictures of 'noto'", 0, 16, "Looking for what it becomes: 0 of 16"),
        ("pictures of nonsense words", 8, 16, "Checking what it knows: 8 of 16"),
        ("pictures before", 32, 48, "Drawing before: 32 of 48"),
        ("pictures before", 48, 48, "Working it out"),
        ("pictures after", 48, 48, "Judging the pictures, writing the files"),
        ("training, loss 0.3", 20, 200, "Training: 20 of 200"),
        ("something new", 1, 2, "Something new: 1 of 2"),
    ]:
        assert journey(job, Progress(what=what, done=done, total=total))[0] == words
    assert stage("training, loss 0.3") == "training"
