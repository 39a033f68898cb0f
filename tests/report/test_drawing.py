import base64
import sys

import pytest

from fl_lightning.errors import RunError
from fl_lightning.report import drawing
from fl_lightning.report.drawing import DARK, LIGHT, render_picture
from fl_lightning.report.elements import Picture, Table, shorten
from fl_lightning.report.similarity import cell_colors


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_colours_can_be_told_from_the_ground(theme):
    assert contrast(theme.foreground, theme.background) > 7
    assert contrast(theme.muted, theme.background) > 4.5
    for colour in theme.colors:  # of lines and areas, and as the ground of numbers
        assert contrast(colour, theme.background) > 3, colour


@pytest.mark.parametrize("tenth", range(-10, 11))
def test_numbers_on_a_heatmap_can_be_read(tenth):
    assert contrast(*cell_colors(tenth / 10)) >= 4.5


def picture(text):
    def plot(canvas, theme):
        canvas.subplots().set_title(text, color=theme.foreground)

    return Picture("plot", "alt", "caption", plot, (2, 1), Table("t", [], []))


def test_picture_is_drawn_light_and_dark_and_into_a_file(tmp_path):
    drawn = render_picture(picture("x"), tmp_path)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    light, dark = (
        base64.b64decode(d.removeprefix("data:image/svg+xml;base64,")).decode() for d in (drawn.light, drawn.dark)
    )
    assert LIGHT.foreground in light
    assert DARK.foreground in dark
    assert (drawn.width, drawn.height) == (192, 96)


def test_equal_pictures_have_equal_bytes(tmp_path):
    first, second = (render_picture(picture("x"), tmp_path / name) for name in "ab")
    assert (first.light, first.dark) == (second.light, second.dark)
    assert (tmp_path / "a" / "plot.png").read_bytes() == (tmp_path / "b" / "plot.png").read_bytes()


@pytest.mark.parametrize("text", ["$\\frac{1}$", "<script>alert(1)</script>", "a$b", "&amp;", "𝓐 名"])
def test_names_are_letters_and_no_markup(tmp_path, text):
    svg = base64.b64decode(render_picture(picture(text), tmp_path).light.partition(",")[2]).decode()
    assert "<script" not in svg.lower()


def test_missing_library_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(RunError, match=r"report: matplotlib is not installed; pip install 'fl_lightning\[report\]'"):
        drawing.check_installed()


def test_short_names_stay():
    assert shorten("x" * 22) == "x" * 22
    assert len(shorten("x" * 23)) == 22
