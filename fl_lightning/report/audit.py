"""What an audit has found: lower bounds on ε from canaries, and membership tests."""

from __future__ import annotations

from fl_lightning.report.elements import UNKNOWN, Section, Table, format_number
from fl_lightning.runs.artifacts import AuditBound, AuditResult, AuditTest, RunArtifacts


def audit(run: RunArtifacts) -> Section:
    """A row for each adapter that was attacked; none without an audit."""
    section = Section("audit", "What the adapters tell")
    result = run.audit or AuditResult(None)
    if result.bounds:
        delta = "" if result.delta is None else f" at δ = {result.delta:g}"
        section.text.append(
            "Canaries were put into the training records by fair coins. The more of them an attacker guesses right by "
            f"an adapter, the larger ε{delta} must be; each bound alone holds with 95 % confidence. Provable is the "
            "bound if all guesses were right, so a low bound is no proof of privacy. The accountant's ε is for a "
            "record, under differential privacy."
        )
        head = ["adapter", "of", "right", "guesses", "ε at least", "provable", "accountant's ε"]
        section.tables.append(
            Table("Bounds on ε from canaries", head, [_bound(line) for line in result.bounds], text_columns=[1])
        )
    if result.tests:
        section.text.append(
            "How well the loss tells trained records from held-out ones: the AUC is 0.5 where it tells nothing; the "
            "true positives are those at 1 % false ones. Records that differ for other reasons raise both."
        )
        head = ["adapter", "of", "against", "AUC", "95 %", "true positives", "95 %", "trained", "held out"]
        section.tables.append(Table("Membership", head, [_test(line) for line in result.tests], text_columns=[1, 2]))
    return section


def _bound(line: AuditBound) -> list[str]:
    numbers = [format_number(line.epsilon), format_number(line.provable)]
    upper = UNKNOWN if line.upper is None else format_number(line.upper)
    return [line.kind, line.owner, f"{line.correct:,}", f"{line.guesses:,}", *numbers, upper]


def _test(line: AuditTest) -> list[str]:
    values = line.values
    cells = [
        cell
        for name in ("auc", "tpr")
        for cell in (format_number(values[name]), f"{values[f'{name}_low']:.2f}–{values[f'{name}_high']:.2f}")
    ]
    return [line.kind, line.owner, line.score, *cells, f"{values['members']:,.0f}", f"{values['others']:,.0f}"]
