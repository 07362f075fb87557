# SPDX-License-Identifier: Apache-2.0
"""
A canvas that takes color and class together, and the camera that looks at it.

World coordinates are metres: x to the right of the road's centre line, y up, s along the road.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
import math

import cv2
import numpy as np

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN,
 SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)
VOID = 255

EYE = 1.4  # height of the camera, m
NEAR = 1.0  # nothing is drawn closer to the camera than this, m

Color = tuple[float, float, float]  # blue, green, red, 0..255


@dataclass(frozen=True)
class Day:
    """The light and the weather of one drive."""

    name: str
    sky_top: Color
    sky_low: Color
    light: Color  # gain of the daylight for blue, green and red
    visibility: float  # distance at which a color has faded to 1/e, m
    lamps: float  # strength of headlights and street lamps, 0..1
    wet: float  # how much the road mirrors, 0..1
    noise: float  # standard deviation of the sensor noise, gray levels
    clouds: float  # cover, 0..1


class View:
    """One frame being drawn: the camera, the day, and a canvas of blue, green, red, train id."""

    def __init__(self, size: tuple[int, int], day: Day, t: float, x: float, s: float,
                 horizon: float, bend: Callable[[float, np.ndarray], np.ndarray],
                 half: float) -> None:
        height, width = size
        self.canvas = np.zeros((height, width, 4), np.uint8)
        self.day, self.t = day, t
        self.x, self.s = x, s
        self.focal, self.u0, self.v0 = 0.75 * width, 0.5 * width, horizon * height
        self.bend, self.half = bend, half  # of the road: its curve, and half its width, m
        self.lights: list[tuple[float, float, float, Color, int]] = []

    def scale(self, s: float) -> float:
        """Return the pixels that a metre has at distance s along the road."""
        return self.focal / max(s - self.s, NEAR)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return pixel coordinates (..., 2) of world points (..., 3), ordered x, y, s."""
        z = np.maximum(points[..., 2] - self.s, NEAR)
        k = self.focal / z
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.u0 + k * (points[..., 0] + self.bend(self.s, z) - self.x)
        pixels[..., 1] = self.v0 + k * (EYE - points[..., 1])
        return pixels

    def foot(self, x: float, s: float) -> tuple[float, float]:
        """Return the pixel of the point on the ground at x, s."""
        z = max(s - self.s, NEAR)
        k = self.focal / z
        bend = float(self.bend(self.s, np.array(z)))
        return self.u0 + k * (x + bend - self.x), self.v0 + k * EYE

    def tone(self, color: Color, x: float, s: float, shade: float = 1.0) -> Color:
        """Return a color as it looks at x, s: in this light, through this air."""
        z = max(s - self.s, NEAR)
        beam = 0.0
        if self.day.lamps:
            beam = self.day.lamps * math.exp(-((x - self.x) / (3 + 0.15 * z)) ** 2) * min(1, 9 / z)
        clear = math.exp(-z / self.day.visibility)
        b, g, r = (min(255.0, c * shade * (light + beam) * clear + haze * (1 - clear))
                   for c, light, haze in zip(color, self.day.light, self.day.sky_low))
        return b, g, r

    def fill(self, points: np.ndarray, color: Color, label: int, shade: float = 1.0) -> None:
        """Fill polygons, (n, 3) or (m, n, 3) world points, with one color and label."""
        points = points.reshape(-1, *points.shape[-2:])
        if not len(points):
            return
        x, _, s = points[0, 0]
        self.paint(self.project(points), self.tone(color, x, s, shade), label)

    def paint(self, pixels: np.ndarray, color: Color, label: int) -> None:
        """Fill polygons, (m, n, 2) pixels, with a color that needs no light."""
        shapes = list(np.rint(pixels * 16).astype(np.int32))
        cv2.fillPoly(self.canvas, shapes, (*color, label), cv2.LINE_8, 4)

    def mark(self, points: np.ndarray, label: int) -> None:
        """Give the pixels of one polygon of world points a label and leave their color."""
        height, width = self.canvas.shape[:2]
        pixels = np.rint(self.project(points)).astype(np.int32)
        left, top = np.clip(pixels.min(axis=0), 0, (width, height))
        right, bottom = np.clip(pixels.max(axis=0) + 1, 0, (width, height))
        if right > left and bottom > top:
            mask = np.zeros((bottom - top, right - left), np.uint8)
            cv2.fillPoly(mask, [pixels], 1, cv2.LINE_8, 0, (-int(left), -int(top)))
            self.canvas[top:bottom, left:right, 3][mask > 0] = label

    def flat(self, x: float, s: float, shape: np.ndarray, color: Color, label: int) -> None:
        """Fill an upright shape, (n, 2) or (m, n, 2) of (sideways, up), facing the camera."""
        pixels = self.foot(x, s) + shape * (self.scale(s), -self.scale(s))
        self.paint(pixels.reshape(-1, *pixels.shape[-2:]), self.tone(color, x, s), label)

    def lamp(self, x: float, y: float, s: float, radius: float, color: Color, label: int) -> None:
        """Light a round lamp that glows in the dark and belongs to the object of that label."""
        if s - self.s > NEAR:
            (u, v), k = self.foot(x, s), self.scale(s)
            v -= k * y
            shape = np.array([u, v]) + disc(0, 0, radius * k)
            self.paint(shape[None], color, label)
            self.lights.append((u, v, radius * k, color, label))


@dataclass(frozen=True)
class Place:
    """Where a solid stands, and its heading: 0 drives away from the camera."""

    x: float
    s: float
    yaw: float = 0.0

    def world(self, points: np.ndarray) -> np.ndarray:
        """Return world points of local ones, ordered forward, right, up."""
        sin, cos = math.sin(self.yaw), math.cos(self.yaw)
        turn = np.array([(sin, 0, cos), (cos, 0, -sin), (0, 1, 0)])
        return points @ turn + (self.x, 0, self.s)


def disc(x: float, y: float, radius: float, squeeze: float = 1.0, n: int = 12) -> np.ndarray:
    """Return the (n, 2) outline of a disc, its width multiplied by squeeze."""
    return _circle(n) * (radius * squeeze, radius) + (x, y)


@lru_cache
def _circle(n: int) -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def rect(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Return the (4, 2) outline of a rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def quad(*points: float | tuple[float, ...]) -> np.ndarray:
    """Return points, or the coordinates of one, as a float array."""
    return np.array(points, float)


def facing(pixels: np.ndarray) -> bool:
    """Tell whether a projected outline (n, 2) runs counterclockwise, as seen by the camera."""
    return cv2.contourArea(pixels.astype(np.float32), oriented=True) < 0


def patches(view: View, place: Place, points: np.ndarray, color: Color, label: int) -> None:
    """Fill local outlines (m, n, 3) of one plane, if the camera sees their front."""
    points = place.world(points)
    points = points[points[..., 2].min(axis=-1) > view.s + NEAR]
    if len(points):
        pixels = view.project(points)
        if facing(pixels[0]):
            x, _, s = points[0, 0]
            view.paint(pixels, view.tone(color, x, s), label)


def solid(view: View, place: Place, profile: list[tuple[float, float]], width: float,
          color: Color, label: int) -> None:
    """
    Draw a convex prism: a profile of (forward, up) points, as wide as given.

    The profile runs from the rear at the bottom to the front at the bottom and back over the top.
    """
    outline = np.array(profile, float)
    n = len(outline)
    corners = np.empty((2, n, 3))
    corners[:, :, 0], corners[:, :, 2] = outline[:, 0], outline[:, 1]
    corners[0, :, 1], corners[1, :, 1] = -width / 2, width / 2
    world = place.world(corners)
    pixels = view.project(world)
    x, _, s = world[0].mean(axis=0)
    faces = [(pixels[1], 0.78), (pixels[0][::-1], 0.9)]
    for i in range(n):
        j = (i + 1) % n
        slope = outline[j, 0] - outline[i, 0]
        run = math.hypot(slope, outline[j, 1] - outline[i, 1]) or 1
        shade = 0.85 - 0.3 * slope / run
        faces.append((pixels[[0, 0, 1, 1], [i, j, j, i]], shade))
    for face, shade in faces:
        if facing(face):
            view.paint(face[None], view.tone(color, x, max(s, view.s + NEAR), shade), label)


def box(view: View, place: Place, size: tuple[float, float, float], low: float, color: Color,
        label: int) -> None:
    """Draw a box of a length, width and height whose floor is `low` above the ground."""
    a, b = size[0] / 2, low + size[2]
    solid(view, place, [(-a, low), (a, low), (a, b), (-a, b)], size[1], color, label)
