"""What was seen of a client: for each rule, in which scenes it held and where it was broken."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedserver.conformance.rules import RULES, Level, Rule


class UnmetError(Exception):
    """The client broke a rule in such a way that its scene cannot go on."""

    def __init__(self, rule: str, evidence: str) -> None:
        super().__init__(f"{rule}: {evidence}")
        self.rule = rule
        self.evidence = evidence


class SkippedError(Exception):
    """A scene does not concern this client; the message says why."""


class Verdict(enum.Enum):
    """What all scenes together say of a rule."""

    HOLDS = "holds"
    BROKEN = "BROKEN"
    UNSEEN = "not seen"
    """No scene got to it."""
    SPARED = "spared"
    """All scenes that would show it were skipped, with a reason."""


@dataclass(slots=True)
class Findings:
    """What one scene found. Breaches have evidence, in words."""

    held: set[tuple[str, Level]] = field(default_factory=set)
    broken: dict[tuple[str, Level], list[str]] = field(default_factory=dict)

    def check(self, rule: str, holds: bool, evidence: str, level: Level = Level.MUST) -> bool:
        """Note whether a rule held; `evidence` says what a breach looked like."""
        if holds:
            self.held.add((rule, level))
        else:
            self.broken.setdefault((rule, level), []).append(evidence)
        return holds

    def advise(self, rule: str, holds: bool, evidence: str) -> None:
        """Note whether what a rule only recommends was done."""
        self.check(rule, holds, evidence, Level.SHOULD)


@dataclass(frozen=True, slots=True)
class SceneResult:
    """How one scene went. `trouble` is why it did not get to its end, `skipped` why it was not played."""

    name: str
    findings: Findings
    seconds: float
    trouble: str = ""
    skipped: str = ""

    @property
    def went_well(self) -> bool:
        """Whether it was played to its end without a breach of what a client must do."""
        return not self.trouble and not any(level is Level.MUST for _, level in self.findings.broken)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A rule, what all scenes say of it, and the breaches: scene and evidence."""

    rule: Rule
    verdict: Verdict
    evidence: tuple[tuple[str, str], ...]


def judge(results: Iterable[SceneResult], spared: Iterable[str] = ()) -> list[Judgement]:
    """One judgement for each rule, in the document's order; rules in `spared` were not to be seen."""
    played, not_played = list(results), set(spared)
    return [_judge(rule, played, rule.name in not_played) for rule in RULES]


def _judge(rule: Rule, results: list[SceneResult], is_spared: bool) -> Judgement:
    key = (rule.name, rule.level)
    evidence = tuple((one.name, words) for one in results for words in one.findings.broken.get(key, ()))
    if evidence:
        return Judgement(rule, Verdict.BROKEN, evidence)
    if any(key in one.findings.held for one in results):
        return Judgement(rule, Verdict.HOLDS, ())
    return Judgement(rule, Verdict.SPARED if is_spared else Verdict.UNSEEN, ())
