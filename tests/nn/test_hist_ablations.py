"""Parts of HiST that can be left out or replaced."""

from __future__ import annotations

import pytest
import torch

from strecur.models.io.schema import SchemaError, check
from strecur.models.network import to_json
from strecur.nn import HistBackbone, HistConfig, Lattice
from strecur.nn.attention import SlideAttention, alibi_bias
from strecur.nn.hist import HistCoarsening, HistUncoarsening

ABLATIONS = {
    "rope": {"positions": "rope"},
    "alibi": {"positions": "alibi"},
    "no positions": {"positions": "none"},
    "no skip": {"skip": False},
    "no shifted windows": {"shifted": False},
    "merge": {"resampling": "merge"},
    "mean": {"resampling": "mean"},
    "no token": {"n_global": 0},
}
POSITIONS = ("relative", "rope", "alibi", "none")


def scattered(n: int, extent: int, *, origin: int = 0) -> Lattice:
    cell = torch.randperm(extent**2, generator=torch.Generator().manual_seed(0))[:n]
    return Lattice(cell // extent + origin, cell % extent + origin, (n,), "square")


def full(n_rows: int, n_cols: int) -> Lattice:
    row, col = torch.cartesian_prod(torch.arange(n_rows), torch.arange(n_cols)).T
    return Lattice(row, col, (len(row),), "square")


def backbone(**options: object) -> HistBackbone:
    torch.manual_seed(0)
    return HistBackbone(HistConfig(**{"width": 32, "n_heads": 2} | options)).eval()


def tokens_for(body: HistBackbone, lattice: Lattice) -> torch.Tensor:
    n_tokens = body.n_context * lattice.n_sections + len(lattice.row_N)
    return torch.randn(n_tokens, body.width, generator=torch.Generator().manual_seed(1))


def angles(cell: torch.Tensor) -> torch.Tensor:
    """Rotary angles of a head of 16 channels, from whole coordinates."""
    wave = 1e4 ** (-torch.arange(4, dtype=torch.float64) / 4)
    return torch.cat([cell[:, :1] * wave, cell[:, 1:] * wave], dim=1)


def turned(x: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels as complex numbers."""
    pairs = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones(len(cell), 8).double(), angles(cell))
    return torch.cat([pairs.real, pairs.imag], dim=-1)


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_equals_dense_attention_under_the_mask(positions, shifted):
    torch.manual_seed(0)
    attention = SlideAttention(2, 6, positions=positions, shifted=shifted, head_width=16).double()
    lattice = scattered(90, 15, origin=-4)
    cell = torch.stack([lattice.row_N, lattice.col_N], dim=1)
    seen = (cell[:, None] // 6 == cell // 6).all(-1)
    if shifted:
        seen |= ((cell[:, None] + 3) // 6 == (cell + 3) // 6).all(-1)
    qkv = 2 * torch.randn(90, 96, dtype=torch.float64)
    q, k, v = qkv.unflatten(1, (3, 2, 16)).permute(1, 2, 0, 3)
    bias = torch.zeros(2, 90, 90, dtype=torch.float64)
    if positions == "relative":
        torch.nn.init.normal_(attention.bias)
        offset = (cell[None] - cell[:, None] + 5).clamp(0, 10)
        bias = attention.bias[:, offset[..., 0] * 11 + offset[..., 1]]
    if positions == "rope":
        q, k = turned(q, cell.double()), turned(k, cell.double())
    if positions == "alibi":
        distance = (cell[:, None] - cell).double().square().sum(-1).sqrt()
        bias = -torch.tensor([2.0**-4, 2.0**-8])[:, None, None] * distance
    weights = (q @ k.mT / 4 + bias).masked_fill(~seen, -torch.inf).softmax(-1)
    expected = (weights @ v).transpose(0, 1).flatten(1)
    torch.testing.assert_close(attention.attend_in_windows(qkv, lattice), expected, atol=2e-6, rtol=0)


def test_only_the_learned_bias_is_a_weight():
    names = {p: [n for n, _ in SlideAttention(2, 4, positions=p, head_width=8).named_parameters()] for p in POSITIONS}
    assert names == {"relative": ["bias"], "rope": [], "alibi": [], "none": []}
    falling = alibi_bias(4, 4)[:, 0]
    assert (falling[:, 0] == 0).all()
    assert (falling[:, 1:] < 0).all()
    assert (falling[:-1, 15] < falling[1:, 15]).all()  # the first head looks the least far


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_part_can_be_left_out_and_the_rest_still_learns(name):
    options, lattice = ABLATIONS[name], Lattice.concatenate([scattered(60, 12), full(3, 7)])
    body, whole = backbone(**options), backbone()
    h = tokens_for(body, lattice)
    if name != "no token":
        assert not torch.allclose(body(h, lattice), whole(h, lattice), atol=1e-3)
    assert body(h, lattice).shape == h.shape
    body(h, lattice).pow(3).sum().backward()
    idle = [n for n, p in body.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    of_tokens = [n for n, _ in body.named_parameters() if "global_qkv" in n or ".tokens." in n]
    assert idle == (of_tokens if name == "no token" else [])


@pytest.mark.parametrize("positions", POSITIONS)
def test_places_are_relative_whatever_encodes_them(positions):
    body, lattice = backbone(positions=positions), scattered(100, 14)
    h = tokens_for(body, lattice)
    far = lattice.moved(transpose=False, flip_row=False, flip_col=False, shift=(24 * 40_000, -24 * 40_000))
    with torch.no_grad():
        assert torch.equal(body(h, far), body(h, lattice))
        mirrored = lattice.moved(transpose=False, flip_row=True, flip_col=False)
        changes = not torch.allclose(body(h, mirrored), body(h, lattice), atol=1e-4)
    assert changes  # the places within a window and among siblings count


def test_without_positions_windows_do_not_know_where_their_spots_are():
    lattice = full(6, 6)  # one window, if it is not shifted
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    for positions in POSITIONS:
        body = backbone(positions=positions, shifted=False, encoder_depths=(1,), decoder_depths=(), skip=False)
        h = tokens_for(body, lattice)
        with torch.no_grad():
            found, mixed = body(h, lattice)[1:], body(torch.cat([h[:1], h[1:][order]]), lattice)[1:]
        assert torch.allclose(found[order], mixed, atol=1e-5) == (positions == "none")


def test_without_shifted_windows_neighbours_across_a_border_do_not_meet():
    lattice = full(6, 12)
    for shifted in (True, False):
        body = backbone(shifted=shifted, n_global=0, encoder_depths=(1,), decoder_depths=(), skip=False)
        h = tokens_for(body, lattice)
        other = h.clone()
        other[5] = other[7]  # (0, 5), at the border of two windows
        with torch.no_grad():
            difference = (body(other, lattice) - body(h, lattice)).abs().sum(1)
        assert (difference[6] > 1e-6) == shifted  # (0, 6)
        assert difference[4] > 1e-6
    assert HistConfig(shifted=False).receptive_field(1) < HistConfig().receptive_field(1)
    assert HistConfig(shifted=False).tokens_seen("square", 10**4) < HistConfig().tokens_seen("square", 10**4)


def test_without_skip_connections_the_finest_level_reaches_the_output_through_coarser_ones_only():
    lattice = full(4, 4)
    for skip in (True, False):
        body = backbone(skip=skip, n_global=0)
        with torch.no_grad():
            for step in body.coarsen:
                step.spots.weight.zero_()
            out = body(tokens_for(body, lattice), lattice)
        assert (out.std(dim=0).max() > 1e-3) == skip


def test_a_mean_of_children_forgets_their_places_and_their_number():
    one, other = (Lattice(torch.tensor([0, r]), torch.tensor([0, c]), (2,), "square") for r, c in [(0, 1), (1, 0)])
    torch.manual_seed(0)
    mean, slots = HistCoarsening(8, 8, "mean"), HistCoarsening(8, 8)
    h = torch.randn(2, 8)
    assert torch.allclose(mean(h, one), mean(h, other))
    assert not torch.allclose(slots(h, one), slots(h, other), atol=1e-2)
    alone = Lattice(torch.tensor([0]), torch.tensor([0]), (1,), "square")
    assert torch.allclose(mean(h[:1].repeat(2, 1), one), mean(h[:1], alone), atol=1e-6)
    up = HistUncoarsening(8, 8, "mean")
    assert torch.equal(*up(torch.randn(1, 8), one))


def test_merging_normalises_the_children_together():
    torch.manual_seed(0)
    h, lattice = torch.randn(4, 8), full(2, 2)
    merge, slots = HistCoarsening(8, 8, "merge"), HistCoarsening(8, 8)
    assert torch.allclose(merge(h + 3, lattice), merge(h, lattice), atol=1e-5)
    assert not torch.allclose(slots(h + 3, lattice), slots(h, lattice), atol=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positions": "absolute"}, "choose one of"),
        ({"resampling": "pooling"}, "choose one of"),
        ({"positions": "rope", "width": 12, "n_heads": 2}, "multiple of 4"),
    ],
)
def test_unknown_parts_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        HistConfig(**options)


def test_model_folders_from_before_these_options_are_read_and_wrong_ones_are_not():
    for options in ABLATIONS.values():
        config = to_json(HistConfig(**options))
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in config.items() if name != "name"}
        check(values, HistConfig, "backbone")
    for name in ("positions", "skip", "shifted", "resampling"):
        del values[name]
    check(values, HistConfig, "backbone")
    with pytest.raises(SchemaError, match="positions"):
        check(values | {"positions": "absolute"}, HistConfig, "backbone")
    del values["window"]
    with pytest.raises(SchemaError, match="window"):
        check(values, HistConfig, "backbone")
