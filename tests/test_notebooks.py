"""What every notebook of the book must be like, checked without running it.

`problems(notebook)` is the whole list of rules. nbval runs the notebooks; these rules close the ways
in which nbval passes silently (cells that were never run have nothing to compare) and keep a notebook
readable in the built book, in JupyterLab, in Colab and on GitHub.
"""
import ast
import copy
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "book").rglob("*.ipynb")
                   if not {"_build", ".ipynb_checkpoints"} & set(p.relative_to(ROOT).parts))

SECONDS = 120           # a notebook's time on two cores with the embedded data; most take half a minute
ALT_LENGTH = 30         # characters that say what a figure shows
LINES = 15              # of code in one cell, and their median over a notebook of five cells or more:
MEDIAN_LINES = 6
# A tag that is misspelt does nothing, silently. `nbval-skip` is missing on purpose.
TAGS = {"nbval-ignore-output", "nbval-check-output", "raises-exception", "nbval-raises-exception",
        "hide-input", "hide-output", "hide-cell", "remove-input", "remove-output", "remove-cell",
        "imports", "checker", "answer", "solution", "question"}
COLOUR = re.compile(r"\x1b\[[\d;]*m")        # a traceback is coloured, and a colour's last letter would touch a path
MACHINE_PATH = re.compile(
    r"(?<![\w.-])/(?:home|root|tmp|work|Users|var|opt|private|mnt|usr/lib|usr/local)/\w[\w./-]*"
    r"|[A-Za-z]:\\{1,2}Users\\[^\s\"']*|~/\.\w[\w./-]*|[\w./-]*site-packages[\w./-]*")
MYST = {
    "a directive": re.compile(r"^[ \t>]*(?:`{3,}|~{3,}|:{3,})[ \t]*\{[^}\n]+\}.*$|^[ \t>]*:{3,}.*$", re.MULTILINE),
    "a role": re.compile(r"\{[A-Za-z][\w:.+-]*\}`[^`\n]+`"),
    "a target": re.compile(r"^\([\w:.-]+\)=[ \t]*$", re.MULTILINE),
    "a substitution": re.compile(r"\{\{[^{}\n]+\}\}"),
}
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<target>[^)\s]+)[^)]*\)|<img\b(?P<html>[^>]*)>")
LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)[^)]*\)")


def problems(notebook: dict, *, exists: Callable[[str], bool] = lambda target: True) -> list[str]:
    """List what is wrong with a notebook, each problem in a sentence that names its cell.

    Args: notebook: as nbformat reads it; exists: tells whether a linked file is there.
    """
    cells = list(enumerate(notebook["cells"], start=1))
    code = [(n, cell) for n, cell in cells if cell["cell_type"] == "code"]
    prose = [(n, cell["source"]) for n, cell in cells if cell["cell_type"] == "markdown"]
    return [*_metadata(notebook), *_execution(code), *_outputs(code), *_figures(code, prose), *_style(code),
            *_tags(cells), *_headings(prose), *_markdown(prose), *_links(prose, exists)]


def _metadata(notebook):
    metadata = notebook["metadata"]
    for name in ("kernelspec", "language_info"):
        if not metadata.get(name):
            yield f"metadata: {name} is missing"
    if "widgets" in metadata:
        yield "metadata: widget state is stored, which loads code from another host"
    seconds = metadata.get("course", {}).get("seconds")
    if seconds is None:
        yield "metadata: course.seconds is missing; run tools/execute.py"
    elif not seconds < SECONDS:
        yield f"metadata: course.seconds is {seconds}, and a notebook must take less than {SECONDS} s"
    if found := MACHINE_PATH.search(_strings(metadata)):
        yield f"metadata: path of a machine: {found[0]}"


def _execution(code):
    if not code:
        yield "there is no code cell"
    unexecuted = [str(n) for n, cell in code if cell["source"].strip() and cell["execution_count"] is None]
    if unexecuted:
        yield f"not executed, run tools/execute.py: cell {', '.join(unexecuted)}"
    for expected, (n, cell) in enumerate(code, start=1):
        if not cell["source"].strip():
            yield f"cell {n}: an empty code cell"
        elif cell["execution_count"] not in (None, expected):
            yield f"cell {n}: execution count {cell['execution_count']} instead of {expected}: not run once from top to bottom"


def _outputs(code):
    for n, cell in code:
        tags = cell["metadata"].get("tags", [])
        for output in cell["outputs"]:
            if output["output_type"] == "error" and not {"raises-exception", "nbval-raises-exception"} & set(tags):
                yield f"cell {n}: a stored error, {output['ename']}: {output['evalue']}"
            if any("widget" in kind for kind in output.get("data", {})):
                yield f"cell {n}: a widget is stored as an output"
            text = _strings([output.get("text"), output.get("traceback"),
                             {k: v for k, v in output.get("data", {}).items() if k != "image/png" and k != "image/jpeg"}])
            if found := MACHINE_PATH.search(COLOUR.sub("", text)):
                yield f"cell {n}: path of a machine in an output: {found[0]}"


def _figures(code, prose):
    alts = []
    for n, cell in code:
        figures = sum(any(kind.startswith("image/") for kind in o.get("data", {})) for o in cell["outputs"])
        # One alt text serves a whole cell, so a second figure in the cell repeats it.
        alts += [(n, cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", ""))] * figures
    for n, text in prose:
        for image in IMAGE.finditer(_without_code(text)):
            html = re.search(r"\balt=([\"'])(.*?)\1", image["html"] or "")
            alts.append((n, html[2] if html else image["alt"] or ""))
    seen = set()
    for n, alt in alts:
        if not alt.strip():
            yield f"cell {n}: a figure without alt text"
        elif alt.strip().endswith((".png", ".svg", ".jpg", ".jpeg")):
            yield f"cell {n}: the alt text is a file name, {alt!r}"
        elif len(alt.strip()) < ALT_LENGTH:
            yield f"cell {n}: the alt text says too little, {alt!r}"
        elif alt in seen:
            yield f"cell {n}: the alt text of another figure, {alt!r}"
        seen.add(alt)


def _style(code):
    lengths = []
    for n, cell in code:
        lines = [line for line in cell["source"].splitlines() if line.strip() and not line.lstrip().startswith("#")]
        lengths.append(len(lines))
        if len(lines) > LINES and "remove-input" not in cell["metadata"].get("tags", []):      # prose, mostly
            yield f"cell {n}: {len(lines)} lines of code, more than {LINES}: longer code belongs in course_lib"
    if len(lengths) >= 5 and statistics.median(lengths) > MEDIAN_LINES:
        yield f"the median cell has {statistics.median(lengths):g} lines of code, more than {MEDIAN_LINES}"


def _tags(cells):
    for n, cell in cells:
        tags = set(cell["metadata"].get("tags", []))
        for tag in sorted(tags - TAGS):
            yield f"cell {n}: unknown tag {tag!r}"
        if cell["cell_type"] != "code":
            continue
        if "answer" in tags and not _holds_dots(cell["source"]):
            yield f"cell {n}: an answer cell must hold `...` for the reader to replace"
        if "solution" in tags and not ("hide-input" in tags and cell["metadata"].get("jupyter", {}).get("source_hidden")):
            yield f"cell {n}: a solution must be folded: tag hide-input and jupyter.source_hidden"


def _headings(prose):
    level = 0
    for n, text in prose:
        for line in _without_fences(text).splitlines():
            if heading := re.match(r"(#{1,6})\s+(.*)", line):
                new = len(heading[1])
                if new > level + 1:
                    yield f"cell {n}: heading level jumps from {level} to {new} at {heading[2]!r}"
                if new == 1 and level:
                    yield f"cell {n}: a second title, {heading[2]!r}"
                level = new
    if not level:
        yield "there is no title (# …)"


def _markdown(prose):
    for n, text in prose:
        if not text.strip():
            yield f"cell {n}: an empty Markdown cell"
        for what, pattern in MYST.items():
            # A directive is itself a fenced block; the rest may stand in code as an example.
            if found := pattern.search(text if what == "a directive" else _without_code(text)):
                yield f"cell {n}: MyST syntax ({what}): {found[0].strip()!r}"
        lines = ["", *_without_fences(text).splitlines(), ""]
        for above, line, below in zip(lines, lines[1:], lines[2:]):
            if "</summary>" in line and below.strip():
                yield f"cell {n}: <details> needs a blank line after its summary"
            if "</details>" in line and above.strip():
                yield f"cell {n}: <details> needs a blank line before its end"
        if text.count("<details") != text.count("</details>"):
            yield f"cell {n}: <details> is not closed"


def _links(prose, exists):
    for n, text in prose:
        text = _without_code(text)
        targets = [m["target"] for m in LINK.finditer(text)] + [m["target"] for m in IMAGE.finditer(text) if m["target"]]
        for target in targets:
            parts = urlsplit(target)
            if not parts.scheme and parts.path and not exists(unquote(parts.path)):
                yield f"cell {n}: a link to a file that does not exist, {target}"


def _strings(value) -> str:
    """All text inside a nested value, one string a line."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return "\n".join(_strings(v) for v in value)
    return str(value)


def _without_fences(text: str) -> str:
    """The text without its fenced code blocks."""
    return re.sub(r"^([ \t]*)(`{3,}|~{3,}).*?^\1\2[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def _without_code(text: str) -> str:
    """The text without fenced code blocks and code spans; a role keeps its span."""
    return re.sub(r"(?<![}`])(`+)(?!`).+?(?<!`)\1(?!`)", "code", _without_fences(text))


def _holds_dots(source: str) -> bool:
    try:
        return any(isinstance(node, ast.Constant) and node.value is ... for node in ast.walk(ast.parse(source)))
    except SyntaxError:
        return False


# --- the book's notebooks ---

def test_the_book_has_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_follows_the_rules(path):
    found = problems(nbformat.read(path, as_version=4), exists=lambda target: (path.parent / target).exists())
    assert not found, f"{path.name}:\n  " + "\n  ".join(found)


# --- the rules themselves: a good notebook, and each defect planted in it ---

ALT = "A line that rises from zero to one over ten steps."
PNG = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AAAA", "text/plain": "<Figure size 640x480 with 1 Axes>"}}


def _code(source, count, *, outputs=(), **metadata):
    return {"cell_type": "code", "source": source, "execution_count": count, "outputs": list(outputs), "metadata": metadata}


def _prose(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def _stream(text):
    return {"output_type": "stream", "name": "stdout", "text": text}


def good():
    """A notebook with one of everything that the rules speak of, and nothing wrong."""
    return {
        "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3"}, "language_info": {"name": "python"}, "course": {"seconds": 3.2}},
        "cells": [
            _prose("# Title\n\nSee [the glossary](glossary.md#sparsity), [here](#part) and [there](https://example.org/home/x)."
                   " Write `{x}` or `:::`, and $\\{x\\}$.\n\n```python\n# not a heading\nf'{x}'\n```"),
            _prose("## Part\n\n### Deeper\n\n## Next part"),
            _code("x = 1\nprint(x)", 1, outputs=[_stream("1\n")]),
            _code("plot(x)", 2, outputs=[PNG], mystnb={"image": {"alt": ALT}}, tags=["nbval-ignore-output"]),
            _code("1 / 0", 3, tags=["raises-exception"],
                  outputs=[{"output_type": "error", "ename": "ZeroDivisionError", "evalue": "no", "traceback": ["no"]}]),
            _code("my_answer = ...", 4, tags=["answer"]),
            _code("my_answer = 2", 5, tags=["solution", "hide-input"], jupyter={"source_hidden": True}),
            _prose("<details><summary>Solution</summary>\n\nTwo.\n\n</details>\n\n"
                   "> **Note.** A ratio such as km/h or /home is no path; neither is 3/4.\n\n"
                   "![Weights before and after pruning, as two histograms](figures/weights.png)"),
        ],
    }


FIGURE, ANSWER, SOLUTION = 3, 5, 6      # places of these cells in good()


def _set(index, key, value):
    return lambda nb: nb["cells"][index].__setitem__(key, value)


def _meta(index, **values):
    return lambda nb: nb["cells"][index]["metadata"].update(values)


def _add_prose(text):
    return lambda nb: nb["cells"].append(_prose(text))


def _add_code(source, *, outputs=(), **metadata):
    return lambda nb: nb["cells"].append(_code(source, 6, outputs=outputs, **metadata))


DEFECTS = [
    ("metadata: kernelspec is missing", lambda nb: nb["metadata"].pop("kernelspec")),
    ("metadata: language_info is missing", lambda nb: nb["metadata"].pop("language_info")),
    ("course.seconds is missing", lambda nb: nb["metadata"].pop("course")),
    ("course.seconds is 120", lambda nb: nb["metadata"].update(course={"seconds": 120})),
    ("course.seconds is nan", lambda nb: nb["metadata"].update(course={"seconds": float("nan")})),
    ("widget state is stored", lambda nb: nb["metadata"].update(widgets={})),
    ("metadata: path of a machine: /home/ada/course", lambda nb: nb["metadata"].update(vscode={"cwd": "/home/ada/course"})),
    ("there is no code cell", lambda nb: nb.update(cells=nb["cells"][:2])),
    ("not executed, run tools/execute.py: cell 3", _set(2, "execution_count", None)),
    ("cell 3: execution count 7 instead of 1", _set(2, "execution_count", 7)),
    ("cell 4: execution count 1 instead of 2", _set(3, "execution_count", 1)),
    ("cell 9: an empty code cell", _add_code("  \n")),
    ("cell 5: a stored error, ZeroDivisionError: no", _meta(4, tags=[])),
    ("cell 9: a widget is stored", _add_code("bar", outputs=[
        {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}}])),
    *[(f"cell 9: path of a machine in an output: {path}", _add_code("print(p)", outputs=[_stream(f"saved to {path}\n")]))
      for path in ("/home/ada/x.pt", "/root/x", "/tmp/abc/model.onnx", "/work/course/book", "/Users/ada/x", "/var/folders/x",
                   r"C:\Users\ada\x", "~/.cache/course_lib", "/opt/venv/lib/python3.11/site-packages/torch")],
    ("cell 9: path of a machine in an output: /tmp/ipykernel_1/2.py", _add_code("warn()", outputs=[
        {"output_type": "stream", "name": "stderr", "text": "/tmp/ipykernel_1/2.py:1: UserWarning: careful\n"}])),
    ("cell 9: path of a machine in an output: /work/a.py", _add_code("raise E", tags=["raises-exception"], outputs=[
        {"output_type": "error", "ename": "E", "evalue": "no", "traceback": ["\x1b[32m/work/a.py:3\x1b[39m, in f"]}])),
    ("cell 9: path of a machine in an output: /tmp/x", _add_code("frame", outputs=[
        {"output_type": "execute_result", "execution_count": 6, "metadata": {}, "data": {"text/html": "<td>/tmp/x</td>"}}])),
    ("cell 4: a figure without alt text", lambda nb: nb["cells"][FIGURE]["metadata"].pop("mystnb")),
    ("cell 4: a figure without alt text", _meta(FIGURE, mystnb={"image": {"alt": "  "}})),
    ("cell 4: the alt text says too little, 'a plot'", _meta(FIGURE, mystnb={"image": {"alt": "a plot"}})),
    ("cell 4: the alt text is a file name", _meta(FIGURE, mystnb={"image": {"alt": "../_images/0123456789abcdef0123456789abcdef.png"}})),
    ("cell 4: the alt text of another figure", _set(FIGURE, "outputs", [PNG, PNG])),
    ("cell 9: the alt text of another figure", _add_code("plot(y)", outputs=[PNG], mystnb={"image": {"alt": ALT}})),
    ("cell 9: a figure without alt text", _add_code("draw()", outputs=[
        {"output_type": "display_data", "metadata": {}, "data": {"image/svg+xml": "<svg/>"}}])),
    ("cell 9: a figure without alt text", _add_prose("![](figures/a.png)")),
    ("cell 9: a figure without alt text", _add_prose('<img src="figures/a.png" width="300">')),
    ("cell 9: 16 lines of code", _add_code("\n".join(["x = 1"] * 16))),
    ("the median cell has 7 lines", lambda nb: [c.update(source="\n".join(["..."] * 7)) for c in nb["cells"] if c["cell_type"] == "code"]),
    ("cell 4: unknown tag 'nbval-ignore-ouput'", _meta(FIGURE, tags=["nbval-ignore-ouput"])),
    ("cell 3: unknown tag 'nbval-skip'", _meta(2, tags=["nbval-skip"])),
    ("cell 6: an answer cell must hold `...`", _set(ANSWER, "source", "my_answer = 2")),
    ("cell 6: an answer cell must hold `...`", _set(ANSWER, "source", "my_answer = 2    # instead of ...")),
    ("cell 7: a solution must be folded", _meta(SOLUTION, tags=["solution"])),
    ("cell 7: a solution must be folded", lambda nb: nb["cells"][SOLUTION]["metadata"].pop("jupyter")),
    ("cell 9: heading level jumps from 2 to 4 at 'Far'", _add_prose("#### Far")),
    ("cell 1: heading level jumps from 0 to 2", _set(0, "source", "## No title")),
    ("cell 9: a second title, 'Again'", _add_prose("# Again")),
    ("cell 9: an empty Markdown cell", _add_prose("\n")),
    ("there is no title", lambda nb: [c.update(source="text") for c in nb["cells"] if c["cell_type"] == "markdown"]),
    ("cell 9: MyST syntax (a directive): '```{note}'", _add_prose("```{note}\nHear.\n```")),
    ("cell 9: MyST syntax (a directive): '````{exercise} one'", _add_prose("````{exercise} one\nDo.\n````")),
    ("cell 9: MyST syntax (a directive): ':::{tip}'", _add_prose(":::{tip}\nHear.\n:::")),
    ("cell 9: MyST syntax (a directive): '> ```{note}'", _add_prose("> ```{note}\n> Hear.\n> ```")),
    ("cell 9: MyST syntax (a role): '{cite:p}`han2015`'", _add_prose("As {cite:p}`han2015` says.")),
    ("cell 9: MyST syntax (a role): '{ref}`part`'", _add_prose("With `code` before {ref}`part`.")),
    ("cell 9: MyST syntax (a target): '(eq-threshold)='", _add_prose("(eq-threshold)=\n## Threshold")),
    ("cell 9: MyST syntax (a substitution)", _add_prose("It has {{ n }} weights.")),
    ("cell 9: <details> needs a blank line after its summary",
     _add_prose("<details>\n<summary>Hint</summary>\nTwo.\n\n</details>")),
    ("cell 9: <details> needs a blank line before its end",
     _add_prose("<details><summary>Hint</summary>\n\nTwo.\n</details>")),
    ("cell 9: <details> is not closed", _add_prose("<details><summary>Hint</summary>\n\nTwo.")),
    ("cell 9: a link to a file that does not exist, missing.md#part", _add_prose("See [this](missing.md#part).")),
    ("cell 9: a link to a file that does not exist, missing.md", _add_prose("See [`code` and more](missing.md).")),
    ("cell 9: a link to a file that does not exist, missing.png",
     _add_prose("![A picture that shows nothing, since it is missing](missing.png)")),
]


def _exists(target):
    return "missing" not in target


def test_a_good_notebook_has_no_problems():
    assert problems(good(), exists=_exists) == []


@pytest.mark.parametrize("message, plant", DEFECTS, ids=[message for message, _ in DEFECTS])
def test_a_planted_defect_is_named(message, plant):
    notebook = copy.deepcopy(good())
    plant(notebook)
    assert any(message in problem for problem in problems(notebook, exists=_exists)), problems(notebook, exists=_exists)


# --- nbval, as it is configured here, compares ---

def test_nbval_refuses_falsified_outputs(tmp_path):
    source = "print('sparsity 0.90 at', object())"
    stored = ["sparsity 0.90 at <object object at 0x7f0123456789>\n",      # another address: no difference
              "sparsity 0.91 at <object object at 0x7f0123456789>\n", "sparsity 0.90 at 0x7f0123456789\n"]
    cells = [_code(source, n, outputs=[_stream(text)]) for n, text in enumerate(stored, start=1)]
    notebook = {**good(), "nbformat_minor": 4, "cells": cells}              # 4: no cell ids needed
    (tmp_path / "tiny.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider", "-p", "no:xdist",
               "-c", str(ROOT / "pyproject.toml"), str(tmp_path / "tiny.ipynb")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1, result.stdout
    assert "1 passed" in result.stdout and "2 failed" in result.stdout
    assert [f"Cell {n} {word}" in result.stdout for n, word in enumerate(("PASSED", "FAILED", "FAILED"))] == [True] * 3
