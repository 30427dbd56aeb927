"""The gated pipeline on the embedded base, beside the LoRA of the same erasure, on templates that no edit ever saw.

    python benchmarks/gated.py --pictures 200 --json benchmarks/results/gated.json
    python benchmarks/gated.py --list artists.csv instances.csv   # and the gates on "a painting by NAME" for each row

Counts also how many of the kept prompts keep their embeddings, and their pictures, bit for bit; what the two parts of a
gate find: the words alone, and the probe alone, as for `prompt_embeds` without text; and what misspellings draw.
"""

import argparse
import csv
import json
import platform
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from rich.console import Console
from rich.table import Table

from concept_erase import Concept, Kind, erase, open_model, operators
from concept_erase.concepts import fill
from concept_erase.families import FAMILIES
from concept_erase.generate import generate
from concept_erase.model import Model
from concept_erase.names import apart, distinct, same_name
from concept_erase.scores import Judges, Shot, compare, plan
from concept_erase.statistics import Estimate, rate
from concept_erase.surroundings import profile, surroundings

CODE = Path(__file__).parent.parent / "pipelines" / "gated_text_to_image.py"
SCORES = ("UA", "IRA", "CRA")
MISSPELT = {
    "twemoji": ("twemojis", "twe moji", "tw emoji", "twemoj", "twemojii", "twmoji"),
    "bomb": ("bombs", "bom b", "bmob", "bombb", "bombe", "b0mb"),
}
NONSENSE = ("zzz", "qwert", "blorp", "fnord", "xyzzy", "gruntle")


def embeddings(pipe, prompts):
    """(n, positions, d) prompt embeddings, in batches as pictures are drawn in."""
    with torch.inference_mode():
        parts = [pipe.encode_prompt(prompts[i : i + 32], "cpu", 1, False)[0] for i in range(0, len(prompts), 32)]
    return torch.cat(parts)


def opened(pipe, prompts, states):
    """Of how many prompts a gate is open by its words, and by its probe alone; as rates."""
    (operator,) = pipe.operators
    rows = pipe._ids(list(prompts))
    words = sum(operator.in_ids(ids) is not None for ids in rows)
    probe = sum(operator.in_states(s) is not None for s in states)
    return {"words": rate(words, len(rows)), "probe": rate(probe, len(rows))}


def listed_names(files, concept):
    """Last column of CSV files with a header, without the concept itself."""
    names = [row[-1] for file in files for row in list(csv.reader(file.open(newline="")))[1:] if row]
    return list(apart(distinct(names), [concept.target]))


def spelt_wrong(model, concept, judges, gated):
    """How often the base draws the concept for misspellings and for nonsense in its place, and how often gates open."""
    contexts = surroundings(model, concept).contexts[:2]
    found = {}
    for label, names in (("misspelt", MISSPELT[concept.target]), ("nonsense", NONSENSE)):
        prompts = [fill(t, n, c) for n in names for c in contexts for t in profile(model, concept.kind).unseen]
        images = generate(model, prompts, list(range(len(prompts))))
        style = concept.kind is Kind.STYLE
        taken = judges.look([Shot(p, 0, concept.target, "", True, style) for p in prompts], images).concepts
        gates = opened(gated, prompts, embeddings(model.pipe, prompts))
        found[label] = {"drawn": rate(sum(same_name(t, concept.target) for t in taken), len(taken)), **gates}
    return found


def measured(concept: Concept, n: int, files: list[Path]) -> dict:
    """All figures of one concept."""
    model = open_model()
    with tempfile.TemporaryDirectory() as folder:
        erasure = erase(concept, model, n=n)
        listed = list(erasure.adapter.concepts)
        operators.write(Path(folder, f"erasure{operators.ENDING}"), model, listed, erasure.operator, probes=True)
        gated = DiffusionPipeline.from_pretrained(
            model.folder, custom_pipeline=str(CODE), trust_remote_code=True, operators=folder, safety_checker=None
        )
    gated.set_progress_bar_config(disable=True)
    shots = plan(model, listed, n)
    prompts, seeds = [s.prompt for s in shots], [s.seed for s in shots]
    seen = Model(FAMILIES["sd1"], model.name, folder=model.folder, pipe=gated)
    before = generate(model, prompts, seeds)
    after = generate(seen, prompts, seeds, variant=f"gated {gated.operators[0].sha256}")
    judges = Judges(model, listed, None)
    scores = compare(judges, shots, before, after)

    kept = [i for i, s in enumerate(shots) if not s.erased]
    plain, ours = embeddings(model.pipe, prompts), embeddings(gated, prompts)
    same_states = sum(torch.equal(plain[i], ours[i]) for i in kept)
    # A picture's last bits depend on what it is batched with and on where its weights lie in memory: some are drawn
    # again in equal batches, by the gated pipeline and by a plain one of the same components.
    plain_pipe = StableDiffusionPipeline(**gated.components, requires_safety_checker=False)
    plain_pipe.set_progress_bar_config(disable=True)
    drawn = kept[: min(64, len(kept))]
    again = [
        generate(m, [prompts[i] for i in drawn], [seeds[i] for i in drawn], variant=None)
        for m in (Model(FAMILIES["sd1"], model.name, folder=model.folder, pipe=plain_pipe), seen)
    ]
    same_pictures = sum(a.tobytes() == b.tobytes() for a, b in zip(*again, strict=True))
    lora = erasure.scores
    groups = {"erased": [i for i, s in enumerate(shots) if s.erased], "kept": kept}
    gate = {k: opened(gated, [prompts[i] for i in v], plain[v]) for k, v in groups.items()}
    if files:
        lines = [f"a painting by {name}" for name in listed_names(files, concept)]
        lines = [line for line in lines if len(model.tokenizer(line).input_ids) <= model.length]
        gate["listed"] = opened(gated, lines, embeddings(model.pipe, lines))
    return {
        "anchor": listed[0].anchor,
        "scores": {
            "the base itself": {s: scores.before[s] for s in SCORES},
            "LoRA": {s: lora.after[s] for s in SCORES},
            "gated": {s: scores.after[s] for s in SCORES},
        },
        "kept unchanged": {
            "embeddings": rate(same_states, len(kept)),
            "pictures": rate(same_pictures, len(drawn)),
        },
        "LPIPS, kept": {"LoRA": lora.change["lpips_kept"], "gated": scores.change["lpips_kept"]},
        "gate": gate,
        "spelt wrong": spelt_wrong(model, listed[0], judges, gated),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of each group")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--only", nargs="*", choices=["twemoji", "bomb"], default=["twemoji", "bomb"])
    parser.add_argument("--list", type=Path, nargs="*", default=[], help="CSV files of names that are not the concept")
    options = parser.parse_args()
    console = Console()
    figures = {"machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}", "concepts": {}}

    def told(estimate: Estimate) -> str:
        return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"

    for target in options.only:
        found = measured(
            Concept(target, Kind.STYLE if target == "twemoji" else Kind.VIOLENCE), options.pictures, options.list
        )
        table = Table(title=f"{target} becomes {found['anchor']}: per cent with 95% intervals, n = {options.pictures}")
        for heading in ("pipeline", *SCORES):
            table.add_column(heading)
        for label, scores in found["scores"].items():
            table.add_row(label, *(told(scores[s]) for s in SCORES))
        console.print(table)
        for label, estimate in found["kept unchanged"].items():
            console.print(f"kept prompts unchanged bit for bit, {label}: {estimate.k} of {estimate.n}", highlight=False)
        for label, estimate in found["LPIPS, kept"].items():
            console.print(f"LPIPS of kept pictures to the base's, {label}: {estimate.value:.4f}", highlight=False)
        for group, parts in found["gate"].items():
            for part, estimate in parts.items():
                console.print(f"gate opened by {part}, {group} prompts: {estimate.k} of {estimate.n}", highlight=False)
        for label, parts in found["spelt wrong"].items():
            drawn, words, probe = (f"{parts[k].k} of {parts[k].n}" for k in ("drawn", "words", "probe"))
            told_of = f"{label}: the base draws {target} in {drawn}, words open {words} gates, probes {probe}"
            console.print(told_of, highlight=False)
        figures["concepts"][target] = found
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1, default=Estimate.as_dict) + "\n")


if __name__ == "__main__":
    main()
