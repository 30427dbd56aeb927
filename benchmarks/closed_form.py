"""UCE as published against UCE as this package solves it: seconds, memory, file size, and that the edits agree.

Beside the two at the same settings stands `default`: a list of single erasures as people get them who set nothing, each
with an anchor of its own choice, without scores. All sides run on one thread, and CPU seconds (user and system) tell
what a machine that others keep busy does not change.

One run measures both on the same machine, model and names, so the ratios are the result; the seconds are this
machine's. The model is Stable Diffusion 1.4 in layout and size with random weights: the cost of a closed-form edit
depends on shapes alone, and nothing has to be downloaded.

Every measurement is a fresh process. The one that starts them imports nothing heavy until the last has ended, because
on Linux a process's peak memory includes what its parent held when it was started.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20  # bytes
ANCHOR = "art"
RIDGE, ERASE_SCALE, PRESERVE_SCALE = 0.5, 1.0, 1.0  # the published defaults
SIDES = ("reference", "ours", "default")
SAME = SIDES[:2]  # of the same settings: their edits must agree
ONE_BY_ONE = 100  # names; a longer list of single erasures is what `lists.py` measures
QUANTITIES = {
    "edit_cpu_seconds": "edit, CPU s",
    "cpu_seconds": "process, CPU s",
    "process_seconds": "process, s",
    "peak_mib": "peak, MiB",
    "file_mib": "file, MiB",
}
SYLLABLES = (
    "Al Ben Car Dan El Fran Jo Mar Ro Vic",
    "a co en ia in o us",
    "Ash Bright Clark Dal Hart Kings Lang Mill North Stan West Wood",
    "berg er field ford ham land ley man sen son ton wood",
)

# -- what both sides are given -------------------------------------------------------------------------------------


def names(erased: int, preserved: int) -> tuple[list[str], list[str]]:
    """Invented people to erase and to preserve, the same ones in every run: "Carin Hartfield", "Joa Millberg", ..."""
    dice, found = random.Random(0), {}
    while len(found) < preserved + erased:
        first, second, third, fourth = (dice.choice(part.split()) for part in SYLLABLES)
        found[f"{first}{second} {third}{fourth}"] = None
    return list(found)[preserved:], list(found)[:preserved]


def write_layout(folder: Path, size: str) -> None:
    """A StableDiffusionPipeline with seeded random float32 weights; the folder appears whole or not at all.

    Args:
        size: "full" is SD 1.4 (4.3 GB), "tiny" has as many edited layers and is for trying things out (16 MB).
    """
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from concept_erase import embedded

    torch.manual_seed(0)
    full = size == "full"
    width = 768 if full else 64
    # CLIP's own vocabulary would have to be downloaded. Which of its rows a name hits changes no cost, so the embedded
    # generator's tokenizer stands in for it; its ids are below 49408.
    tokenizer = CLIPTokenizer.from_pretrained(embedded.folder() / "base" / "tokenizer", model_max_length=77)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    # What is not named below is the class's default, and that is what SD 1.4 has.
    text = CLIPTextConfig(
        vocab_size=49408 if full else len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=12 if full else 2,
        num_attention_heads=12 if full else 4,
        **special,
    )
    unet = UNet2DConditionModel(
        sample_size=64 if full else 8,
        block_out_channels=(320, 640, 1280, 1280) if full else (32, 64, 64, 64),
        cross_attention_dim=width,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512) if full else (32, 32, 32, 32),
        layers_per_block=2 if full else 1,
        sample_size=512 if full else 64,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was interrupted
    pipe.save_pretrained(partial, safe_serialization=True)
    partial.rename(folder)


# -- the two sides, each in a process of its own -------------------------------------------------------------------


def reference(folder: Path, targets: list[str], preserved: list[str], out: Path) -> tuple[float, Path]:
    """The published formulation (arXiv:2308.14761, eq. 7): the whole pipeline, float32, one solve per layer.

    `W' = (lambda W + a sum W g c^T + b sum W p p^T) (lambda I + a sum c c^T + b sum p p^T)^-1`, the sums added up
    name by name. Names are padded to the encoder's length, and every distinct one is encoded once.

    Returns:
        CPU seconds from the names to the new weights in memory, encoding included, loading and saving not; the file
        with the edited weights, whole.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    torch.set_grad_enabled(False)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)

    def embedding(name: str) -> torch.Tensor:
        tokens = pipe.tokenizer(name, padding="max_length", truncation=True, return_tensors="pt")
        last = int(tokens.attention_mask.sum()) - 2  # the mask covers BOS, the name and EOS
        return pipe.text_encoder(tokens.input_ids).last_hidden_state[0, last]

    embedding("")  # a first pass costs more than the others
    start = time.process_time()
    layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))}
    embedded = {name: embedding(name) for name in dict.fromkeys([*targets, ANCHOR, *preserved])}
    edited = {}
    for path, layer in layers.items():
        numerator = RIDGE * layer.weight
        system = RIDGE * torch.eye(layer.in_features)
        for target in targets:
            c, g = embedded[target], embedded[ANCHOR]
            numerator += ERASE_SCALE * torch.outer(layer(g), c)
            system += ERASE_SCALE * torch.outer(c, c)
        for name in preserved:
            p = embedded[name]
            numerator += PRESERVE_SCALE * torch.outer(layer(p), p)
            system += PRESERVE_SCALE * torch.outer(p, p)
        edited[f"{path}.weight"] = numerator @ torch.inverse(system)
    seconds = time.process_time() - start
    save_file(edited, out / "edited.safetensors")
    # Beside the published file, less than a megabyte: the exact solution is computed from these afterwards.
    save_file({name: x.clone() for name, x in embedded.items()}, out / "embeddings.safetensors")
    return seconds, out / "edited.safetensors"


def ours(folder: Path, targets: list[str], preserved: list[str], out: Path) -> tuple[float, Path]:
    """`concept_erase.erase` with the published settings; it writes both adapter forms, a card and a report.

    Returns:
        CPU seconds from the concepts to the factors in memory, encoding included, loading and saving not; one of the
        two adapter files, float32.
    """
    from concept_erase import Concept, erase, open_model
    from concept_erase.methods.uce import UCE

    seconds = []

    class Timed(UCE):
        def edit(self, *args: Any, **options: Any) -> Any:
            start = time.process_time()
            edit = super().edit(*args, **options)
            seconds.append(time.process_time() - start)
            return edit

    model = open_model(folder)
    for path in model.stream_layers():  # loaded before the clock starts, as the pipeline is on the other side
        model.weight(path)
    model.encode([model.token_ids("")], [2])
    concepts = [Concept(target, anchor=ANCHOR, preserve=tuple(preserved)) for target in targets]
    method = Timed(tokens="subject", bare=True, ridge=RIDGE, strength=ERASE_SCALE, rank=None)
    file = erase(concepts, model, method, out=out, n=0).files["adapter"]
    return seconds[0], file


def default(folder: Path, targets: list[str], preserved: list[str], out: Path) -> tuple[float, Path]:
    """`concept_erase.erase` of one name after the other with nothing set but that no scores are taken.

    Returns:
        CPU seconds of all erasures, the choice of anchors and all files included; one of the adapter files.
    """
    from concept_erase import erase, open_model

    model = open_model(folder)
    start = time.process_time()
    files = [erase(target, model, out=out / f"{i}", n=0).files["adapter"] for i, target in enumerate(targets)]
    return time.process_time() - start, files[0]


def profiled(folder: Path, targets: list[str], file: Path) -> None:
    """Where the CPU time of one default erasure goes: the second of a list, as a text."""
    import cProfile
    import io
    import pstats

    from concept_erase import erase, open_model

    model = open_model(folder)
    with tempfile.TemporaryDirectory() as out:
        erase(targets[0], model, out=Path(out, "first"), n=0)
        profile = cProfile.Profile(time.process_time)
        profile.runcall(erase, targets[1], model, out=Path(out, "second"), n=0)
    text = io.StringIO()
    stats = pstats.Stats(profile, stream=text).strip_dirs()
    stats.sort_stats("cumulative").print_stats(r"^(?!\{|<|_)[a-z_]+\.py", 40)
    stats.sort_stats("tottime").print_stats(15)
    file.write_text("\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip() + "\n")


# -- measuring -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_process(job: str, folder: Path, out: Path, options: argparse.Namespace, count: int = 1) -> dict[str, Any]:
    """What a job prints, with seconds and CPU seconds from spawn to exit and "peak_mib" of resident memory."""
    command = [sys.executable, __file__, "--job", job, str(folder), str(out), "--size", options.size]
    command += ["--concepts", str(count), "--preserve", str(options.preserve)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment["CONCEPT_ERASE_CACHE"] = str(options.work / "seen")  # what is kept of a base from run to run
    with tempfile.TemporaryFile("w+") as remarks:
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=remarks, env=environment, text=True) as process:
            printed = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)  # the standard library's own wait drops the usage
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            remarks.seek(0)
            say(remarks.read()[-4000:])
            raise SystemExit(f"{job} with {count} concepts ended with code {process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB elsewhere
    cpu = usage.ru_utime + usage.ru_stime
    told = json.loads(printed.splitlines()[-1])
    return {**told, "cpu_seconds": cpu, "process_seconds": seconds, "peak_mib": peak / MIB}


def compare(folder: Path, edited: Path, adapter: Path, targets: list[str], preserved: list[str]) -> dict[str, float]:
    """How far the two edits `W' - W` are from each other, and each from the same equation solved in float64.

    Returns:
        "layers" compared; "absolute": largest difference of an entry; "relative": Frobenius norm of the difference by
        that of the exact edit, largest over layers; "reference_error", "ours_error": the same against the exact edit;
        "half_mib": size of our file in float16, "full_mib": of the reference's.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    from concept_erase.adapter import Adapter

    embedded = {name: x.double() for name, x in load_file(edited.with_name("embeddings.safetensors")).items()}
    C = torch.stack([embedded[name] for name in targets], dim=1)
    P = torch.stack([embedded[name] for name in preserved], dim=1) if preserved else C[:, :0]
    G = embedded[ANCHOR][:, None].expand_as(C)
    system = RIDGE * torch.eye(len(C), dtype=C.dtype) + ERASE_SCALE * C @ C.T + PRESERVE_SCALE * P @ P.T
    loaded, new = Adapter.load(adapter), load_file(edited)
    changes = loaded.changes
    half = loaded.save(adapter.parent / "half", dtype=torch.float16)[0]
    if {f"unet.{key}" for key in new} != {f"{path}.weight" for path in changes}:
        raise SystemExit("the two sides edit different layers")
    absolute, relative = [], {name: [] for name in ("relative", "reference_error", "ours_error")}
    (weights,) = (folder / "unet").glob("*.safetensors")
    with safe_open(weights, "pt") as base:
        for path, change in changes.items():
            key = f"{path.removeprefix('unet.')}.weight"
            W = base.get_tensor(key).double()
            numerator = RIDGE * W + ERASE_SCALE * W @ G @ C.T + PRESERVE_SCALE * W @ P @ P.T
            exact = torch.linalg.solve(system, numerator.T).T - W  # the system is symmetric
            theirs, own = new[key].double() - W, change.up.double() @ change.down.double()
            absolute.append((theirs - own).abs().max().item())
            for errors, gap in zip(relative.values(), (theirs - own, theirs - exact, own - exact), strict=True):
                errors.append((gap.norm() / exact.norm()).item())
    sizes = {"half_mib": half.stat().st_size / MIB, "full_mib": edited.stat().st_size / MIB}
    worst = {name: max(x) for name, x in relative.items()}
    return {**sizes, "layers": len(changes), "absolute": max(absolute), **worst}


def machine(threads: int) -> dict[str, Any]:
    """What the seconds were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cpu = model or platform.processor() or platform.machine()
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(), **packages}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON holds; quantities carry their units in their names."""
    folder = options.work / f"sd14-{options.size}"
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        if not folder.is_dir():
            say(f"writing the {options.size} layout to {folder}")
            in_process("layout", folder, Path(scratch), options)

        def run(side: str, count: int, label: str) -> dict[str, Any]:
            out = Path(scratch, f"{side}-{label}")
            out.mkdir()
            say(f"{side}: {count} to erase, {options.preserve} to preserve, {label}")
            result = in_process(side, folder, out, options, count)
            say(f"  CPU seconds: edit {result['edit_cpu_seconds']:.2f}, process {result['cpu_seconds']:.2f}")
            return result

        threads = 0
        for side in options.sides:  # not counted: files enter the page cache, modules are compiled, a base is described
            threads = run(side, 1, "warm-up")["threads"]
        measured = {
            n: {side: run(side, n, f"measured at {n}") for side in options.sides if side in SAME or n <= ONE_BY_ONE}
            for n in options.concepts
        }
        runs = []
        for count, sides in measured.items():
            kept = {side: {quantity: sides[side][quantity] for quantity in QUANTITIES} for side in sides}
            found: dict[str, Any] = {"concepts": count, **kept}
            if sides.keys() >= set(SAME):
                say(f"comparing the edits of {count}")
                files = [Path(sides[side]["file"]) for side in SAME]
                found["ratios"] = {q: kept["reference"][q] / kept["ours"][q] for q in QUANTITIES}
                found["difference"] = compare(folder, *files, *names(count, options.preserve))
            runs.append(found)
    told = {
        "machine": machine(threads),
        "load": list(os.getloadavg()),
        "command": [Path(part).name for part in sys.argv[1:]],
    }
    return {**told, "size": options.size, "preserved": options.preserve, "runs": runs}


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    where = result["machine"]
    table = Table(
        title=f"UCE on the {result['size']} SD 1.4 layout, {result['preserved']} names preserved",
        caption=f"{where['cpu']}, {where['threads']} threads on {where['cores']} cores, torch {where['torch']}",
    )
    for title in ("erased", "", *QUANTITIES.values(), "error of the edit"):
        table.add_column(title, justify="right" if title else "left")
    for run in result["runs"]:
        for side in (s for s in SIDES if s in run):
            apart = run.get("difference", {}).get(f"{side}_error")
            error = "" if apart is None else f"{apart:.1e}"
            table.add_row(str(run["concepts"]), side, *(f"{x:,.2f}" for x in run[side].values()), error)
        ratios = (f"{x:.1f}" for x in run.get("ratios", dict.fromkeys(QUANTITIES, math.nan)).values())
        table.add_row(str(run["concepts"]), "ratio", *ratios, "", style="bold", end_section=True)
    Console(width=120).print(table)
    for run in (r for r in result["runs"] if "difference" in r):
        sizes = "{relative:.1e} of the edit, {absolute:.1e} in an entry, over {layers} layers".format(
            **run["difference"]
        )
        print(f"{run['concepts']} erased: the two edits differ by at most {sizes}.")
        full, half = run["difference"]["full_mib"], run["difference"]["half_mib"]
        print(f"  our file in float16 (--half): {half:.2f} MiB, {full / half:.1f} times smaller than the reference's.")


def main() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "concept_erase" / "benchmarks"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=cache, help="folder for the model, 4.3 GB (default: %(default)s)")
    parser.add_argument("--concepts", type=int, nargs="+", default=[1, 10, 100], help="how many to erase, in turn")
    parser.add_argument("--preserve", type=int, default=20, help="how many names must stay")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny is for trying things out")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=SIDES, help="what to measure (default: all)")
    parser.add_argument("--json", type=Path, help="file for the JSON; printed when not given")
    parser.add_argument("--profile", type=Path, help="file for the profile of one default erasure")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # what, model folder, output folder: see in_process
    options = parser.parse_args()
    if min(options.concepts) < 1 or options.preserve < 0 or max(options.concepts) + options.preserve > 2000:
        parser.error("--concepts must be at least 1, --preserve at least 0, and both together at most 2000")
    if options.job:
        job, folder, out = options.job[0], Path(options.job[1]), Path(options.job[2])
        if job == "layout":
            write_layout(folder, options.size)
            done = {}
        elif job == "profile":
            profiled(folder, names(2, options.preserve)[0], out)
            done = {}
        else:
            side = {"reference": reference, "ours": ours, "default": default}[job]
            seconds, file = side(folder, *names(options.concepts[0], options.preserve), out)
            done = {"edit_cpu_seconds": seconds, "file": str(file), "file_mib": file.stat().st_size / MIB}
        print(json.dumps({**done, "threads": sys.modules["torch"].get_num_threads()}))
        return
    if options.json:  # now, not when the measuring is done
        options.json.parent.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    if options.profile:
        in_process("profile", options.work / f"sd14-{options.size}", options.profile, options)
    show(result)
    text = json.dumps(result, indent=2) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
