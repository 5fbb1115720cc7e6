"""Draw the figures of the concepts into ``docs/_static``: ``python docs/figures.py``.

All figures show synthetic sections with fixed seeds. A small network is trained, which takes one or two minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle, RegularPolygon

import strecur as st
from strecur.nn import TRMConfig, WindowedConfig

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from strecur.models import DomainModel

OUT = Path(__file__).parent / "_static"
DPI = 100
BLUE, ORANGE, GREEN, GREY, LIGHT = "#3b6ea8", "#d9822b", "#4f9a63", "#8a8a8a", "#e9eef4"


def main() -> None:
    """Draw all figures."""
    OUT.mkdir(exist_ok=True)
    plt.rcParams.update({"font.size": 11, "savefig.bbox": "tight", "savefig.dpi": DPI, "font.family": "DejaVu Sans"})
    save(draw_lattices(), "lattices")
    save(draw_recursion(), "recursion")
    save(draw_backbones(), "backbones")
    with st.settings.override(accelerator="cpu", progress=False):
        model, new, judge = train()
        save(np.ravel(st.pl.refinement(new))[0].figure, "refinement")
        save(draw_thinking(new), "thinking")
        save(draw_breadth(model, new), "breadth")
        save(draw_confidence(model, new, judge), "confidence")


def save(figure: plt.Figure, name: str) -> None:
    """Write a PNG with a palette, which reduces its size to a third."""
    from PIL import Image

    path = OUT / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(f"{path.name}: {path.stat().st_size // 1024} kB")


def train() -> tuple[DomainModel, AnnData, AnnData]:
    """Train on two sections; return the model, a new section with its results, and another section."""
    adata = st.datasets.synthetic_sections(n_sections=4, n_rows=33, n_cols=34)
    st.pp.to_grid(adata, library_key="section")
    parts = {name: adata[adata.obs["section"] == name].copy() for name in adata.obs["section"].cat.categories}
    annotated = adata[adata.obs["section"].isin(["S1", "S3"])].copy()
    model = st.tl.train_domains(
        annotated,
        "domain",
        architecture=TRMConfig(n_steps=3, sigma=(1.0, 1.0)),
        backbone=WindowedConfig(width=64, n_heads=2),
        training={"smoothing": 1, "max_epochs": 30},  # without smoothing, to show the steps of the network
    )
    new = parts["S2"]
    st.tl.trm_domains(new, model, inference={"depth": 5})
    return model, new, parts["S4"]


def bare(ax: Axes, title: str = "") -> Axes:
    """Remove ticks and spines."""
    ax.set(xticks=[], yticks=[], title=title)
    ax.set_aspect("equal")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def draw_lattices() -> plt.Figure:
    """Draw the spots of the three layouts with their rows and columns."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    draw_hex(bare(axes[0], "hex: Visium"))
    draw_square(bare(axes[1], "square: ST, Visium HD"))
    draw_irregular(bare(axes[2], "irregular: single cells"))
    return figure


def draw_hex(ax: Axes) -> None:
    """Draw staggered rows."""
    for row in range(5):
        for col in range(row % 2, 12, 2):
            x, y = col / 2, row * np.sqrt(3) / 2
            if (row, col) in {(1, 7), (3, 3)}:
                continue
            ax.add_patch(Circle((x, y), 0.34, facecolor=BLUE if (row, col) == (2, 4) else LIGHT, edgecolor=BLUE))
            ax.text(
                x, y, f"{row},{col}", ha="center", va="center", fontsize=8.5, color="w" if (row, col) == (2, 4) else "k"
            )
    ax.set(xlim=(-0.6, 6.1), ylim=(4.0, -0.6))
    ax.set_xlabel("columns in half steps; the sites of\ntwo missing spots stay empty")


def draw_square(ax: Axes) -> None:
    """Draw straight rows."""
    for row in range(5):
        for col in range(7):
            if (row, col) in {(0, 0), (4, 6), (4, 5), (0, 6)}:
                continue
            ax.add_patch(Rectangle((col - 0.45, row - 0.45), 0.9, 0.9, facecolor=LIGHT, edgecolor=BLUE))
            ax.text(col, row, f"{row},{col}", ha="center", va="center", fontsize=8.5)
    ax.set(xlim=(-0.7, 6.7), ylim=(4.7, -0.7))
    ax.set_xlabel("rows and columns of the array")


def draw_irregular(ax: Axes) -> None:
    """Draw cells and the sites they are placed on."""
    points = np.random.default_rng(0).uniform(0.4, 6.6, (200, 2)) * [1, 0.7]
    kept = []
    for point in points:
        if all(np.hypot(*(point - other)) > 0.85 for other in kept):
            kept.append(point)
    taken: set[tuple[int, int]] = set()
    ax.set(xlim=(-0.4, 7.2), ylim=(5.2, -0.4))
    for line in np.arange(0, 7.5, 0.6):
        ax.axvline(line - 0.3, color="0.9", lw=0.8, zorder=0)
        ax.axhline(line - 0.3, color="0.9", lw=0.8, zorder=0)
    for x, y in kept:
        cells = sorted(np.ndindex(9, 12), key=lambda c: np.hypot(0.6 * c[1] - x, 0.6 * c[0] - y))
        cell = next(c for c in cells if c not in taken)
        taken.add(cell)
        site = 0.6 * cell[1], 0.6 * cell[0]
        ax.add_patch(Rectangle((site[0] - 0.28, site[1] - 0.28), 0.56, 0.56, facecolor=LIGHT, edgecolor=BLUE, lw=0.8))
        ax.annotate("", site, (x, y), arrowprops={"arrowstyle": "-", "color": ORANGE})
        ax.plot(x, y, "o", color=ORANGE, ms=5)
    ax.set_xlabel("each cell (orange) takes the nearest free site")


def box(
    ax: Axes, place: tuple[float, float], size: tuple[float, float], text: str, color: str, **options: object
) -> None:
    """Draw a labelled box."""
    (x, y), (w, h) = place, size
    ax.add_patch(
        FancyBboxPatch(
            (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0.02,rounding_size=0.12", fc=color, ec="0.3", lw=1
        )
    )
    ax.text(x, y, text, ha="center", va="center", **options)


def arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], *, bend: float = 0, color: str = "0.3"
) -> None:
    """Draw an arrow."""
    style = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, connectionstyle=style, color=color, lw=1.5)
    )


def draw_recursion() -> plt.Figure:
    """Draw one block, several updates of the latent and one of the answer, and a sequence of outer steps."""
    figure, (ax, steps) = plt.subplots(2, 1, figsize=(9.5, 5.6), height_ratios=[1.9, 1], layout="constrained")
    bare(ax)
    ax.set(xlim=(0, 11), ylim=(0, 4.4))
    box(ax, (1.2, 3.5), (1.9, 0.9), "features $x$\nof every spot", "#f3e7d3")
    box(ax, (5.5, 2.2), (2.3, 1.1), "one small network\n(two layers)", "#dfe8f3", weight="bold")
    box(ax, (9.6, 3.5), (2.2, 0.9), "latent $z$\nof every spot", "#e4efe4")
    box(ax, (9.6, 0.8), (2.2, 0.9), "answer $y$\nof every spot", "#f5dfd5")
    arrow(ax, (2.2, 3.4), (4.3, 2.5), bend=-0.1)
    arrow(ax, (6.75, 2.4), (9.2, 2.95), bend=0.2, color=GREEN)
    arrow(ax, (8.4, 3.8), (6.0, 2.85), bend=0.35, color=GREEN)
    arrow(ax, (8.4, 0.9), (4.7, 1.6), bend=-0.25, color=ORANGE)
    arrow(ax, (6.7, 1.9), (8.5, 1.1), bend=-0.1, color=ORANGE)
    ax.text(
        4.4,
        4.1,
        "three updates of the latent\nfrom features, latent and answer",
        color=GREEN,
        ha="center",
        va="center",
    )
    ax.text(5.2, 0.35, "then one update of the answer from the latent", color=ORANGE, ha="center", va="center")
    ax.set_title("a block", loc="left", fontsize=12)
    bare(steps)
    steps.set(xlim=(0, 11), ylim=(0, 2))
    for i in range(4):
        x = 1.4 + 2.6 * i
        box(steps, (x, 1.35), (1.7, 0.7), f"outer step {i + 1}", "#dfe8f3")
        if i < 3:
            arrow(steps, (x + 0.9, 1.35), (x + 1.72, 1.35))
        arrow(steps, (x, 0.95), (x, 0.45), color=ORANGE)
        steps.text(x, 0.2, f"answer {i + 1}", ha="center", va="center", color=ORANGE)
    steps.set_title("outer steps: each ends with an answer and, in training, a loss", loc="left", fontsize=12)
    return figure


def draw_backbones() -> plt.Figure:
    """Draw what one spot sees in a layer of each backbone."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), layout="constrained")
    side, centre = 16, (9, 6)
    rows, cols = np.mgrid[:side, :side]
    inside = np.hypot(rows - 7.5, (cols - 7.5) * 0.9) < 7.8
    seen = {
        "dense": np.ones_like(inside),
        "windowed": (rows // 8 == centre[0] // 8) & (cols // 8 == centre[1] // 8),
        "hierarchical": (rows // 6 == centre[0] // 6) & (cols // 6 == centre[1] // 6),
    }
    notes = {
        "dense": "every spot of its section",
        "windowed": "its window of 8 × 8 cells, and\na few tokens that see the section",
        "hierarchical": "its window, and windows\nof coarser lattices",
    }
    for ax, (name, mask) in zip(axes, seen.items(), strict=True):
        bare(ax, name)
        for row, col in zip(*np.nonzero(inside), strict=True):
            color = ORANGE if (row, col) == centre else BLUE if mask[row, col] else "#d9dde2"
            ax.add_patch(Rectangle((col - 0.42, row - 0.42), 0.84, 0.84, fc=color, ec="none"))
        if name == "windowed":
            for line in (-0.5, 7.5, 15.5):
                ax.plot([line, line], [-0.5, 15.5], color="0.5", lw=0.8)
                ax.plot([-0.5, 15.5], [line, line], color="0.5", lw=0.8)
            for i in range(4):
                ax.add_patch(RegularPolygon((18, 3 + 3 * i), 4, radius=0.9, fc=GREEN, ec="none"))
                ax.plot([16.9, centre[1]], [3 + 3 * i, centre[0]], color=GREEN, lw=0.6, alpha=0.7)
        if name == "hierarchical":
            for scale, color in ((2, GREEN), (4, "#a05c9c")):
                width = 6 * scale
                top, left = centre[0] // width * width, centre[1] // width * width
                ax.add_patch(Rectangle((left - 0.5, top - 0.5), width, width, fc="none", ec=color, lw=2.5))
        most = 23.9 if name == "hierarchical" else 15.9
        ax.set(xlim=(-1, max(most, 19.5)), ylim=(most, -0.9))
        ax.set_xlabel(notes[name])
    return figure


def draw_thinking(new: AnnData) -> plt.Figure:
    """Draw the settling steps of the spots and the halt probability of the section."""
    return np.ravel(st.pl.halt_steps(new))[0].figure


def draw_breadth(model: DomainModel, new: AnnData) -> plt.Figure:
    """Draw how fast restarts converge, and where they disagree."""
    st.tl.trm_domains(new, model, inference={"depth": 8, "breadth": 8, "selection": "vote"}, key_added="restarts")
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    st.pl.convergence(new, "restarts", ax=axes[0])
    axes[0].set_title("eight restarts converge")
    st.pl.domains(new, "restarts", ax=axes[1:2])
    axes[1].set_title("majority of the restarts")
    share = new.obs["restarts_agreement"].to_numpy()
    place = new.obsm["spatial"]
    dots = bare(axes[2], "agreement").scatter(*place.T, c=share, s=30, marker="h", cmap="magma", vmin=0.4, vmax=1)
    axes[2].invert_yaxis()
    figure.colorbar(dots, ax=axes[2], shrink=0.7, label="share of restarts")
    return figure


def draw_confidence(model: DomainModel, new: AnnData, judge: AnnData) -> plt.Figure:
    """Draw the confidence after calibration, and the sets of labels."""
    st.tl.calibrate(judge, model, "domain")
    st.tl.trm_domains(new, model, inference={"depth": 3}, coverage=0.9, key_added="calibrated")
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    st.pl.confidence(new, "calibrated", ax=axes[:1])
    st.pl.reliability(new, "calibrated", truth="domain", ax=axes[1:])
    return figure


if __name__ == "__main__":
    main()
