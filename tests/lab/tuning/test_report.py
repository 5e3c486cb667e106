"""The reports: what they say and in which order, that user's text is text, and how a page looks."""

import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from browser import CHROMIUM, open_browser
from optlab.lab.tuning import _html, _markdown
from optlab.lab.tuning._html import report_html
from optlab.lab.tuning._markdown import report_markdown
from optlab.lab.tuning._result import Chart, Interval, Series, Step

HOSTILE = '<img src="https://example.org/x.png" onerror="alert(1)">'
WRITTEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EMPTY = {"x": None, "meta": None, "link": None, "br": None, "img": None}


class Page(HTMLParser):
    """The text, the elements and the attributes of a page; each end closes what was begun."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style") and data.strip():
            self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


def in_order(text, *parts):
    place = 0
    for part in parts:
        assert part in text[place:], part
        place = text.index(part, place) + len(part)


def test_the_page_says_first_what_was_found_then_how_sure_and_what_it_cost(tuning):
    in_order(
        Page(report_html(tuning)).text,
        *tuning.summary,
        "0.951",
        "How sure it is",
        "The data cannot tell it from these: adamw, cosine, rate 0.01; sgd, wsd, rate 0.1.",
        "What it cost",
        "1. Initial loss",
        "7. Finals",
        "All trials",
        "What went wrong",
        "Machine and versions",
    )


def test_the_text_says_the_same_in_the_same_order(tuning):
    in_order(
        report_markdown(tuning),
        *tuning.summary,
        "**0.951**",
        "## How sure it is",
        "The data cannot tell it from these: adamw, cosine, rate 0.01; sgd, wsd, rate 0.1.",
        "## What it cost",
        "## 1. Initial loss",
        "## 7. Finals",
        "## All trials",
        "## What went wrong",
        "## Machine and versions",
    )


@pytest.mark.parametrize("report", [report_html, report_markdown])
def test_each_step_shows_its_verdict_evidence_advice_charts_and_tables(tuning, report):
    text = report(tuning)
    text = Page(text).text if report is report_html else text
    for step in tuning.steps:
        parts = [step.question, step.verdict, step.advice, *(c.title for c in step.charts)]
        parts += [
            cell for table in step.tables for cells in table.columns.values() for cell in cells
        ]
        parts += [table.note for table in step.tables]
        assert all(part in text for part in parts)
    assert "It reaches a loss of 0.41 only." in text


def test_users_text_is_never_markup_on_the_page(tuning):
    page = Page(report_html(tuning))
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count(HOSTILE) == 3
    evil = replace(
        tuning,
        task="</title><script>alert(1)</script>",
        score='"><b>',
        machine="\udcff",  # a byte of a file name that is no text
        steps=[Step(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)],
    )
    page = Page(report_html(evil))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any(tag in ("img", "b") and attrs for tag, attrs in page.elements)
    report_html(evil).encode("utf-8")


def test_users_text_is_never_markup_in_the_text(tuning):
    evil = replace(
        tuning,
        task="# a *b* _c_ [d](e) `f` $g$ ~~h~~ a_name\n## new",
        failures=["1. one", "- two", "> three"],
        machine="\udcff",
    )
    text = report_markdown(evil)
    assert text.startswith(
        "# Tuning of \\# a \\*b\\* \\_c\\_ \\[d\\](e) \\`f\\` \\$g\\$ \\~\\~h\\~\\~ a_name ## new\n"
    )
    assert "- 1\\. one\n- \\- two\n- \\> three\n" in text
    assert "<img" not in report_markdown(tuning)
    text.encode("utf-8")
    # A bar in a cell would begin another column.
    rows = [line for line in report_markdown(tuning).splitlines() if line.startswith("| activ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)


def test_tables_have_as_many_cells_in_each_row(tuning):
    width = None
    for line in report_markdown(tuning).splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert width in (None, cells)
        width = cells


def test_a_page_of_a_procedure_that_runs_says_so_and_reloads_itself(tuning):
    steps = [
        replace(step, verdict="running" if i == 3 else "waiting")
        for i, step in enumerate(tuning.steps)
    ]
    open_ = replace(tuning, finished=False, winner=None, summary=[], steps=steps)
    page = Page(report_html(open_, written=WRITTEN))
    reloads = [a for t, a in page.elements if t == "meta" and a.get("http-equiv") == "refresh"]
    assert [attrs["content"] for attrs in reloads] == ["10"]
    sentence = (
        "The procedure had not ended when this was written, 2026-01-02 03:04:05 UTC: it was at "
        "step 4 of 7, coarse search. If it was stopped since, the same call goes on from there."
    )
    assert sentence in page.text
    assert sentence in report_markdown(open_, written=WRITTEN)
    assert "has no winner yet" in page.text


def test_a_page_of_a_procedure_that_ended_does_not_reload(tuning):
    page = Page(report_html(tuning, written=WRITTEN))
    assert not any(attrs.get("http-equiv") == "refresh" for _, attrs in page.elements)
    assert "had not ended" not in page.text
    assert "Written 2026-01-02 03:04:05 UTC." in page.text


@pytest.mark.parametrize("report", [report_html, report_markdown])
def test_a_result_without_anything_has_a_report(tuning, report):
    empty = replace(tuning, steps=[], trials=[], winner=None, summary=[], failures=[], machine="")
    assert "The procedure has no winner." in report(empty)
    assert "Nothing failed on the way." in report(empty)


@pytest.mark.parametrize("report", [report_html, report_markdown])
def test_one_seed_says_nothing_about_the_spread(tuning, report):
    winner = replace(tuning.winner, score=Interval.of([0.9]), test=None, tied=[])
    text = report(replace(tuning, winner=winner))
    assert "There is one seed, so nothing is known about how much the score varies." in text
    assert "is tied with it" not in text
    assert "test split" not in text
    alone = replace(tuning, winner=replace(tuning.winner, tied=[]))
    assert "No other final candidate is tied with it." in report(alone)
    winner = replace(alone.winner, candidates=1)
    assert "It was the only candidate that ran over seeds." in report(replace(alone, winner=winner))


@pytest.mark.parametrize(("report", "module"), [(report_html, _html), (report_markdown, _markdown)])
def test_trials_that_are_left_out_are_said(tuning, report, module, monkeypatch):
    assert "are shown" not in report(tuning)
    monkeypatch.setattr(module, "MOST_TRIALS", 20)
    assert "The first 20 of 60 are shown." in report(tuning)


def test_trials_come_by_stage_and_score_and_those_without_a_score_last(tuning):
    for maximize in (True, False):
        rows = re.findall(
            r"^\| (finals|refinement|coarse search) \| \d+ \| (\S+) ",
            report_markdown(replace(tuning, maximize=maximize)),
            re.MULTILINE,
        )
        stages = [stage for stage, _ in rows]
        assert stages == ["finals"] * 20 + ["refinement"] * 20 + ["coarse search"] * 20
        for first in (0, 20, 40):
            scores = [score for _, score in rows[first : first + 20]]
            known = [float(score) for score in scores if score != "–"]
            assert known == sorted(known, reverse=maximize)
            assert all(score == "–" for score in scores[len(known) :])


def test_runs_that_were_stopped_come_after_whole_ones(tuning):
    short = replace(tuning.trials[-1], status="stopped", scores=[0.99])
    whole = replace(tuning.trials[-1], scores=[0.9])
    text = report_markdown(replace(tuning, trials=[short, whole]))
    in_order(text, "| 0.9 |", "| complete |", "| 0.99 |", "| stopped |")


def test_a_run_that_ends_early_is_said(tuning):
    assert "540 of the schedule's 600" in report_markdown(tuning)
    whole = replace(tuning, winner=replace(tuning.winner, stop=600))
    assert "| updates | 600 |" in report_markdown(whole)


def test_a_hyperparameter_may_have_the_name_of_another_column(tuning):
    trial = replace(tuning.trials[0], values={"loss": 1.0, "stage": "late", "status": 3})
    text = report_markdown(replace(tuning, trials=[trial]))
    assert "| 1 | late | 3 | complete | 300 | 0.2 |" in text


def test_results_that_were_read_from_json_have_none_for_nan(tuning):
    trial = replace(tuning.trials[0], scores=[], loss=None, values={"decay": None})
    chart = Chart("c", "x", "y", [Series("a", [1, 2], [None, 2.0])])
    step = replace(tuning.steps[0], charts=[chart])
    known = replace(tuning, trials=[trial], steps=[step])
    assert "| 1 | – |" in report_markdown(known)
    assert "y: 2" in report_html(known)


def test_few_values_of_a_chart_are_a_table_and_many_are_outlined(tuning):
    ends = {"low": [0.5, math.nan], "high": [2, math.nan]}
    few = Chart(
        "few",
        "rate",
        "loss",
        [Series("a", [0.1, 0.01], [1, 2], **ends), Series("a", [0.01, 1.0], [math.nan, 3])],
        levels={"aim": 0.5},
        marks={"best": 0.1},
        note="A note.",
    )
    many = Chart("many", "update", "loss", [Series("", range(50), [math.nan, 4, *range(48)])])
    step = replace(tuning.steps[0], charts=[few, many])
    text = report_markdown(replace(tuning, steps=[step]))
    assert (
        "| rate | a | a |\n| ---: | --- | ---: |\n"
        "| 0.01 | 2 | – |\n| 0.1 | 1 (0.5 to 2) |  |\n| 1 |  | 3 |\n\n"
        "aim at 0.5; best at rate 0.1.\n\nA note.\n"
    ) in text
    assert "| loss | 49 | 4 | 0 | 47 | 47 |" in text


def test_the_page_refers_to_nothing_outside_of_itself(tuning):
    page = Page(report_html(tuning))
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
        assert "url(" not in attrs.get("style", "")
    style = re.search(r"<style>(.*?)</style>", report_html(tuning), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = [
        a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == [_html.POLICY]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on PATH, in which pages are looked at")
    with open_browser() as browser:
        yield browser


PROBE = """
[...document.querySelectorAll("body *")].filter((element) => {
  const box = element.getBoundingClientRect();
  const inside = element.closest(".scroll, .readout");
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)
    && (!inside || inside === element);
}).map((element) => element.outerHTML.slice(0, 120))
"""
"""What lies outside of the screen although it does not scroll in a box of its own."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_overflows_on_a_phone_or_a_desk_and_no_request_leaves(
    tuning, browser, tmp_path, width, scheme
):
    path = tmp_path / "report.html"
    path.write_text(report_html(tuning), "utf-8")
    browser.open(path, width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(PROBE) == []
    assert browser.requests() == [path.as_uri()]
    assert browser.complaints() == []
    is_dark = browser.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0] < 128"
    )
    assert is_dark == (scheme == "dark")
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000  # an empty page has a tenth of it


def test_a_printed_page_is_light_and_shows_its_tables_whole(tuning, browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(tuning), "utf-8")
    browser.open(path, width=720)  # of a sheet of A4 without its margins
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    color = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.call("Emulation.setEmulatedMedia", media="")
    assert color == "rgb(255, 255, 255)"


def test_the_policy_of_the_page_keeps_the_browser_from_fetching(tuning, browser, tmp_path):
    path = tmp_path / "report.html"
    # As if a text of the user's had become markup, and named a file that is there.
    (tmp_path / "x.css").write_text("body { color: red }")
    html = report_html(tuning).replace("</body>", '<link rel="stylesheet" href="x.css"></body>')
    path.write_text(html, "utf-8")
    browser.open(path, width=1280)
    assert any("Content Security Policy" in str(entry) for entry in browser.complaints())
    assert browser.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"


def test_the_nearest_value_is_shown_and_tables_are_sorted_by_the_script(tuning, browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_html(tuning), "utf-8")
    browser.open(path, width=1280)
    shown = browser.evaluate(
        """(() => {
          const hit = document.querySelector("#step-5 .hit");
          const box = hit.getBoundingClientRect();
          hit.dispatchEvent(new PointerEvent("pointermove", {
            bubbles: true, clientX: box.x + box.width / 2 + 1, clientY: box.y + box.height / 2 }));
          return document.querySelector(".readout").textContent;
        })()"""
    )
    first = tuning.trials[0]
    assert f"validation accuracy: {first.score:.4g}" in shown
    assert f"trial {first.number}" in shown
    column = """[...document.querySelector("#trials table").tBodies[0].rows]
        .map((row) => row.cells[6].textContent)"""
    press = """document.querySelector("#trials thead").rows[0].cells[6]
        .querySelector("button").click()"""
    before = browser.evaluate(column)
    browser.evaluate(press)
    up = list(map(float, browser.evaluate(column)))
    browser.evaluate(press)
    down = list(map(float, browser.evaluate(column)))
    assert up == sorted(map(float, before))
    assert down == up[::-1]


def test_a_table_is_as_readable_without_the_script(tuning):
    page = Page(report_html(tuning))
    assert not any(tag == "button" for tag, _ in page.elements)
    titles = [attrs for tag, attrs in page.elements if tag == "title"]
    assert len(titles) > 100  # of the page, and of each value of the charts
