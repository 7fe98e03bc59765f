"""The handouts and the poster: each is made from stored results, has its pages, is tagged, and nothing in it was typed that was measured."""
import importlib
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
import typst

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "handouts"
CHAPTERS = sorted(p.stem for p in (ROOT / "book").glob("0*.ipynb"))


def load():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("handouts")
    finally:
        sys.path.remove(str(ROOT / "tools"))


handouts = load()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All of them on both papers, with what went wrong."""
    folder = tmp_path_factory.mktemp("handouts")
    return folder, {paper: handouts.make([*CHAPTERS, "poster"], folder / paper, paper=paper) for paper in handouts.PAPERS}


def test_every_chapter_has_a_handout_and_there_is_a_poster():
    assert sorted(p.stem for p in SOURCES.glob("*.typ")) == sorted([*CHAPTERS, "layout", "poster"])


@pytest.mark.parametrize("paper", handouts.PAPERS)
def test_all_are_made(made, paper):
    """Each source checks its own number of pages: two for a handout, one for the poster."""
    folder, failures = made
    assert failures[paper] == {}
    assert sorted(p.stem for p in (folder / paper).iterdir()) == sorted([*CHAPTERS, "poster"])


@pytest.mark.parametrize("name", [*CHAPTERS, "poster"])
def test_the_pdf_is_tagged_and_says_that_it_keeps_to_the_standard(made, name):
    pdf = (made[0] / "a4" / f"{name}.pdf").read_bytes()
    assert b"<pdfuaid:part>1</pdfuaid:part>" in pdf and b"/StructTreeRoot" in pdf and b"/Lang" in pdf


@pytest.mark.parametrize("paper, box", [("a4", b"595.2756 841.8898"), ("us-letter", b"612 792")])
def test_the_paper_is_what_was_asked_for(made, paper, box):
    assert b"/MediaBox[0 0 " + box + b"]" in (made[0] / paper / "01_one_ruler.pdf").read_bytes()


def test_two_builds_are_the_same(made, tmp_path):
    assert handouts.make(["01_one_ruler"], tmp_path) == {}
    assert (tmp_path / "01_one_ruler.pdf").read_bytes() == (made[0] / "a4" / "01_one_ruler.pdf").read_bytes()


FETCHED = re.compile(r'#?(found|stored-table|picture|formula)\((?:[^()"]|"(?:\\.|[^"\\])*"|\((?:[^()"]|"(?:\\.|[^"\\])*"|\([^()]*\))*\))*\)')


def part(source: str, name: str) -> str:
    """The text of `#name[…]` in a source, without the calls that fetch stored results."""
    source = FETCHED.sub("…", source)                       # first: their patterns hold brackets, too
    begin = source.index(f"#{name}[")
    depth, end = 0, begin
    for end in range(begin, len(source)):
        depth += {"[": 1, "]": -1}.get(source[end], 0) if source[end - 1] != "\\" else 0
        if depth == 0 and source[end] == "]":
            break
    text = source[begin:end + 1]
    assert not re.search(r"\n#(idea|exercise|measured|answer|in-short)\[", text), "a bracket in a text hides where the part ends"
    return text


UNITS = "%|per ?cent|points?|times|[µm]?s|bytes|[kM]i?B|[µm]?J"
TYPED = re.compile(rf"\d+[.,]\d+|\d+(?= ?(?:{UNITS})(?![\w]))(?! ?% intervals?)")


@pytest.mark.parametrize("text, typed", [
    ("saved 37 points, 1234 µs and 56 bytes", 3), ("12 percent, 97 per cent, 1,5 of it", 3), ("0.5, 3 times, 20 %", 3),
    ("with 95 % intervals, 8 bits, batch 64, in 4 parts", 0)])
def test_a_typed_result_is_seen(text, typed):
    assert len(TYPED.findall(text)) == typed


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_result_is_typed(name):
    source = (SOURCES / f"{name}.typ").read_text(encoding="utf-8")
    for section in ("measured", "in-short"):
        typed = TYPED.findall(part(source, section))
        assert typed == [], f"{section}: {typed}"
    assert "found(" in source or "stored-table(" in source
    assert all(f"#{word}[" in source for word in ("idea", "exercise", "answer")) and "#picture(" in source and "#formula(" in source


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_exercises_answer_is_computed(name):
    """A number with a decimal point stands in the answer only as the result of code."""
    text = part((SOURCES / f"{name}.typ").read_text(encoding="utf-8"), "answer")
    assert re.findall(r"(?<![\w.#])\d+\.\d+(?![\w.]*\))", re.sub(r"#\([^)]*\)+|#let [^\n]*|#calc\.\w+\([^\n]*?\)", "", text)) == []


# --- what is missing stops the build ---

@pytest.fixture
def compile_source(tmp_path):
    """Set a source of one's own beside the layout, with made-up results."""
    shutil.copy(SOURCES / "layout.typ", tmp_path)
    cell = nbformat.v4.new_code_cell("report.compare(rows)", outputs=[
        nbformat.v4.new_output("display_data", data={"text/html": TABLE}),
        nbformat.v4.new_output("stream", text="the mask saved 0.17 of the bytes\nand again 0.17 of the bytes; a 1\na 2\n")])
    picture = nbformat.v4.new_code_cell("plot()", metadata={"mystnb": {"image": {"alt": "A line that rises."}}}, outputs=[
        nbformat.v4.new_output("display_data", data={"image/png": PIXEL})])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(HEAD), cell, picture],
                                        metadata={"course": {"seconds": 3.4}})
    (tmp_path / "book").mkdir()
    nbformat.write(notebook, tmp_path / "book" / "07_new.ipynb")
    handouts.collect(tmp_path, tmp_path)

    def run(body):
        (tmp_path / "07_new.typ").write_text(f'#import "layout.typ": *\n#show: handout\n{body}\n#pagebreak()\n', encoding="utf-8")
        return typst.compile(tmp_path / "07_new.typ", sys_inputs={"name": "07_new"}, pdf_standards=["ua-1"])
    return run


HEAD = "# A title\n\n**Is it so?**\n\n1. do it.\n\n*You need* nothing. *It takes* an hour; the machine needs less."
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TABLE = ("<table><thead><tr><th></th><th></th><th>dense</th><th>sparse</th></tr><tr><th>batch</th><th>what</th><th></th><th></th></tr></thead>"
         "<tbody><tr><th rowspan='2'>1</th><th>time</th><td>1</td><td>0.50<br>[0.4, 0.6]</td></tr><tr><th>bytes</th><td>8</td><td>4</td></tr>"
         "<tr><th>64</th><th>time</th><td>2</td><td>3</td></tr></tbody></table>")


@pytest.mark.parametrize("body", [
    '#picture("A line")', '#stored-table("compare")', '#stored-table("compare", columns: ("sparse",), rows: ("1 bytes", ("64 time", "time")))',
    '#found("saved ([0-9.]+) of")', '#found("([0-9.]+) of the bytes")', '#formula("x", $x$)'])
def test_what_is_stored_is_set(compile_source, body):
    assert compile_source(body).startswith(b"%PDF")


@pytest.mark.parametrize("body, message", [
    ('#picture("A curve")', "0 stored results instead of one"), ('#picture("A line", from: "08_no")', "no notebook 08_no"),
    ('#stored-table("report.other")', "0 stored results instead of one"), ('#stored-table("compare", columns: ("thin",))', "a column 'thin'"),
    ('#stored-table("compare", rows: ("1 joules",))', "a row '1 joules'"), ('#found("won ([0-9.]+)")', "0 stored results instead of one"),
    ('#found("a ([0-9])")', "2 stored results instead of one"), ('#pagebreak()', "has 3 pages, not 2"),
    ('$x$', "alt"), ('#image("07_new-0.png")', "alt")])
def test_what_is_missing_stops_the_build_and_is_named(compile_source, body, message):
    with pytest.raises(typst.TypstError) as error:
        compile_source(body)
    assert message in (error.value.diagnostic or error.value.message)


def test_a_tables_spans_and_breaks_are_read():
    assert handouts.table(TABLE) == {
        "columns": ["batch", "what", "dense", "sparse"], "index": 2,
        "rows": [["1", "time", "1", "0.50\n[0.4, 0.6]"], ["1", "bytes", "8", "4"], ["64", "time", "2", "3"]]}
    assert handouts.table("<div>none</div>") is None
    for empty in ("", "<tbody></tbody>", "<thead><tr><th>a</th></tr></thead><tbody></tbody>"):
        assert handouts.table(f"<table>{empty}</table>")["rows"] == []


def test_one_that_fails_is_named_and_the_last_one_stays(tmp_path, monkeypatch, capsys):
    shutil.copytree(SOURCES, tmp_path / "handouts")
    (tmp_path / "handouts" / "01_one_ruler.typ").write_text('#import "layout.typ": *\n#show: handout\n#picture("None such")', encoding="utf-8")
    monkeypatch.setattr(handouts, "SOURCES", tmp_path / "handouts")
    out = tmp_path / "out"
    out.mkdir()
    (out / "01_one_ruler.pdf").write_text("the last one")
    assert handouts.main(["01_one_ruler", "02_pruning_threshold", "--to", str(out)]) == 1
    said = capsys.readouterr()
    assert "01_one_ruler: not made:" in said.err and "None such" in said.err and "1 of 2" in said.out
    assert (out / "01_one_ruler.pdf").read_text() == "the last one"
    assert sorted(p.name for p in out.iterdir()) == ["01_one_ruler.pdf", "02_pruning_threshold.pdf"]


def test_an_unknown_name_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        handouts.main(["07_no"])
    assert "no handout 07_no; there are 01_one_ruler" in capsys.readouterr().err
