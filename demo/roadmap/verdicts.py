"""Verdicts of the rows of `demo/roadmap` on the paper's five guidelines, and on the siblings.

A verdict compares two rows over seeds. Runs of one seed share data order and noise, so the
differences within a seed are taken, and Student's t of their mean; nothing is shown unless it is
beyond the two-sided 5 % point and the mean is larger than the spread of either row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.digits_roadmap import ROWS

GUIDELINES = {
    1: "ReLU linear attention with a depth-wise convolution is enough",
    2: "few heads are enough, and heads of few channels harm",
    3: "start from a converged softmax model",
    4: "do not inherit the projections of its attention",
    5: "distil noise and variance from a strong teacher",
    6: "(not in the paper) softmax within circles stays nearest to its teacher",
}

# Two-sided 5 % points of Student's t for 1, 2, ... degrees of freedom (seeds - 1).
T_POINTS = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Claim:
    """Claim of a guideline: row `better` has the smaller distance, or (`same`) is no worse.
    `paper` names the row whose FID is the paper's side of `better`, if that is another one."""

    guideline: int
    text: str
    better: str
    worse: str
    same: bool = False
    paper: str = ""


CLAIMS = (
    Claim(1, "the convolution helps ReLU linear attention", "relu_dwc", "relu"),
    Claim(1, "ReLU + DWC is as good as softmax", "relu_dwc", "softmax", same=True),
    Claim(1, "ReLU + DWC is as good as focused ReLU", "relu_dwc", "focused_relu", same=True),
    Claim(1, "GELU features are worse", "focused_relu", "focused_gelu"),
    Claim(1, "GELU features are worse without focusing", "relu_dwc", "gelu_dwc"),
    Claim(2, "2 heads are as good as 4", "heads2", "heads4", same=True),
    Claim(2, "1 head is as good as 4", "heads1", "heads4", same=True),
    Claim(2, "heads of 8 channels are worse", "heads4", "heads8"),
    Claim(2, "heads of 4 channels are worse", "heads4", "heads16"),
    Claim(3, "inheritance helps: 1,000 against 500 steps", "source1000", "source500"),
    Claim(3, "2,000 against 1,000 steps", "source2000", "source1000"),
    Claim(3, "8,000 against 2,000 steps", "source8000", "source2000"),
    Claim(3, "EMA is as good as the weights", "source1000", "source1000_model", same=True),
    *(
        # The paper inherits them from its source of 600K steps, whose FID is that of source2000.
        Claim(4, f"not to inherit {text} is as good", "source8000", row, True, "source2000")
        for row, text in (
            ("qkv", "Q, K, V"),
            ("kv", "K, V"),
            ("v", "V"),
            ("q", "Q"),
            ("o", "O"),
        )
    ),
    Claim(5, "noise distillation helps (λ1 0.5)", "lambda.5_0", "lambda0_0"),
    Claim(5, "a larger λ1 is better (0.5 against 0.05)", "lambda.5_0", "lambda.05_0"),
    Claim(5, "variance distillation helps (λ2 0.05)", "lambda.5_.05", "lambda.5_0"),
    Claim(5, "both together help", "lambda.5_.05", "lambda0_0"),
    Claim(5, "a better teacher helps", "lambda.1_0", "weak_teacher"),
    Claim(6, "SANA's normaliser is as good as LiT's (no convolution)", "sana", "relu", same=True),
    Claim(6, "CLEAR is as good as softmax from scratch", "window", "softmax", same=True),
    Claim(6, "DiG is as good as ReLU + DWC from scratch", "gated", "relu_dwc", same=True),
    Claim(6, "CLEAR, r = 3, gains by 200 steps", "clear3", "clear3_untrained"),
    Claim(6, "CLEAR, r = 2, gains by 200 steps", "clear2", "clear2_untrained"),
    Claim(6, "CLEAR is as good as softmax trained alike", "clear3", "softmax_trained", same=True),
    Claim(6, "CLEAR is better than LiT after 200 steps", "clear3", "lit"),
    Claim(6, "LiT is better than DiG after 200 steps", "lit", "dig"),
)


def verdicts(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the verdict on every claim whose two rows have a seed in common."""

    def seeds(name: str) -> set[str]:
        return set(rows[name]["frechet_distance"]["values"]) if name in rows else set()

    return [verdict(claim, rows) for claim in CLAIMS if seeds(claim.better) & seeds(claim.worse)]


def verdict(claim: Claim, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference `worse - better` in distance within a seed, and the verdict."""
    better, worse = (rows[name]["frechet_distance"] for name in (claim.better, claim.worse))
    differences = paired(rows, claim.worse, claim.better, "frechet_distance")
    points = paired(rows, claim.better, claim.worse, "accuracy")
    first, second = ROWS[claim.paper or claim.better].fid, ROWS[claim.worse].fid
    result: dict[str, Any] = {
        "guideline": claim.guideline,
        "claim": claim.text,
        "better": claim.better,
        "worse": claim.worse,
        "difference": statistics.mean(differences),
        "accuracy_difference": statistics.mean(points),
        "fid_difference": None if first is None or second is None else round(second - first, 2),
    }
    if len(differences) < 2:
        return result | {"t": None, "accuracy_t": None, "verdict": "one seed"}
    t = student_t(differences)
    widest = max(row["standard_deviation"] for row in (better, worse))
    point = T_POINTS[min(len(differences) - 1, len(T_POINTS)) - 1]
    mean = result["difference"]
    beyond = abs(t) >= point and abs(mean) > widest
    if claim.same:
        said = "no difference beyond the spread"
        if beyond:
            said = "shown, even better" if mean > 0 else "opposite"
    else:
        said = "not shown"
        if beyond:
            said = "shown" if mean > 0 else "opposite"
    return result | {"t": t, "accuracy_t": student_t(points), "verdict": said}


def paired(rows: Mapping[str, Any], first: str, second: str, score: str) -> list[float]:
    """`first - second` for every seed that both have."""
    a, b = (rows[name][score]["values"] for name in (first, second))
    return [a[seed] - b[seed] for seed in a if seed in b]


def student_t(differences: Sequence[float]) -> float:
    """Mean over its standard error; 0 where nothing differs, at most 999 where nothing varies."""
    mean, deviation = statistics.mean(differences), statistics.stdev(differences)
    t = mean / max(deviation / math.sqrt(len(differences)), abs(mean) / 999, 1e-12)
    return round(t, 1)


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return one line per guideline with the verdicts on its claims."""
    lines = []
    for number, title in GUIDELINES.items():
        claims = [row for row in report["verdicts"] if row["guideline"] == number]
        said: dict[str, list[str]] = {}
        for row in claims:
            said.setdefault(row["verdict"], []).append(row["claim"])
        parts = [f"*{verdict}*: {', '.join(texts)}" for verdict, texts in said.items()]
        lines.append(f"{number}. **{title}.** {'; '.join(parts) or 'not run'}.")
    return lines


def verdict_table(report: Mapping[str, Any]) -> list[str]:
    """Return the differences within a seed, positive in favour of the claim, with verdicts."""
    lines = [
        "| guideline | claim | difference in FDD | t | verdict | in accuracy | t | paper, in FID |",
        "|---:|---|---:|---:|---|---:|---:|---:|",
    ]
    for row in report["verdicts"]:
        t, accuracy_t = (
            "" if row[key] is None else f"{row[key]:+.1f}" for key in ("t", "accuracy_t")
        )
        fid = "" if row["fid_difference"] is None else f"{row['fid_difference']:+.2f}"
        lines.append(
            f"| {row['guideline']} | {row['claim']} | {row['difference']:+.3f} | {t} |"
            f" {row['verdict']} | {100 * row['accuracy_difference']:+.1f} % | {accuracy_t} |"
            f" {fid} |"
        )
    return lines
