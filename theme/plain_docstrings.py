"""Sphinx extension: the API page from docstrings that are plain text with `code` in backticks.

A docstring of this course has a first sentence, perhaps more text, and sections that open with
`Args:`, `Returns:`, `Raises:`, `Example:` or `Source:`. Nothing else in it is markup, so a `*` or a
`|w|` means itself. An indented block outside a section is shown as it stands.
"""
import re
import textwrap

SECTION = re.compile(r"(Args|Returns|Raises|Example|Source):(?:\s+(.*))?$")
ARGUMENT = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)$")


def escape(text):
    """Protect everything but `code` from being read as markup."""
    out = ""
    for i, piece in enumerate(re.split(r"`+([^`]+)`+", text)):       # text, code, text, code, ..., text
        if i % 2:
            out += f"``{piece}``"
        else:                                  # "\ " ends the code where a letter follows: `Row`s
            out += (r"\ " if i and piece[:1].isalnum() else "") + re.sub(r"([\\*|_`])", r"\\\1", piece)
    return out


def verbatim(lines):
    return ["", "::", "", *("    " + line for line in lines), ""]


def arguments(lines):
    """One list item an argument; a line that does not open with a name goes on with the item."""
    out = []
    for line in lines:
        named = ARGUMENT.match(line)
        out += ["", f"* **{escape(named[1])}**: {escape(named[2])}"] if named else ["  " + escape(line.strip())]
    return out


def to_rst(lines):
    """Translate the lines of a docstring into reStructuredText."""
    out, rest = [], list(lines)
    while rest:
        line = rest.pop(0)
        section = SECTION.match(line)
        if not section and not line.startswith(" "):
            out.append(escape(line))
            continue
        block = [] if section else [line]
        while rest and (rest[0].startswith(" ") or not rest[0].strip()):
            block.append(rest.pop(0))
        block = textwrap.dedent("\n".join(block)).strip("\n").split("\n")
        if section:
            title, block = section[1], [*filter(None, [section[2]]), *filter(None, block)]
            body = (arguments(block) if title == "Args" else verbatim(block) if title == "Example"
                    else [escape(b.strip()) for b in block])
            out += ["", f":{title}:", *("    " + b for b in body), ""]
        else:
            out += verbatim(block)
    return out


def setup(app):
    def process(app, what, name, obj, options, lines):
        lines[:] = to_rst(lines)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
