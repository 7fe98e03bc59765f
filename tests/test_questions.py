"""The questions at the end of each chapter: what they must be like, and how they behave in the built page."""
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).resolve().parent.parent / "book"
CHAPTERS = sorted(p.stem for p in BOOK.glob("0*.ipynb"))
ANSWER = re.compile(r"<details>\n<summary>(?P<letter>[A-E])\. (?P<choice>[^\n]+)</summary>\n\n"
                    r"\*\*(?P<verdict>Right|No)\.\*\* (?P<why>.+?)\n\n</details>", re.DOTALL)


def sources(name):
    notebook = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
    return [c.source for c in notebook.cells if "question" in c.metadata.get("tags", [])]


def answers(source):
    return list(ANSWER.finditer(source))


def problems(cells: list[str]) -> list[str]:
    """What is wrong with a chapter's cells of questions, the first of which is the heading."""
    found = []
    if not cells or not cells[0].startswith("## Questions\n"):
        return ["the first cell must be the heading, ## Questions"]
    if len(cells) < 6:
        found.append(f"{len(cells) - 1} questions, fewer than five")
    for number, source in enumerate(cells[1:], start=1):
        choices = answers(source)
        if not source.startswith(f"**Question {number}.** "):
            found.append(f"question {number}: does not begin with its number")
        if source.count("<details") != len(choices):
            found.append(f"question {number}: an answer that is not written like the others")
        if "".join(c["letter"] for c in choices) not in ("ABC", "ABCD", "ABCDE"):
            found.append(f"question {number}: the letters are not A, B, C in order")
        if [c["verdict"] for c in choices].count("Right") != 1:
            found.append(f"question {number}: not exactly one answer is right")
        whys = [c["why"] for c in choices]
        if any(len(why) < 40 for why in whys) or len(set(whys)) < len(whys):
            found.append(f"question {number}: a choice without an explanation of its own")
        if len({c["choice"] for c in choices}) < len(choices):
            found.append(f"question {number}: two choices are the same")
    return found


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_chapter_ends_with_questions_and_every_choice_says_why(name):
    assert problems(sources(name)) == []


def _good(number):
    choices = "\n\n".join(f"<details>\n<summary>{letter}. Choice {letter}.</summary>\n\n**{verdict}.** "
                          f"It is so, for reason {letter}, which is given here at length.\n\n</details>"
                          for letter, verdict in zip("ABC", ("No", "Right", "No")))
    return f"**Question {number}.** Why?\n\n{choices}"


GOOD = ["## Questions\n\nOpen an answer.", *(_good(n) for n in range(1, 6))]
DEFECTS = [
    ("the first cell must be the heading", lambda c: c[1:]),
    ("4 questions, fewer than five", lambda c: c[:-1]),
    ("question 2: does not begin", lambda c: [*c[:2], c[2].replace("2", "3"), *c[3:]]),
    ("question 1: an answer that is not written", lambda c: [c[0], c[1].replace("**No.** It", "It", 1), *c[2:]]),
    ("question 1: the letters", lambda c: [c[0], c[1].replace("B. ", "D. "), *c[2:]]),
    ("question 1: not exactly one", lambda c: [c[0], c[1].replace("**No.**", "**Right.**", 1), *c[2:]]),
    ("question 1: not exactly one", lambda c: [c[0], c[1].replace("**Right.**", "**No.**"), *c[2:]]),
    ("question 1: a choice without", lambda c: [c[0], re.sub(r"reason [AB]", "the reason", c[1]), *c[2:]]),
    ("question 1: a choice without", lambda c: [c[0], c[1].replace(" It is so, for reason C, which is given here at length.", " No."), *c[2:]]),
    ("question 1: two choices", lambda c: [c[0], c[1].replace("Choice B", "Choice A"), *c[2:]]),
]


@pytest.mark.parametrize("message, plant", DEFECTS)
def test_a_planted_defect_of_a_question_is_named(message, plant):
    assert problems(GOOD) == []
    assert any(message in problem for problem in problems(plant(list(GOOD))))


def test_neither_the_letter_nor_the_length_gives_the_right_answer_away():
    every = [answers(source) for name in CHAPTERS for source in sources(name)[1:]]
    right = Counter(next(c["letter"] for c in choices if c["verdict"] == "Right") for choices in every)
    assert max(right.values()) < 0.45 * len(every) and min(right[letter] for letter in "ABC") > 0.2 * len(every), right
    longest = sum(max(choices, key=lambda c: len(c["choice"]))["verdict"] == "Right" for choices in every)
    assert longest < 0.5 * len(every), f"in {longest} of {len(every)} questions the longest choice is right"


@pytest.fixture
def page(browser, site_url):
    tab = browser.new_page()
    tab.goto(f"{site_url}/book/02_pruning_threshold.html")
    yield tab
    tab.close()


def test_questions_answer_to_the_keyboard_and_keep_the_score(page):
    from playwright.sync_api import expect
    score, details = page.locator("#questions [role=status]"), page.locator("#questions details")
    verdicts = [text.split(".")[0].strip() for text in details.locator("strong").all_text_contents()]
    right, wrong = verdicts.index("Right"), verdicts.index("No")
    assert right < 3 and wrong < 3                          # both of the first question

    def press(number, key):
        details.nth(number).locator("summary").focus()
        page.keyboard.press(key)
        expect(details.nth(number).locator("p").first).to_be_visible()

    first = details.first.locator("summary").get_attribute("aria-describedby")
    assert page.locator(f"#{first}").inner_text().startswith("Question 1.")
    press(wrong, "Enter")
    expect(score).to_have_text("No. Right at the first try: 0 of 1 tried, 5 in all.")
    press(right, "Space")
    expect(details.nth(right)).to_have_class("right-answer")
    expect(score).to_have_text("Right. Right at the first try: 0 of 1 tried, 5 in all.")       # a second try does not count
    page.evaluate("[...document.querySelectorAll('#questions details')].at(-1).open = true")       # unfolded by a search in the page: no try
    press(3 + verdicts[3:].index("Right"), "Enter")
    expect(score).to_have_text("Right. Right at the first try: 1 of 2 tried, 5 in all.")


def test_questions_work_without_script(browser, site_url):
    from playwright.sync_api import expect
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{site_url}/book/02_pruning_threshold.html")
    first = tab.locator("#questions details").first
    assert not first.locator("p").first.is_visible()
    first.locator("summary").press("Enter")
    expect(first.locator("p").first).to_be_visible()
    context.close()
