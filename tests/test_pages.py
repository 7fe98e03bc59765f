"""Every page of the built book: its links and what it loads, and how it does in a browser.

The pages are named by _toc.yml. Each is opened in four settings (wide or phone, light or dark) of one
browser; the tests then judge what was seen.
"""
import dataclasses
import functools
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [f"{name}.html" for name in
         [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]), "search"]]

PHONE = 375
SETTINGS = [(1280, "light"), (1280, "dark"), (PHONE, "light"), (PHONE, "dark")]
AXE_SETTINGS = [(1280, "light"), (PHONE, "dark")]      # both widths and both schemes; axe is slow
AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False}     # it would ask for style sheets again

# The theme's own findings, by rule and element: the book's title at the top of the sidebar stands
# outside every landmark.
KNOWN_TO_AXE = {("region", ".sidebar-primary-items__start > .sidebar-primary-item:nth-child(1)")}

# Attributes whose address the browser loads by itself, and link relations that only name a page.
LOADING = ("src", "srcset", "poster", "data", "background")
NAMING_RELATIONS = {"author", "canonical", "help", "index", "license", "next", "prev", "search"}
CSS_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
# What a reader sees when a directive, a role, a formula or a table was not understood.
RAW_MARKUP = re.compile(r"\{[a-z][\w:-]*\}`|\{(?:bibliography|eval-rst|cite)\}|:::|```|\$\$|\\begin\{|\|\s*[:—-]+:?\s*\|")


def is_external(address: str) -> bool:
    return bool(re.match(r"(https?:)?//", address.strip(), re.IGNORECASE))


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def loads_from_elsewhere(page: BeautifulSoup) -> list[str]:
    """List the addresses on other hosts that a browser would load with the page."""
    found = []
    for tag in page.find_all(True):
        addresses = [part for name in LOADING for part in re.split(r",\s+", tag.get(name, ""))]
        if tag.name == "link" and not set(tag.get("rel", [])) & NAMING_RELATIONS:
            addresses.append(tag.get("href", ""))
        if tag.name in ("use", "image"):                    # inside SVG
            addresses += [tag.get("href", ""), tag.get("xlink:href", "")]
        found += filter(is_external, addresses)
        found += CSS_ADDRESS.findall(tag.get("style", "") + (tag.get_text() if tag.name == "style" else ""))
    return found


# --- the files ---

def test_the_book_has_exactly_the_pages_of_its_table_of_contents(site):
    built = {p.relative_to(site).as_posix() for p in site.rglob("*.html") if "_static" not in p.parts}
    assert built - {"index.html"} == set(PAGES)             # index.html only leads to the first page
    assert PAGES[0] in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("html", [
    '<img src="https://a.example/x.png">', '<script src="//a.example/x.js"></script>',
    '<link rel="stylesheet" href="http://a.example/x.css">', '<p style="background: url(https://a.example/x)">',
    '<style>@import "https://a.example/x.css";</style>', '<img srcset="x.png 1x, https://a.example/x.png 2x">',
    '<svg><use xlink:href="https://a.example/x.svg#a"></use></svg>'])
def test_the_search_for_foreign_addresses_finds_each_kind(html):
    assert loads_from_elsewhere(BeautifulSoup(html, "html.parser"))


def test_a_plain_link_to_another_site_is_allowed():
    html = '<a href="https://a.example">a</a><link rel="canonical" href="https://a.example">'
    assert not loads_from_elsewhere(BeautifulSoup(html, "html.parser"))


@pytest.mark.parametrize("name", PAGES)
def test_page_names_no_other_host_to_load_from(site, name):
    assert loads_from_elsewhere(parsed(site / name)) == []


def test_style_sheets_name_no_other_host(site):
    sheets = list(site.rglob("*.css"))
    found = {s.name: CSS_ADDRESS.findall(s.read_text(encoding="utf-8", errors="replace")) for s in sheets}
    assert sheets and not {sheet: addresses for sheet, addresses in found.items() if addresses}


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_book_lead_somewhere(site, name):
    dead = []
    for tag in parsed(site / name).find_all("a", href=True):
        address, anchor = urldefrag(tag["href"])
        if urlsplit(address).scheme or is_external(address) or tag["href"] == "#":
            continue
        target = (site / name).parent / unquote(address.split("?")[0]) if address else site / name
        if not target.is_file():
            dead.append(tag["href"])
        elif anchor and target.suffix == ".html" and not parsed(target.resolve()).find(id=unquote(anchor)):
            dead.append(tag["href"])
    assert dead == []


@pytest.mark.parametrize("name", PAGES)
def test_page_has_a_title_a_language_and_described_images(site, name):
    page = parsed(site / name)
    assert page.title.get_text().strip()
    assert page.html["lang"] == "en"
    for image in page.find_all("img"):
        alt = image.get("alt", "").strip()
        assert alt and not re.search(r"\.(png|jpe?g|svg|gif)$", alt), f"no description: {image.get('src')}"


@pytest.mark.parametrize("name", [p for p in PAGES if (ROOT / p).with_suffix(".ipynb").is_file()])
def test_the_notebook_of_a_page_can_be_downloaded(site, name):
    link = parsed(site / name).find("a", href=re.compile(r"_sources/.*\.ipynb$"))
    assert link and (site / name).parent.joinpath(link["href"]).is_file()


# --- the browser ---

@dataclasses.dataclass
class Visit:
    """What one page did in one setting."""
    requests: list[str]
    errors: list[str]
    width: int
    scheme: str
    text: str
    formulas: int
    broken_formulas: int
    findings: list[tuple[str, str, str]]


# The text that a reader sees as prose: without code, formulas and what the theme adds.
PROSE = """() => {
    const copy = document.querySelector("main").cloneNode(true);
    copy.querySelectorAll("pre, code, script, style, mjx-container").forEach(e => e.remove());
    return copy.textContent; }"""


def visit(tab, address: str, *, wait_for_late_requests: bool, accessibility: bool) -> Visit:
    """Open `address`, wait until the formulas are drawn, and look."""
    from axe_playwright_python.sync_playwright import Axe
    requests, errors = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: message.type == "error" and errors.append(message.text))
    tab.on("response", lambda response: response.status >= 400 and errors.append(f"{response.status}: {response.url}"))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(address, wait_until="load")
    tab.evaluate("window.MathJax && MathJax.startup && MathJax.startup.promise.then(() => true)")
    if wait_for_late_requests:
        tab.wait_for_load_state("networkidle")
    count = lambda selector: tab.locator(selector).count()  # noqa: E731
    return Visit(
        requests, errors, tab.evaluate("document.scrollingElement.scrollWidth"),
        tab.evaluate("document.documentElement.dataset.theme"), tab.evaluate(PROSE),
        count("mjx-container"), count("mjx-merror, [data-mjx-error]"),
        [(violation["id"], node["target"][-1], node["html"][:200])
         for violation in (Axe().run(tab, options=AXE_OPTIONS).response["violations"] if accessibility else [])
         for node in violation["nodes"]])


@pytest.fixture(scope="module")
def contexts(browser):
    opened = {setting: browser.new_context(viewport={"width": setting[0], "height": 800}, color_scheme=setting[1])
              for setting in SETTINGS}
    yield opened
    for context in opened.values():
        context.close()


@pytest.fixture(scope="module", params=PAGES)
def visits(request, contexts, site_url) -> dict[tuple[int, str], Visit]:
    """One page in every setting."""
    seen = {}
    for setting, context in contexts.items():
        tab = context.new_page()
        seen[setting] = visit(tab, f"{site_url}/{request.param}", accessibility=setting in AXE_SETTINGS,
                              wait_for_late_requests=setting == SETTINGS[0])      # once: it takes half a second
        tab.close()
    return seen


def test_no_request_leaves_the_reader_s_machine(visits, site_url):
    asked = {address for seen in visits.values() for address in seen.requests}
    assert asked
    assert not {a for a in asked if not a.startswith((f"{site_url}/", "data:", "blob:"))}


def test_page_reports_no_error(visits):
    assert not {setting: seen.errors for setting, seen in visits.items() if seen.errors}


def test_page_fits_a_phone(visits):
    for (width, scheme), seen in visits.items():
        assert seen.width <= width, f"the page is {seen.width} pixels wide on a screen of {width}"


def test_page_follows_the_light_or_dark_setting(visits):
    assert {setting: seen.scheme for setting, seen in visits.items()} == {s: s[1] for s in SETTINGS}


def test_page_is_accessible_but_for_the_theme_s_known_findings(visits):
    found = {finding for seen in visits.values() for finding in seen.findings}
    assert not {f for f in found if f[:2] not in KNOWN_TO_AXE}


def test_no_markup_is_left_raw(visits):
    seen = visits[SETTINGS[0]]
    assert [line for line in seen.text.splitlines() if RAW_MARKUP.search(line)] == []


def test_formulas_are_drawn(visits, request, site):
    name = request.node.callspec.params["visits"]
    marked = parsed(site / name).select(".math")
    for seen in visits.values():
        assert seen.formulas >= len(marked)
        assert seen.broken_formulas == 0
    source = (ROOT / name).with_suffix(".md")
    if source.is_file() and re.search(r"\$[^$\s][^$]*\$", source.read_text(encoding="utf-8")):
        assert marked, "the page's source has formulas and the page has none"


def test_the_search_finds_a_word(browser, site_url):
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"{site_url}/{PAGES[0]}")
    tab.keyboard.press("Control+k")
    tab.keyboard.type("sparsity")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=sparsity*")
    tab.wait_for_selector("#search-results li a")
    assert any("glossary.html" in link for link in
               tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)"))
    assert not [a for a in asked if not a.startswith((f"{site_url}/", "data:", "blob:"))]
    tab.close()
