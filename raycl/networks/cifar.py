"""Ten networks for small images, from LeNet to a Swin transformer, as one family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from raycl.errors import UserError
from raycl.networks import _cifar_plain as plain
from raycl.networks import _cifar_residual as residual
from raycl.networks._cifar_plain import Shape
from raycl.networks._cifar_swin import Swin
from raycl.networks.base import Backbone, NetworkConfig

LARGEST = 2**16
"""Upper end of the range of sides, for networks that take images of any size."""


class Model(NamedTuple):
    """The facts about a network that are known before it is built.

    Attributes:
        build: Builds it for images of a shape.
        features: Width of its feature vector.
        sides: Heights and widths it takes, in pixels.
    """

    build: Callable[[Shape], nn.Module]
    features: int
    sides: range


MODELS = {
    "lenet": Model(plain.lenet, 84, range(16, LARGEST)),
    "alexnet": Model(plain.alexnet, 4096, range(31, 47)),
    "vgg16": Model(plain.vgg16, 512, range(32, 64)),
    "inception": Model(plain.inception, 1024, range(1, 33)),
    "resnet18": Model(residual.resnet18, 512, range(1, LARGEST)),
    "resnext": Model(residual.resnext, 1024, range(1, LARGEST)),
    "densenet": Model(residual.densenet, 1024, range(8, 33)),
    "senet": Model(residual.senet, 512, range(1, LARGEST)),
    "regnet": Model(residual.regnet, 368, range(1, LARGEST)),
    "swin": Model(Swin, 768, range(32, LARGEST, 32)),
}


class CifarNetwork(Backbone):
    """The ten networks of HCL, for images of 32x32 pixels and, six of them, of 64x64.

    Madaan et al., "Heterogeneous Continual Learning", CVPR 2023, arXiv 2306.08593, as its code
    defines them. Their common names do not mean their common forms: most begin with a 3x3
    convolution of stride 1 and pool less than on ImageNet. The ``alexnet`` and the ``resnet18``
    that are networks of their own here are others, BLIP's.

    - ``lenet``: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE
      1998. Two 5x5 convolutions, with ReLU and max pooling.
    - ``alexnet``: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural
      Networks", NIPS 2012. Five 3x3 convolutions, two linear layers of 4096 behind dropout.
    - ``vgg16``: Simonyan and Zisserman, arXiv 1409.1556. Configuration D with BN, two linear layers
      of 512 behind dropout.
    - ``inception``: Szegedy et al., "Going Deeper with Convolutions", arXiv 1409.4842. GoogLeNet
      with BN, two 3x3 convolutions for a 5x5, no auxiliary heads.
    - ``resnet18``: He et al., arXiv 1512.03385. No first max pooling.
    - ``resnext``: Xie et al., arXiv 1611.05431. ResNeXt-29, 2x64d, with a 1x1 stem.
    - ``densenet``: Huang et al., arXiv 1608.06993. DenseNet-121, growth 32.
    - ``senet``: Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507. SE-ResNet-18 of
      pre-activation blocks (arXiv 1603.05027), with no BN after the last.
    - ``regnet``: Radosavovic et al., "Designing Network Design Spaces", arXiv 2003.13678.
      RegNetX-200MF.
    - ``swin``: Liu et al., arXiv 2103.14030. Swin-T with patches of 2, 2, 2 and 1, windows of 4,
      and one table of relative positions for all heads of a layer.

    The features are what the published networks give their last linear layer. Parameters with a
    head of 10 outputs, on colour images of 32x32, and the sides of images each takes:

        =========  ==========  ========  ======================================
        model      parameters  features  sides of images
        =========  ==========  ========  ======================================
        lenet          62,006        84  16 or more; parameters grow with them
        alexnet    23,272,266      4096  31 to 46
        vgg16      15,253,578       512  32 to 63
        inception   6,166,250      1024  up to 32
        resnet18   11,173,962       512  any
        resnext     9,128,778      1024  any
        densenet    6,956,298      1024  8 to 32
        senet      11,260,354       512  any; 11,264,450 if above 32
        regnet      2,321,946       368  any
        swin       26,598,646       768  multiples of 32
        =========  ==========  ========  ======================================

    Where a side is above 32, the first stage of ``resnext`` and ``senet`` has stride 2, which HCL
    does at 64. The last map of the networks without a linear layer before the features becomes its
    mean, whatever its size; at 32 and 64 this is HCL's average over windows of 8x8 or 4x4.

    HCL's count for ``swin`` is 26,601,718. The 3,072 more are as many as the constants of the six
    shifted layers, two 16x16 masks each, which are no parameters here.

    Initial weights are PyTorch's, except for convolutions of ``resnet18`` (He-normal, fan-out) and
    of ``vgg16`` (normal, variance 2 / (9 outputs), bias 0). The table of ``swin`` starts
    standard-normal, as PyTorch's embeddings do.
    """

    class Config(NetworkConfig):
        """Options of the family."""

        model: Literal[
            "lenet",
            "alexnet",
            "vgg16",
            "inception",
            "resnet18",
            "resnext",
            "densenet",
            "senet",
            "regnet",
            "swin",
        ] = Field("resnet18", description="which of the ten networks")

    def __init__(self, config: Config, input_shape: Shape) -> None:
        super().__init__()
        name, sides = config.model, input_shape[1:]
        model = MODELS[name]
        if any(side not in model.sides for side in sides):
            others = [k for k, m in MODELS.items() if all(side in m.sides for side in sides)]
            raise UserError(
                "network.model",
                f"{name} does not take images of {sides[0]}x{sides[1]}, "
                f"but sides of {_words(model.sides)}",
                f"set benchmark.dataset.size, or take one of {', '.join(others)}",
            )
        self.layers = model.build(input_shape)
        self.num_features = model.features

    def forward(self, images: Tensor) -> Tensor:
        """See ``Backbone.forward``."""
        return self.layers(images)  # type: ignore[no-any-return]


def _words(sides: range) -> str:
    """Describe the sides a network takes, for an error message."""
    if sides.step > 1:
        return f"multiples of {sides.step} pixels"
    if sides[-1] < LARGEST - 1:
        return f"{sides[0]} to {sides[-1]} pixels"
    return f"at least {sides[0]} pixels"
