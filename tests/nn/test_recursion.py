from __future__ import annotations

import pytest
import torch

from strecur.nn import (
    TRM,
    Batch,
    DenseBackbone,
    DenseConfig,
    DomainHead,
    Feedforward,
    FeedforwardConfig,
    Lattice,
    SpotNetwork,
    TRMConfig,
    Universal,
    UniversalConfig,
    WindowedBackbone,
    WindowedConfig,
)
from strecur.nn.layers import SwiGLU, linear, rms_norm, sinusoidal_positions, truncated_normal_


def lattice(n_rows: int = 9, n_cols: int = 11, layout: str = "square") -> Lattice:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    return Lattice(row, 2 * col + row % 2 if layout == "hex" else col, (len(row),), layout)


def dense(width: int = 32) -> DenseBackbone:
    return DenseBackbone(DenseConfig(width=width, n_heads=2))


def windowed(width: int = 32) -> WindowedBackbone:
    return WindowedBackbone(WindowedConfig(width=width, n_heads=2, window=4, n_global=2))


def network(backbone: torch.nn.Module, config: object = TRMConfig(), n_features: int = 5) -> SpotNetwork:
    recursion = {TRMConfig: TRM, UniversalConfig: Universal, FeedforwardConfig: Feedforward}[type(config)]
    return SpotNetwork(n_features, recursion(backbone, config), DomainHead(backbone.width, 3), halting="loss_proxy")


def run(net: SpotNetwork, batch: Batch, depth: int) -> torch.Tensor:
    carry = net.start(batch)
    for _ in range(depth):
        output, _, carry = net.step(batch, carry)
    return output


def test_the_paper_configuration_has_896065_parameters():
    net = SpotNetwork(
        50, TRM(DenseBackbone(DenseConfig()), TRMConfig(n_latent=6, n_deep=3)), DomainHead(192, 7), halting="loss_proxy"
    )
    assert sum(p.numel() for p in net.parameters()) == 896_065
    assert sum(p.numel() for p in net.recursion.parameters()) == 884_736


@pytest.mark.parametrize("backbone", [dense, windowed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_number_of_blocks_matters(backbone, dtype):
    torch.manual_seed(0)
    body, batch = backbone(), Batch(torch.randn(99, 5), lattice())

    def logits(n_steps: int, n_deep: int) -> torch.Tensor:
        torch.manual_seed(1)
        net = network(body, TRMConfig(n_latent=2, n_deep=n_deep)).eval()
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            return run(net, batch, n_steps)

    assert torch.equal(logits(1, 2), logits(2, 1))
    assert torch.equal(logits(1, 3), logits(3, 1))
    assert torch.equal(logits(2, 3), logits(3, 2))
    assert torch.equal(logits(2, 3), logits(6, 1))
    assert not torch.equal(logits(1, 2), logits(1, 3))


def test_trm_follows_the_update_equations():
    torch.manual_seed(0)
    body, grid = dense(), lattice()
    recursion = TRM(body, TRMConfig(n_latent=2, n_deep=2))
    x = torch.randn(100, 32)
    y, z = (start.expand(100, 32) for start in (recursion.y_init, recursion.z_init))
    for _ in range(2):
        for _ in range(2):
            z = body(z + (y + x), grid)
        y = body(y + z, grid)
    found_y, found_z = recursion.step(recursion.start(x), x, grid)
    assert torch.equal(found_y, y)
    assert torch.equal(found_z, z)


def test_gradient_reaches_the_last_block_only():
    torch.manual_seed(0)
    body, grid = dense(), lattice()
    recursion = TRM(body, TRMConfig(n_latent=2, n_deep=3))
    x = torch.randn(100, 32, requires_grad=True)

    def gradients(prefix_free: bool) -> list[torch.Tensor]:
        body.zero_grad()
        x.grad = None
        if prefix_free:
            y, _ = recursion.step(recursion.start(x), x, grid)
        else:
            state = recursion.start(x)
            with torch.no_grad():
                for _ in range(2):
                    state = recursion.block(*state, x, grid)
            y, _ = recursion.block(*state, x, grid)
        y.pow(3).sum().backward()
        return [p.grad.clone() for p in body.parameters()] + [x.grad.clone()]

    for a, b in zip(gradients(prefix_free=True), gradients(prefix_free=False), strict=True):
        assert torch.equal(a, b)
    assert recursion.y_init.grad is None
    assert x.grad.abs().sum() > 0


def test_start_states_are_fixed_buffers(tmp_path):
    recursion = TRM(dense(192), TRMConfig())
    assert {"y_init", "z_init"} <= set(recursion.state_dict())
    assert not {"y_init", "z_init"} & {name for name, _ in recursion.named_parameters()}
    starts = torch.cat([TRM(dense(192), TRMConfig()).y_init for _ in range(50)])
    assert starts.std() == pytest.approx(1, abs=0.03)
    assert starts.abs().max() <= 2.28
    y, z = recursion.start(torch.zeros(7, 192))
    assert (y == y[0]).all()
    assert not torch.equal(y, z)


@pytest.mark.parametrize("config", [UniversalConfig(n_repeats=3), FeedforwardConfig()])
def test_one_state_recursions_train_the_embedding(config):
    net = network(dense(), config)
    batch = Batch(torch.randn(99, 5), lattice())
    run(net, batch, 1).pow(2).sum().backward()
    assert net.embedding.weight.grad.abs().sum() > 0
    assert net.context.grad.abs().sum() > 0


def test_universal_equals_repeated_calls_and_feedforward_ignores_depth():
    body, grid, x = dense(), lattice(), torch.randn(100, 32)
    (h,) = Universal(body, UniversalConfig(n_repeats=3)).step((), x, grid)
    assert torch.equal(h, body(body(body(x, grid), grid), grid))
    net, batch = network(body, FeedforwardConfig()), Batch(torch.randn(99, 5), grid)
    assert torch.equal(run(net, batch, 1), run(net, batch, 4))


def test_training_step_hands_on_a_detached_state_that_equals_prediction():
    torch.manual_seed(0)
    net = network(dense())
    batch = Batch(torch.randn(99, 5), lattice(), torch.randint(-1, 3, (99,)))
    generator = torch.Generator().manual_seed(0)
    loss, carry = net.training_step(batch, net.training_start(batch, 2, generator), generator)
    assert loss.requires_grad
    assert not any(part.requires_grad for part in carry.state)
    with torch.no_grad():
        _, _, expected = net.step(batch, net.start(batch))
    assert carry.step == expected.step == 1
    assert all(torch.equal(a, b) for a, b in zip(carry.state, expected.state, strict=True))


@pytest.mark.parametrize("backbone", [dense, windowed])
def test_post_norm_leaves_unit_rms_and_has_no_parameters(backbone):
    body = backbone()
    out = body(5 * torch.randn(99 + body.n_context, 32), lattice())
    torch.testing.assert_close(out.pow(2).mean(dim=1), torch.ones(len(out)), atol=1e-3, rtol=0)
    assert not [name for name, _ in body.named_parameters() if "norm" in name]


@pytest.mark.parametrize(("width", "hidden"), [(192, 512), (512, 1536), (128, 512)])
def test_swiglu_width(width, hidden):
    assert SwiGLU(width).down.in_features == hidden


def test_linear_init_has_the_lecun_standard_deviation_after_truncation():
    weight = linear(400, 2000).weight.detach()
    assert weight.std() == pytest.approx(1 / 20, rel=0.01)
    assert weight.abs().max() <= 2.28 / 20
    assert truncated_normal_(torch.empty(100_000), 1.0).std() == pytest.approx(1, rel=0.02)


def test_positions_tell_rows_from_columns():
    row, col = torch.tensor([0, 3, 5]), torch.tensor([2, 3, 1])
    code = sinusoidal_positions(row, col, 32)
    assert code.shape == (3, 32)
    assert not torch.allclose(code, sinusoidal_positions(col, row, 32))
    assert torch.allclose(code[1, :16], code[1, 16:])
    assert (torch.cdist(code, code) + torch.eye(3) > 0.1).all()


def test_context_tokens_carry_no_position_and_are_not_normalised():
    net = network(dense())
    batch = Batch(torch.randn(99, 5), lattice())
    x = net.embed(batch.features_NF, batch.lattice)
    assert torch.equal(x[0], net.context[0])
    expected = rms_norm(net.embedding(batch.features_NF)) + sinusoidal_positions(
        batch.lattice.row_N, batch.lattice.col_N, 32
    )
    assert torch.equal(x[1:], expected)


@pytest.mark.parametrize("backbone", [dense, windowed])
@pytest.mark.parametrize("config", [TRMConfig(), UniversalConfig(n_repeats=2), FeedforwardConfig()])
def test_packed_sections_equal_single_runs(backbone, config):
    torch.manual_seed(0)
    net = network(backbone(), config).eval()
    parts = [lattice(9, 11), lattice(1, 1), lattice(3, 20)]
    features = [torch.randn(len(part.row_N), 5) for part in parts]
    with torch.no_grad():
        together = run(net, Batch(torch.cat(features), Lattice.concatenate(parts)), 2)
        alone = [run(net, Batch(f, part), 2) for f, part in zip(features, parts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", [dense, windowed])
def test_order_of_spots_does_not_matter(backbone):
    torch.manual_seed(0)
    net, grid, features = network(backbone()).eval(), lattice(layout="hex"), torch.randn(99, 5)
    order = torch.randperm(99)
    shuffled = Lattice(grid.row_N[order], grid.col_N[order], grid.length_S, grid.layout)
    with torch.no_grad():
        expected = run(net, Batch(features, grid), 2)
        found = run(net, Batch(features[order], shuffled), 2)
    torch.testing.assert_close(found, expected[order], atol=1e-5, rtol=0)
