"""Make the pictures of the pages: `python docs/pictures.py [NAME ...]`.

    schedules     rates over a run of 1000 updates
    range_test    a learning-rate range test
    sweep         a search of a rate and a weight decay
    comparison    three optimizers, each at several rates
    history       a run at a rate that is too high, as its optimizer's monitor shows it
    report        the top of the report of `optlab tune`, of the first example in tuning.md
    refinement    its step 5

All of them are made if none is named. They are written to `docs/_static`, with few colours, so that
they are small. The pictures of the report take the budget that tuning.md names, and need Chromium.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import optlab
from browser import open_browser
from optlab import lab, plots, schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent
STATIC = DOCS / "_static"
DPI, COLOURS = 90, 64

SHOTS: Mapping[str, tuple[str, int]] = {"report": ("body", 1290), "refinement": ("#step-5", 850)}
"""The name of a picture of the report → the element where it begins, and its height in pixels."""

WIDTH, MARGIN = 840, 20


def draw_schedules() -> "Figure":
    """Draw the schedules that which_schedule.md compares."""
    steps = 1000
    shown = {
        "constant, with a warm-up": schedules.warmup(schedules.constant(1.0), 50),
        "step decay": schedules.step_decay(1.0, factor=0.3, every=300),
        "warmup_cosine": schedules.warmup_cosine(1.0, warmup_steps=50, decay_steps=steps),
        "wsd": schedules.wsd(1.0, warmup_steps=50, stable_steps=750, decay_steps=200),
        "one cycle": schedules.one_cycle(1.0, total_steps=steps).learning_rate,
    }
    axes = plots.plot_schedules(shown, steps=steps)
    axes.set_ylabel("rate, as a share of the highest")
    axes.figure.set_size_inches(8, 4)
    return axes.figure


def draw_range_test() -> "Figure":
    """Draw a range test."""
    axes = lab.lr_range_test(lab.tasks.digits_mlp(), optlab.adamw).plot()
    axes.figure.set_size_inches(8, 4.5)
    return axes.figure


def draw_sweep() -> "Figure":
    """Draw a search."""
    space = {
        "learning_rate": lab.LogUniform(1e-4, 1e-1),
        "weight_decay": lab.LogUniform(1e-4, 1.0),
    }
    task = lab.tasks.digits_mlp()
    return lab.sweep(task, optlab.adamw, space, trials=32, search="halton", steps=150).plot()


def draw_comparison() -> "Figure":
    """Draw a comparison."""
    optimizers = {"sgd": optlab.sgd, "adamw": optlab.adamw, "muon": optlab.muon}
    rates = [10 ** (exponent / 2) for exponent in range(-8, 2)]
    return lab.compare(lab.tasks.digits_mlp(), optimizers, rates=rates, seeds=3).plot()


def draw_history() -> "Figure":
    """Draw a run at too high a rate."""
    tx = optlab.monitor(optlab.adamw(0.1))
    return lab.train(lab.tasks.digits_mlp(), tx, steps=150).history.plot()


DRAWN: Mapping[str, Callable[[], "Figure"]] = {
    "schedules": draw_schedules,
    "range_test": draw_range_test,
    "sweep": draw_sweep,
    "comparison": draw_comparison,
    "history": draw_history,
}
"""The name of a picture → what draws it."""

NAMES = (*DRAWN, *SHOTS)


def make_report(folder: Path) -> None:
    """Tune the model of tuning.md, as the page says."""
    page = (DOCS / "tuning.md").read_text()
    code = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[1]
    budget = re.search(r'optlab tune .*--budget "(.+?)"', page)[1]
    names: dict = {"__name__": "tumours"}
    exec(code, names)
    print(lab.tune(names["task"], budget=budget, folder=folder))


def photograph(page: Path, element: str, height: int, path: Path) -> None:
    """Write a picture of a page from an element on, as a light screen shows it."""
    from PIL import Image

    with open_browser() as browser:
        browser.open(page, width=WIDTH)
        top = browser.evaluate(f"document.querySelector('{element}').getBoundingClientRect().top")
        browser.screenshot(path)
    with Image.open(path) as picture:
        top = max(0, int(top) - MARGIN)
        part = picture.crop((0, top, picture.width, min(picture.height, top + height)))
    part.save(path)


def shrink(path: Path) -> None:
    """Leave a picture few colours."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main(names: list[str]) -> None:
    """Make the pictures of these names, or all."""
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"no picture is called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NAMES:
            path = STATIC / f"{name}.png"
            if name in DRAWN:
                DRAWN[name]().savefig(path, dpi=DPI, bbox_inches="tight")
            else:
                make_report(Path(folder))  # the second time it finds the runs of the first
                photograph(Path(folder) / "report.html", *SHOTS[name], path)
            shrink(path)
            print(path, f"{path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
