"""`python -m weights.recipe --work DIR`: every stage in order; what is done already is not done again."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from . import art, clip, evaluate, judges, text, unet, vae


def stages(work: Path, target: Path, scale: float) -> dict[str, tuple[Callable[[], object], Path | None]]:
    """Stage -> (what it runs, the file whose presence says that it is done)."""

    def n(steps: int) -> int:
        return max(1, round(steps * scale))

    return {
        "fetch": (lambda: art.fetch(work), None),
        "render": (lambda: art.render(work), work / "art.npy"),
        "tokenizer": (lambda: text.build_tokenizer(work), work / "tokenizer" / "merges.txt"),
        "vae": (lambda: vae.train(work, n(1800)), work / "base" / "vae" / "config.json"),
        "clip": (lambda: clip.train(work, n(600)), work / "base" / "text_encoder" / "config.json"),
        "judge": (lambda: judges.train_judge(work, n(1100)), work / "judge" / "config.json"),
        "scorer": (lambda: judges.train_scorer(work, n(600)), work / "scorer" / "open_clip_config.json"),
        "unet": (lambda: unet.train(work, n(4400)), work / "base" / "model_index.json"),
        "evaluate": (lambda: print(json.dumps(evaluate.evaluate(work), indent=2)), work / "evaluation.json"),
        "pack": (lambda: evaluate.pack(work, target), None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m weights.recipe", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for art, checkpoints and logs (about 1 GB)")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent.parent, help="where the packed files go")
    parser.add_argument("--only", action="append", help="run this stage alone; may be repeated")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies all step counts: 10 on a GPU, 0.001 to try"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = stages(options.work.resolve(), options.into.resolve(), options.scale)
    unknown = sorted(set(options.only or ()) - set(plan))
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; the stages are {', '.join(plan)}")
    for name, (run, done) in plan.items():
        if options.only and name not in options.only:
            continue
        if done and done.exists():
            print(f"{name}: done already ({done})")
            continue
        print(f"{name}: running", flush=True)
        run()


if __name__ == "__main__":
    main()
