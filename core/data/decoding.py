"""One image of a stranger's, from its bytes: its header first, then its pixels. Every reader of images goes this way.

Pixels are taken as they are stored: transparency is dropped (and told in the header), EXIF rotation is not applied, of
an animation the first frame is taken.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from core.data.archive import first_faults
from core.data.source import Images, SplitName
from core.errors import DatasetTooLarge, DatasetUnreadable, DatasetUnsuitable, Fault

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit, here an error instead of a warning
UNREADABLE_SHARE = 0.01
GREY_MODES = frozenset({"1", "L", "LA"})
_MODES = GREY_MODES | {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True, slots=True)
class Header:
    size: tuple[int, int]  # height, width
    mode: str
    transparent: bool


class Unreadable(Exception):
    """One image cannot be decoded. The message is for the list in the summary."""


def open_image(data: bytes, where: str) -> Image.Image:
    """The image, its header read. `where`: a JSON pointer to it.

    Raises `Unreadable`, or `DatasetTooLarge` for a bomb.
    """
    try:
        # of some pixels past the limit Pillow only warns, see below; filters of warnings are not for threads
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image = None
    except UnidentifiedImageError:
        raise Unreadable(f"not one of {', '.join(FORMATS)}, or damaged") from None
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on hostile bytes; each such file is counted and listed
        raise Unreadable(f"damaged ({type(error).__name__})") from None
    if image is None or image.width * image.height > MAX_PIXELS:
        seen = "its header" if image is None else f"{image.width}×{image.height} pixels"
        fault = Fault(where, f"{seen} says more than {MAX_PIXELS} pixels", f"at most {MAX_PIXELS} pixels per image")
        raise DatasetTooLarge("an image is too large to be decoded", faults=[fault])
    return image


def read_header(data: bytes, where: str) -> Header:
    """Size and pixel type, nothing decoded. Raises as `open_image`, and `Unreadable` for more than 8 bits a channel."""
    with open_image(data, where) as image:
        if image.mode not in _MODES:
            raise Unreadable(f"pixel type {image.mode}, not 8 bits per channel")
        return Header((image.height, image.width), image.mode, image.has_transparency_data)


def decode(data: bytes, where: str, channels: int) -> Tensor:
    """(C, H, W) uint8, with C = `channels`: 1 (grey) or 3 (RGB). Raises as `open_image`."""
    with open_image(data, where) as image:
        try:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        except MemoryError:
            raise
        except Exception as error:  # as in open_image
            raise Unreadable(f"damaged ({type(error).__name__})") from None
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def decoded_bytes(size: tuple[int, int]) -> int:
    """What an image of `size` (height, width) takes while it is decoded: as Pillow has it, and as an array."""
    return 8 * math.prod(size)


def common_size(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """The one (height, width) of all images; `sizes` counts them. Raises `DatasetUnsuitable` where they are several."""
    common = sizes.most_common(1)[0][0]
    if len(sizes) > 1:
        named = ", ".join(f"{count} of {height}×{width}" for (height, width), count in sizes.most_common(10))
        message = f"images have {len(sizes)} sizes ({named}{', …' if len(sizes) > 10 else ''})"
        fault = Fault("/preprocess/size", message, f"the model's input size, such as {list(common)}: all are resized")
        raise DatasetUnsuitable("the images are of different sizes", faults=[fault])
    return common


def check_share(unreadable: Mapping[str, str], images: int) -> None:
    """`unreadable`: why, by the image's JSON pointer. Raises `DatasetUnreadable` if they are too many of `images`."""
    if len(unreadable) > UNREADABLE_SHARE * images:
        faults = [Fault(where, message) for where, message in unreadable.items()]
        message = f"{len(unreadable)} of {images} images cannot be read"
        summary = Fault("/file", message, f"at most {UNREADABLE_SHARE:.0%}")
        raise DatasetUnreadable("too many images cannot be read", faults=[summary, *first_faults(faults)])


def image_warnings(
    unreadable: Sequence[str], transparent: int, splits: Mapping[SplitName, Images], classes: Sequence[str]
) -> list[str]:
    """What a summary says of images that were left out or changed, and of classes that a split lacks."""
    found = []
    if unreadable:
        names = ", ".join(unreadable[:10])
        found.append(f"{len(unreadable)} image(s) could not be read and were left out: {names}")
    if transparent:
        found.append(f"{transparent} image(s) have transparency, which was dropped")
    for name, images in splits.items():
        present = set(images.y.tolist())
        absent = [class_name for label, class_name in enumerate(classes) if label not in present]
        # a class that train has lost is refused by `order_classes`
        if absent and name != "train":
            found.append(f"{name} has no images of {len(absent)} class(es): {', '.join(absent[:10])}")
    return found
