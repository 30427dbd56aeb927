"""What a page is told of its jobs: in turn, without asking needlessly, and of what ended while it was closed."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("gradio", reason="the demo needs gradio")

from conftest import adapter_of, random_changes

from concept_erase.errors import UnknownConceptError
from demos.jobs import CANCELLED, DONE, FAILED, RUNNING
from demos.page import compose
from demos.studio import Defaults, Studio
from demos.tabs.at_work import MISSED, missed
from demos.tabs.common import Panel

REFUSED = f"the generator does not seem to know it. {UnknownConceptError.FORCE}"


@pytest.fixture
def idle(tmp_path):
    """A studio whose queue takes jobs and works on none."""
    studio = Studio(tmp_path / "idle", defaults=Defaults(pictures=0))
    studio.queue.close()
    return studio


def ended(studio, name, finished, state=DONE, message=""):
    """A job that ended."""
    job = studio.erase([name])
    studio.queue._put(replace(job, state=state, finished=finished, message=message))
    return studio.queue.get(job.id)


def made(studio, job, model):
    """The result of a job, as `erase` leaves it."""
    adapter = adapter_of(random_changes(model, model.stream_layers()[:2], seed=1), model)
    kohya, _ = adapter.save(studio.root / job.folder)
    concepts = [{"target": name, "kind": "style", "anchor": "art", "preserve": []} for name in job.arguments["targets"]]
    report = {"concepts": concepts, "method": {"name": "uce"}, "base": adapter.base, "files": {"adapter": kohya.name}}
    (studio.root / job.folder / "report.json").write_text(json.dumps(report))


@pytest.fixture
def page(idle):
    """The whole page and its panels."""
    panels = []
    with pytest.MonkeyPatch.context() as patch:
        begin = Panel.__init__
        patch.setattr(Panel, "__init__", lambda self, *a, **k: (panels.append(self), begin(self, *a, **k))[1])
        blocks = compose(idle)
    assert len(panels) == 3
    return blocks, panels


# -- the panel of a job --------------------------------------------------------------------------------------------


def test_what_changes_a_panel_is_answered_in_turn(page):
    """So a look at the job before, still under way when another is begun, never shows that one's result over it."""
    blocks, panels = page
    for panel in panels:
        writers = [fn for fn in blocks.fns.values() if {panel.job, panel.result} & set(fn.outputs)]
        assert len(writers) >= 4
        assert {fn.concurrency_id for fn in writers} == {f"panel-{panel.prefix}"}
        assert {fn.concurrency_limit for fn in writers} == {1}


def test_the_server_is_asked_nothing_more_at_each_look(page):
    """Whatever is shown of a job comes with the look itself."""
    blocks, panels = page
    looked = {panel.status._id for panel in panels}
    assert not [fn for fn in blocks.fns.values() if any(target in looked for target, _ in fn.targets)]


def test_only_what_was_refused_can_be_erased_all_the_same(idle, page):
    panel = page[1][0]
    offered = [ended(idle, "Quandt", 1.0, FAILED, REFUSED)]
    others = [
        ended(idle, "Xaver", 1.0, FAILED, "the disk is full."), ended(idle, "Ysop", 1.0, CANCELLED),
        replace(idle.erase(["Zorn"]), state=RUNNING), replace(offered[0], what="batch"),
    ]  # fmt: skip
    for job in [*offered, *others]:
        updates = panel.show(job)
        assert len(updates) == len(panel.outputs)
        assert updates[-1]["visible"] is (job in offered)
    assert panel.failed(ValueError("x"))[-1]["visible"] is False
    again = panel._force(offered[0].id)
    forced = idle.queue.get(again[0])
    assert forced.arguments == {**offered[0].arguments, "force": True}
    assert "--force" in idle.command(forced)


# -- while the page was closed -------------------------------------------------------------------------------------


def test_what_ended_unseen_is_told_with_a_way_to_it(idle, model):
    before, after = ended(idle, "noto", 100.0), ended(idle, "blob", 300.0)
    lost = ended(idle, "fluent", 310.0)
    refused = ended(idle, "Quandt", 320.0, FAILED, REFUSED)
    stopped = ended(idle, "twemoji", 330.0, CANCELLED)
    running = idle.erase(["openmoji"])
    for job in (before, after):
        made(idle, job, model)
    told = missed(idle, 200.0, 400.0)
    assert "Finished while you were away" in told
    for job in (before, stopped, running):
        assert job.id not in told
    assert told.index(refused.id) < told.index(lost.id) < told.index(after.id)  # the newest first
    assert f'data-open="{idle.item_of(after).id}"' in told
    assert told.count("data-open") == 1
    assert "does not seem to know it" in told
    assert "--force" not in told
    assert 'data-now="400.000"' in told


@pytest.mark.parametrize("since", [0.0, 500.0])
def test_nothing_is_told_on_a_first_visit_or_when_all_was_seen(idle, since):
    ended(idle, "blob", 300.0)
    assert "away" not in missed(idle, since, 600.0)


def test_many_are_told_in_short(idle):
    for n in range(MISSED + 3):
        ended(idle, f"name {n}", 300.0 + n)
    told = missed(idle, 200.0, 600.0)
    assert told.count("<li data-job") == MISSED
    assert "and 3 more" in told
