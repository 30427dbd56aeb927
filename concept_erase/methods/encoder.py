"""Encoder-specific erasure: LoRA on the text encoder, trained without a single pass of the denoiser.

After the encoder-only unlearning of arXiv:2402.00351, with distances in the metric that the denoiser sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from concept_erase.concepts import Concept
from concept_erase.layers import live_to_canonical
from concept_erase.lowrank import LowRank
from concept_erase.methods import Edit, Run
from concept_erase.model import Model
from concept_erase.streams import Prompt, Tokens, aligned, seen_size
from concept_erase.surroundings import concept_prompts, preserved_prompts
from concept_erase.training import fit


class Metric(StrEnum):
    """How the distance of two embeddings is measured."""

    GRAM = "gram"  # x^T G x, G = sum of W^T W over the layers that read the stream: what the denoiser sees
    PLAIN = "plain"  # squared L2


@dataclass(frozen=True)
class Encoder:
    """LoRA on the text encoder's attention and MLP projections."""

    name: ClassVar[str] = "encoder"
    summary: ClassVar[str] = "trained LoRA on the text encoder, minutes on a CPU, no pass of the denoiser"
    paper: ClassVar[str] = "after arXiv:2402.00351"
    edits: ClassVar[str] = "text encoder"

    rank: int = 8
    """rank of the LoRA"""
    steps: int = 400
    """optimizer steps"""
    lr: float = 2e-3
    """learning rate at the start; it falls linearly to zero"""
    forget_batch: int = 24
    """prompts of the concept per step"""
    retain_batch: int = 32
    """prompts of the rest per step"""
    retain_weight: float = 2.0
    """weight of the rest against the concept"""
    metric: Metric = Metric.GRAM
    """distance in what the denoiser sees, or plain"""
    contexts: int = 48
    """how many contexts a concept is placed in"""
    preserve_prompts: int = 600
    """how many prompts of neighbours hold the rest in place"""
    seed: int = 0
    """of the initial LoRA and the batches"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", Metric(self.metric))
        if min(self.rank, self.steps, self.forget_batch, self.retain_batch, self.contexts) < 1:
            raise ValueError("rank, steps, batches and contexts must be at least 1")
        if not self.lr > 0 or self.retain_weight < 0:
            raise ValueError("lr must be positive and retain_weight not negative")

    def edit(self, model: Model, concepts: Sequence[Concept], run: Run = Run()) -> Edit:
        """Forget: `||E(p_target) - E0(p_anchor)||^2`; retain: `||E(p) - E0(p)||^2` on neighbours and empty prompts."""
        metric = metric_factor(model.gram) if self.metric is Metric.GRAM else torch.eye(model.gram.shape[0])
        pairs = [pair for c in concepts for pair in concept_prompts(model, c, self.contexts)]
        kept = preserved_prompts(model, concepts, self.preserve_prompts)
        forget_ids, goals = forget_targets(model, pairs)
        keep_ids, states = full_states(model, kept)
        goals, states = goals @ metric, states @ metric
        before = full_states(model, [p for p, _ in pairs])[1] @ metric
        way = (before - goals).square().sum(-1).mean()  # makes both terms, and so lr, independent of the base

        def loss(encoder: nn.Module, generator: torch.Generator) -> Tensor:
            f = torch.randint(len(forget_ids), (self.forget_batch,), generator=generator)
            k = torch.randint(len(keep_ids), (self.retain_batch,), generator=generator)
            device = next(encoder.parameters()).device
            hidden = encoder(torch.cat([forget_ids[f], keep_ids[k]]).to(device)).last_hidden_state.float()
            error = hidden @ metric.to(device) - torch.cat([goals[f], states[k]]).to(device)
            squared = error.square().sum(-1) / way.to(device)
            return squared[: len(f)].mean() + self.retain_weight * squared[len(f) :].mean()

        encoder = self._with_lora(model)
        history = fit(encoder, loss, steps=self.steps, lr=self.lr, seed=self.seed, run=run)
        changes = lora_changes(encoder)
        with torch.no_grad():
            after = torch.cat([encoder(chunk).last_hidden_state for chunk in forget_ids.split(64)])
            moved = torch.cat([encoder(chunk).last_hidden_state for chunk in keep_ids.split(64)])
        identity = torch.eye(metric.shape[0], dtype=torch.float64)
        scale = way.sqrt().item()
        measures = {
            "undone": seen_size((after @ metric - goals).flatten(0, 1).T.double(), identity) / scale,
            "damage": seen_size((moved @ metric - states).flatten(0, 1).T.double(), identity) / scale,
            "loss": sum(history[-10:]) / max(1, len(history[-10:])),
        }
        return Edit(changes, (), measures)

    def _with_lora(self, model: Model) -> nn.Module:
        """A copy of the text encoder with a fresh LoRA on the family's encoder layers, the rest frozen."""
        from peft import LoraConfig, inject_adapter_in_model

        names = [path for site in model.family.encoder for path in model.layers(site)]
        encoder: nn.Module = model.encoder_copy()
        live = {live_to_canonical("text_encoder", n): n for n, m in encoder.named_modules() if isinstance(m, nn.Linear)}
        targets = [live[path.partition(".")[2]] for path in names]
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=targets, init_lora_weights=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = inject_adapter_in_model(config, encoder)
        return encoder.eval()  # no dropout; gradients flow all the same


def metric_factor(gram: Tensor) -> Tensor:
    """R (d, d) float32 with `R R^T = gram`, so that `||x R||^2 = x gram x^T` for a row x."""
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.clamp_min(0).sqrt()).float()


def full_states(model: Model, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Padded ids (n, length) and frozen last hidden states (n, length, d)."""
    pad = model.tokenizer.pad_token_id
    ids = torch.tensor([[*p.ids, *[pad] * (model.length - len(p.ids))] for p in prompts])
    rows = model.encode([p.ids for p in prompts], [model.length] * len(prompts))
    return ids, torch.stack(rows)


def forget_targets(model: Model, pairs: Sequence[tuple[Prompt, Prompt]]) -> tuple[Tensor, Tensor]:
    """Ids of the target prompts and, position by position, the states that they shall have."""
    ids, goals = full_states(model, [target for target, _ in pairs])
    _, anchors = full_states(model, [anchor for _, anchor in pairs])
    for row, (target, anchor) in enumerate(pairs):
        for here, there in aligned(target, anchor, Tokens.ALL, model.length):
            goals[row, here] = anchors[row, there]
    return ids, goals


def lora_changes(encoder: nn.Module) -> dict[str, LowRank]:
    """The trained LoRA as changes by layer path."""
    changes = {}
    for name, layer in encoder.named_modules():
        if hasattr(layer, "lora_A"):
            up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            change = LowRank(up.detach().cpu().double(), down.detach().cpu().double())
            changes[f"text_encoder.{live_to_canonical('text_encoder', name)}"] = change
    return changes
