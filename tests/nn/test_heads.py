from __future__ import annotations

import pytest
import torch

from strecur.nn import TRM, Batch, DenseBackbone, DenseConfig, ExpressionHead, Lattice, SpotNetwork, TRMConfig


def lattice(n: int) -> Lattice:
    return Lattice(torch.zeros(n, dtype=torch.long), torch.arange(n), (n,), "square")


def network(n_genes: int = 3, halting: str | None = None) -> SpotNetwork:
    torch.manual_seed(0)
    body = DenseBackbone(DenseConfig(width=16, n_heads=2))
    return SpotNetwork(4, TRM(body, TRMConfig(n_latent=1)), ExpressionHead(16, n_genes), halting=halting)


def test_the_histology_model_of_the_paper_has_1238125_parameters():
    body = TRM(DenseBackbone(DenseConfig()), TRMConfig(n_latent=6, n_deep=3))
    net = SpotNetwork(1536, body, ExpressionHead(192, 300), halting="pcc")
    assert sum(p.numel() for p in net.parameters()) == 1_238_125
    by_gene = SpotNetwork(1536, body, ExpressionHead(192, 300), halting="gene_pcc")
    assert sum(p.numel() for p in by_gene.parameters()) == 1_295_832


def test_the_scale_is_that_of_the_labelled_spots():
    target = torch.tensor([[1.0, 5.0], [3.0, 5.0], [torch.nan, torch.nan]])
    head = ExpressionHead(4, 2)
    head.set_scale(target)
    assert head.mean_G.tolist() == [2, 5]
    assert head.sd_G.tolist() == [1, 0]
    assert {"mean_G", "sd_G"} <= set(head.state_dict())
    output = head(torch.randn(7, 4))
    # a gene that is constant in training is constant
    assert (output[:, 1] == 5).all()
    assert output[:, 0].std() > 0
    assert head.predict(output) is output


def test_the_loss_is_the_squared_error_on_the_scale_of_the_target():
    head = ExpressionHead(4, 3)
    head.set_scale(torch.randn(50, 3) * torch.tensor([0.1, 1.0, 10.0]))
    output, target = head(torch.randn(5, 4)), torch.randn(5, 3)
    torch.testing.assert_close(head.spot_loss(output, target), (output - target).square().mean(dim=1))


def test_rare_genes_learn_as_fast_as_abundant_ones():
    # one step of a sign-like optimizer moves every gene by the same share of its standard deviation
    head = ExpressionHead(4, 2)
    head.set_scale(torch.randn(50, 2) * torch.tensor([0.1, 10.0]))
    y = torch.randn(6, 4)
    before = head(y).detach()
    with torch.no_grad():
        head.linear.bias += 0.01
    moved = (head(y).detach() - before).mean(dim=0) / head.sd_G
    torch.testing.assert_close(moved, torch.full((2,), 0.01), rtol=1e-3, atol=0)


def test_unlabelled_spots_give_no_gradient_and_no_nan():
    head, y = ExpressionHead(16, 3), torch.randn(6, 16, requires_grad=True)
    target = torch.randn(6, 3)
    target[[1, 4]] = torch.nan
    head.set_scale(target)
    loss_N = head.spot_loss(head(y), target)
    assert loss_N[[1, 4]].tolist() == [0, 0]
    loss_N[head.labelled(target)].mean().backward()
    assert torch.isfinite(y.grad).all()
    assert (y.grad[[1, 4]] == 0).all()
    assert (y.grad[[0, 2, 3, 5]] != 0).any(dim=1).all()
    assert torch.isfinite(head.linear.weight.grad).all()


@pytest.mark.parametrize("halting", ["pcc", "rvd", "mse", "gene_pcc"])
def test_every_recipe_trains_the_halt_head(halting):
    net, n = network(halting=halting), 40
    target = torch.randn(n, 3)
    target[0] = torch.nan
    net.head.set_scale(target)
    batch, generator = Batch(torch.randn(n, 4), lattice(n), target), torch.Generator().manual_seed(0)
    loss, _ = net.training_step(batch, net.training_start(batch, 1, generator), generator)
    loss.backward()
    assert torch.isfinite(loss)
    assert net.halt_head.linear.bias.grad.abs().sum() > 0


def test_the_whole_transcriptome_needs_no_more_than_a_few_matrices_of_its_size():
    n, n_genes = 50, 20_000
    head, y = ExpressionHead(16, n_genes), torch.randn(n, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        head.spot_loss(head(y), torch.zeros(n, n_genes)).mean()
    assert sum(saved) < 6 * n * n_genes
