"""Handwritten digits of 8 x 8 pixels: the test images of the zoo's vision model, and how a network is given them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

SIDE = 8
WHITE = 255
TEST_FILE = Path(__file__).parent / "digits_vit" / "test_digits.safetensors"


class Digits(NamedTuple):
    """Grey images, 0 paper and 255 ink, and the digits they show."""

    images: UInt8[Tensor, "image row column"]
    labels: Int[Tensor, " image"]


def digit_images(count: int | None = None) -> Digits:
    """The images that ``digits-vit`` was tested on and never trained on, or the first ``count`` of them.

    Example:
        >>> digits = digit_images(3)
        >>> tuple(digits.images.shape), len(digits.labels)
        ((3, 8, 8), 3)
    """
    from safetensors.torch import load_file

    stored = load_file(TEST_FILE)
    return Digits(stored["images"][:count], stored["labels"][:count].long())


def pixel_values(images: UInt8[Tensor, "image row column"]) -> Float[Tensor, "image 1 row column"]:
    """What the model reads: one channel from -1 (paper) to 1 (ink), as its image processor makes it from grey images.

    Example:
        >>> import interp
        >>> model = interp.load("digits-vit")
        >>> digits = digit_images(20)
        >>> batch = interp.encode(model, inputs={"pixel_values": pixel_values(digits.images)})
        >>> predicted = interp.run(model, batch).logits.argmax(-1)
        >>> int((predicted == digits.labels).sum()) >= 18
        True
    """
    return (images.float() / WHITE * 2 - 1)[:, None]


def all_digits() -> Digits:
    """The 1797 images that scikit-learn brings with it, in its order.

    Raises:
        ImportError: scikit-learn is not installed (``pip install headscope[zoo]``).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey = torch.tensor(pixels).view(-1, SIDE, SIDE) * (WHITE / 16)  # 17 shades
    return Digits(grey.round().to(torch.uint8), torch.tensor(labels).long())


def split_digits(digits: Digits, *, n_test: int, n_validation: int, seed: int) -> tuple[Digits, Digits, Digits]:
    """Training, validation and test images, drawn at random."""
    order = torch.randperm(len(digits.labels), generator=torch.Generator().manual_seed(seed))
    test, validation, training = order.split([n_test, n_validation, len(order) - n_test - n_validation])
    return tuple(Digits(digits.images[part], digits.labels[part]) for part in (training, validation, test))  # type: ignore[return-value]
