"""The book's settings and reference pages: the one repository address, the bibliography, the glossary."""
import csv
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from pybtex.database import parse_file

import course_lib

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CONFIG = (ROOT / "_config.yml").read_text(encoding="utf-8")
ADDRESS = "https://github.com/example/course"
SERVICES = ("mybinder.org", "colab.research.google.com", "jupyterhub.github.io", "hub.example", "github.com/example")


# --- the one repository address ---

def set_in_config(config: str, key: str, value: str) -> str:
    """Give a key of _config.yml another value; it must stand there exactly once."""
    changed, n = re.subn(rf"^  {key}: .*$", f'  {key}: "{value}"', config, flags=re.MULTILINE)
    assert n == 1, f"_config.yml has {n} lines for {key}"
    return changed


def build_tiny_book(folder: Path, **settings: str) -> dict[str, BeautifulSoup]:
    """Build a page and a notebook with the course's own settings, warnings as errors.

    Args:    folder: where; settings: keys of _config.yml with other values.
    Returns: the built pages, by name.
    """
    config = CONFIG
    for key, value in settings.items():
        config = set_in_config(config, key, value)
    (folder / "book").mkdir()
    (folder / "_config.yml").write_text(config, encoding="utf-8")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters: [{file: book/notebook}]\n")
    (folder / "book" / "intro.md").write_text("# Intro\n\nA page.\n")
    (folder / "book" / "references.bib").write_text("")
    table = nbformat.v4.new_output("execute_result", execution_count=1, data={
        "text/plain": "a table", "text/html": pd.DataFrame({"x": [1]}).to_html()})
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Notebook\n\nText."),
               nbformat.v4.new_code_cell("table", execution_count=1, outputs=[table])],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                  "language_info": {"name": "python"}})
    nbformat.write(notebook, folder / "book" / "notebook.ipynb")
    shutil.copytree(ROOT / "theme", folder / "theme", ignore=shutil.ignore_patterns("__pycache__"))
    run = subprocess.run([sys.executable, "-c", "from jupyter_book.cli.main import main; main()",
                          "build", ".", "-W", "-n", "--keep-going"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    html = folder / "_build" / "html"
    assert (html / "_sources" / "book" / "notebook.ipynb").is_file()
    return {name: BeautifulSoup((html / "book" / f"{name}.html").read_text(encoding="utf-8"), "html.parser")
            for name in ("intro", "notebook")}


def links(page: BeautifulSoup) -> list[str]:
    return [tag["href"] for tag in page.find_all("a", href=True)]


@pytest.fixture(scope="module")
def pages_with_address(tmp_path_factory):
    return build_tiny_book(tmp_path_factory.mktemp("with_address"), url=ADDRESS)


def test_without_an_address_no_page_links_to_a_repository_or_a_service(tmp_path):
    pages = build_tiny_book(tmp_path, url="")
    assert not [service for service in SERVICES for page in pages.values() if service in str(page)]
    assert "../_sources/book/notebook.ipynb" in links(pages["notebook"])


def test_no_table_in_an_output_has_an_empty_header(pages_with_address):
    table = pages_with_address["notebook"].find("table", "dataframe")
    assert [tag.get_text() for tag in table.find_all("th")] == ["x", "0"]


@pytest.mark.parametrize("expected", [
    "https://mybinder.org/v2/gh/example/course/main?urlpath=lab/tree/book/notebook.ipynb",
    "https://colab.research.google.com/github/example/course/blob/main/book/notebook.ipynb",
    "https://jupyterhub.github.io/nbgitpuller/link?repo=https%3A%2F%2Fgithub.com%2Fexample%2Fcourse&branch=main"
    "&urlpath=lab%2Ftree%2Fcourse%2Fbook%2Fnotebook.ipynb",
    "../_sources/book/notebook.ipynb",
    ADDRESS,
    f"{ADDRESS}/edit/main/book/notebook.ipynb",
])
def test_the_address_alone_makes_every_link_of_a_notebook(pages_with_address, expected):
    assert expected in links(pages_with_address["notebook"])


def test_a_page_that_is_no_notebook_gets_source_links_and_no_launch_links(pages_with_address):
    found = links(pages_with_address["intro"])
    assert ADDRESS in found and f"{ADDRESS}/edit/main/book/intro.md" in found
    assert any(link.startswith(f"{ADDRESS}/issues/new") for link in found)
    assert not [link for link in found if "mybinder" in link or "colab" in link or "nbgitpuller" in link]


def test_a_class_s_own_hub_is_linked_directly(tmp_path):
    found = links(build_tiny_book(tmp_path, url=ADDRESS, jupyterhub_url="https://hub.example")["notebook"])
    assert [link for link in found if link.startswith("https://hub.example/hub/user-redirect/git-pull?repo=")]
    assert not [link for link in found if "nbgitpuller" in link]


# --- settings ---

def test_notebooks_are_shown_with_their_stored_outputs():
    assert yaml.safe_load(CONFIG)["execute"]["execute_notebooks"] == "off"


def test_every_page_and_notebook_of_the_book_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    found = {p.relative_to(ROOT).with_suffix("").as_posix() for p in BOOK.iterdir() if p.suffix in (".md", ".ipynb")}
    assert set(listed) == found and len(listed) == len(found)


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_the_front_pages_link_every_chapter_and_nothing_that_is_missing(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    inside = [(path.parent / link).resolve() for link in links if "://" not in link]
    assert not [p for p in inside if not p.exists()]
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    parts = [part for part in parts if part["caption"].startswith("Chapter ")]
    # Every chapter has its name at its first notebook, and nowhere else.
    rows = re.findall(r"(?m)^\| ((?:\d [^|]*)?) ?\| \[[^\]]+\]\((?:book/)?(0\d_\w+)\.ipynb\) \|", path.read_text(encoding="utf-8"))
    assert [f"book/{stem}" for _, stem in rows] == [chapter["file"] for part in parts for chapter in part["chapters"]]
    named = [name for name, _ in rows if name]
    assert [f"Chapter {name[0]}: {name[2:].lower()}".strip() for name in named] == [part["caption"] for part in parts]
    assert [stem for name, stem in rows if name] == [Path(part["chapters"][0]["file"]).name for part in parts]


# --- the bibliography and the cited figures ---

@pytest.fixture(scope="module")
def entries():
    return parse_file(BOOK / "references.bib", "bibtex").entries


def headings(page: str) -> list[str]:
    return re.findall(r"^### (.+)$", (BOOK / page).read_text(encoding="utf-8"), re.M)


def test_each_entry_has_a_heading_and_each_heading_its_entry(entries):
    names = headings("references.md")
    assert sorted(name.replace(" ", "").lower() for name in names) == sorted(entries)
    text = (BOOK / "references.md").read_text(encoding="utf-8")
    for name in names:
        block = text.split(f"### {name}\n", 1)[1].split("\n#", 1)[0]
        assert f'key == "{name.replace(" ", "").lower()}"' in block


def test_each_entry_can_be_found_by_doi_arxiv_number_or_address(entries):
    without_number = {"lecun1989"}                  # these proceedings have no DOI
    for key, entry in entries.items():
        fields = entry.fields
        assert re.fullmatch(r"[a-z]+\d{4}", key) and fields["year"] == key[-4:], key
        if "doi" in fields:
            assert re.fullmatch(r"10\.\d{4,9}/\S+", fields["doi"]), key
        elif "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"]) and fields["archiveprefix"] == "arXiv", key
        else:
            assert (entry.type == "techreport" or key in without_number) and fields["url"].startswith("https://"), key


# The tables of measured energy and of devices cite repositories and pages, not papers: see test_measured_energy.py, test_devices.py.
CITING_PAPERS = [path for path in sorted((BOOK / "data").glob("*.csv")) if not path.name.startswith(("measured_", "device"))]


@pytest.mark.parametrize("path", CITING_PAPERS, ids=lambda path: path.name)
def test_each_cited_figure_names_its_source_and_how_it_was_verified(path, entries):
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    assert rows
    for row in rows:
        assert row["source_key"] in entries, row
        assert float(row["value"]) > 0 and row["unit"] and row["where_in_source"] and row["how"], row
        assert row["verified"] in ("yes", "secondary"), row


# --- the glossary and the API page ---

def test_the_glossary_is_in_alphabetical_order_under_its_letters():
    lines = re.findall(r"^(##|###) (.+)$", (BOOK / "glossary.md").read_text(encoding="utf-8"), re.M)
    terms = [name for level, name in lines if level == "###"]
    assert terms == sorted(set(terms), key=str.lower)
    letter = ""
    for level, name in lines:
        letter = name if level == "##" else letter
        assert name[0].upper() == letter


def test_the_api_page_documents_every_module():
    page = (BOOK / "api.md").read_text(encoding="utf-8")
    modules = [module.name for module in pkgutil.walk_packages(course_lib.__path__, "course_lib.")]
    assert sorted(re.findall(r"automodule:: (\S+)", page)) == sorted(modules)
    assert re.findall(r"^#+ (course_lib\S+)$", page, re.MULTILINE) == re.findall(r"automodule:: (\S+)", page)


@pytest.fixture(scope="module")
def to_rst():
    sys.path.insert(0, str(ROOT / "theme"))
    try:
        return importlib.import_module("plain_docstrings").to_rst
    finally:
        sys.path.remove(str(ROOT / "theme"))


def rendered(rst: list[str]) -> BeautifulSoup:
    from docutils.core import publish_parts
    return BeautifulSoup(publish_parts("\n".join(rst), writer_name="html5", settings_overrides={
        "report_level": 1, "halt_level": 1, "warning_stream": False})["body"], "html.parser")


def test_a_docstring_is_plain_text_with_code(to_rst):
    page = rendered(to_rst(["Keep |w| >= t of 2*n weights_ in `Row`s.", "", "    w = w * mask", "", "End."]))
    assert page.get_text().split() == "Keep |w| >= t of 2*n weights_ in Rows. w = w * mask End.".split()
    assert [tag.get_text() for tag in page.find_all("pre")] == ["w = w * mask"]
    assert page.find("span", "docutils literal").get_text() == "Row"


def test_the_fields_of_a_class_become_a_list(to_rst):
    page = rendered(to_rst(["One row.", "", "macs:   multiply-accumulates,", "        executed.", "wall, cpu: seconds.", "", "End."]))
    assert [" ".join(tag.get_text().split()) for tag in page.find_all("li")] == [
        "macs: multiply-accumulates, executed.", "wall, cpu: seconds."]
    assert page.find_all("p")[-1].get_text() == "End."


@pytest.mark.parametrize("lines", [
    ["Do it.", "", "Args:    model: any; **options: more", "         of them.", "         x, y: two.",
     "Returns: a copy.", "Raises:  ValueError if not.", "Source:  someone.", "Equals:  a library."],
    ["Do it.", "", "Args:", "    model: any; **options: more", "        of them.", "    x, y: two.", "",
     "Returns:", "    a copy.", "", "Raises:", "    ValueError if not.", "", "Source:", "    someone.", "",
     "Equals:", "    a library."]])
def test_the_sections_of_a_docstring_become_fields_in_either_layout(to_rst, lines):
    page = rendered(to_rst(lines))
    assert [tag.get_text().strip(": ") for tag in page.find_all("dt")] == ["Args", "Returns", "Raises", "Source", "Equals"]
    assert [" ".join(tag.get_text().split()) for tag in page.find_all("li")] == [
        "model: any; **options: more of them.", "x, y: two."]
