"""What is wrong with data, collected by file, and the error that says it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SHOWN = 5  # examples of one kind of defect
LEVELS = ('error', 'warning', 'note', 'info')


class DataError(ValueError):
    """Data that cannot be used; the message names it."""


@dataclass
class Finding:
    """Something about a file (or a part of the config).

    Attributes:
        level: 'error' (the run is refused), 'warning' (it is trained without this, or look at it), 'note' (worth a line
            of the log), 'info' (what was looked at).
        place: the file or folder, or the key of the config.
        text: what, how many, which, and what to do.
    """

    level: str
    place: str
    text: str


@dataclass
class Report:
    """Findings in the order found; the same one of two splits is kept once."""

    findings: list[Finding] = field(default_factory=list)
    missing: bool = False  # some path does not exist

    def add(self, level: str, place: object, text: str) -> None:
        """Note a finding; see `Finding`."""
        found = Finding(level, str(place), text)
        if found not in self.findings:
            self.findings.append(found)

    def of(self, *levels: str) -> list[Finding]:
        """The findings of these levels."""
        return [finding for finding in self.findings if finding.level in levels]

    def lines(self, *levels: str) -> list[str]:
        """A line a place and an indented one a finding, the gravest first; all levels unless some are named."""
        chosen = sorted(self.of(*(levels or LEVELS)), key=lambda finding: LEVELS.index(finding.level))
        lines = []
        for place in dict.fromkeys(finding.place for finding in chosen):
            lines.append(place)
            lines += [f'  {found.level}: {found.text}' for found in chosen if found.place == place]
        return lines

    def summary(self) -> str:
        """How many of what."""
        counts = [(len(self.of(level)), level) for level in LEVELS if level != 'info']
        return ', '.join(f'{count} {level}{"s" if count != 1 else ""}' for count, level in counts)


def shorten(items: Sequence | Iterable, shown: int = SHOWN) -> str:
    """The first items, and how many more there are."""
    items = list(items)
    more = f' and {len(items) - shown} more' if len(items) > shown else ''
    return ', '.join(str(item) for item in items[:shown]) + more
