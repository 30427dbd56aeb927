"""One training loop for every part: Muon, EMA, bf16, checkpoints, a log line with the time left."""

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

Loss = Callable[[torch.Generator, float], Tensor]  # (randomness of this step, share of the training done) -> loss


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def orthogonalise(batch: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of a (n, rows, columns) batch: the Newton-Schulz iteration of Muon."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(batch.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al., 2024), one Newton-Schulz call for all matrices of equal shape."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                by_shape.setdefault((update.shape[0], update.shape[1]), []).append((p, update))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalise(torch.stack([u for _, u in pairs]))
                scale = math.sqrt(max(1.0, rows / columns))
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def optimizers(module: nn.Module, lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for weight matrices and kernels; AdamW for embeddings, norms, biases and the layers that touch pixels."""
    matrices, others = [], []
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for p in module.parameters():
        if not p.requires_grad:
            continue
        matrix = p.ndim >= 2 and id(p) not in embeddings and min(p.shape[0], p[0].numel()) > 4
        (matrices if matrix else others).append(p)
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)]


def train(
    name: str,
    module: nn.Module,
    loss: Loss,
    *,
    work: Path,
    steps: int,
    lr: float,
    adam_lr: float | None = None,
    ema: float = 0.0,
    checkpoint_every: int = 200,
) -> None:
    """Train `module` in place, ending on its averaged weights when `ema` > 0.

    The state goes to `work/name.pt` every `checkpoint_every` steps. A later call goes on from there, and the
    randomness of a step depends on its number alone, so an interrupted run ends where an unbroken one would.
    """
    path = work / f"{name}.pt"
    device = next(module.parameters()).device
    optims = optimizers(module, lr, adam_lr or lr)
    tracked = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    average = {k: v.clone() for k, v in tracked.items()}
    first = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        first = state["step"]
        module.load_state_dict(state["model"])
        average = {k: v.to(device) for k, v in state["average"].items()}
        if first < steps:
            for optim, saved in zip(optims, state["optim"], strict=True):
                optim.load_state_dict(saved)

    module.train()
    began, shown = time.monotonic(), 0.0
    for step in range(first, steps):
        share = step / steps
        rate = min(1.0, (step + 1) / 50) * min(1.0, (1 - share) / 0.6)  # warm up, hold, fall to zero
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * rate
        generator = torch.Generator().manual_seed(step * 7919 + sum(map(ord, name)))
        value = loss(generator, share)
        for optim in optims:
            optim.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optim in optims:
            optim.step()
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"{name}: the loss is {value.item()} at step {step}; lower the learning rate")
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, tensor in tracked.items():
                average[key].lerp_(tensor, 1 - decay)
        shown = value.item() if step == first else 0.98 * shown + 0.02 * value.item()
        done = step + 1
        if done % 50 == 0 or done == steps:
            pace = (time.monotonic() - began) / (done - first)
            left = pace * (steps - done) / 60
            print(f"{name} {done}/{steps} loss {shown:.4f} {pace:.2f} s/step, {left:.1f} min left", flush=True)
        if done % checkpoint_every == 0 or done == steps:
            partial = path.with_suffix(".tmp")
            optim_states = [o.state_dict() for o in optims] if done < steps else []
            torch.save({"step": done, "model": module.state_dict(), "average": average, "optim": optim_states}, partial)
            partial.rename(path)
    if ema:
        module.load_state_dict({**module.state_dict(), **average})
    module.eval()


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A third faster on a CPU, after a minute of compiling; `RECIPE_COMPILE=0` does without a C++ compiler."""
    return torch.compile(function) if os.environ.get("RECIPE_COMPILE", "1") == "1" else function


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)
