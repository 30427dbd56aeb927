"""The commands for one erasure: erase, generate, score, info, methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from concept_erase.cli.common import (
    GuidanceOption,
    ModelOption,
    ProgressMode,
    ProgressOption,
    ScorerOption,
    SettingOption,
    StepsOption,
    console,
    errors,
    event,
    for_programs,
    say,
    settings_from,
)
from concept_erase.cli.common import progress as telling
from concept_erase.concepts import Kind

if TYPE_CHECKING:
    from concept_erase.scores import Scores


def erase(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="What to forget; several are solved jointly. Put a name of several words in quotes.",
        ),
    ],
    kind: Annotated[
        Kind, typer.Option(help="What sort of thing it is; picks prompts and default anchors.")
    ] = Kind.STYLE,
    anchor: Annotated[str | None, typer.Option(help="What it becomes; chosen, and said which, if not given.")] = None,
    preserve: Annotated[list[str] | None, typer.Option(help="A concept that must stay; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="How to erase; see 'concept-erase methods'.")] = "uce",
    setting: SettingOption = None,
    model: ModelOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the result; erased/NAME if not given.")
    ] = None,
    n: Annotated[
        int, typer.Option("--pictures", "-n", min=0, help="Pictures to score on, of each group; 0 does not score.")
    ] = 200,
    scorer: ScorerOption = None,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    half: Annotated[bool, typer.Option("--half", help="Store the adapter in float16.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what would be a warning about the concepts.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Erase also what the base does not seem to know.")] = False,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file as well; - prints it alone.")
    ] = None,
    bar: ProgressOption = ProgressMode.AUTO,
) -> None:
    """Erase TARGET from a generator; leaves adapter files, scores and a before/after picture in a folder."""
    from concept_erase import typed
    from concept_erase.schema import Entry, build

    to_stdout = report is not None and str(report) == "-"
    named, notices = typed.names(targets, "TARGET", shell=True)
    kept, _ = typed.names(preserve or (), "--preserve", shell=True)
    common = {"kind": kind, "anchor": typed.single(anchor, "--anchor", shell=True), "preserve": kept}
    concepts = [build(Entry, {"target": target, **common}).concept for target in named]
    settings = settings_from(setting)
    from concept_erase import methods

    methods.require(method)
    for notice in () if to_stdout else notices:
        say(notice)
    with telling(quiet=to_stdout) as progress:
        import torch

        from concept_erase import words
        from concept_erase.adapter import slug
        from concept_erase.erasure import erase as run
        from concept_erase.files import atomic_write
        from concept_erase.generate import Sampling

        folder = out or Path("erased") / slug(concepts, method)
        erasure = run(
            concepts,
            model,
            methods.make(method, settings),
            out=folder,
            n=n,
            scorer=scorer,
            sampling=Sampling(steps, guidance),
            dtype=torch.float16 if half else torch.float32,
            strict=strict,
            force=force,
            progress=progress,
            tell=None if to_stdout else _tell,
        )
    event(event="done", folder=str(folder))
    text = json.dumps(erasure.report(), indent=2, ensure_ascii=False)
    if to_stdout:
        print(text)
        return
    if report:
        atomic_write(report, text + "\n")
    told = len(erasure.knowledge) if _told_at_once() else 0
    seen = {words.knowledge(k.as_dict()) for k in erasure.knowledge[:told]}
    for note in erasure.notes:
        if note not in seen:
            say(note)
    if erasure.scores:
        _print_scores(erasure.scores)
    else:
        say(f"not scored: {erasure.unscored}")
    console.print()
    for role, path in erasure.files.items():
        size = path.stat().st_size
        console.print(f"  {role:<13} {path}  ({size / 1024:,.0f} KiB)", highlight=False, markup=False, soft_wrap=True)


def _tell(text: str) -> None:
    """What is known before the work begins; where nobody watches, the notes at the end say it."""
    event(event="note", message=text)
    if _told_at_once():
        errors.print(f"  {escape(text)}", highlight=False)


def _told_at_once() -> bool:
    return errors.is_terminal and console.is_terminal and not for_programs()


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw; one picture each.")],
    adapter: Annotated[list[Path] | None, typer.Option(help="Erasure to attach; may be repeated.")] = None,
    scale: Annotated[float, typer.Option(help="Strength of the erasures.")] = 1.0,
    model: ModelOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file for one prompt, else a folder.")] = Path(
        "picture.png"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next ones count up.")] = 0,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
) -> None:
    """Draw pictures, with erasures attached or without."""
    several = len(prompts) > 1
    if several and out.suffix:
        out = out.with_suffix("")
    with telling() as progress:
        from concept_erase import picture
        from concept_erase.adapter import Adapter
        from concept_erase.attach import attached
        from concept_erase.generate import Sampling
        from concept_erase.generate import generate as run
        from concept_erase.model import open_model

        loaded = [Adapter.load(path) for path in adapter or ()]
        opened = open_model(model)
        variant = "+".join(a.digest for a in loaded) + (f"@{scale}" if loaded else "")
        with attached(opened.pipe, loaded, scale):
            seeds = [seed + i for i in range(len(prompts))]
            sampling = Sampling(steps, guidance)
            images = run(opened, prompts, seeds, sampling=sampling, variant=variant, progress=progress)
        for i, image in enumerate(images):
            path = out / f"{i:03d}.png" if several else out
            picture.save(image, path)
            say(f"{path}: {prompts[i]}")


def score(
    adapter: Annotated[Path, typer.Argument(help="Adapter file, or the folder of an erasure.")],
    model: ModelOption = None,
    n: Annotated[int, typer.Option("--pictures", "-n", min=1, help="Pictures of each group.")] = 200,
    scorer: ScorerOption = None,
    steps: StepsOption = 25,
    guidance: GuidanceOption = None,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file as well; - prints them alone.")
    ] = None,
) -> None:
    """Score an adapter against its base: is the concept still recognised, and what else was lost?"""
    to_stdout = report is not None and str(report) == "-"
    with telling(quiet=to_stdout) as progress:
        from concept_erase.adapter import Adapter
        from concept_erase.files import atomic_write
        from concept_erase.generate import Sampling
        from concept_erase.model import source_of
        from concept_erase.scores import score as run

        loaded = Adapter.load(adapter)
        base = model or source_of(loaded.base)
        scores = run(base, loaded, n=n, scorer=scorer, sampling=Sampling(steps, guidance), progress=progress)
    text = json.dumps(scores.as_dict(), indent=2)
    if to_stdout:
        print(text)
        return
    if report:
        atomic_write(report, text + "\n")
    _print_scores(scores)


def info(file: Annotated[Path, typer.Argument(help="Adapter file, or the folder of an erasure.")]) -> None:
    """Show what an adapter file erases, how it was made, and for which base."""
    from concept_erase.adapter import Adapter

    adapter = Adapter.load(file)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for concept in adapter.concepts:
        table.add_row("erases", escape(f"{concept.target} ({concept.kind}), becomes {concept.anchor}"))
        if concept.preserve:
            table.add_row("preserves", escape(", ".join(concept.preserve)))
    settings = ", ".join(f"{k}={v}" for k, v in adapter.settings.items())
    table.add_row("method", escape(f"{adapter.method} ({settings})"))
    table.add_row("base", escape(f"{adapter.base.get('name')}, weights hash {str(adapter.base.get('hash'))[:16]}"))
    table.add_row("family", adapter.family.name)
    table.add_row("layers", f"{len(adapter.changes)}, rank {adapter.rank}")
    console.print(table)


def list_methods() -> None:
    """List the erasure methods and their settings."""
    from concept_erase import methods

    for name in methods.available():
        method = methods.describe(name)
        console.print(f"[bold]{name}[/]  {escape(method.summary)} ({escape(method.paper)})", highlight=False)
        for setting, _, default, meaning in method.settings:
            console.print(f"    {setting}={escape(default)}  [dim]{escape(meaning)}[/]", highlight=False)


def _print_scores(scores: Scores) -> None:
    from concept_erase.card import HOLLOW, MEANINGS, NONSENSE, NOT_COUNTED, unknown

    told = unknown(scores)

    table = Table(title="Per cent, with 95% intervals", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("score", no_wrap=True)
    for heading in ("before", "after", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, meaning in MEANINGS.items():
        if name not in scores.after:
            continue
        before, after = scores.before[name], scores.after[name]
        hollow = bool(told) and name in HOLLOW
        style = "dim" if hollow else "bold" if name in ("UA", "IRA", "CRA", "H") else None
        table.add_row(meaning, str(before), NOT_COUNTED if hollow else str(after), str(after.n), style=style)
    console.print()
    if told:
        say(f"warning: {told}")
    console.print(table)
    null, positive = scores.controls["null"], scores.controls["positive"]
    change = scores.change
    lines = [f"judge: {scores.judge}"]
    if agreed := [f"{scores.controls[k]:.2f}" for k in ("kappa", "kappa_base") if k in scores.controls]:
        lines.append(f"scorer: {scores.scorer}; agrees with the judge: kappa {' and '.join(agreed)}")
    lines.append(f"controls on the unedited base: target recognised {positive}")
    lines.append(f"                               others taken for it {null}")
    if "nonsense" in scores.controls:
        floor = ", the style floor" if any(s.style for s in scores.shots) else ""
        lines.append(f"                               {NONSENSE} {scores.controls['nonsense']}{floor}")
    if "nonsense_itself" in scores.controls:
        lines.append(f"                               nonsense taken for itself {scores.controls['nonsense_itself']}")
    if "lpips_erased" in change:
        lines.append(
            f"LPIPS before to after: erased {change['lpips_erased'].value:.3f}, kept {change['lpips_kept'].value:.3f}"
        )
    for line in lines:
        console.print(f"  {escape(line)}", style="dim", highlight=False)
