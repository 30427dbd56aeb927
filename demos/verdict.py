"""Whether an erasure held against a prompt: what the judge sees in each picture, counted over seeds; no page here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from concept_erase import embedded
from concept_erase.names import same_name

from .models import Drawn, is_sensitive


@dataclass(frozen=True, eq=False)
class Try:
    """One seed.

    Attributes:
        before: Whether the judge sees what was erased in the picture of the original; None where there is no judge.
        after: The same for the erased generator.
    """

    seed: int
    drawn: Drawn
    before: bool | None
    after: bool | None


def tried(seed: int, drawn: Drawn, targets: Sequence[str]) -> Try:
    """A drawn pair, judged."""
    return Try(seed, drawn, shows(drawn.original_seen, targets), shows(drawn.erased_seen, targets))


def shows(seen: str, targets: Sequence[str]) -> bool | None:
    """Whether a picture shows one of the concepts.

    Args:
        seen: What the judge takes it for, as in `Generators.seen`: names with commas between, "" without a judge.
    Returns:
        None if nobody can tell: there is no judge, or it never learned one of the concepts and sees none of the others.
    """
    if not seen:
        return None
    if any(same_name(part, target) for part in seen.split(", ") for target in targets):
        return True
    known = (*embedded.styles(), *embedded.objects())
    return False if all(any(same_name(name, target) for name in known) for target in targets) else None


def veiled(seen: str, *words: str) -> bool:
    """Whether a picture is blurred: by what the judge sees in it, and by the words alone where there is no judge."""
    return is_sensitive(seen) if seen else is_sensitive(*words)


def verdict(tries: Sequence[Try], title: str) -> tuple[str, str]:
    """What came of it: a headline and a sentence.

    Args:
        title: Of what was erased.
    """
    n = len(tries)
    if any(t.before is None or t.after is None for t in tries):
        return "Look for yourself.", f"There is no judge that could tell {title} in these pictures."
    before, after = sum(bool(t.before) for t in tries), sum(bool(t.after) for t in tries)
    seeds = "seed" if n == 1 else "seeds"
    if not before and not after:
        return (
            f"No {title} on either side.",
            f"The original does not show it with these words either (0 of {n} {seeds}), so this says nothing about the "
            "erasure. Try other words.",
        )
    word = f"It came through in {after} of {n} {seeds}." if after else f"It held in {n} of {n} {seeds}."
    more = " One picture says little: try several seeds." if n == 1 else ""
    return word, f"The judge looked for {title}; the original shows it in {before} of {n}.{more}"
