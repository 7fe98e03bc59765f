"""Tables that show themselves in a notebook, and numbers with units for people.

Book: chapter 1, "The ruler".
"""
import dataclasses
import html
import re

__all__ = ["Comparison", "format_bytes", "format_seconds"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of rows that shows itself in a notebook, with the conditions below it, a line for each column."""
    frame: object
    caption: str

    def _repr_html_(self) -> str:
        # Intervals and times on a line of their own keep the table narrow.
        cells = self.frame.map(_lines).rename(index=lambda label: _lines(html.escape(label)), columns=html.escape)
        return (f'<div tabindex="0" style="overflow-x: auto; white-space: nowrap">{cells.to_html(escape=False)}</div>'
                + "".join(map(_paragraph, self.caption.splitlines())))

    def __repr__(self) -> str:
        return f"{self.frame.to_string()}\n{self.caption}"


def _paragraph(line: str) -> str:
    """A line of the caption, small, with what it is about in bold."""
    topic, _, text = html.escape(line).partition(": ")
    return f'<p style="font-size: 0.875em; margin: 0.4em 0"><b>{topic}:</b> {text}</p>'


def _lines(text: str) -> str:
    return re.sub(r" (?=[([])|(?<=\)), | · ", "<br>", text)


def format_bytes(n: int) -> str:
    """Bytes for people: 1,234 B, 12.3 kB, 1.07 MB (powers of 1000)."""
    if n < 10_000:
        return f"{n:,} B"
    return f"{n / 1e3:.1f} kB" if n < 999_950 else f"{n / 1e6:.2f} MB"


def format_seconds(seconds: float) -> str:
    """Seconds for people: 12.3 µs, 1.23 ms, 1.23 s."""
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= 0.9995 * scale:       # 999.9 µs rounds to 1 ms
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
