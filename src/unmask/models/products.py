"""Linear layers by NumPy's matrix products, where they are quicker than torch's: float32 on processors by AMD.

On an ordinary processor torch multiplies with Intel's MKL, whose kernels for other makers' processors reach three
quarters to nine tenths of what OpenBLAS does, which NumPy brings; most of a training step there are linear layers.
`benchmarks/matrix_library.py` compares both. Which one is used depends on the processor and on how
threads wait, never on a measurement: a run must be resumed with the kernels it began with.

Shape legend: T tokens, M x K by K x N.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import register_flop_formula

from unmask.models.vit import VitEncoder

_WIDE = 2**16  # weights of a layer from which on its products take longer than finding the way here
_LARGE = 2**21  # multiplications of one product, likewise
_SHARED = 2**23  # multiplications that are worth a thread of their own


def numpy_is_quicker() -> bool:
    """Whether NumPy multiplies matrices faster than torch in this process.

    With several threads only where torch's wait asleep (OMP_WAIT_POLICY=passive, which the command line sets): threads
    that wait by spinning take the cores that NumPy needs, and a step becomes slower than without it.
    """
    sleeping = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return (torch.get_num_threads() == 1 or sleeping) and _on_suitable_machine()


@cache
def _on_suitable_machine() -> bool:
    library = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    return torch.backends.mkl.is_available() and "openblas" in library and "AuthenticAMD" in _processor()


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    return described.read_text() if described.exists() else platform.processor()


def gains_by_products(module: nn.Module) -> bool:
    """Whether a float32 network on the CPU has layers that `quick_products` makes quicker on this machine."""
    if not numpy_is_quicker():
        return False
    parts = list(module.modules())
    if any(_is_checkpointed(part) for part in parts):
        return False
    return any(isinstance(part, nn.Linear) and part.weight.numel() >= _WIDE for part in parts)


def _is_checkpointed(part: nn.Module) -> bool:
    ours = isinstance(part, VitEncoder) and part.config.checkpointing
    return ours or bool(getattr(part, "grad_checkpointing", False))  # timm's word for it


@contextmanager
def quick_products() -> Iterator[None]:
    """Linear layers of float32 tensors on the CPU, and their gradients, are computed by NumPy within this context.

    Backward passes of what was computed in it belong into it, too: NumPy's own threads, which would compete with
    torch's, rest there. Not for networks with checkpointed parts: torch lets modes of functions rest in a backward
    pass, so that these would be computed again in another way, which it refuses. Results agree with torch's to
    float32's rounding.
    """
    with _numpy_threads().limit(limits=1), _QuickLinear():
        yield


def usual_products() -> AbstractContextManager[None]:
    """`quick_products` where NumPy is quicker than torch, and otherwise a context in which nothing changes."""
    return quick_products() if numpy_is_quicker() else nullcontext()


@cache
def _numpy_threads() -> Any:
    return ThreadpoolController().select(internal_api="openblas")


@torch.library.custom_op("unmask::matrix_product", mutates_args=(), schema="(Tensor left, Tensor right) -> Tensor")
def matrix_product(left: Float[Tensor, "M K"], right: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """`left @ right` by NumPy, in as many threads as torch uses; float32 on the CPU.

    An operation of torch's, so that whoever counts operations (`FlopCounterMode`) sees it.
    """
    product_MN = torch.empty(left.shape[0], right.shape[1])
    one, other, out = _in_order(left).numpy(), _in_order(right).numpy(), product_MN.numpy()
    M, N = out.shape
    parts = max(1, min(torch.get_num_threads(), M * N * left.shape[1] // _SHARED))
    if parts == 1:
        np.matmul(one, other, out=out)
        return product_MN
    # Whole cache lines to each thread, along the longer side.
    length = max(M, N)
    edges = [length * part // parts // 16 * 16 for part in range(parts)] + [length]
    pieces = [slice(start, end) for start, end in pairwise(edges)]
    if M >= N:
        works = [(one[piece], other, out[piece]) for piece in pieces]
    else:
        works = [(one, other[:, piece], out[:, piece]) for piece in pieces]
    waiting = [_threads().submit(np.matmul, first, second, out=third) for first, second, third in works[1:]]
    first, second, third = works[0]
    np.matmul(first, second, out=third)
    for work in waiting:
        work.result()
    return product_MN


@matrix_product.register_fake
def _shape(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


@register_flop_formula(torch.ops.unmask.matrix_product)
def _flops(left: tuple[int, int], right: tuple[int, int], *, out_shape: Any = None, **named: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="matrix_product")


def _in_order(matrix: Tensor) -> Tensor:
    """The matrix as the library can read it: rows or columns in one piece."""
    matrix = matrix.detach()
    return matrix if 1 in matrix.stride() and 0 not in matrix.stride() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    """A linear layer on T tokens: x @ weight^T + bias.

    What it returns is no view: whoever comes next may change it in place, as torchvision's `relu_` does.
    """

    @staticmethod
    def forward(context: Any, tokens_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        context.save_for_backward(tokens_TI, weight_OI)
        output_TO = matrix_product(tokens_TI, weight_OI.t())
        if bias_O is not None:
            output_TO += bias_O
        return output_TO

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_TO: Tensor) -> tuple[Tensor | None, ...]:
        tokens_TI, weight_OI = context.saved_tensors
        of_tokens, of_weight, of_bias = context.needs_input_grad
        return (
            matrix_product(gradient_TO, weight_OI) if of_tokens else None,
            matrix_product(gradient_TO.t(), tokens_TI) if of_weight else None,
            gradient_TO.sum(dim=0) if of_bias else None,
        )


class _QuickLinear(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs:
            input, weight, *rest = args
            if _suits(input, weight):
                output_TO = _Linear.apply(input.reshape(-1, input.shape[-1]), weight, rest[0] if rest else None)
                return output_TO.view(*input.shape[:-1], -1)
        return func(*args, **(kwargs or {}))


def _suits(input: Tensor, weight: Tensor) -> bool:
    return (
        input.dtype == weight.dtype == torch.float32
        and input.device.type == weight.device.type == "cpu"
        and input.numel() * weight.shape[0] >= _LARGE
        and not torch.is_autocast_enabled("cpu")
    )
