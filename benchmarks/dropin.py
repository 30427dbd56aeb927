"""Does a file loaded by plain diffusers draw what the edited weights draw, and does detaching restore every bit?

python benchmarks/dropin.py erased/twemoji [MORE FOLDERS] [--json FILE]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from concept_erase import Adapter, attached, open_model

PROMPTS = ["a twemoji cat", "a bomb in noto style", "an icon of a house in openmoji style", "fluent art of a rose"]


def draw(pipe) -> np.ndarray:
    """(4, height, width, 3) in [0, 1]: 10 steps, fixed seeds, not rounded to bytes."""
    seeds = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    return pipe(PROMPTS, generator=seeds, num_inference_steps=10, guidance_scale=4.0, output_type="np").images


def bits(pipe) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    return {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pipe = open_model().pipe
    before, plain = bits(pipe), draw(pipe)
    rows = []
    for folder in options.folders:
        adapter = Adapter.load(folder)
        with attached(pipe, adapter):
            edited = draw(pipe)
        restored = all(torch.equal(v, before[k]) for k, v in bits(pipe).items())
        row = {"adapter": adapter.slug, "effect": float(abs(edited - plain).max()), "restored_bit_for_bit": restored}
        for file in sorted(folder.glob("*.safetensors")):
            if file.name == "operator.safetensors":  # which earlier versions left there: no LoRA
                continue
            pipe.load_lora_weights(str(folder), weight_name=file.name, adapter_name="erasure")
            form = "peft" if file.name.startswith("pytorch_lora") else "kohya"
            row[f"largest_difference_{form}"] = float(abs(draw(pipe) - edited).max())
            pipe.unload_lora_weights()
        rows.append(row)
        print(json.dumps(row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
