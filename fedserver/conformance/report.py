"""The verdict, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fedserver.conformance.findings import Judgement, SceneResult, Verdict
from fedserver.conformance.rules import Level

_SHOWN_BREACHES = 4
_NAME_WIDTH = 52


def scene_line(result: SceneResult, number: int, count: int) -> str:
    """One scene's line, as it ends."""
    name = f"{number:>3}/{count}  {result.name}".ljust(_NAME_WIDTH)
    if result.skipped:
        return f"{name}  skipped: {result.skipped}"
    return f"{name}  {'ok' if result.went_well else 'BROKEN'}  {result.seconds:.1f} s"


def in_words(
    judgements: Sequence[Judgement], results: Sequence[SceneResult], *, passed: bool, all_played: bool = True
) -> str:
    """Every rule with its verdict, the breaches beside it, and the sum. Of a choice of scenes, only what was seen."""
    lines = ["", "rule      level   verdict   what a client does"]
    for one in judgements:
        if one.verdict is Verdict.UNSEEN and not all_played:
            continue
        lines.append(f"{one.rule.name:<9} {one.rule.level.value:<7} {one.verdict.value:<9} {one.rule.words}")
        lines += [f"{'':<28}{words}" for words in _breaches(one.evidence)]
    counts = Counter((one.rule.level, one.verdict) for one in judgements)
    lines += ["", _sum(counts, Level.MUST), _sum(counts, Level.SHOULD)]
    lines.append(f"{len(results)} scenes: {'the client conforms' if passed else 'the client does NOT conform'}")
    return "\n".join(lines)


def _breaches(evidence: Iterable[tuple[str, str]]) -> list[str]:
    found = list(dict.fromkeys(f"{words} (in: {scene})" for scene, words in evidence))
    more = len(found) - _SHOWN_BREACHES
    return found[:_SHOWN_BREACHES] + ([f"and {more} more like that; --json has all"] if more > 0 else [])


def _sum(counts: Counter[tuple[Level, Verdict]], level: Level) -> str:
    parts = [f"{counts[level, one]} {one.value}" for one in Verdict if counts[level, one]]
    return f"{level.value}: {', '.join(parts)}"


def as_fields(judgements: Sequence[Judgement], results: Sequence[SceneResult], *, passed: bool) -> dict[str, Any]:
    """The same as fields."""
    return {
        "conforms": passed,
        "rules": [
            {
                "rule": one.rule.name,
                "level": one.rule.level.value,
                "words": one.rule.words,
                "verdict": one.verdict.value,
                "breaches": [{"scene": scene, "evidence": words} for scene, words in one.evidence],
            }
            for one in judgements
        ],
        "scenes": [
            {"scene": one.name, "ok": one.went_well, "seconds": round(one.seconds, 3), "trouble": one.trouble}
            | ({"skipped": one.skipped} if one.skipped else {})
            for one in results
        ],
    }
