"""Lattice of pseudo-spots over an H&E image without measured spots."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur._anndata import check_key
from strecur._arguments import check_number, check_positive, check_whole, filled
from strecur.pp.grid.to_grid import to_grid
from strecur.pp.image.cutting import USUAL_MPP, tissue_fraction, warn_of_pixel_size
from strecur.pp.image.decoding import open_image

if TYPE_CHECKING:
    from anndata import AnnData

MAX_TILES = 2_000_000


def tile_image(
    image: object,
    *,
    pitch_um: float | None = None,
    pitch_px: float | None = None,
    mpp: float | None = None,
    layout: Literal["hex", "square"] = "hex",
    min_tissue: float = 0.2,
    section: str | None = None,
    library_key: str = "section",
    thumbnail_px: int = 2000,
) -> AnnData:
    """Place a lattice of spots on the tissue of an image, to predict expression where none was measured.

    Of a whole slide, only a thumbnail is read. The result has no genes. Continue with
    :func:`~strecur.pp.embed_patches` and :func:`~strecur.tl.predict_expression`. Choose the layout and the pitch of the
    spots on which the model was trained (Visium: ``"hex"``, 100 µm; legacy ST: ``"square"``, 200 µm).

    Parameters
    ----------
    image
        Path (TIFF, such as SVS and OME-TIFF, pyramidal or not, is read by region; JPEG and PNG are decoded whole),
        array rows × columns × channels, ``ImageContainer`` of squidpy, or image element of a SpatialData object.
    pitch_um
        Distance between neighbouring spots in micrometres; needs the scale of the image.
    pitch_px
        Distance between neighbouring spots in pixels of the image. Replaces ``pitch_um``.
    mpp
        Micrometres per pixel of the image. If ``None`` (default), what the file says: OME metadata, the description of
        Aperio and libvips, or the resolution of the TIFF. A file that says otherwise than ``mpp`` gives a warning.
    layout
        ``"hex"`` (every second row shifted by half a pitch, as on Visium) or ``"square"``.
    min_tissue
        Smallest share of tissue in the square of side ``pitch`` around a spot (Otsu on saturation).
    section
        Name of the section. If ``None`` (default), the name of the file, or ``"section"``.
    library_key
        Column of ``obs`` to which the name of the section is written.
    thumbnail_px
        Longest side of the thumbnail, on which tissue is found and which is stored for plots.

    Returns
    -------
    AnnData of spots × 0 genes with

    - ``obs``: ``library_key`` (categorical), ``array_row`` and ``array_col`` (int), ``tissue_fraction`` (float32);
    - ``obsm["spatial"]``: float64, (x, y) in pixels of the image;
    - ``obsm["grid"]``: int32, (row, column), and ``uns["grid"]`` as :func:`~strecur.pp.to_grid` writes them;
    - ``uns["spatial"][section]``: ``images["hires"]`` (the thumbnail), ``scalefactors`` (with ``microns_per_pixel`` if
      it is known) and, for a file, its path.

    Raises
    ------
    FileNotFoundError, OSError
        If the image does not exist or is damaged.
    ValueError
        If the pitch or the scale is unknown or does not fit the image, no tissue is found, or the image has channels
        that are not colours.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> image = adata.uns["spatial"]["S1"]["images"]["hires"]
    >>> slide = st.pp.tile_image(image, pitch_px=25, section="slide")
    >>> slide.n_obs > 0, slide.n_vars
    (True, 0)
    """
    from anndata import AnnData

    if layout not in ("hex", "square"):
        msg = f"layout={layout!r}; either 'hex' or 'square'"
        raise ValueError(msg)
    check_number("min_tissue", min_tissue)
    check_whole("thumbnail_px", thumbnail_px)
    if not isinstance(library_key, str) or library_key in ("array_row", "array_col", "tissue_fraction"):
        msg = f"library_key={library_key!r} cannot name the column of the sections; choose another, such as 'section'"
        raise ValueError(msg)
    _check_pitch(pitch_um, pitch_px, mpp)
    path = Path(image) if isinstance(image, str | Path) else None
    own = "section" if path is None else re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem)
    name = check_key(section or own, "section")
    with closing(open_image(image, label=name)) as opened:
        if mpp is None:
            mpp = opened.mpp
        else:
            warn_of_pixel_size(mpp, opened.mpp, opened.label)
        pitch = _pitch_in_pixels(pitch_um, pitch_px, mpp, opened.label)
        shape, thumbnail = opened.shape, opened.thumbnail(thumbnail_px)
    grid, spatial = _sites(shape, pitch, layout)
    tissue = tissue_fraction(thumbnail, shape, spatial, pitch)
    keep = tissue >= min_tissue
    if not keep.any():
        msg = (
            f"none of {len(keep)} spots has {min_tissue:.0%} tissue (the highest share is {tissue.max():.0%}); "
            "lower min_tissue, or check that the image is H&E"
        )
        raise ValueError(msg)
    grid, spatial, tissue = grid[keep], spatial[keep], tissue[keep]
    obs = pd.DataFrame(
        {
            library_key: pd.Categorical([name] * len(grid)),
            "array_row": grid[:, 0],
            "array_col": grid[:, 1],
            "tissue_fraction": tissue,
        },
        index=[f"{name}_{row}x{col}" for row, col in grid],
    )
    scalefactors = {"tissue_hires_scalef": max(thumbnail.shape) / max(shape), "spot_diameter_fullres": pitch}
    if mpp is not None:
        scalefactors["microns_per_pixel"] = float(mpp)
    metadata = {} if path is None else {"source_image_path": str(path.resolve())}
    library = {"images": {"hires": thumbnail}, "scalefactors": scalefactors, "metadata": metadata}
    adata = AnnData(obs=obs, obsm={"spatial": spatial}, uns={"spatial": {name: library}})
    to_grid(adata, library_key=library_key, layout=layout)
    return adata


def _check_pitch(pitch_um: float | None, pitch_px: float | None, mpp: float | None) -> None:
    """Raise unless one pitch is given, and the numbers are positive."""
    if (pitch_um is None) == (pitch_px is None):
        msg = "give either pitch_um or pitch_px"
        raise ValueError(msg)
    for name, value in (("pitch_um", pitch_um), ("pitch_px", pitch_px), ("mpp", mpp)):
        if value is not None:
            check_positive(name, value)


def _pitch_in_pixels(pitch_um: float | None, pitch_px: float | None, mpp: float | None, label: str) -> float:
    if pitch_px is not None:
        pitch = float(pitch_px)
    elif mpp is None:
        msg = (
            f"pitch_um needs mpp: the image {label} does not tell its micrometres per pixel; pass mpp ({USUAL_MPP}; "
            "the scanner or the vendor's viewer tells the exact value), or pitch_px"
        )
        raise ValueError(msg)
    else:
        pitch = float(filled(pitch_um)) / mpp
    if pitch < 1:
        msg = f"a pitch of {pitch:g} pixels; it must be at least 1"
        raise ValueError(msg)
    return pitch


def _sites(shape: tuple[int, int], pitch: float, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (row, column) and (x, y) of all sites on an image; hex has doubled columns, as on Visium."""
    row_step = pitch * np.sqrt(3) / 2 if layout == "hex" else pitch
    col_step = pitch / 2 if layout == "hex" else pitch
    n_rows = int((shape[0] - pitch) // row_step) + 1
    n_cols = int((shape[1] - pitch) // col_step) + 1
    if n_rows < 1 or n_cols < 1 or n_rows * n_cols > MAX_TILES:
        msg = (
            f"a pitch of {pitch:g} pixels on an image of {shape[1]} × {shape[0]} (columns × rows); check pitch and mpp"
        )
        raise ValueError(msg)
    row, col = (index.ravel() for index in np.indices((n_rows, n_cols)))
    if layout == "hex":
        row, col = row[(row + col) % 2 == 0], col[(row + col) % 2 == 0]
    spatial = np.column_stack([pitch / 2 + col * col_step, pitch / 2 + row * row_step])
    return np.column_stack([row, col]).astype(np.int32), spatial
