"""Is the concept still recognised, and what else was lost? Paired scores before and after an erasure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from concept_erase import diffusion_classifier, embedded, nonsense, perceptual, typed
from concept_erase.adapter import Adapter
from concept_erase.attach import attached
from concept_erase.clip import Scorer, load_scorer
from concept_erase.concepts import Concept, Kind, fill
from concept_erase.diffusion_classifier import DiffusionClassifier
from concept_erase.errors import InputError, MissingModelError
from concept_erase.generate import Sampling, generate
from concept_erase.judge import Judge
from concept_erase.model import Model, Source, open_model
from concept_erase.names import Lookup, apart, distinct, folded, same_name
from concept_erase.statistics import Estimate, harmonic, kappa, mean, newcombe, rate
from concept_erase.surroundings import profile, spread, surroundings

Progress = Callable[[int, int, str], None]

TRIED = 16  # pictures of a candidate for an anchor, or under an edit of a strength
NULL = 24  # pictures of nonsense names that a rate is compared with
CANDIDATES = 160  # names that the base itself chooses from; more where more are asked for
SHAPES = 4  # shapes of names that many concepts are compared with


@dataclass(frozen=True)
class Shot:
    """One picture to be drawn and judged.

    Attributes:
        prompt, seed: What is drawn, before and after alike.
        concept: The in-domain name in the prompt: the erased target or a neighbour.
        context: The cross-domain name in the prompt, "" if it has none.
        erased: Whether `concept` is a target.
        style: Whether `concept` is a style and `context` an object, or the other way round.
    """

    prompt: str
    seed: int
    concept: str
    context: str
    erased: bool
    style: bool


@dataclass(frozen=True)
class Verdicts:
    """What each judge took each picture for, in the order of the shots.

    Attributes:
        concepts, contexts: By the judge.
        clip_concepts, clip_scores: By the CLIP scorer; empty where there is none.
        base_concepts: By the base itself; empty where it was not asked.
    """

    concepts: list[str]
    contexts: list[str]
    clip_concepts: list[str]
    clip_scores: list[float]
    base_concepts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """Scores of one erasure, before and after, each with count and 95% interval.

    Attributes:
        before, after: "UA", "IRA", "CRA", "H" in per cent by the judge; "clip_accuracy_erased", "clip_accuracy_kept",
            "clip_score_erased", "clip_score_kept" by a CLIP scorer; "base_accuracy_erased", "base_accuracy_kept" by the
            base itself. What was not asked is not there.
        change: Paired after-minus-before differences of the CLIP scores; "lpips_erased", "lpips_kept" of the pictures.
        by_concept: Concept -> "before" and "after": how often pictures of it are recognised, erased and kept alike.
        controls: Of the unedited base. "nonsense": how often pictures of nonsense names of the same shape are taken for
            the target (of a style: the style floor); "null": how often pictures of other concepts are; "positive": how
            often pictures of the target are; "nonsense_itself", where the base itself judges: how often pictures of
            nonsense names are taken for those very names; "kappa", "kappa_base": agreement of the judge with the CLIP
            scorer, and with the base itself.
        shots, images: What was drawn, for pictures and reports.
    """

    before: dict[str, Estimate]
    after: dict[str, Estimate]
    change: dict[str, Estimate]
    controls: dict[str, Estimate | float]
    by_concept: dict[str, dict[str, Estimate]]
    judge: str
    scorer: str
    shots: list[Shot] = field(repr=False, default_factory=list)
    images: tuple[list[Image.Image], list[Image.Image]] = field(repr=False, default=([], []))

    @property
    def known(self) -> bool | None:
        """Whether the base draws what was erased more often than nonsense names do; None where that was not asked.

        Nor is it known where the base itself judges, and recognises nonsense names as often as it does the concept.
        """
        own, null, itself = (self.controls.get(name) for name in ("positive", "nonsense", "nonsense_itself"))
        if not isinstance(own, Estimate) or not isinstance(null, Estimate):
            return None
        known = newcombe(own, null).low > 0
        return None if known and isinstance(itself, Estimate) and newcombe(own, itself).low <= 0 else known

    def as_dict(self) -> dict[str, Any]:
        """For `report.json`: by time and by score, so that both `after.UA` and `UA.after` can be looked up."""
        times = {"before": self.before, "after": self.after}
        by_time = {t: {name: e.as_dict() for name, e in scores.items()} for t, scores in times.items()}
        by_score = {name: {t: by_time[t][name] for t in times} for name in ("UA", "IRA", "CRA", "H")}
        controls = {k: v.as_dict() if isinstance(v, Estimate) else round(v, 4) for k, v in self.controls.items()}
        rest = {
            "known": self.known,
            "change": {k: v.as_dict() for k, v in self.change.items()},
            "controls": controls,
            "by_concept": {c: {t: e.as_dict() for t, e in of.items()} for c, of in self.by_concept.items()},
        }
        return {**by_time, **by_score, **rest, "judge": self.judge, "scorer": self.scorer}


def plan(model: Model, concepts: Sequence[Concept], n: int) -> list[Shot]:
    """At least n shots of the erased concepts and n of what must stay, on templates that no edit ever sees.

    All pairs of template and context come once before any comes twice, with another seed. Of more than n concepts a
    sample of n is drawn, the same each time.
    """
    if n < 1:
        raise InputError(f"the number of pictures must be positive, got {n}.")
    everything = Lookup(c.target for c in concepts)
    if len(concepts) > n:
        concepts = random.Random(0).sample(list(concepts), n)
    shots: list[Shot] = []
    for index, concept in enumerate(concepts):
        around = surroundings(model, concept)
        neighbours = apart(around.neighbours, everything, concept.preserve)
        share = -(-n // len(concepts))
        for names, erased in (([concept.target], True), (neighbours, False)):
            slots = list(product(names, profile(model, concept.kind).unseen, around.contexts))
            random.Random(f"{concept.target} {erased}").shuffle(slots)
            for i in range(share if slots else 0):
                name, template, context = slots[i % len(slots)]
                prompt = fill(template, name, context)
                seed = 1_000_000 * (index + 1) + 2 * i + int(erased)
                shown = context if "{context}" in template else ""
                shots.append(Shot(prompt, seed, name, shown, erased, concept.kind is Kind.STYLE))
    return shots


def score(
    model: Source = None,
    adapter: Adapter | None = None,
    concepts: Concept | Sequence[Concept] | None = None,
    *,
    n: int = 200,
    scorer: str | None = None,
    sampling: Sampling = Sampling(),
    drawn: Mapping[tuple[str, int], Image.Image] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Score an erasure against the unedited base at equal prompts and seeds.

    UA, IRA and CRA follow UnlearnCanvas (arXiv:2402.11846): the share of pictures of the erased concept that are not
    recognised as it; of in-domain neighbours that are still recognised; of cross-domain concepts in the neighbours'
    pictures that are still recognised. On the embedded base the judge is its own classifier; elsewhere the CLIP scorer,
    zero-shot, or the base itself where no other is named.

    Args:
        model: Base; None for the embedded generator.
        adapter: The erasure; None scores the base against itself.
        concepts: What was erased; the adapter's own when None.
        n: Pictures of the erased concepts, and as many of what must stay.
        scorer: An open_clip model, see `Scorer`; "base" for the unedited base itself; "base+NAME" for both. None for
            the embedded one on the embedded base.
        drawn: Pictures of the unedited base that are there already, by prompt and seed.
    Raises:
        MissingModelError: there is no scorer for this base.
    """
    model = open_model(model)
    if concepts is None:
        if adapter is None:
            raise InputError("neither an adapter nor a concept was given; name what to score.")
        concepts = adapter.concepts
    listed = [concepts] if isinstance(concepts, Concept) else list(concepts)
    judges = Judges(model, listed, scorer, progress)
    shots = plan(model, listed, n)
    prompts, seeds = [s.prompt for s in shots], [s.seed for s in shots]

    def base(prompts: Sequence[str], seeds: Sequence[int], what: str) -> list[Image.Image]:
        return generate(model, prompts, seeds, sampling=sampling, drawn=drawn, progress=progress, what=what)

    before = base(prompts, seeds, "pictures before")
    after = before
    if adapter is not None:
        with attached(model.pipe, adapter) if adapter.changes else nullcontext():
            after = generate(
                model,
                prompts,
                seeds,
                sampling=sampling,
                variant=adapter.digest,
                progress=progress,
                what="pictures after",
            )
    erased = {s.concept for s in shots if s.erased}

    def draw(some: Sequence[Shot]) -> list[Image.Image]:
        return base([s.prompt for s in some], [s.seed for s in some], "nonsense names")

    shown = [c for c in listed if c.target in erased]
    null = nulls(model, judges, shown, draw)
    itself = themselves(model, judges, shown[0], draw) if shown else None
    return compare(judges, shots, before, after, _pooled(null), itself)


def trial_shots(model: Model, concepts: Sequence[Concept], name: str | None = None) -> list[Shot]:
    """`TRIED` pictures by which a choice is made, of the concepts in turn, on templates that an edit is fitted on.

    Args:
        name: What is drawn in the place of the concept; the concept itself when None.
    """
    shots: list[Shot] = []
    for i in range(TRIED):
        concept = concepts[i % len(concepts)]
        templates = profile(model, concept.kind).templates[2:4]
        contexts = spread(surroundings(model, concept).contexts, TRIED // len(templates)) or ("",)
        turn = i // len(concepts)
        template, context = templates[turn // len(contexts) % len(templates)], contexts[turn % len(contexts)]
        shown = context if "{context}" in template else ""
        prompt = fill(template, name or concept.target, context)
        shots.append(Shot(prompt, i, name or concept.target, shown, name is None, concept.kind is Kind.STYLE))
    return shots


def nonsense_shots(model: Model, concept: Concept, block: int = 0) -> list[Shot]:
    """`NULL` pictures that ask for nonsense of the shape of the concept's name, on the templates of its scores.

    They depend on nothing but the shape, the kind and the contexts, so that concepts share them.

    Args:
        block: Another one holds other names.
    Returns:
        Fewer, or none, where the text encoder's limit leaves no room.
    """
    names = nonsense.names(nonsense.shape(concept.target), NULL * (block + 1), lambda word: _means(model, word))
    slots = list(product(profile(model, concept.kind).unseen, surroundings(model, concept).contexts))
    random.Random(f"nonsense {concept.kind}").shuffle(slots)
    shots: list[Shot] = []
    for i, name in enumerate(names[NULL * block :], NULL * block):
        template, context = slots[i % len(slots)]
        prompt = fill(template, name, context)
        try:
            model.token_ids(prompt)
        except InputError:
            continue
        shown = context if "{context}" in template else ""
        shots.append(Shot(prompt, 900_000_000 + i, name, shown, False, concept.kind is Kind.STYLE))
    return shots


def _means(model: Model, word: str) -> bool:
    """Whether a word of several letters is one of the tokenizer's: it was frequent where that was made."""
    try:
        return len(word) > 2 and len(model.token_ids(word)) <= 3
    except InputError:
        return False


def nulls(
    model: Model,
    judges: Judges,
    concepts: Sequence[Concept],
    draw: Callable[[list[Shot]], list[Image.Image]],
    blocks: int = 1,
) -> dict[str, Estimate]:
    """For each target, how often the unedited base's pictures of nonsense names are taken for it.

    Of many shapes the `SHAPES` most frequent are drawn; targets of another are compared with the most frequent of them.
    """
    shape = {c.target: (c.kind, nonsense.shape(c.target)) for c in concepts}
    kept = [key for key, _ in Counter(shape.values()).most_common(SHAPES)]
    groups: dict[Any, list[Concept]] = {}
    for concept in concepts:
        mine = [key for key in kept if key[0] is concept.kind]
        key = shape[concept.target]
        groups.setdefault(key if key in kept or not mine else mine[0], []).append(concept)
    found: dict[str, Estimate] = {}
    for members in groups.values():
        counted = Counter[str]()
        n = 0
        for block in range(blocks):
            shots = nonsense_shots(model, members[0], block)
            images = draw(shots) if shots else []
            n += len(shots)
            counted.update(judges.taken(images, members, shots) if shots else {})
        found |= {c.target: rate(counted[c.target], n) for c in members if n}
    return found


def themselves(
    model: Model, judges: Judges, concept: Concept, draw: Callable[[list[Shot]], list[Image.Image]]
) -> Estimate | None:
    """How often the base takes its own pictures of nonsense names for those very names, each in the target's place.

    What a name draws is often explained best by that name, even if it means nothing: that the base recognises its
    pictures of a concept says little unless it does so more often than this.

    Returns:
        None where the base itself is not the judge, or no nonsense fits the text encoder.
    """
    shots = nonsense_shots(model, concept) if judges.name == diffusion_classifier.NAME else []
    return rate(judges.themselves(draw(shots), concept, shots), len(shots)) if shots else None


def _pooled(null: Mapping[str, Estimate]) -> Estimate | None:
    """The mean over targets; pictures that several share count once."""
    if not null:
        return None
    n = min(e.n for e in null.values())
    return rate(round(n * sum(e.value for e in null.values()) / len(null) / 100), n)


class Judges:
    """Who judges pictures of a base: its classifier, where it has one, a CLIP scorer, and the base itself."""

    def __init__(
        self, model: Model, concepts: Sequence[Concept], scorer: str | None, progress: Progress | None = None
    ) -> None:
        by_base, clip = typed.scorer(scorer)
        if not by_base and not clip:
            if not model.is_embedded:
                raise MissingModelError(
                    f"no scorer was named for {model.name!r}; pass --scorer base, which lets the base itself judge and "
                    "takes nothing but time, about as much again as drawing; or --scorer with an open_clip model, for "
                    "example ViT-B-32:laion2b_s34b_b79k, or a local folder."
                )
            clip = str(embedded.scorer())
        self.itself = DiffusionClassifier(model, progress) if by_base else None
        self.scorer: Scorer | None = load_scorer(clip) if clip else None
        shown = Path(clip).name if clip and Path(clip).is_dir() else clip  # reports tell no folder of this machine
        clip_name = "embedded scorer" if clip == str(embedded.scorer()) else shown
        self.scorer_name = " and ".join(filter(None, (clip_name, diffusion_classifier.NAME if by_base else None)))
        self._zero_shot = f"{clip_name} (zero-shot)" if clip else diffusion_classifier.NAME
        self.net = Judge.load(embedded.judge()) if model.is_embedded else None
        self._probes = tuple(profile(model, kind).probes for kind in (Kind.OBJECT, Kind.STYLE))
        self.name = "embedded judge (classifier)" if self.net else self._zero_shot
        names = (self.net.objects, self.net.styles) if self.net else ([], [])
        self._classes = tuple({folded(name) for name in group} for group in names)
        styles: list[str] = []
        objects: list[str] = []
        for concept in concepts:
            around = surroundings(model, concept)
            ours, theirs = (styles, objects) if concept.kind is Kind.STYLE else (objects, styles)
            ours += [concept.target, *around.neighbours]
            theirs += around.contexts
        # "Claude Monet" as a label beside "Monet" would take pictures from it, which then count as erased.
        targets = Lookup(c.target for c in concepts)
        given = Lookup(p for c in concepts for p in c.preserve)
        self.styles, self.objects = (
            [n for n in distinct(names) if n in targets or n in given or not targets.within(n)]
            for names in (styles, objects)
        )
        # What a concept became is a label of the base's too: it is asked which of these it is, and has no other answer.
        self._anchors = tuple(
            [c.anchor for c in concepts if c.anchor and (c.kind is Kind.STYLE) is style] for style in (False, True)
        )
        people = {c.kind is Kind.IDENTITY for c in concepts if c.kind is not Kind.STYLE} == {True}
        kinds = (Kind.IDENTITY if people else Kind.OBJECT, Kind.STYLE)
        self._templates = tuple(profile(model, kind).templates for kind in kinds)
        foreign = [c for c in concepts if not self.named(c.target, c.kind is Kind.STYLE)]
        if self.net and foreign:
            self.name = (
                self._zero_shot if len(foreign) == len(concepts) else f"{self.name}; {self._zero_shot} for other names"
            )

    def named(self, target: str, style: bool) -> bool:
        """Whether the classifier has a class for a name; what it has none for is left to the scorer, zero-shot."""
        return self.net is not None and folded(target) in self._classes[style]

    def judge_of(self, concept: Concept) -> str:
        """Who says whether a picture shows a concept."""
        return self.name if self.named(concept.target, concept.kind is Kind.STYLE) else self._zero_shot

    def taken(
        self, images: Sequence[Image.Image], concepts: Sequence[Concept], shots: Sequence[Shot]
    ) -> dict[str, int]:
        """For each target, how many of the pictures, drawn for these shots, are taken for it."""
        by_net = self.net.name(list(images))[::-1] if self.net else ([], [])
        styles = {c.kind is Kind.STYLE for c in concepts if not self.named(c.target, c.kind is Kind.STYLE)}
        targets = [c.target for c in concepts]
        by_scorer = {style: self._seen(images, shots, style, targets) for style in styles}
        found = {}
        for concept in concepts:
            style = concept.kind is Kind.STYLE
            seen = by_net[style] if self.named(concept.target, style) else by_scorer[style]
            found[concept.target] = sum(n for name, n in Counter(seen).items() if same_name(name, concept.target))
        return found

    def themselves(self, images: Sequence[Image.Image], concept: Concept, shots: Sequence[Shot]) -> int:
        """How many of the pictures the base itself takes for the names that they were drawn for, without the target."""
        assert self.itself is not None, "the base was not asked to judge"
        style, found = concept.kind is Kind.STYLE, 0
        others = [n for n in (self.styles if style else self.objects) if not same_name(n, concept.target)]
        for shot, image in zip(shots, images, strict=True):
            names = [*spread(others, CANDIDATES), shot.concept]
            (seen,) = self.itself.classify([image], names, self._asking(style, False), [shot.context])
            found += same_name(seen, shot.concept)
        return found

    def look(self, shots: Sequence[Shot], images: Sequence[Image.Image]) -> Verdicts:
        """What every picture is taken for."""
        by_clip, clip_contexts, similar = self._by_clip(shots, images)
        by_base = self._by_base(shots, images) if self.itself else []
        scorers = by_clip or by_base
        if self.net:
            styles, objects = self.net.name(list(images))
            by_judge = [s if shot.style else o for shot, s, o in zip(shots, styles, objects, strict=True)]
            contexts = [o if shot.style else s for shot, s, o in zip(shots, styles, objects, strict=True)]
        else:
            by_judge, contexts = scorers, clip_contexts or self._by_base(shots, images, concepts=by_base)
        concepts = [
            j if self.named(s.concept, s.style) else c for s, j, c in zip(shots, by_judge, scorers, strict=True)
        ]
        return Verdicts(concepts, contexts, by_clip, similar, by_base)

    def _seen(
        self, images: Sequence[Image.Image], shots: Sequence[Shot], style: bool, targets: Sequence[str]
    ) -> list[str]:
        """What the scorer takes pictures for, of the styles or of the objects."""
        if self.scorer:
            names = self.styles if style else self.objects
            return self.scorer.classify(self.scorer.embed_images(images), names, self._probes[style])
        return self._by_base(shots, images, targets)

    def _by_clip(
        self, shots: Sequence[Shot], images: Sequence[Image.Image]
    ) -> tuple[list[str], list[str], list[float]]:
        """What the CLIP scorer takes concepts and contexts for, and the CLIP scores; nothing where there is none."""
        if not self.scorer:
            return [], [], []
        vectors = self.scorer.embed_images(images)
        styles = self.scorer.classify(vectors, self.styles, self._probes[1])
        objects = self.scorer.classify(vectors, self.objects, self._probes[0])
        return (
            [s if shot.style else o for shot, s, o in zip(shots, styles, objects, strict=True)],
            [o if shot.style else s for shot, s, o in zip(shots, styles, objects, strict=True)],
            self.scorer.similarity(vectors, [s.prompt for s in shots]),
        )

    def _asking(self, style: bool, of_context: bool) -> list[str]:
        """Templates of prompts in which the base is asked for a style or an object, or for the context of one."""
        if not of_context:
            return list(self._templates[style])
        both = [_swapped(t) for t in self._templates[style] if "{context}" in t]
        return both + [t for t in self._templates[not style] if "{context}" not in t]

    def _by_base(
        self,
        shots: Sequence[Shot],
        images: Sequence[Image.Image],
        asked: Sequence[str] = (),
        concepts: Sequence[str] | None = None,
    ) -> list[str]:
        """What the base itself takes the concepts for, told the context of each prompt; or the contexts.

        Args:
            asked: Names that are among the candidates in any case, as are those of the shots.
            concepts: What each picture was taken for. That is told then, and the context is asked for: under the name
                of what is erased no context would explain the picture.
        Returns:
            For each shot a name; "" for a context that its prompt does not have.
        """
        assert self.itself is not None, "the base was not asked to judge"
        of_context, found = concepts is not None, [""] * len(shots)
        for style in (False, True):
            members = [i for i, s in enumerate(shots) if s.style is style and (s.context or not of_context)]
            if not members:
                continue
            theirs = style is not of_context
            names = [*(self.styles if theirs else self.objects), *self._anchors[theirs]]
            wanted = Lookup([*asked, *((shots[i].context if of_context else shots[i].concept) for i in members)])
            first = [name for name in names if name in wanted]
            rest = [name for name in names if name not in wanted]
            seen = self.itself.classify(
                [images[i] for i in members],
                [*first, *spread(rest, max(0, CANDIDATES - len(first)))],
                self._asking(style, of_context),
                [concepts[i] if concepts is not None else shots[i].context for i in members],
            )
            for i, name in zip(members, seen, strict=True):
                found[i] = name
        return found


def _swapped(template: str) -> str:
    """The template with concept and context in each other's places: what is asked for is the context then."""
    return "{target}".join(part.replace("{target}", "{context}") for part in template.split("{context}"))


def compare(
    judges: Judges,
    shots: Sequence[Shot],
    before: list[Image.Image],
    after: list[Image.Image],
    nonsense: Estimate | None = None,
    itself: Estimate | None = None,
) -> Scores:
    """All scores from the pictures of both sides, and from what nonsense names are taken for.

    Args:
        itself: How often they are taken for themselves, see `themselves`.
    """
    looks = (judges.look(shots, before), judges.look(shots, after))
    erased = [i for i, s in enumerate(shots) if s.erased]
    kept = [i for i, s in enumerate(shots) if not s.erased]
    groups = (("erased", erased), ("kept", kept))
    targets = Lookup(shots[i].concept for i in erased)
    sides = []
    for look in looks:
        side = {
            "UA": rate(sum(not same_name(look.concepts[i], shots[i].concept) for i in erased), len(erased)),
            "IRA": rate(sum(same_name(look.concepts[i], shots[i].concept) for i in kept), len(kept)),
            "CRA": _contexts_kept(look, shots, kept),
        }
        side["H"] = harmonic([side["UA"], side["IRA"], side["CRA"]])
        side["CRA_erased"] = _contexts_kept(look, shots, erased)
        for who, seen in (("clip", look.clip_concepts), ("base", look.base_concepts)):
            for group, members in groups if seen else ():
                right = sum(same_name(seen[i], shots[i].concept) for i in members)
                side[f"{who}_accuracy_{group}"] = rate(right, len(members))
        for group, members in groups if look.clip_scores else ():
            side[f"clip_score_{group}"] = mean([look.clip_scores[i] for i in members])
        sides.append(side)
    distances = perceptual.distances(judges.net, before, after)
    change = {}
    for group, members in groups:
        if looks[0].clip_scores:
            change[f"clip_score_{group}"] = mean([looks[1].clip_scores[i] - looks[0].clip_scores[i] for i in members])
        if distances is not None:
            change[f"lpips_{group}"] = mean([distances[i] for i in members])
    controls: dict[str, Estimate | float] = {
        "null": rate(sum(looks[0].concepts[i] in targets for i in kept), len(kept)),
        "positive": rate(sum(same_name(looks[0].concepts[i], shots[i].concept) for i in erased), len(erased)),
        **({"nonsense": nonsense} if nonsense else {}),
        **({"nonsense_itself": itself} if itself else {}),
    }
    by_judge = [folded(c) for k in looks for c in k.concepts]
    if by_clip := [folded(c) for k in looks for c in k.clip_concepts]:
        controls["kappa"] = kappa(by_judge, by_clip)
    by_base = [folded(c) for k in looks for c in k.base_concepts]
    if by_base and judges.name != diffusion_classifier.NAME:
        controls["kappa_base"] = kappa(by_judge, by_base)
    return Scores(
        sides[0], sides[1], change, controls, _by_concept(looks, shots), judges.name, judges.scorer_name,
        list(shots), (before, after),
    )  # fmt: skip


def _by_concept(looks: Sequence[Verdicts], shots: Sequence[Shot]) -> dict[str, dict[str, Estimate]]:
    found = {}
    for name in distinct(s.concept for s in shots):
        members = [i for i, s in enumerate(shots) if same_name(s.concept, name)]
        right = [sum(same_name(look.concepts[i], name) for i in members) for look in looks]
        found[name] = {time: rate(k, len(members)) for time, k in zip(("before", "after"), right, strict=True)}
    return found


def _contexts_kept(look: Verdicts, shots: Sequence[Shot], members: Sequence[int]) -> Estimate:
    """How often the cross-domain concept of the prompt is recognised, where the prompt names one."""
    named = [i for i in members if shots[i].context]
    return rate(sum(same_name(look.contexts[i], shots[i].context) for i in named), len(named))
