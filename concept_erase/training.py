"""The only training loop: accelerate underneath, progress, a guard against NaN, and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from concept_erase.errors import NumericalError
from concept_erase.files import atomic_write
from concept_erase.methods import Run

Loss = Callable[[nn.Module, torch.Generator], Tensor]


def fit(
    module: nn.Module,
    loss: Loss,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    run: Run = Run(),
    checkpoint_every: int = 100,
) -> list[float]:
    """Train the parameters of `module` that require a gradient, in place; AdamW, falling linearly to zero.

    The randomness of a step depends on `seed` and its number alone, so a resumed run ends where an unbroken one does.

    Args:
        module: On return it is on the CPU again, unwrapped.
        loss: Called with the module as accelerate prepared it and the generator of this step; returns a scalar.
        run: Its checkpoint holds the trained parameters, the optimizer and the losses. When it exists the training goes
            on from it; at the end it is removed.
    Returns:
        The loss of every step, those before an interruption too.
    Raises:
        NumericalError: the loss or a gradient is NaN or Inf; the checkpoint before it is kept.
    """
    from accelerate import Accelerator

    checkpoint = run.checkpoint
    accelerator = Accelerator()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    prepared, optimizer, schedule = accelerator.prepare(module, optimizer, schedule)
    first = 0
    history: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, map_location=accelerator.device, weights_only=True)
        with torch.no_grad():
            for name, p in trained.items():
                p.copy_(state["parameters"][name])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first, history = state["step"], state["history"]

    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        value = loss(prepared, generator)
        optimizer.zero_grad()
        accelerator.backward(value)
        norm = accelerator.clip_grad_norm_(trained.values(), 1.0)
        shown = float(value.detach())
        if not (torch.isfinite(value) and torch.isfinite(torch.as_tensor(norm))):
            raise NumericalError(f"training gave a loss of {shown} at step {step}; lower the learning rate ({lr}).")
        optimizer.step()
        schedule.step()
        history.append(shown)
        if run.progress:
            run.progress(step + 1, steps, f"training, loss {shown:.4f}")
        if checkpoint is not None and (step + 1) % checkpoint_every == 0 and step + 1 < steps:
            buffer = io.BytesIO()
            state = {
                "step": step + 1,
                "history": history,
                "parameters": {name: p.detach() for name, p in trained.items()},
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(state, buffer)
            if accelerator.is_main_process:
                atomic_write(checkpoint, buffer.getvalue())
    if checkpoint is not None and accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    module.to("cpu")
    return history
