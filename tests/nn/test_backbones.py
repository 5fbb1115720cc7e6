from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from strecur.nn import DenseBackbone, DenseConfig, Lattice, WindowedBackbone, WindowedConfig
from strecur.nn.attention import relative_pairs
from strecur.nn.layers import rms_norm


def scattered(n: int, extent: int, seed: int = 0, layout: str = "square") -> Lattice:
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randperm(extent**2, generator=generator)[:n]
    row, col = cell // extent, cell % extent
    return Lattice(row, 2 * col + row % 2 if layout == "hex" else col, (n,), layout)


def test_packed_dense_attention_equals_the_masked_canvas():
    """Reference: every lattice cell is a token and empty cells, full of garbage, are masked as keys."""
    torch.manual_seed(0)
    body = DenseBackbone(DenseConfig(width=32, n_heads=2))
    grid, extent = scattered(60, 12), 12
    spots, context = torch.randn(60, 32), torch.randn(1, 32)
    site = 1 + grid.row_N * extent + grid.col_N
    canvas = torch.full((1 + extent**2, 32), 1e6)
    canvas[0], canvas[site] = context[0], spots
    valid = torch.zeros(len(canvas), dtype=torch.bool)
    valid[0] = valid[site] = True
    for layer in body.layers:
        q, k, v = layer.qkv(canvas).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[None, None, :])
        canvas = rms_norm(canvas + layer.out(attended.squeeze(0).transpose(0, 1).flatten(1)))
        canvas = rms_norm(canvas + layer.mlp(canvas))
    packed = body(torch.cat([context, spots]), grid)
    torch.testing.assert_close(packed[1:], canvas[site], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed[:1], canvas[:1], atol=1e-5, rtol=0)


def test_sections_of_equal_size_attend_together_as_each_alone():
    torch.manual_seed(0)
    body = DenseBackbone(DenseConfig(width=32, n_heads=2))
    grids = [scattered(40, 9, seed=seed) for seed in range(3)]
    context, spots = torch.randn(3, 1, 32), torch.randn(3, 40, 32)
    alone = [body(torch.cat(tokens), grid) for *tokens, grid in zip(context, spots, grids, strict=True)]
    together = body(torch.cat([context.flatten(0, 1), spots.flatten(0, 1)]), Lattice.concatenate(grids))
    torch.testing.assert_close(together[:3], torch.cat([h[:1] for h in alone]), atol=1e-6, rtol=0)
    torch.testing.assert_close(together[3:], torch.cat([h[1:] for h in alone]), atol=1e-6, rtol=0)
    # a further section of another size changes the way of computing and nothing else
    tokens = torch.cat([context.flatten(0, 1), torch.randn(1, 32), spots.flatten(0, 1), torch.randn(17, 32)])
    mixed = body(tokens, Lattice.concatenate([*grids, scattered(17, 9)]))
    torch.testing.assert_close(mixed[:3], together[:3], atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[4:-17], together[3:], atol=1e-6, rtol=0)


def test_windowed_attention_equals_dense_attention_under_the_same_mask():
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=32, n_heads=2, window=4, n_global=3)).double()
    for layer in body.layers:
        torch.nn.init.normal_(layer.bias)
    grid = scattered(70, 11)
    h = torch.randn(73, 32, dtype=torch.float64)
    expected = h
    for layer in body.layers:
        row, col = grid.row_N + layer.offset, grid.col_N + layer.offset
        same = (row[:, None] // 4 == row // 4) & (col[:, None] // 4 == col // 4)
        offset = (row[None, :] - row[:, None] + 3) * 7 + (col[None, :] - col[:, None] + 3)
        bias = torch.zeros(2, 73, 73, dtype=torch.float64)
        bias[:, 3:, 3:] = torch.where(same, layer.bias[:, offset.clamp(0, 48)], float("-inf"))
        q, k, v = layer.qkv(expected).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(0, 1).flatten(1)
        expected = rms_norm_double(expected + layer.out(attended))
        expected = rms_norm_double(expected + layer.mlp(expected))
    torch.testing.assert_close(body(h, grid), expected, atol=1e-6, rtol=0)


def rms_norm_double(h: torch.Tensor) -> torch.Tensor:
    return h / (h.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("layout", ["square", "hex"])
def test_windows_hold_every_spot_once_and_its_window_mates_only(layout):
    grid = scattered(200, 25, layout=layout)
    windows = grid.windows(8, 4)
    assert len(torch.unique(windows.site_N)) == 200
    assert windows.occupied_WK.sum() == 200
    row, col = grid.row_N + 4, (grid.col_N // 2 if layout == "hex" else grid.col_N) + 4
    together = windows.site_N[:, None] // 64 == windows.site_N // 64
    assert torch.equal(together, (row[:, None] // 8 == row // 8) & (col[:, None] // 8 == col // 8))


@pytest.mark.parametrize("extent", [8, 16, 24])
def test_shifted_windows_differ_also_where_the_extent_is_a_multiple_of_the_window(extent):
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(extent), torch.arange(extent), indexing="ij"))
    grid = Lattice(row, col, (extent**2,), "square")
    regular, shifted = (grid.windows(8, offset).site_N // 64 for offset in (0, 4))
    assert not torch.equal(regular[:, None] == regular, shifted[:, None] == shifted)


def test_two_distant_spots_need_two_windows():
    grid = Lattice(torch.tensor([0, 10**6]), torch.tensor([0, 10**6]), (2,), "square")
    assert grid.windows(8, 0).occupied_WK.shape == (2, 64)
    body = WindowedBackbone(WindowedConfig(width=32, n_heads=2))
    assert body(torch.randn(6, 32), grid).isfinite().all()


def test_a_shift_by_whole_windows_changes_nothing():
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=32, n_heads=2, window=4))
    grid, h = scattered(90, 15), torch.randn(94, 32)
    still = {"transpose": False, "flip_row": False, "flip_col": False}
    assert torch.equal(body(h, grid), body(h, grid.moved(**still, shift=(8, 4))))
    assert not torch.allclose(body(h, grid), body(h, grid.moved(**still, shift=(2, 0))), atol=1e-3)


def test_relative_pairs_are_mirrored():
    pair = relative_pairs(3)
    assert pair.min() == 0
    assert pair.max() == 24
    assert torch.equal(pair + pair.T, torch.full((9, 9), 24))
    assert (pair.diagonal() == 12).all()


def test_context_tokens_see_their_own_section_only():
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=32, n_heads=2, window=4, n_global=2))
    grid = Lattice.concatenate([scattered(40, 9), scattered(50, 9, seed=1)])
    h = torch.randn(94, 32)
    changed = h.clone()
    changed[4 + 40 :] += 1
    before, after = body(h, grid), body(changed, grid)
    torch.testing.assert_close(before[:2], after[:2], atol=0, rtol=0)
    torch.testing.assert_close(before[4:44], after[4:44], atol=1e-6, rtol=0)
    assert not torch.allclose(before[2:4], after[2:4], atol=1e-3)


def test_moves_keep_the_box_and_the_hexagonal_parity():
    grid = scattered(80, 13, layout="hex")
    for flip_row in (False, True):
        for flip_col in (False, True):
            moved = grid.moved(transpose=False, flip_row=flip_row, flip_col=flip_col)
            assert (moved.row_N.min(), moved.row_N.max()) == (grid.row_N.min(), grid.row_N.max())
            assert len(torch.unique((moved.row_N + moved.col_N) % 2)) == 1
            cells = torch.stack([moved.row_N, moved.col_N // 2], dim=1)
            assert len(torch.unique(cells, dim=0)) == 80
