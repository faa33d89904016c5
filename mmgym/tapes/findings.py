"""What is wrong with a record although its format is in order: warnings that travel with the numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes
    ----------
    name : str
        One of the names in the module's docstring.
    text : str
        What was found, and what was done about it.
    parameters : tuple of str
        Beginnings of the names of the estimates that it concerns; empty for all.
    """

    name: str
    text: str
    parameters: tuple[str, ...] = ()

    def concerns(self, parameter: str) -> bool:
        """Whether an estimate of this name is warned of."""
        return not self.parameters or parameter.startswith(self.parameters)


def described(findings: Iterable[Finding]) -> list[str]:
    """One line for each finding."""
    return [f"WARNING ({item.name}): {item.text}" for item in findings]
