"""Convolutions that compute what torch's do, with less work in a training step on the CPU.

In: a model as its authors wrote it. Out: the same module with other convolutions in it, under the same names and with
the same parameters, so that checkpoints and published weights fit both. Results differ by rounding alone.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

#: Width up to which oneDNN has a kernel of its own for the weight gradient of a depthwise convolution; wider ones go
#: through its general kernel, which multiplies 16 times as much (5 x 5: 5 to 10 times the seconds).
DEPTHWISE_WIDTH = 3


def with_fast_convolutions(model: nn.Module) -> nn.Module:
    """Put a FastConv2d in the place of each convolution of a model, and return the model.

    A frozen batch norm that follows a convolution among a module's children, as it does in all networks here, becomes
    a FoldedNorm: the convolution does its work.
    """
    for module in list(model.modules()):
        previous = None
        for name, child in list(module.named_children()):
            if _can_be_fast(child):
                child = FastConv2d(child)
                setattr(module, name, child)
            elif type(child) is FrozenBatchNorm2d and isinstance(previous, FastConv2d):
                child = FoldedNorm(child)
                previous.folded = (child,)
                setattr(module, name, child)
            previous = child
    return model


def _can_be_fast(module: nn.Module) -> bool:
    """Whether a module is a convolution whose forward pass is known: torch's, or EfficientNet's with its padding."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        return False
    return type(module) is nn.Conv2d or hasattr(module, "static_padding")


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen batch norm whose scale and shift the convolution before it applies: passes its input on."""

    def __init__(self, norm: FrozenBatchNorm2d):
        super().__init__(len(norm.weight), eps=norm.eps)
        self.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What a convolution's output is multiplied by, and what is added then: (C,) each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class FastConv2d(nn.Conv2d):
    """A convolution in the place of another, with the same parameters.

    - A frozen batch norm behind it is multiplied into the weight, which is small, not into the map.
    - Padding that is the same on both sides is the convolution's own and makes no copy of the map.
    - 1 x 1 on one thread: torch leaves batches below 16 to a matrix product of half oneDNN's speed, unless the
      convolution is dilated, which means nothing for a single weight.
    - The weight gradient of a wide depthwise convolution is computed in slices, see `WideDepthwise`.

    Attributes:
        folded: the norm behind it that it applies, in a tuple, or none. A tuple, since the norm is its parent's child.
        before: pixels of zeros to put left, right, above and below the map first; empty for none.
    """

    def __init__(self, convolution: nn.Conv2d):
        given = convolution
        shape = given.in_channels, given.out_channels, given.kernel_size
        settings = {name: getattr(given, name) for name in ("stride", "padding", "dilation", "groups")}
        super().__init__(*shape, **settings, bias=False, device="meta")  # draws no weights
        self.weight, self.bias = given.weight, given.bias
        self.train(given.training)
        self.folded: tuple[FoldedNorm, ...] = ()
        self.before: tuple[int, ...] = ()
        if hasattr(given, "static_padding"):
            left, right, above, below = getattr(given.static_padding, "padding", (0, 0, 0, 0))
            if left == right and above == below:
                self.padding = (self.padding[0] + above, self.padding[1] + left)
            else:
                self.before = (left, right, above, below)
        self.depthwise = given.groups == given.in_channels == given.out_channels > 1

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        for norm in self.folded:
            scale, shift = norm.scale_and_shift()
            weight = weight * scale.view(-1, 1, 1, 1)
            bias = shift if bias is None else bias * scale + shift
        if self.before:
            x = functional.pad(x, self.before)
        on_cpu = x.device.type == "cpu"
        if on_cpu and self.depthwise and self._is_slow_backwards(x, weight):
            return WideDepthwise.apply(x, weight, bias, self.stride, self.padding)
        pointwise = on_cpu and self.kernel_size == (1, 1) and not torch.jit.is_tracing()  # an exported graph keeps 1
        dilation = (2, 2) if pointwise else self.dilation
        return functional.conv2d(x, weight, bias, self.stride, self.padding, dilation, self.groups)

    def _is_slow_backwards(self, x: Tensor, weight: Tensor) -> bool:
        # a kernel wider than the map has columns that see nothing of it
        wide = DEPTHWISE_WIDTH < self.kernel_size[1] <= x.shape[-1] and self.dilation == (1, 1)
        return wide and torch.is_grad_enabled() and weight.requires_grad and x.dtype == weight.dtype == torch.float32


class WideDepthwise(torch.autograd.Function):
    """A depthwise convolution whose weight gradient is computed for three of the kernel's columns at a time.

    Columns a to b of the kernel see the map without its first a and last (width - b) columns, so each slice is the
    weight gradient of a narrow depthwise convolution, for which oneDNN has a fast kernel.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        found: list[Tensor | None] = [None] * 5
        if to_x:
            found[0] = _gradients(gradient, x, weight, ctx.stride, ctx.padding, (True, False, False))[0]
        if to_weight:
            found[1] = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if to_bias:
            found[2] = gradient.sum(dim=(0, 2, 3))
        return tuple(found)


def _weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """(C, 1, height, width): the gradient of a depthwise kernel, slice by slice."""
    slices = []
    for a in range(0, weight.shape[3], DEPTHWISE_WIDTH):
        kernel = weight[..., a : a + DEPTHWISE_WIDTH].contiguous()
        left = padding[1] - a  # below 0: columns that this slice does not see
        right = (gradient.shape[3] - 1) * stride[1] + kernel.shape[3] - x.shape[3] - left
        seen = functional.pad(x, (left, right)).contiguous(memory_format=torch.channels_last)
        slices.append(_gradients(gradient, seen, kernel, stride, (padding[0], 0), (False, True, False))[1])
    return torch.cat(slices, dim=3)


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """torch's gradients of a depthwise convolution with respect to x, weight and bias, of which some are `wanted`."""
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )
