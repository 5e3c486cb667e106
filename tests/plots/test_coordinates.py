"""Pictures of coordinate checks: what is drawn where."""

import numpy as np
import pytest

from optlab import mup


def test_a_line_for_each_activation_has_its_slope_in_the_legend():
    changes = np.ones((2, 3, 4, 2)) * np.array([1.0, 2.0, 3.0])[:, None, None]
    changes[1, ..., 1] *= 4
    check = mup.CoordinateCheck(("h", "output"), np.array([16, 64]), changes, changes, 0.1)
    ax = check.plot(label="Adam")
    ax.figure.draw_without_rendering()
    assert [line.get_label() for line in ax.lines] == ["h, slope 0.00", "output, slope 1.00"]
    x, y = ax.lines[1].get_data()
    assert x.tolist() == [16, 64]
    assert y.tolist() == pytest.approx([2, 8])
    assert ax.get_title(loc="left") == "Adam"
    assert ax.get_ylabel() == "mean absolute change after 4 updates"
    assert check.plot(ax=ax) is ax
