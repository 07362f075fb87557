# SPDX-License-Identifier: Apache-2.0
"""Where an image lies on the network's input plane: what `input.fit` of model.yaml means."""

from __future__ import annotations

from dataclasses import dataclass

from trt_segmentation.errors import InputError

_MAX_CROP = 16


@dataclass(frozen=True)
class Geometry:
    """
    Where an image of one size lies on the network's input plane.

    image, network: (height, width), pixels
    resized: the image's size on the network's plane; larger than it under fit 'crop'
    top, left: where the resized image begins on that plane; negative under fit 'crop'
    """

    image: tuple[int, int]
    network: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int

    @classmethod
    def of(cls, image: tuple[int, int], network: tuple[int, int], fit: str) -> Geometry:
        """
        Return the geometry of `fit`: 'stretch', 'letterbox' or 'crop'.

        Letterbox scales by the smaller of the two ratios, crop by the larger, both keep the
        aspect ratio (sides rounded to whole pixels, at least 1) and center the image.

        :raises InputError: for a crop that would leave less than 1/16 of the image
        """
        if fit == 'stretch':
            return cls(image, network, network, 0, 0)
        ratios = network[0] / image[0], network[1] / image[1]
        ratio = min(ratios) if fit == 'letterbox' else max(ratios)
        if fit == 'crop' and max(ratios) > _MAX_CROP * min(ratios):
            # Resized before it is cropped, such an image would take gigabytes.
            raise InputError(f'image: found {image[1]}x{image[0]} pixels, expected an aspect '
                             f'ratio within {_MAX_CROP} times that of {network[1]}x{network[0]}; '
                             'take fit stretch or letterbox')
        height, width = (max(1, round(side * ratio)) for side in image)
        return cls(image, network, (height, width),
                   (network[0] - height) // 2, (network[1] - width) // 2)

    @property
    def on_network(self) -> tuple[slice, slice]:
        """Return the part of the network's plane that the image covers."""
        return (slice(max(self.top, 0), min(self.top + self.resized[0], self.network[0])),
                slice(max(self.left, 0), min(self.left + self.resized[1], self.network[1])))

    @property
    def on_resized(self) -> tuple[slice, slice]:
        """Return the part of the resized image that the network's plane covers."""
        rows, columns = self.on_network
        return (slice(rows.start - self.top, rows.stop - self.top),
                slice(columns.start - self.left, columns.stop - self.left))
