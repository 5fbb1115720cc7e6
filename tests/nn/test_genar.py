"""Numbers in the names of tests are those of the list of errors that are easily made with GenAR (56 to 65)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise, product

import pytest
import torch
from torch.nn import functional as F

from strecur.nn import TRMConfig
from strecur.nn.genar.config import GenARConfig
from strecur.nn.genar.layers import PAPER_STD, Attention, FiLM
from strecur.nn.genar.model import GenAR
from strecur.nn.genar.targets import (
    clip_counts,
    derive_scales,
    expected_count,
    expected_log2,
    gaussian_labels,
    gaussian_nll_loss,
    group_of,
    kl_loss,
    log_shares,
    nearest_token,
    pool,
    soft_labels,
)
from strecur.nn.patch import ConditionEncoder

N_SPOTS, N_GENES, VOCABULARY, CONDITION = 10, 24, 16, 6
PAPER_SCALES = (1, 4, 8, 40, 100, 200)


def network(scales: tuple[int, ...] = (1, 4, 8, N_GENES), seed: int = 0, **options) -> GenAR:
    torch.manual_seed(seed)
    small = {"vocabulary": VOCABULARY, "width": 16, "n_heads": 2, "condition_width": CONDITION}
    small["decision"] = "most_probable"
    return GenAR(GenARConfig(scales, **(small | options)))


@pytest.fixture
def condition() -> torch.Tensor:
    return torch.randn(N_SPOTS, CONDITION, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def counts() -> torch.Tensor:
    return torch.randint(VOCABULARY, (N_SPOTS, N_GENES), generator=torch.Generator().manual_seed(2)).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_tokens(seed: int):
    """Choose tokens of the coarser scales that have nothing to do with the logits; another seed, other tokens."""
    draws = generator(seed)
    return lambda logits: torch.randint(VOCABULARY, logits.shape[:2], generator=draws)


# Targets


def test_pitfall_56_soft_labels_sum_to_one_and_keep_the_mean():
    values = torch.tensor([[0.0, 3.0, 2.25, 7.5, 15.0]])
    labels = soft_labels(values, VOCABULARY)
    torch.testing.assert_close(labels.sum(dim=-1), torch.ones(1, 5))
    torch.testing.assert_close(labels @ torch.arange(16.0), values)
    assert (labels[0, 1, 3], labels[0, 2, 2], labels[0, 2, 3]) == (1, 0.75, 0.25)
    assert (labels > 0).sum().item() == 7


def test_context_tokens_are_rounded_halves_down():
    assert nearest_token(torch.tensor([0, 0.5, 0.51, 1, 1.5, 2.5, 2.75])).tolist() == [0, 0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("n_groups", [1, 4, 8, 40, 100, 200])
def test_pooling_is_adaptive_average_pooling_where_scales_divide_the_genes(n_groups):
    values = torch.rand(5, 200, generator=generator())
    torch.testing.assert_close(pool(values, n_groups), F.adaptive_avg_pool1d(values, n_groups))


@pytest.mark.parametrize(("n_members", "n_groups"), [(100, 40), (200, 40), (8, 4), (302, 60), (24, 7), (5, 5)])
def test_pitfall_57_every_member_is_in_one_group_of_neighbours(n_members, n_groups):
    group = group_of(n_members, n_groups)
    sizes = torch.bincount(group)
    assert group.tolist() == [member * n_groups // n_members for member in range(n_members)]
    assert len(sizes) == n_groups
    assert sizes.sum() == n_members
    assert sizes.max() - sizes.min() <= 1
    # each group is counted once: the sizes weigh the means of the groups to the mean of all
    values = torch.rand(3, n_members, generator=generator())
    torch.testing.assert_close((pool(values, n_groups) * sizes).sum(dim=1), values.sum(dim=1))


def test_pitfall_57_sequences_have_the_lengths_of_the_paper(condition):
    lengths = []
    net = network(PAPER_SCALES).eval()
    net.blocks[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    net.decode(condition[:2])
    assert lengths == [2, 6, 14, 54, 154, 354]
    assert net.config.longest_sequence == 354


def test_derived_scales_rise_to_any_number_of_genes():
    assert derive_scales(200) == PAPER_SCALES
    assert derive_scales(302) == (1, 4, 8, 60, 151, 302)
    assert derive_scales(200, "few") == (1, 4, 20, 200)
    assert derive_scales(200, "three") == (1, 20, 200)
    assert derive_scales(200, "single") == (200,)
    for n_genes, design in product(range(1, 400), ("paper", "few", "three")):
        scales = derive_scales(n_genes, design)
        assert (scales[0], scales[-1]) == (1, n_genes)
        assert GenARConfig(scales, VOCABULARY).n_genes == n_genes
        assert all(finer >= 1.5 * coarse for coarse, finer in pairwise(scales))


@pytest.mark.parametrize("scales", [(), (0, 24), (1, 8, 4, 24), (1, 4, 4, 24), (1, 48, 24), "all"])
def test_pitfall_57_scales_that_do_not_rise_are_rejected(scales):
    with pytest.raises(ValueError, match="must rise from 1 or more"):
        GenARConfig(scales, VOCABULARY)


@pytest.mark.parametrize("scales", [(1, 5, 7, N_GENES), (N_GENES,), (3, N_GENES)])
def test_pitfall_57_scales_that_do_not_divide_work(scales, condition, counts):
    net = network(scales)
    loss = net.loss(condition, counts, generator())
    loss.total.backward()
    assert loss.scale_S.shape == (len(scales),)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.decode(condition).counts_NG.shape == (N_SPOTS, N_GENES)


def test_pitfall_62_gaussian_labels():
    labels = gaussian_labels(torch.tensor([[0.0, 5.0, 2000.0]]), 2001)[0]
    torch.testing.assert_close(labels.sum(dim=-1), torch.ones(3))
    assert labels[0, 0].item() == pytest.approx(0.5703, abs=1e-4)
    assert (labels[0] @ torch.arange(2001.0)).item() == pytest.approx(0.52, abs=0.005)
    assert labels.argmax(dim=-1).tolist() == [0, 5, 2000]
    deviation = (labels[1] @ (torch.arange(2001.0) - 5) ** 2).sqrt().item()
    assert deviation == pytest.approx(0.01 * 5 + 1, abs=1e-3)


def test_labels_hardly_blur_small_counts_by_default():
    counts = torch.tensor([[0.0, 1.0, 10.0]])
    released, default = (
        gaussian_labels(counts, VOCABULARY, c.softness)[0] for c in (GenARConfig.paper(), GenARConfig())
    )
    assert released[0, 0].item() == pytest.approx(0.5703, abs=1e-4)
    assert default[0, 0] > 0.99
    assert default[1, 1] > 0.9
    deviation = (default[2] @ (torch.arange(float(VOCABULARY)) - 10) ** 2).sqrt().item()
    assert deviation == pytest.approx(0.1 * 10 + 0.3, abs=0.01)


def test_pitfall_61_divergences_are_summed_over_positions(condition, counts):
    net = network().eval()
    outputs = net(condition, counts)
    expected = []
    for logits in outputs:
        target = pool(counts, logits.shape[1])
        last = logits.shape[1] == N_GENES
        labels = gaussian_labels(target, VOCABULARY, (0.1, 0.3)) if last else soft_labels(target, VOCABULARY)
        total = 0.0
        for spot in range(N_SPOTS):
            for position in range(logits.shape[1]):
                predicted = logits[spot, position].softmax(dim=-1)
                for token, p in enumerate(labels[spot, position].tolist()):
                    total += p * (torch.tensor(p) / predicted[token]).log().item() if p > 0 else 0
        expected.append(total / N_SPOTS)
    loss = net.loss(condition, counts, generator())
    assert loss.scale_S.tolist() == pytest.approx(expected, rel=1e-4)
    assert loss.total.item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    net.config = replace(net.config, softness=(0.0, 2.0))
    assert net.loss(condition, counts, generator()).scale_S[-1].item() != pytest.approx(expected[-1], rel=0.01)
    net.config = replace(net.config, normalized=True, softness=(0.1, 0.3))
    normalized = net.loss(condition, counts, generator()).scale_S
    assert normalized.tolist() == pytest.approx([e / n for e, n in zip(expected, (1, 4, 8, 24), strict=True)], rel=1e-4)


def test_gaussian_likelihood_agrees_with_the_normal_distribution(counts):
    logits = torch.randn(N_SPOTS, N_GENES, VOCABULARY, generator=generator())
    mean = logits.softmax(dim=-1) @ torch.arange(float(VOCABULARY))
    torch.testing.assert_close(expected_count(logits), mean)
    torch.testing.assert_close(expected_log2(logits), logits.softmax(dim=-1) @ (torch.arange(VOCABULARY) + 1.0).log2())
    expected = -torch.distributions.Normal(mean, (0.01 * mean + 1).sqrt()).log_prob(counts)
    got = [gaussian_nll_loss(logits, counts, normalized=normalized) for normalized in (False, True)]
    torch.testing.assert_close(got[0], expected.sum(dim=1).mean())
    torch.testing.assert_close(got[1], expected.mean())


def test_pitfall_63_counts_beyond_the_vocabulary_are_clipped_for_the_loss_and_counted(condition, counts):
    beyond = counts.clone()
    beyond[0, :3] = torch.tensor([VOCABULARY, 400.0, 1e6])
    clipped, n_clipped = clip_counts(beyond, VOCABULARY)
    assert n_clipped == 3
    assert clipped[0, :3].tolist() == [VOCABULARY - 1] * 3
    assert beyond[0, 1] == 400, "what scores are computed from is not touched"
    net = network().eval()
    losses = [net.loss(condition, c, generator()) for c in (beyond, clipped)]
    assert [loss.n_clipped.item() for loss in losses] == [3, 0]
    assert losses[0].total == losses[1].total


# Network


@pytest.mark.parametrize(("width", "expected"), [(768, 97_521_169), (512, 44_776_849)])
def test_parameters_are_those_of_paper_and_released_code(width, expected):
    """With the encoder of 1024 patch features; the paper is 768 wide, the code 512."""
    config = replace(GenARConfig.paper().fitted(200, 2000), width=width, condition_width=width)
    assert config.scales == PAPER_SCALES
    with torch.device("meta"):
        modules = GenAR(config), ConditionEncoder(1024, width)
    assert sum(p.numel() for module in modules for p in module.parameters()) == expected


def test_pitfall_58_true_counts_reach_only_finer_scales(condition):
    """Tokens of scale k change nothing at scales up to k, at no position, and everything after."""
    net = network().eval()
    for changed in range(3):

        def choose(logits, seed, changed=changed):
            tokens = random_tokens(5)(logits)
            return random_tokens(seed)(logits) if logits.shape[1] == net.config.scales[changed] else tokens

        first, second = (net.run(condition, lambda logits, seed=seed: choose(logits, seed)) for seed in (6, 7))
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert torch.equal(a, b) == (index <= changed)


def test_pitfall_58_single_genes_are_not_leaked(condition, counts):
    """Genes that trade places within the smallest group leave all logits as they are; the loss notices."""
    net = network().eval()
    traded = counts.clone()
    traded[:, [0, 1, 2]] = counts[:, [2, 0, 1]]
    for before, after in zip(net(condition, counts), net(condition, traded), strict=True):
        assert torch.equal(before, after)
    losses = [net.loss(condition, c, generator()).scale_S for c in (counts, traded)]
    torch.testing.assert_close(losses[0][:-1], losses[1][:-1])
    assert losses[0][-1] != losses[1][-1]


def test_target_positions_start_from_the_most_probable_tokens_not_from_the_true_ones(condition, counts):
    net, seen = network().eval(), []
    for scale in net.scales[1:]:
        scale.inherit.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    outputs = net(condition, counts)
    for coarser, logits in zip(seen, outputs[:-1], strict=True):
        torch.testing.assert_close(coarser, net.token(logits.argmax(dim=-1)))


def test_last_scale_mixes_what_it_inherits_with_the_gene(condition):
    net, seen = network(), []
    last = net.scales[-1]
    torch.nn.init.zeros_(last.position.weight)
    torch.nn.init.zeros_(last.scale.weight)
    last.inherit.register_forward_hook(lambda _, __, output: seen.append(output))
    net.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net.decode(condition)
    inherited, sequence = seen[-2:]
    expected = 0.7 * inherited.repeat_interleave(3, dim=1) + 0.3 * net.gene.weight
    torch.testing.assert_close(sequence[:, -N_GENES:], expected)


def test_pitfall_59_positions_see_the_context_and_earlier_positions_of_their_scale(condition, counts):
    net = network().eval()
    before, place = net(condition, counts)[-1], net.scales[-1].position.weight
    for position in (0, 11, N_GENES - 1):
        kept = place.detach().clone()
        with torch.no_grad():
            place[-N_GENES + position] = torch.randn(16, generator=generator())
            after = net(condition, counts)[-1]
            place.copy_(kept)
        changed = (before != after).any(dim=-1)
        assert not changed[:, :position].any()
        assert changed[:, position:].all()


def test_attention_is_causal_between_unit_vectors_with_a_capped_temperature():
    torch.manual_seed(0)
    attention = Attention(16, 2)
    assert attention.log_temperature_H.exp().tolist() == pytest.approx([4, 4])
    torch.nn.init.normal_(attention.q_bias)
    torch.nn.init.normal_(attention.v_bias)
    attention.log_temperature_H.data = torch.tensor([7.0, 200.0]).log()
    h = torch.randn(3, 9, 16)
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in attention.qkv(h).chunk(3, dim=-1))
    q, v = q + attention.q_bias.view(2, 1, 8), v + attention.v_bias.view(2, 1, 8)
    cosine = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
    score = cosine * torch.tensor([7.0, 100.0])[:, None, None]
    score = score.masked_fill(torch.ones(9, 9).triu(1).bool(), float("-inf"))
    expected = attention.out((score.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(h), expected, atol=1e-5, rtol=1e-4)


def test_pitfall_60_film_starts_as_identity_after_all_initialisation(condition, counts):
    net = network()
    h, identity = torch.randn(3, N_GENES, 16), net.gene.weight
    assert torch.equal(net.film(h, identity), h)
    assert not torch.equal(FiLM(16)(h, identity), h), "identity is not what a fresh linear map gives"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.loss(condition, counts, generator()).total.backward()
    optimizer.step()
    assert not torch.allclose(net.film(h, identity), h, atol=1e-4), "but it is learned"


def test_pitfall_60_gates_start_small_but_not_at_zero():
    """The choice for AdaLN: drawn like all weights, with the paper's deviation at the paper's width."""
    net = network((1, 200), width=192, n_heads=4, condition_width=192)
    for weight in (net.blocks[0].modulation.weight, net.blocks[1].attention.qkv.weight, net.head.weight):
        assert weight.std().item() == pytest.approx(2 * PAPER_STD, rel=0.03)


def test_every_parameter_is_trained_and_works_in_bf16(condition, counts):
    for last_loss in ("gaussian_kl", "gaussian_nll"):
        net = network(last_loss=last_loss)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net.loss(condition, counts, generator())
        loss.total.backward()
        assert loss.total.dtype == torch.float32
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_dropout_depends_on_the_generator_alone(condition, counts):
    net = network(dropout=0.3, drop_path=0.3)
    state = torch.random.get_rng_state()
    losses = [net.loss(condition, counts, generator(seed)).total.item() for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert losses[0] == losses[1] != losses[2]


def test_a_spot_does_not_depend_on_the_others(condition, counts):
    net = network().eval()
    for together, alone in zip(net(condition, counts), net(condition[3:4], counts[3:4]), strict=True):
        torch.testing.assert_close(together[3:4], alone, atol=1e-5, rtol=1e-4)


def test_encoder_reads_features_and_places():
    torch.manual_seed(0)
    encoder = ConditionEncoder(30, 12, hidden=32).eval()
    features, places = torch.randn(7, 30), torch.rand(7, 2)
    embedded = encoder(features, places)
    assert embedded.shape == (7, 12)
    assert not torch.allclose(embedded, encoder(features, 1 - places), atol=1e-3)
    assert not torch.allclose(embedded, encoder(-features, places), atol=1e-3)


def test_configuration_survives_json_and_names_what_is_wrong():
    config = GenARConfig(recursion=TRMConfig(sigma=(1.0, 0.5))).fitted(200, 511)
    assert GenARConfig(**json.loads(json.dumps(asdict(config)))) == config
    for wrong in (
        {"width": 97},
        {"vocabulary": 1},
        {"last_loss": "mse"},
        {"softness": (0.1, 0.0)},
        {"decision": "mean"},
        {"gene_order": "alphabet"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(config, **wrong)


def test_configuration_is_completed_for_genes_and_counts():
    assert GenARConfig().fitted(200, 431).scales == (1, 4, 20, 200)
    assert GenARConfig(scales="paper").fitted(200, 431).scales == PAPER_SCALES
    assert GenARConfig(scales="single").fitted(200, 431).scales == (200,)
    assert GenARConfig().fitted(200, 431).vocabulary == 432
    assert GenARConfig().fitted(200, 10**6).vocabulary == 2001
    assert GenARConfig().fitted(200, 0).vocabulary == 2
    assert GenARConfig(vocabulary=50).fitted(200, 431).vocabulary == 50
    with pytest.raises(ValueError, match="end with 30 genes, but 24 are to be predicted"):
        GenARConfig((1, 30)).fitted(24, 10)


def test_without_teacher_forcing_training_sees_what_prediction_sees(condition, counts):
    forced, free = network().eval(), network(teacher_forcing=False).eval()
    other = counts.flip(0)
    assert torch.equal(forced(condition, counts)[0], free(condition, counts)[0])
    assert not torch.equal(forced(condition, counts)[-1], forced(condition, other)[-1])
    assert torch.equal(free(condition, counts)[-1], free(condition, other)[-1])
    assert torch.equal(free(condition, counts)[-1].argmax(-1), free.decode(condition).counts_NG)
    loss = free.loss(condition, counts, generator()).total
    assert loss > 0
    loss.backward()
    assert free.token.weight.grad.abs().sum() > 0


def test_labels_of_coarse_scales_are_soft_or_the_nearest_count(condition, counts):
    soft, hard = network(), network(soft_labels=False)
    coarse, genes = (torch.zeros(len(counts), n, VOCABULARY) for n in (1, N_GENES))
    total = counts.mean(dim=1, keepdim=True)
    # a flat prediction: the divergence is log V less the entropy of the label, which a hard label has none of
    entropy = torch.special.entr(soft_labels(total, VOCABULARY)).sum(-1).mean()
    assert entropy > 0.1
    flat = torch.log(torch.tensor(float(VOCABULARY)))
    torch.testing.assert_close(soft.scale_loss(coarse, counts), flat - entropy)
    torch.testing.assert_close(hard.scale_loss(coarse, counts), flat)
    assert torch.equal(soft.scale_loss(genes, counts), hard.scale_loss(genes, counts))


def test_without_identity_genes_are_told_apart_by_their_place_alone(condition, counts):
    net = network(gene_identity=False)
    net.loss(condition, counts, generator()).total.backward()
    assert net.gene.weight.grad is None
    assert not net.gene.weight.any()
    last = net.scales[-1]
    assert torch.equal(last.identity(net.gene.weight), torch.zeros(N_GENES, 16))


def test_shares_are_those_of_the_training_spots_smoothed_where_counts_are_large():
    counts = torch.tensor([[0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [40.0, 0.0]])
    shares = log_shares(counts, 2, 64).exp()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2), atol=64 * 2e-5, rtol=0)
    torch.testing.assert_close(shares[0, :2], torch.tensor([0.5, 0.25]), atol=0.04, rtol=0)
    assert shares[0, 36:45].sum() > 0.1, "a large count stands for those near it"
    assert shares[0, 40] < 0.05
    assert 1e-7 < shares[0, 10] < 2e-6, "and no count is impossible"
    # of a group: its mean, shared between the whole numbers around it
    torch.testing.assert_close(
        log_shares(counts[:2], 1, 64).exp()[0, :3], torch.tensor([0.25, 0.5, 0.25]), atol=0.06, rtol=0
    )


def test_logits_begin_at_the_shares_of_the_training_spots(condition, counts):
    net = network().eval()
    torch.nn.init.zeros_(net.head.weight)
    net.set_shares(counts)
    for logits in net(condition, counts):
        expected = log_shares(counts, logits.shape[1], VOCABULARY)
        torch.testing.assert_close(logits, expected.expand_as(logits))
    assert not any("share" in name for name in network(linear_start=False).state_dict())
    # a constant in all logits of a group would change nothing: these do differ between tokens and groups
    assert expected.std(dim=1).min() > 0.1
    assert expected.std(dim=0).max() > 0.1


def test_a_tilt_moves_the_logits_as_a_linear_model_does(condition, counts):
    net = network().eval()
    net.set_shares(counts)
    linear, before = net.scales[-1].linear, net(condition, counts)[-1]
    torch.nn.init.constant_(linear.tilt.bias, 0.25)
    moved = net(condition, counts)[-1] - before
    torch.testing.assert_close(
        moved, (0.25 * torch.arange(1.0, VOCABULARY + 1).log2()).expand_as(moved), atol=1e-4, rtol=0
    )


def test_the_linear_model_learns_the_mean_of_the_logarithm_from_the_condition():
    """Its loss is that of a regression, and what it learns is there in the counts that are generated."""
    draws = generator(1)
    condition = torch.randn(200, 4, generator=draws)
    rate = (2 + 0.4 * condition @ torch.randn(4, 6, generator=draws)).exp()
    counts = torch.poisson(rate, generator=draws)
    net = network((1, 6), vocabulary=int(counts.max()) + 1, condition_width=4)
    net.set_shares(counts)
    torch.nn.init.zeros_(net.head.weight)  # the transformer says nothing
    linear, optimizer = net.scales[-1].linear, torch.optim.Adam(net.scales[-1].linear.parameters(), lr=0.1)
    at_start = net.linear_loss(condition, counts).item()
    assert at_start == pytest.approx(6 / 2 / 2, rel=0.1), "half a variance for each of six genes, one of two scales"
    for _ in range(100):
        optimizer.zero_grad()
        net.linear_loss(condition, counts).backward()
        optimizer.step()
    assert net.linear_loss(condition, counts).item() < 0.5 * at_start
    truth, found = (counts + 1).log2(), net.decode(condition).log2_NG
    assert torch.corrcoef(torch.cat([truth, found], dim=1).T)[:6, 6:].diagonal().min() > 0.6
    assert linear.tilt.weight.abs().max() > 0.1


def test_cross_entropy_wants_the_true_token(condition, counts):
    net = network(last_loss="cross_entropy").eval()
    found = net.loss(condition, counts, generator()).scale_S[-1]
    logits = net(condition, counts)[-1]
    expected = F.cross_entropy(logits.flatten(0, 1), counts.long().flatten(), reduction="sum") / N_SPOTS
    torch.testing.assert_close(found, expected.detach())


# Generation


@pytest.mark.parametrize("last_loss", ["gaussian_kl", "gaussian_nll"])
def test_pitfall_65_greedy_decoding_is_deterministic(last_loss, condition):
    net = network(last_loss=last_loss, dropout=0.5, drop_path=0.5)
    state = torch.random.get_rng_state()
    first = net.decode(condition)
    assert net.training, "as it was before"
    assert torch.equal(torch.random.get_rng_state(), state)
    for again in (net.decode(condition), net.eval().decode(condition), net.decode(condition, max_tokens=1)):
        assert torch.equal(first.counts_NG, again.counts_NG)
        torch.testing.assert_close(first.log2_NG, again.log2_NG)
    assert first.counts_NG.dtype == torch.int64


def test_pitfall_65_ties_go_to_the_lowest_token(condition):
    net = network()
    torch.nn.init.zeros_(net.head.weight)
    net.head.bias.data[[3, 9, 12]] = 1.0
    assert (net.decode(condition).counts_NG == 3).all()


def test_the_median_of_the_last_scale_may_be_predicted(condition):
    """Half of the probability lies at or below it; coarser tokens stay the most probable ones."""
    net, outputs = network(decision="median"), []
    net.head.register_forward_hook(lambda _, __, logits: outputs.append(logits))
    found = net.decode(condition).counts_NG
    coarse, (*_, last) = outputs[-2], outputs
    cumulative = last.softmax(dim=-1).cumsum(dim=-1)
    at = cumulative.gather(-1, found[..., None])[..., 0]
    assert (at >= 0.5).all()
    assert ((at - last.softmax(dim=-1).gather(-1, found[..., None])[..., 0]) < 0.5).all()
    assert not torch.equal(found, last.argmax(dim=-1))
    greedy = network()
    greedy.load_state_dict(net.state_dict())
    greedy.head.register_forward_hook(lambda _, __, logits: outputs.append(logits))
    greedy.decode(condition)
    torch.testing.assert_close(outputs[-2], coarse)


def test_greedy_decoding_feeds_itself(condition):
    """Context tokens in generation are the most probable ones: decoding is the run under its own tokens."""
    net = network().eval()
    counts = net.decode(condition).counts_NG
    outputs = net.run(condition, lambda logits: logits.argmax(dim=-1))
    assert torch.equal(outputs[-1].argmax(dim=-1), counts)
    assert not torch.equal(net.run(condition, random_tokens(0))[-1], outputs[-1])


def test_memory_is_bounded_by_batches(condition):
    net, sizes = network(), []
    net.blocks[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:2].numel()))
    net.decode(condition, max_tokens=120)  # 38 positions at the last scale
    assert max(sizes) == 3 * 38
    assert len(sizes) == 4 * 4


def test_samples_follow_the_predicted_distribution(condition):
    net = network()
    torch.nn.init.zeros_(net.head.weight)
    probability = torch.rand(VOCABULARY, generator=generator())
    probability /= probability.sum()
    net.head.bias.data = probability.log()
    sampled = net.sample(condition.repeat(40, 1), generator()).counts_NG
    share = torch.bincount(sampled.flatten(), minlength=VOCABULARY) / sampled.numel()
    torch.testing.assert_close(share, probability, atol=0.015, rtol=0)


def test_samples_do_not_depend_on_batches(condition):
    net = network()
    together = net.sample(condition, generator(4)).counts_NG
    for max_tokens in (1, 80, 120):
        assert torch.equal(net.sample(condition, generator(4), max_tokens=max_tokens).counts_NG, together)


def test_samples_are_reproducible_and_sharpen_as_the_temperature_falls(condition):
    net = network()
    first, again, other = (net.sample(condition, generator(seed)).counts_NG for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    cold = net.sample(condition, generator(), temperature=1e-4).counts_NG
    assert torch.equal(cold, net.decode(condition).counts_NG)
    with pytest.raises(ValueError, match="decode"):
        net.sample(condition, generator(), temperature=0)


def test_tokens_after_the_gaussian_likelihood_are_rounded_means(condition):
    net, seen = network(last_loss="gaussian_nll"), []
    net.head.register_forward_hook(lambda _, __, logits: seen.append(logits))
    generated = net.decode(condition)
    assert torch.equal(generated.counts_NG, expected_count(seen[-1]).round().long())
    # around 7.5, where the mean of the logarithm is close to the logarithm of the mean
    torch.testing.assert_close(generated.log2_NG, (expected_count(seen[-1]) + 1).log2(), atol=0.05, rtol=0)


@pytest.mark.parametrize("last_loss", ["gaussian_kl", "gaussian_nll"])
def test_learns_counts_from_conditions(last_loss):
    """64 spots of four kinds, each with its own counts, told apart by the condition alone."""
    draws = generator(3)
    kind = torch.randint(4, (64,), generator=draws)
    condition = torch.randn(4, 8, generator=draws)[kind] + 0.1 * torch.randn(64, 8, generator=draws)
    counts = (1.5 + torch.randn(4, N_GENES, generator=draws)).exp()[kind].round().clamp(max=31)
    options = {"vocabulary": 32, "width": 32, "condition_width": 8, "dropout": 0.0, "drop_path": 0.0}
    net = network((1, 6, N_GENES), last_loss=last_loss, **options)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(75):
        optimizer.zero_grad()
        net.loss(condition, counts, draws).total.backward()
        optimizer.step()

    def error(log_predicted: torch.Tensor) -> float:
        return (log_predicted - (counts + 1).log2()).square().mean().item()

    generated, mean = net.decode(condition), error((counts.mean(dim=0).expand_as(counts) + 1).log2())
    assert error((generated.counts_NG + 1).log2()) < 0.25 * mean
    assert error(generated.log2_NG) < 0.25 * mean


def test_divergence_is_zero_for_the_labels_themselves(counts):
    labels = gaussian_labels(counts, VOCABULARY)
    assert kl_loss(labels.clamp(min=1e-30).log(), labels, normalized=False).item() == pytest.approx(0, abs=1e-4)
