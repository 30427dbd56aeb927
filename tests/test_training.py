import math

import pytest
import torch
from conftest import names_in
from torch import nn

from concept_erase.errors import NumericalError
from concept_erase.methods import Run
from concept_erase.training import fit


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def regression(module, generator):
    x = torch.randn(16, 4, generator=generator)
    return (module(x) - x.sum(1, keepdim=True)).square().mean()


def parameters(module) -> list:
    return [p.detach().clone() for p in module.parameters()]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Interrupted:
    """The same loss, but something happens at one step."""

    def __init__(self, step, what):
        self.step, self.what, self.calls = step, what, 0

    def __call__(self, module, generator):
        self.calls += 1
        if self.calls == self.step:
            return self.what(regression(module, generator))
        return regression(module, generator)


def stop(_):
    raise KeyboardInterrupt


def test_training_learns_and_reports_every_step(tmp_path):
    module, seen = network(), []
    run = Run(progress=lambda done, total, what: seen.append((done, total, what)), checkpoint=tmp_path / "c.pt")
    history = fit(module, regression, steps=60, lr=0.05, run=run, checkpoint_every=20)
    assert len(history) == 60
    assert sum(history[-10:]) < 0.3 * sum(history[:10])
    assert [(done, total) for done, total, _ in seen] == [(i, 60) for i in range(1, 61)]
    assert seen[-1][2] == f"training, loss {history[-1]:.4f}"
    assert names_in(tmp_path) == []


def test_a_run_depends_on_its_seed_alone():
    def trained(seed, ambient):
        module = network()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ambient)
            fit(module, regression, steps=10, lr=0.05, seed=seed)
        return parameters(module)

    assert equal(trained(1, ambient=0), trained(1, ambient=9))
    assert not equal(trained(1, ambient=0), trained(2, ambient=0))


def test_frozen_parameters_stay():
    module = network()
    module[0].requires_grad_(False)
    before = parameters(module)
    fit(module, regression, steps=5, lr=0.05)
    after = parameters(module)
    assert equal(before[:2], after[:2])
    assert not equal(before[2:], after[2:])


@pytest.mark.parametrize("step", [1, 5, 13, 20])
def test_resuming_ends_with_the_parameters_of_an_unbroken_run(tmp_path, step):
    unbroken = network()
    whole = fit(unbroken, regression, steps=20, lr=0.05, seed=3)

    run = Run(checkpoint=tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(network(), Interrupted(step, stop), steps=20, lr=0.05, seed=3, run=run, checkpoint_every=4)
    assert run.checkpoint.exists() == (step > 4)
    resumed = network()
    assert fit(resumed, regression, steps=20, lr=0.05, seed=3, run=run, checkpoint_every=4) == whole
    assert equal(parameters(resumed), parameters(unbroken))
    assert not run.checkpoint.exists()


@pytest.mark.parametrize("fault", [lambda x: x * math.nan, lambda x: x * math.inf, lambda x: x + math.inf])
def test_nan_stops_the_training_and_keeps_parameters_and_checkpoint(tmp_path, fault):
    module, run = network(), Run(checkpoint=tmp_path / "state.pt")
    with pytest.raises(NumericalError, match=r"loss of (nan|inf) at step 5; lower the learning rate \(0.05\)"):
        fit(module, Interrupted(6, fault), steps=20, lr=0.05, run=run, checkpoint_every=4)
    assert all(p.isfinite().all() for p in module.parameters())
    state = torch.load(run.checkpoint, weights_only=True)
    assert state["step"] == 4
    assert all(p.isfinite().all() for p in state["parameters"].values())


def test_a_gradient_that_is_not_finite_stops_the_training_too():
    def root(loss):
        return (loss - loss.detach()).sqrt()  # 0, with an infinite gradient

    module = network()
    with pytest.raises(NumericalError, match="at step 1"):
        fit(module, Interrupted(2, root), steps=5, lr=0.05)
    assert all(p.isfinite().all() for p in module.parameters())
