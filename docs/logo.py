"""Draw the logo and the social preview into ``docs/_static``: ``python docs/logo.py``.

The mark is a hexagon, the outline of a spot on its lattice, with a hexagon turned a little inside it, and so on: the
same step applied again, which ends in one answer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

OUT = Path(__file__).parent / "_static"
PALE, DEEP, ANSWER = "#CFE0F0", "#1F4E82", "#E69F00"
LEVELS, TURN = 7, 15  # hexagons, degrees between them
FONT = FontProperties(family="DejaVu Sans", weight="bold")
TAGLINE = "Annotate some sections, get every section."


def main() -> None:
    """Write all files."""
    OUT.mkdir(exist_ok=True)
    write("favicon.svg", (200, 200), mark((100, 100), 98))
    for name, color in (("logo.svg", DEEP), ("logo-dark.svg", "#E6EDF5")):
        write(name, (720, 200), mark((100, 100), 92) + text("strecur", (222, 138), 120, color))
    parts = mark((300, 320), 210) + text("strecur", (580, 330), 150, DEEP)
    parts += text(TAGLINE, (586, 410), 29, "#44566C", bold=False)
    write("social.svg", (1280, 640), [(square(1280, 640), "#FFFFFF"), *parts])
    draw("social.png", (1280, 640), parts)


def hexagon(centre: tuple[float, float], radius: float, degrees: float) -> np.ndarray:
    """Return the six corners of a hexagon that stands on a corner, turned by some degrees."""
    angles = np.deg2rad(degrees + 60 * np.arange(6) - 90)
    return np.asarray(centre) + radius * np.column_stack([np.cos(angles), np.sin(angles)])


def square(width: float, height: float) -> list[np.ndarray]:
    """Return a background."""
    return [np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=float)]


def mark(centre: tuple[float, float], radius: float) -> list[tuple[list[np.ndarray], str]]:
    """Return the nested hexagons, each with its corners on the edges of the one around it."""
    shrink = np.cos(np.pi / 6) / np.cos(np.deg2rad(30 - TURN))
    pale, deep = np.array(to_rgb(PALE)), np.array(to_rgb(DEEP))
    shapes = []
    for level in range(LEVELS):
        color = to_hex(pale + (deep - pale) * level / (LEVELS - 2)) if level < LEVELS - 1 else ANSWER
        size = shrink**level if level < LEVELS - 1 else 0.45 * shrink ** (level - 1)
        shapes.append(([hexagon(centre, radius * size, TURN * level)], color))
    return shapes


def text(
    words: str, place: tuple[float, float], size: float, color: str, *, bold: bool = True
) -> list[tuple[list[np.ndarray], str]]:
    """Return words as outlines, which need no font; ``place`` is the left end of the base line."""
    font = FONT if bold else FontProperties(family="DejaVu Sans")
    outline = TextPath((0, 0), words, size=size, prop=font)
    return [([polygon * [1, -1] + place for polygon in outline.to_polygons(closed_only=True)], color)]


def write(name: str, size: tuple[int, int], shapes: list[tuple[list[np.ndarray], str]]) -> None:
    """Write filled polygons as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" role="img">',
        "<title>strecur</title>",
    ]
    for polygons, color in shapes:
        path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in polygon) + "Z" for polygon in polygons)
        lines.append(f'<path fill="{color}" fill-rule="evenodd" d="{path}"/>')
    (OUT / name).write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")
    print(name, (OUT / name).stat().st_size // 1024, "kB")


def draw(name: str, size: tuple[int, int], shapes: list[tuple[list[np.ndarray], str]]) -> None:
    """Draw the same polygons as PNG."""
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    ax.set_axis_off()
    for polygons, color in shapes:
        whole = Outline.make_compound_path(*(Outline(polygon, closed=True) for polygon in map(close, polygons)))
        ax.add_patch(PathPatch(whole, facecolor=color, linewidth=0))
    figure.savefig(OUT / name, metadata={"Software": None})
    print(name, (OUT / name).stat().st_size // 1024, "kB")


def close(polygon: np.ndarray) -> np.ndarray:
    """Repeat the first corner at the end."""
    return polygon if np.array_equal(polygon[0], polygon[-1]) else np.vstack([polygon, polygon[:1]])


if __name__ == "__main__":
    main()
