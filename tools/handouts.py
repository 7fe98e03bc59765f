"""Make the handouts: two pages for each notebook and a poster, from handouts/*.typ and the stored results.

    python tools/handouts.py [NAME ...] [--paper us-letter] [--png]

1. Figures, tables and texts are taken out of the executed notebooks: one file of results, a folder of pictures.
2. Typst sets each handout. A figure, row or number that a handout asks for and the notebooks do not hold stops
   the build, as does a handout that is longer or shorter than its pages.
The PDFs are tagged, with alternative texts, by the standard PDF/UA-1. They land in _build/handouts.
"""
import argparse
import base64
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import typst
from bs4 import BeautifulSoup
from checkout import ROOT, write_atomically

from course_lib import syllabus

PAPERS = ("a4", "us-letter")
SOURCES = ROOT / "handouts"
PARTS = {"layout"}          # of a handout; none by itself


def table(html: str) -> dict | None:
    """The columns' names and the rows of the first HTML table, all as text; None if there is none."""
    found = BeautifulSoup(html, "html.parser").find("table")
    if found is None:
        return None
    for line_break in found.find_all("br"):
        line_break.replace_with("\n")
    grid, heads = [], len(found.thead.find_all("tr")) if found.thead else 0
    spans = {}                                              # column: (rows still to fill, text)
    for line in found.find_all("tr"):
        cells, row = iter(line.find_all(["th", "td"])), []
        while len(row) in spans or (cell := next(cells, None)) is not None:
            if len(row) in spans:                           # a cell that reaches down from above
                left, text = spans.pop(len(row))
                if left > 1:
                    spans[len(row)] = (left - 1, text)
                row.append(text)
                continue
            text = cell.get_text().strip()
            if (down := int(cell.get("rowspan", 1))) > 1:
                spans[len(row)] = (down - 1, text)
            row += [text] * int(cell.get("colspan", 1))
        grid.append(row)
    columns = [" ".join(dict.fromkeys(filter(None, names))).replace("\n", " ") for names in zip(*grid[:heads])]
    body = found.tbody and found.tbody.find("tr")
    return {"columns": columns, "rows": grid[heads:], "index": len(body.find_all("th")) if body else 0}


def stored(notebook, name: str, pictures: Path) -> dict:
    """What a notebook's outputs hold: its figures (written to `pictures`), tables and texts."""
    figures, tables, texts = [], [], []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
            if "image/png" in data:
                picture = pictures / f"{name}-{len(figures)}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")        # a handout that uses one without is refused
                figures.append({"alt": alt, "file": picture.name})
            if content := table(data.get("text/html", "")):
                tables.append({"source": cell.source, **content})
    return {"figures": figures, "tables": tables, "texts": texts}


def collect(folder: Path, root: Path = ROOT) -> None:
    """Write results.json and the pictures of all chapters to `folder`."""
    results = {}
    for chapter in syllabus.chapters(root / "book"):
        notebook = nbformat.read(root / "book" / f"{chapter.name}.ipynb", as_version=4)
        results[chapter.name] = {"title": chapter.title, "question": chapter.question, "seconds": chapter.seconds,
                                 **stored(notebook, chapter.name, folder)}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def make(names: list[str], target: Path, *, paper: str = "a4", png: bool = False) -> dict[str, str]:
    """Make the named handouts in the folder `target`; returns what went wrong, by name. A PDF appears whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    failures = {}
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(SOURCES, scratch, dirs_exist_ok=True)       # Typst reads below one folder only
        collect(Path(scratch))
        for name in names:
            inputs = {"paper": paper, "name": name}
            try:
                pdf = typst.compile(Path(scratch, f"{name}.typ"), sys_inputs=inputs, pdf_standards=["ua-1"])
                pages = typst.compile(Path(scratch, f"{name}.typ"), sys_inputs=inputs, format="png", ppi=100) if png else []
            except typst.TypstError as error:
                failures[name] = error.diagnostic or error.message
                continue
            write_atomically(target / f"{name}.pdf", pdf)
            for number, page in enumerate([pages] if isinstance(pages, bytes) else pages, start=1):
                write_atomically(target / f"{name}-{number}.png", page)
    return failures


def main(arguments: list[str] | None = None) -> int:
    every = sorted(path.stem for path in SOURCES.glob("*.typ") if path.stem not in PARTS)
    parser = argparse.ArgumentParser(description="Make the handouts and the poster.")
    parser.add_argument("name", nargs="*", help=f"default: all; one of {', '.join(every)}")
    parser.add_argument("--paper", choices=PAPERS, default="a4")
    parser.add_argument("--png", action="store_true", help="also an image of every page, to look at")
    parser.add_argument("--to", type=Path, default=ROOT / "_build" / "handouts", metavar="FOLDER")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.name) - set(every)):
        parser.error(f"no handout {', '.join(unknown)}; there are {', '.join(every)}")
    names = options.name or every
    failures = make(names, options.to, paper=options.paper, png=options.png)
    for name, why in failures.items():
        print(f"{name}: not made: {why}", file=sys.stderr)
    print(f"handouts: {len(names) - len(failures)} of {len(names)} in {options.to}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
