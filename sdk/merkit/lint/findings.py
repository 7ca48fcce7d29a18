"""What lint says: rules, findings, and the report that holds them.

Triton's own messages name the first problem it met and none of those it will not meet. A finding
here names the rule, the model, the field, what was found, what to do, and who says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "advice"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "advice")


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong with a repository.

    Attributes:
        id: its name in reports.
        severity: `error`: Triton rejects the model; `warning`: Triton loads it and it does badly,
            silently; `advice`: nothing is wrong here, but the host must be set up for it.
        says: what is wrong, in plain words.
        source: where this is written, or what was seen.
        verdict: words of server 24.10's own message for it, which a test compares.
    """

    id: str
    severity: Severity
    says: str
    source: str
    verdict: str = ""

    def at(self, model: str, field: str, found: str, action: str) -> Finding:
        """A finding of this rule; `model` is "" for the repository as a whole."""
        return Finding(self.id, self.severity, model, field, found, action, self.source)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, and what to do about it."""

    rule: str
    severity: Severity
    model: str
    field: str
    found: str
    action: str
    source: str

    def __str__(self) -> str:
        place = "/".join(part for part in (self.model, self.field) if part) or "repository"
        return f"{self.severity} {place}: {self.found} [{self.rule}]; {self.action}"


@dataclass(frozen=True)
class Report:
    """All findings, errors first, and what could not be looked at."""

    findings: tuple[Finding, ...]
    models: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings for which Triton rejects a model."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "advice" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "models": list(self.models),
            "findings": [asdict(finding) for finding in self.findings],
            "skipped": list(self.skipped),
        }


RULES: dict[str, Rule] = {}


def rule(id: str, severity: Severity, says: str, source: str, verdict: str = "") -> Rule:
    """Declares a rule; each id once."""
    if id in RULES:
        raise ValueError(f"two rules are called {id}")
    RULES[id] = Rule(id, severity, says, source, verdict)
    return RULES[id]


Skip = Callable[[str], None]
"""Called with a sentence about what a check could not look at."""
