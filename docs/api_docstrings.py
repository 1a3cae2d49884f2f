"""Docstrings as mkdocstrings wants them: a blank line before every section, one-line sections in bold, plain names."""

import re

import griffe

SECTION = re.compile(
    r"^(Args|Attributes|Equivalent to|Gradients|Raises|Returns|Shapes|Source|Units):[ ]*(.*)$", re.MULTILINE
)
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")


def _section(match: re.Match) -> str:
    name, rest = match.groups()
    return f"\n**{name}:** {rest}" if rest else f"\n{name}:"


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **options: object) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub(_section, ROLE.sub(r"`\1`", obj.docstring.value))
