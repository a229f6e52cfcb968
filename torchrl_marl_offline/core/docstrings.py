"""What docstrings say, as text: without marks, and by the names that they speak of."""

from __future__ import annotations

import inspect
import re


def plain_text(documentation: str | None) -> str:
    r"""Return a docstring as a terminal shows it: without the marks of reStructuredText and of LaTeX in formulas.

    Example:
        >>> plain_text("A file of :func:`~torchrl_marl_offline.save_policy`, or ``policy.pt``.")
        'A file of save_policy, or policy.pt.'
        >>> plain_text(r"Cloning: :math:`-\log \pi_a(u_a | Q_{tot})`.")
        'Cloning: -log pi_a(u_a | Q_tot).'
    """
    text = re.sub(r":math:`([^`]+)`", lambda found: _plain_formula(found[1]), documentation or "")
    text = re.sub(r":[a-z:]+:`~[^`]*?([^.`]+)`", r"\1", text)
    text = re.sub(r":[a-z:]+:`([^`<]+?)(?: <[^`]*>)?`", r"\1", text)
    return re.sub(r"``([^`]+)``", r"\1", text)


def _plain_formula(latex: str) -> str:
    """Return a formula of LaTeX with the names of its letters, in plain words and signs."""
    return re.sub(r"[{}]", "", re.sub(r"\\([A-Za-z]+|\|)", r"\1", latex))


def told_in(docstring: str | None) -> dict[str, str]:
    """Return what the sections ``Args:`` and ``Attributes:`` of a docstring say of each name, each in one line."""
    found = {}
    for section in re.split(r"(?:^|\n)(?:Args|Attributes):\n", inspect.cleandoc(docstring or ""))[1:]:
        entries = re.split(r"\n    (?=\w+:)", "\n" + section.split("\n\n")[0])
        pairs = (entry.partition(":") for entry in entries if entry.strip())
        found |= {name.strip(): " ".join(text.split()) for name, _, text in pairs}
    return found


def told_of(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and of its bases say of its fields; the class's own words win."""
    found = {}
    for base in reversed(kind.__mro__):
        found |= told_in(vars(base).get("__doc__"))
    return found
