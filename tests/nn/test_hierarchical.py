from __future__ import annotations

import pytest
import torch

from strecur.nn import (
    TRM,
    Batch,
    DomainHead,
    Feedforward,
    FeedforwardConfig,
    HierarchicalBackbone,
    HierarchicalConfig,
    HistBackbone,
    HistConfig,
    Lattice,
    SpotNetwork,
    TRMConfig,
    Universal,
    UniversalConfig,
)
from strecur.nn.attention import SlideAttention
from strecur.nn.hierarchical import gather_children, spread_to_children
from strecur.nn.hist import HistLayer, HistUncoarsening


def scattered(n: int, extent: int, *, seed: int = 0, layout: str = "square", origin: int = 0) -> Lattice:
    cell = torch.randperm(extent**2, generator=torch.Generator().manual_seed(seed))[:n]
    row, col = cell // extent, cell % extent
    return Lattice(row + origin, (2 * col + row % 2 if layout == "hex" else col) + origin, (n,), layout)


def full(n_rows: int, n_cols: int) -> Lattice:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    return Lattice(row, col, (len(row),), "square")


def shifted(lattice: Lattice, rows: int, cols: int) -> Lattice:
    return lattice.moved(transpose=False, flip_row=False, flip_col=False, shift=(rows, cols))


def cells(lattice: Lattice) -> list[tuple[int, int, int]]:
    """Return (section, row, column) of every spot, as plain numbers."""
    cols = lattice.col_N // 2 if lattice.layout == "hex" else lattice.col_N
    return list(zip(lattice.section_N.tolist(), lattice.row_N.tolist(), cols.tolist(), strict=True))


def recursive(**options: object) -> HierarchicalBackbone:
    torch.manual_seed(0)
    body = HierarchicalBackbone(HierarchicalConfig(**{"width": 32, "n_heads": 2, "n_global": 2} | options))
    return with_bias(body)


def published(**options: object) -> HistBackbone:
    torch.manual_seed(0)
    return with_bias(HistBackbone(HistConfig(**{"width": 32, "n_heads": 2} | options)).eval())


def with_bias(body: torch.nn.Module) -> torch.nn.Module:
    for module in body.modules():
        if isinstance(module, SlideAttention):
            torch.nn.init.normal_(module.bias)
    return body


def tokens_for(body: torch.nn.Module, lattice: Lattice, *, seed: int = 0) -> torch.Tensor:
    n_tokens = body.n_context * lattice.n_sections + len(lattice.row_N)
    return torch.randn(n_tokens, body.width, generator=torch.Generator().manual_seed(seed))


both = pytest.mark.parametrize("backbone", [recursive, published])

# odd extents, one spot, negative rows and columns, empty cells, two spots far apart
SECTIONS = [
    full(9, 11),
    full(1, 1),
    scattered(70, 13, origin=-7),
    full(1, 20),
    Lattice(torch.tensor([-3, 10**6]), torch.tensor([2, 10**6 + 1]), (2,), "square"),
]


@pytest.mark.parametrize(
    "lattice",
    [Lattice.concatenate(SECTIONS), scattered(150, 17, layout="hex"), scattered(150, 17, layout="hex", origin=-9)],
)
def test_parents_are_the_distinct_halved_cells_and_every_spot_finds_its_own(lattice):
    for _ in range(3):
        children, coarser = cells(lattice), lattice.coarser
        expected = sorted({(s, r // 2, c // 2) for s, r, c in children})
        assert cells(coarser) == expected
        assert coarser.length_S == tuple(sum(p[0] == s for p in expected) for s in range(lattice.n_sections))
        site_of = {p: 4 * i for i, p in enumerate(expected)}
        expected_sites = [site_of[s, r // 2, c // 2] + 2 * (r % 2) + c % 2 for s, r, c in children]
        assert lattice.windows(2, 0).site_N.tolist() == expected_sites
        lattice = coarser


def test_coarsening_and_back_returns_the_support_in_order():
    lattice = Lattice.concatenate(SECTIONS)
    spots = torch.randn(len(lattice.row_N), 8)
    parents = gather_children(spots, lattice)
    assert torch.equal(spread_to_children(parents, lattice), spots)
    assert (parents != 0).sum() == spots.numel()


@both
def test_the_place_among_its_siblings_matters(backbone):
    body = backbone(n_global=1)
    left, below = (Lattice(torch.tensor([0, r]), torch.tensor([0, c]), (2,), "square") for r, c in [(0, 1), (1, 0)])
    spots = tokens_for(body, left)[1:]
    assert torch.equal(gather_children(spots, left)[0, 32:64], spots[1])
    assert torch.equal(gather_children(spots, below)[0, 64:96], spots[1])
    matrix = body.coarsen if isinstance(body, HierarchicalBackbone) else body.coarsen[0].spots
    assert not torch.allclose(matrix(gather_children(spots, left)), matrix(gather_children(spots, below)), atol=1e-3)


def dense_reference(attention: SlideAttention, qkv: torch.Tensor, window_qkv: torch.Tensor, lattice: Lattice):
    """Equation 1 of HiST for one section, with a mask over all pairs of spots."""
    w, n_spots = attention.window, len(lattice.row_N)
    cell = torch.tensor(cells(lattice))[:, 1:]
    regular, moved = cell // w, (cell + w // 2) // w
    seen = (regular[:, None] == regular).all(-1) | (moved[:, None] == moved).all(-1)
    offset = cell[None] - cell[:, None] + w - 1
    assert (offset[seen] >= 0).all()
    assert (offset[seen] <= 2 * w - 2).all()
    index = (offset[..., 0] * (2 * w - 1) + offset[..., 1]).clamp(0, (2 * w - 1) ** 2 - 1)

    def softmax(q, k, v, bias):
        return ((q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)

    q, k, v = window_qkv.unflatten(1, (3, attention.n_heads, -1)).permute(1, 2, 0, 3)
    local = softmax(q, k, v, torch.where(seen, attention.bias[:, index], float("-inf")))
    q, k, v = qkv.unflatten(1, (3, attention.n_heads, -1)).permute(1, 2, 0, 3)
    m = len(qkv) - n_spots
    return torch.cat([softmax(q[:, :m], k, v, 0), local + softmax(q[:, m:], k[:, :m], v[:, :m], 0)])


@pytest.mark.parametrize("window", [2, 4, 6])
@pytest.mark.parametrize(
    "lattice", [scattered(90, 15, origin=-4), full(12, 12), scattered(90, 15, layout="hex"), SECTIONS[-1], full(1, 1)]
)
def test_sparse_attention_equals_dense_attention_under_the_mask(lattice, window):
    torch.manual_seed(0)
    attention = with_bias(SlideAttention(2, window)).double()
    qkv = 2 * torch.randn(3 + len(lattice.row_N), 3 * 16, dtype=torch.float64)
    window_qkv = 2 * torch.randn(len(lattice.row_N), 3 * 16, dtype=torch.float64)
    found = attention(qkv[:3], qkv[3:], window_qkv, lattice)
    torch.testing.assert_close(found, dense_reference(attention, qkv, window_qkv, lattice), atol=1e-10, rtol=0)


def test_a_published_layer_follows_the_equations():
    """X' = X + Proj(W-MSA(X) + MCA(X, C)), C ← C + Proj(Attn(C; [X; C])), each with LayerNorm before; then the MLP."""
    torch.manual_seed(0)
    layer = with_bias(HistLayer(HistConfig(width=32, n_heads=2))).double().eval()
    lattice, h = scattered(80, 14), torch.randn(81, 32, dtype=torch.float64)
    normed = layer.attention_norm(h)
    qkv, window_qkv = layer.global_qkv(normed), layer.window_qkv(normed[1:])
    expected = h + layer.out(dense_reference(layer.attention, qkv, window_qkv, lattice))
    expected = expected + layer.mlp[2](layer.mlp[0](layer.mlp_norm(expected)).relu())
    torch.testing.assert_close(layer(h, lattice), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("n_rows", "n_cols"), [(12, 12), (12, 18), (6, 6)])
def test_shifted_windows_add_pairs_also_where_the_extent_is_a_multiple_of_the_window(n_rows, n_cols):
    lattice = full(n_rows, n_cols)
    regular, moved = (lattice.windows(6, offset).site_N // 36 for offset in (0, 3))
    together, moved_together = regular[:, None] == regular, moved[:, None] == moved
    assert not torch.equal(together, moved_together)
    assert (moved_together & ~together).any() == (max(n_rows, n_cols) > 6)


def test_the_bias_belongs_to_the_offset_from_reader_to_read():
    """With equal logits and one large entry every spot copies the neighbour at that offset, in either window."""
    attention, lattice = SlideAttention(1, 6), full(9, 9)
    value = torch.arange(81.0)
    qkv = torch.stack([torch.zeros(81), torch.zeros(81), value], dim=1)
    for rows, cols in [(0, 1), (0, -1), (2, -1), (-2, 1), (0, 0)]:
        with torch.no_grad():
            attention.bias.zero_()[0, (rows + 5) * 11 + cols + 5] = 100
            found = attention.attend_in_windows(qkv, lattice).squeeze(1)
        inside = (lattice.row_N + rows).clamp(0, 8) == lattice.row_N + rows
        inside &= (lattice.col_N + cols).clamp(0, 8) == lattice.col_N + cols
        source, target = torch.stack([lattice.row_N, lattice.col_N]), torch.tensor([[rows], [cols]])
        seen = (source // 6 == (source + target) // 6).all(0) | ((source + 3) // 6 == (source + target + 3) // 6).all(0)
        assert (inside & seen).sum() > 50
        assert torch.allclose(found[inside & seen], (value + 9 * rows + cols)[inside & seen])


@both
@pytest.mark.parametrize("layout", ["square", "hex"])
def test_moving_by_a_window_of_the_coarsest_level_changes_nothing(backbone, layout):
    body, lattice = backbone(), scattered(120, 16, layout=layout)
    h, step = tokens_for(body, lattice), 48 if layout == "hex" else 24
    with torch.no_grad():
        expected = body(h, lattice)
        assert torch.equal(body(h, shifted(lattice, 24, -2 * step)), expected)
        for other in (6, 12):
            assert not torch.allclose(body(h, shifted(lattice, other, 0)), expected, atol=1e-3)


@both
def test_sections_packed_together_equal_single_runs_and_nothing_leaks(backbone):
    body, together = backbone(), Lattice.concatenate(SECTIONS)
    h, m, s = tokens_for(body, together), body.n_context, len(SECTIONS)
    parts = list(zip(h[: m * s].chunk(s), together.split(h[m * s :]), SECTIONS, strict=True))
    with torch.no_grad():
        found = body(h, together)
        alone = [body(torch.cat([context, spots]), lattice) for context, spots, lattice in parts]
        spoiled = h.clone()
        spoiled[m * s : m * s + 99] = torch.nan
        after = body(spoiled, together)
    torch.testing.assert_close(found[: m * s], torch.cat([a[:m] for a in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[m * s :], torch.cat([a[m:] for a in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[m : m * s], found[m : m * s], atol=1e-5, rtol=0)
    torch.testing.assert_close(after[m * s + 99 :], found[m * s + 99 :], atol=1e-5, rtol=0)


@both
def test_the_order_of_spots_does_not_matter(backbone):
    body, lattice = backbone(), scattered(120, 16, layout="hex")
    h, m = tokens_for(body, lattice), body.n_context
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    mixed = Lattice(lattice.row_N[order], lattice.col_N[order], (120,), "hex")
    with torch.no_grad():
        expected, found = body(h, lattice), body(torch.cat([h[:m], h[m:][order]]), mixed)
    torch.testing.assert_close(found, torch.cat([expected[:m], expected[m:][order]]), atol=1e-5, rtol=0)


@both
def test_gradient_reaches_every_parameter(backbone):
    body, lattice = backbone(n_global=2), scattered(120, 16)
    body(tokens_for(body, lattice), lattice).pow(3).sum().backward()
    assert [name for name, p in body.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def network(body: torch.nn.Module, config: object, halting: str | None = "loss_proxy") -> SpotNetwork:
    recursion = {TRMConfig: TRM, UniversalConfig: Universal, FeedforwardConfig: Feedforward}[type(config)]
    return SpotNetwork(5, recursion(body, config), DomainHead(body.width, 3), halting=halting)


def logits(net: SpotNetwork, batch: Batch, depth: int) -> torch.Tensor:
    carry = net.start(batch)
    for _ in range(depth):
        output, _, carry = net.step(batch, carry)
    return output


@both
@pytest.mark.parametrize("config", [TRMConfig(n_latent=2), UniversalConfig(n_repeats=2), FeedforwardConfig()])
def test_it_trains_under_every_recursion(backbone, config):
    net, lattice = network(backbone(), config, halting=None), Lattice.concatenate(SECTIONS[1:])
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(lattice.row_N), 5)
    batch = Batch(features, lattice, features[:, :3].argmax(dim=1))
    with torch.inference_mode():
        assert logits(net, batch, 2).isfinite().all()
    optimizer, losses = torch.optim.Adam(net.parameters(), 1e-3), []
    for _ in range(10):
        loss, _ = net.training_step(batch, net.start(batch), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_number_of_blocks_matters(dtype):
    body, batch = recursive(), Batch(torch.randn(150, 5), scattered(150, 17, layout="hex"))

    def run(n_steps: int, n_deep: int) -> torch.Tensor:
        torch.manual_seed(1)
        net = network(body, TRMConfig(n_latent=2, n_deep=n_deep)).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            return logits(net, batch, n_steps)

    assert torch.equal(run(1, 2), run(2, 1))
    assert torch.equal(run(2, 3), run(3, 2))
    assert torch.equal(run(2, 3), run(6, 1))
    assert not torch.equal(run(1, 2), run(1, 3))


def test_every_token_of_the_recursive_backbone_leaves_with_unit_rms():
    body, lattice = recursive(), Lattice.concatenate(SECTIONS)
    out = body(5 * tokens_for(body, lattice), lattice)
    torch.testing.assert_close(out.pow(2).mean(dim=1), torch.ones(len(out)), atol=1e-3, rtol=0)


def table_sizes(lattice: Lattice, n_levels: int = 3) -> int:
    """Count the slots of all tables that are gathered."""
    total = 0
    for _ in range(n_levels):
        total += sum(lattice.windows(*window).occupied_WK.numel() for window in [(6, 0), (6, 3), (2, 0)])
        lattice = lattice.coarser
    return total


def test_cost_is_linear_in_spots():
    assert table_sizes(full(240, 240)) < 1.02 * 4 * table_sizes(full(120, 120))
    assert table_sizes(full(240, 240)) < 4.2 * 240**2
    lonely = Lattice(10**4 * torch.arange(50), 10**4 * torch.arange(50), (50,), "square")
    assert table_sizes(lonely) == 50 * 3 * (36 + 36 + 4)


def test_index_tensors_are_built_once():
    lattice = full(9, 9)
    assert lattice.coarser is lattice.coarser
    assert lattice.windows(6, 3) is lattice.windows(6, 3)


def test_parameters_of_the_published_network():
    """A layer as released; the whole of 32,365,802 (541 genes) less what takes three tokens from the features.

    Embedding and head of a feedforward network belong to it. Missing: the embedding of the raw tokens, a head that
    predicts from tokens, and half of the other head, which reads 512 channels here; more: the map that makes these 512
    of 1,024, and the learned token.
    """
    assert sum(p.numel() for p in HistLayer(HistConfig()).parameters()) == 3_941_320
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in HistBackbone(HistConfig()).parameters())
    token_embedding, wide_head, narrow_head = 1024 * 512 + 512, 1024 * 541 + 541, 512 * 541 + 541
    ours = n_parameters + 1024 * 512 + 512 + narrow_head
    assert ours - (1024 * 512 + 512) - 512 - narrow_head + token_embedding + 2 * wide_head == 32_365_802


def test_children_of_a_published_uncoarsening_start_equal():
    uncoarsen, lattice = HistUncoarsening(32, 32), full(2, 2)
    spots = uncoarsen(torch.randn(2, 32), lattice)[1:]
    torch.testing.assert_close(spots, spots[:1].expand(4, 32), atol=1e-6, rtol=0)


def test_dropout_is_for_training_only():
    body, lattice = published(dropout=0.3), scattered(60, 10)
    h = tokens_for(body, lattice)
    assert torch.equal(body(h, lattice), body(h, lattice))
    body.train()
    assert not torch.allclose(body(h, lattice), body(h, lattice), atol=1e-3)


def test_shapes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="choose 6 or 8"):
        recursive(window=7)
    with pytest.raises(ValueError, match="at least 2"):
        recursive(n_levels=1)
    with pytest.raises(ValueError, match="one less than encoder_depths"):
        published(decoder_depths=(1, 1, 1))


@pytest.mark.parametrize(("layout", "col"), [("square", 2), ("hex", 3)])
def test_two_spots_in_one_cell_are_refused(layout, col):
    row_N, col_N = torch.tensor([0, 3, 3]), torch.tensor([1, 2, col])
    with pytest.raises(ValueError, match="share a cell"):
        Lattice(row_N, col_N, (3,), layout).windows(6, 0)
    assert Lattice(row_N, col_N, (2, 1), layout).windows(6, 0).occupied_WK.sum() == 3
