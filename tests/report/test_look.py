"""Styles of methods, colours, ticks, numbers, remarks and tables."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from lowrank.report.figure import Figure
from lowrank.report.identity import assign
from lowrank.report.plot import theme
from lowrank.report.plot.axes import (
    MINUS,
    axis_covering,
    linear_ticks,
    log_ticks,
    number,
    tick_text,
)
from lowrank.report.plot.charts import XY, Heat, Series, Style
from lowrank.report.plot.raster import draw, pdf, png
from lowrank.report.tables import Table
from lowrank.report.trajectories import notes

PUBLISHED = ("full_rank", "galore", "fira", "cola", "sltrain", "relora")
# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """Return the CIELAB coordinates of a hex colour as a viewer with this vision sees it."""
    srgb = np.array(theme.channels(color)) / 255
    linear = np.clip(
        seen @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), 0, 1
    )
    xyz = (
        np.array(
            [
                [0.4124564, 0.3575761, 0.1804375],
                [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041],
            ]
        )
        @ linear
    )
    f = np.cbrt(xyz / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_a_seventh_method_gets_the_next_style() -> None:
    six, seven = assign(PUBLISHED, PUBLISHED, []), assign(PUBLISHED, ["aardvark", *PUBLISHED], [])
    for method in PUBLISHED:
        assert six.style(method) == seven.style(method)
    looks = {(seven.style(m).color, seven.style(m).marker) for m in (*PUBLISHED, "aardvark")}
    assert len(looks) == 7
    assert seven.style("aardvark").color == "slot6"


def test_seventeen_methods_and_their_variants_have_distinct_styles() -> None:
    many = assign([], [f"m{i}" for i in range(17)], ["", "tuned"])
    looks = {(s.color, s.marker, s.dash) for i in range(17) for s in (many.style(f"m{i}"),)}
    assert len(looks) == 17
    plain, tuned = many.style("m3"), many.style("m3", "tuned")
    assert (plain.color, plain.marker) == (tuned.color, tuned.marker)
    assert plain.dash != tuned.dash


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_six_colours_are_distinguishable_and_visible(
    palette: dict[str, str], blindness: str
) -> None:
    seen = BLINDNESS[blindness]
    for first, second in combinations([f"slot{i}" for i in range(6)], 2):
        assert np.linalg.norm(lab(palette[first], seen) - lab(palette[second], seen)) > 9, (
            first,
            second,
        )
    paper = theme.luminance(palette["paper"])
    for i in range(6):
        ratio = sorted([paper + 0.05, theme.luminance(palette[f"slot{i}"]) + 0.05])
        assert ratio[1] / ratio[0] > 2.6, i


@pytest.mark.parametrize("palette", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(palette: dict[str, str]) -> None:
    for text in ("ink", "muted", "accent", "warn"):
        for ground in ("paper", "raised"):
            pair = sorted(theme.luminance(palette[name]) + 0.05 for name in (text, ground))
            assert pair[1] / pair[0] >= 4.5, (text, ground)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 17), (4.21, 4.29), (0, 1e6), (1e-7, 3e-7)]
)
def test_linear_ticks_are_few_and_round_and_inside_the_axis(low: float, high: float) -> None:
    ticks = linear_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
    assert len({tick_text(t, ticks) for t in ticks}) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(1e-8, 1e3), (0.7, 1.4), (2, 9), (100, 101)])
def test_log_ticks_are_inside_the_axis(low: float, high: float) -> None:
    ticks = log_ticks(low, high, 5)
    assert len(ticks) >= 2
    assert all(low <= t <= high for t in ticks)


def test_axes_cover_unusual_values() -> None:
    assert axis_covering([], 0, 1).high > axis_covering([], 0, 1).low
    assert axis_covering([3.0, 3.0, float("nan")], 0, 100)(3.0) == pytest.approx(50)
    axis = axis_covering([0.0, -1.0, 1e-3, 10.0], 100, 0, log=True)
    assert 0 < axis(10.0) < axis(1e-3) < 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (3.14159, "3.142"),
        (-0.5, MINUS + "0.5000"),
        (float("nan"), "nan"),
        (float("-inf"), MINUS + "∞"),
        (0.000031, "3.1×10⁻⁵"),
        (1234567.0, "1\u2009234\u2009567"),
    ],
)
def test_numbers_are_formatted_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_rounding_up_adds_no_digit() -> None:
    assert (number(0.00996, 2), number(0.0994, 2), number(9.96, 2), number(99.6, 2)) == (
        "0.010",
        "0.099",
        "10",
        "100",
    )


def test_small_ticks_of_one_axis_share_a_notation() -> None:
    small = [-0.0005, 0.0, 0.001, 0.0015]
    assert [tick_text(t, small) for t in small] == [MINUS + "5×10⁻⁴", "0", "10⁻³", "1.5×10⁻³"]
    assert [tick_text(t, [1e-4, 1e-2, 1.0]) for t in (1e-4, 1e-2, 1.0)] == ["10⁻⁴", "10⁻²", "1"]
    assert [tick_text(t, [0.001, 0.002]) for t in (0.001, 0.002)] == ["0.001", "0.002"]


def test_logarithmic_heat_maps_distinguish_small_values() -> None:
    values = [[0.0, 0.1, 1.0, 100.0]]
    ramp = Heat(
        title="t", rows=["a"], columns=list("1234"), values=values, tips=[[""] * 4], log=True
    ).ramp()
    assert (ramp.low, ramp.high) == (0.1, 100.0)
    assert ramp.color(0.0) == ramp.color(0.1) != ramp.color(1.0)
    assert ramp.color(10.0**0.5) == ramp.shade(0.5)


def test_groups_of_panels_begin_new_rows() -> None:
    style = Style(key="a", label="a", color="slot1")
    panel = XY(
        title="t",
        series=[Series(style=style, x=[0.0, 1.0], y=[0.0, 1.0])],
        x_label="x",
        y_label="y",
    )
    figure = Figure(name="f", title="F", panels=[panel] * 5, rows=(4, 1), columns=3)
    assert [len(group) for group in figure.groups] == [4, 1]
    assert (
        figure.sheet().height
        > Figure(name="f", title="F", panels=[panel] * 5, columns=3).sheet().height
    )


def test_remarks_that_differ_only_in_numbers_are_merged() -> None:
    rows = pd.DataFrame(
        {
            "note": [
                "stopped after 6 products: error 0.32",
                "stopped after 6 products: error 2",
                "other",
            ],
            "value_kind": "finite",
            "series": ["cola", "fira", "cola"],
            "metric": ["sigma_pca_1", "sigma_pca_1", "stable_rank_w"],
        }
    )
    assert notes(rows) == [
        "cola, fira (sigma PCA 1): stopped after 6 products: error 0.32 to 2",
        "cola (stable rank W): other",
    ]


def test_a_missing_value_is_reported_for_the_series_without_any() -> None:
    """cola has no barrier to galore, hence galore none to cola; galore has others."""
    rows = pd.DataFrame(
        {
            "note": ["", "no dense equivalent", "no dense equivalent"],
            "value_kind": ["finite", "absent", "absent"],
            "series": ["galore", "galore", "cola"],
            "metric": "imbh",
        }
    )
    assert notes(rows) == ["cola: no IMBH; no dense equivalent"]
    assert notes(rows[1:]) == ["galore, cola: no IMBH; no dense equivalent"]
    other = rows.assign(metric=["ccbh", "imbh", "imbh"])  # values of another metric do not count
    assert notes(other) == ["galore, cola: no IMBH; no dense equivalent"]


def test_settings_are_shown_without_trailing_zeros() -> None:
    frame = pd.DataFrame({"base_learning_rate": [0.02, 2.5e-3, 1e-5], "loss": [0.02, 2.5e-3, 1e-5]})
    shown = Table(name="t", title="T", frame=frame).cells()
    assert shown == [["0.02", "0.02000"], ["0.0025", "0.002500"], ["1×10⁻⁵", "1×10⁻⁵"]]


def test_panels_without_a_finite_value_can_be_drawn() -> None:
    style = Style(key="a", label="a", color="slot1")
    nothing = XY(
        title="t",
        series=[Series(style=style, x=[1.0], y=[float("nan")])],
        x_label="x",
        y_label="y",
        log_y=True,
    )
    assert "<svg" in nothing.scene().svg()
    heat = Heat(
        title="t", rows=["a"], columns=["1", "2"], values=[[None, float("inf")]], tips=[["", "∞"]]
    )
    assert png(draw(heat.scene())).startswith(b"\x89PNG")
    assert pdf(draw(heat.scene())).startswith(b"%PDF")


def test_pictures_of_one_scene_are_the_same_bytes_in_any_order() -> None:
    style = Style(key="a", label="a", color="slot1")
    scene = XY(
        title="Δ of a line",
        series=[Series(style=style, x=[1.0, 2.0], y=[1.0, 3.0])],
        x_label="x",
        y_label="‖y‖",
    ).scene()
    first, second = draw(scene), draw(scene)
    printed, picture = pdf(first), png(first)
    assert (png(second), pdf(second)) == (picture, printed)


def test_tables_keep_every_digit_in_csv_and_escape_in_markdown() -> None:
    frame = pd.DataFrame(
        [("a|b", 0.1 + 0.2, None, 7, float("nan"), True)],
        columns=["name", "x", "gone", "n", "bad", "flag"],
        dtype=object,
    )
    table = Table(name="t", title="T", frame=frame)
    assert table.csv() == "name,x,gone,n,bad,flag\na|b,0.30000000000000004,,7,nan,True\n"
    assert "| a\\|b | 0.3000 | – | 7 | nan | yes |" in table.markdown()
    assert table.numeric() == [False, True, True, True, True, False]
