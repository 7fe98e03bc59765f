"""Sphinx extension: the API page from docstrings that are plain text with `code` in backticks.

A docstring of this course has a first sentence, perhaps more text, and sections that open with
`Args:`, `Returns:`, `Raises:`, `Example:`, `Source:` or `Equals:`. A paragraph of lines `name: meaning` lists the
fields of a class. Nothing else in it is markup, so a `*` or a `|w|` means itself. An indented block
outside a section is shown as it stands.
"""
import re
import textwrap

SECTION = re.compile(r"(Args|Returns|Raises|Example|Source|Equals):(?:\s+(.*))?$")
NAMED = re.compile(r"(\*{0,2}[a-z_]\w*(?:, \*{0,2}[a-z_]\w*)*): +(.*)$")


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


def items(lines):
    """One list item a name; a line that does not open with a name goes on with the item."""
    out = []
    for line in lines:
        named = NAMED.match(line)
        out += ["", f"* **{escape(named[1])}**: {escape(named[2])}"] if named else ["  " + escape(line.strip())]
    return out


def to_rst(lines):
    """Translate the lines of a docstring into reStructuredText."""
    out, rest = [], list(lines)

    def take(belongs):
        taken = []
        while rest and belongs(rest[0]):
            taken.append(rest.pop(0))
        return taken

    while rest:
        line = rest.pop(0)
        section = SECTION.match(line)
        if section:
            text = textwrap.dedent("\n".join(take(lambda r: r.startswith(" ") or not r))).split("\n")
            text = [t for t in [section[2], *text] if t]
            body = (items(text) if section[1] == "Args" else verbatim(text) if section[1] == "Example"
                    else [escape(t.strip()) for t in text])
            out += ["", f":{section[1]}:", *("    " + b for b in body), ""]
        elif line.startswith(" "):
            out += verbatim(textwrap.dedent("\n".join([line, *take(lambda r: r.startswith(" "))])).split("\n"))
        elif NAMED.match(line) and out and not out[-1]:        # after a blank line: the fields of a class
            out += items([line, *take(bool)])
        else:
            out.append(escape(line))
    return out


def setup(app):
    def process(app, what, name, obj, options, lines):
        lines[:] = to_rst(lines)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
