"""A device that does not exist: tensors that say they are on it, and compute on the CPU.

A tensor of the pretended device raises where PyTorch would on a GPU: when it meets a tensor of the CPU, is drawn with a
generator of the CPU, or is read as an array. Values are real, so that code may depend on them, and results can be
compared with those of the CPU. Fake tensors of PyTorch have no values, and stop at the first index table.

Where a GPU would make the processor wait, because a value is read, a shape depends on values, or a tensor is moved,
:func:`recorded_waits` records the function of the package. :class:`Autocast` is mixed precision by the rules for GPUs.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator

# autograd has no device guard for CUDA in builds without it; for the meta device it has one in all builds
DEVICE = torch.device("meta")

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
BY_MASK = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# Operations that autocast computes in half precision, and in single precision, on CUDA.
HALF = {"linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
SINGLE = {"exp", "log", "log2", "pow", "__pow__", "sum", "prod", "cumsum", "norm", "softmax", "log_softmax", "softplus"}
SINGLE |= {"layer_norm", "normalize", "cross_entropy", "mse_loss", "kl_div", "binary_cross_entropy_with_logits"}

waits: list[str] = []


class OnDevice(Tensor):
    """Tensor of the pretended device, around its values on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.values = values
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.values!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            waits.append(place())
            return args[0].values.tolist()
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(DEVICE)
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class DeviceGenerator(torch.Generator):
    """Generator of the pretended device."""

    device = DEVICE

    def manual_seed(self, seed: int) -> DeviceGenerator:
        super().manual_seed(seed)
        return self


def is_on_device(device: object) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check the devices of an operation, and run it on the CPU."""
    flat, spec = tree_flatten((args, kwargs))
    own = {id(x.values): x for x in flat if isinstance(x, OnDevice)}
    device = kwargs.get("device")
    target = is_on_device(device) if device is not None else bool(own)
    if own:
        require_one_device(func, flat)
    is_moved = func in MOVES and moves(func, flat, device, own=bool(own))
    if is_moved or (own and reads(func, flat)):
        waits.append(place())
    args, kwargs = tree_unflatten([x.values if isinstance(x, OnDevice) else x for x in flat], spec)
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    out = func(*args, **kwargs)
    if func is aten.copy_.default:
        return own.get(id(out), out)
    if not target:
        return out
    return tree_map(lambda x: wrap(x, own), out)


def moves(func: Any, flat: list[Any], device: object, *, own: bool) -> bool:
    """Whether a copy goes from one device to the other."""
    if func is aten.copy_.default:
        return len({isinstance(x, OnDevice) for x in flat if isinstance(x, Tensor)}) == 2
    return device is not None and is_on_device(device) is not own


def reads(func: Any, flat: list[Any]) -> bool:
    """Whether the result, or its shape, depends on values that the processor has to know."""
    if func in BY_MASK:
        return any(isinstance(x, Tensor) and x.dtype is torch.bool for x in flat[1:])
    return bool(READS & set(func.tags))


def place() -> str:
    """Return the innermost function of the package that is being called."""
    frame = sys._getframe()
    while frame is not None:
        if "/strecur/" in frame.f_code.co_filename:
            return frame.f_code.co_qualname.partition(".<locals>")[0]
        frame = frame.f_back
    return "elsewhere"


@contextmanager
def recorded_waits() -> Iterator[list[str]]:
    """Record where the processor waits for the pretended device."""
    waits.clear()
    yield waits


class Draws(TorchFunctionMode):
    """Raise if a number is drawn from a generator of the other device; dispatched operations do not tell."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        target = is_on_device(kwargs.get("device")) or any(isinstance(x, OnDevice) for x in args)
        if generator is not None and target is not isinstance(generator, DeviceGenerator):
            msg = f"{func.__name__}: a generator of another device"
            raise RuntimeError(msg)
        return func(*args, **kwargs)


class Autocast(TorchFunctionMode):
    """Mixed precision with bf16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        dtype = {name in HALF: torch.bfloat16, name in SINGLE: torch.float32}.get(True)
        if dtype is not None:
            args, kwargs = tree_map(lambda x: cast(x, dtype), (args, kwargs))
        return func(*args, **kwargs)


def cast(x: Any, dtype: torch.dtype) -> Any:
    is_castable = isinstance(x, OnDevice) and x.is_floating_point() and x.dtype is not torch.float64
    return x.to(dtype) if is_castable else x


def wrap(x: Any, own: dict[int, OnDevice]) -> Any:
    """Put a result on the pretended device; operations in place return the tensor that they changed."""
    if not isinstance(x, Tensor):
        return x
    return own[id(x)] if id(x) in own else OnDevice(x)


def require_one_device(func: Any, flat: list[Any]) -> None:
    """Raise if a tensor of the CPU is among the arguments, but for single numbers in elementwise operations.

    An index on the CPU raises too: a GPU would take it, but wait until it is copied.
    """
    if func in MOVES:
        return
    is_elementwise = torch.Tag.pointwise in func.tags
    for x in flat:
        if isinstance(x, Tensor) and not isinstance(x, OnDevice) and not (is_elementwise and x.dim() == 0):
            msg = f"{func}: expected all tensors to be on the same device, found {DEVICE} and {x.device}"
            raise RuntimeError(msg)


class Pretend(TorchDispatchMode):
    """Send new and moved tensors to the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Provide the device."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    Generator, tensor = torch.Generator, torch.tensor

    class AnyGenerator(Generator):  # a class, because modules of PyTorch that are loaded meanwhile annotate with it
        def __new__(cls, device: object = "cpu") -> torch.Generator:
            return DeviceGenerator() if is_on_device(device) else Generator()

    def make_tensor(values: object, *, device: torch.device | None = None, **options: Any) -> Tensor:
        made = tensor(values, **options)  # on the meta device, it would have no values
        return made if device is None else made.to(device)

    torch.Generator, torch.tensor = AnyGenerator, make_tensor
    try:
        with Draws(), Pretend():
            yield DEVICE
    finally:
        torch.Generator, torch.tensor = Generator, tensor
        torch._C._set_only_lift_cpu_tensors(before)
