# SPDX-License-Identifier: Apache-2.0
"""
Draw road scenes with their Cityscapes labels, from a seed.

A scene is a picture and the class of each of its pixels. A `Drive` is a world along a road that a
camera drives through, so its frames look like a video. NumPy and OpenCV alone, some tens of
milliseconds a frame.

What stands beside the road or moves on it is in a `Stream`: a row of slots parallel to the road,
each filled from a random generator of its own, so any frame can be drawn without those before it.
A seed fixes every byte with one version of OpenCV and NumPy; others round an edge pixel here and
there differently (0.03% of the labels between OpenCV 4.8 and 4.14).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
import math

import cv2
import numpy as np

from trt_segmentation.sample import objects
from trt_segmentation.sample.canvas import (
    BUILDING,
    Color,
    Day,
    EYE,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    View,
    VOID,
)
from trt_segmentation.sample.objects import Draw, PLOT

# Seeds of independent scenes, by use. The ranges do not meet.
TRAIN_SEEDS = range(1_000_000, 2_000_000)
CALIBRATION_SEEDS = range(2_000_000, 3_000_000)
HELD_OUT_SEEDS = range(3_000_000, 4_000_000)
DEMO_SEEDS = range(4_000_000, 5_000_000)

SIZE = (512, 1024)  # height, width
SPEED = 10.0  # of the camera, m/s
REACH = 140.0  # no object is drawn farther away than this, m

DAYS = (  # likelihood, day; colors are blue, green, red
    (0.30, Day('clear', sky_top=(205, 135, 75), sky_low=(240, 215, 185), light=(0.95, 1.0, 1.05),
               visibility=400, lamps=0.0, wet=0.0, noise=6, clouds=0.4)),
    (0.25, Day('overcast', sky_top=(190, 185, 180), sky_low=(220, 218, 215),
               light=(0.82, 0.8, 0.78), visibility=250, lamps=0.0, wet=0.0, noise=7, clouds=0.8)),
    (0.15, Day('rain', sky_top=(140, 135, 130), sky_low=(165, 162, 158), light=(0.62, 0.6, 0.57),
               visibility=110, lamps=0.25, wet=0.4, noise=10, clouds=0.9)),
    (0.15, Day('dusk', sky_top=(115, 75, 60), sky_low=(95, 150, 235), light=(0.42, 0.42, 0.5),
               visibility=220, lamps=0.5, wet=0.0, noise=12, clouds=0.5)),
    (0.15, Day('night', sky_top=(32, 22, 18), sky_low=(62, 48, 42), light=(0.2, 0.17, 0.16),
               visibility=150, lamps=1.0, wet=0.1, noise=17, clouds=0.3)),
)


@dataclass(frozen=True)
class Side:
    """One side of the road, from the kerb outwards; distances from the centre line, m."""

    sign: int  # -1 left, +1 right
    kerb: float
    walk: float  # outer edge of the sidewalk
    strip: float  # outer edge of the strip of grass or rails
    rails: bool
    front: str  # what lines the plots: city, suburb or country


@dataclass(frozen=True)
class Road:
    """A winding road, what lies beside it, and a crossing every so often."""

    swing: float  # amplitude of the centre line, m
    wave: float  # its wavelength / 2 pi, m
    lanes: int  # in each direction
    lane: float  # width of a lane, m
    parking: float  # width of the parking lane on both sides, m
    period: float  # from one crossing to the next, m
    left: Side
    right: Side

    @property
    def half(self) -> float:
        """Half the width of the roadway, m."""
        return self.lanes * self.lane + self.parking

    @property
    def ego(self) -> float:
        """Middle of the camera's lane, the outermost on the right, m."""
        return (self.lanes - 0.5) * self.lane

    def bend(self, s: float, z: np.ndarray) -> np.ndarray:
        """Return how far the centre line has left the camera's heading z metres ahead of s, m."""
        at = s / self.wave
        ahead = z / self.wave
        return self.swing * (np.sin(at + ahead) - math.sin(at) - ahead * math.cos(at))

    def crosses(self, s: np.ndarray | float) -> np.ndarray | bool:
        """Tell whether s lies in a crossing, corners included."""
        return s % self.period < PLOT


@dataclass(frozen=True)
class Stream:
    """A row of slots parallel to the road that moves as one; `make` fills a slot or leaves it."""

    x: float
    spacing: float
    make: Callable[[np.random.Generator], Draw | None]
    speed: float = 0.0  # along the road, m/s
    jitter: tuple[float, float] = (0.0, 0.0)  # of x and s, m
    offset: float = 0.0  # of the slots' middles, m
    reach: float = REACH
    gap: float = 0.5  # nothing nearer to the camera than this is drawn, m
    at_crossings: bool = False  # whether it stands in crossings too
    on_road: bool = False


class Drive:
    """A world along a road and the camera that drives through it, both made from a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        self.day = _day(rng)
        self.road = _road(rng)
        self.start = rng.uniform(0, 5000)
        self.horizon = rng.uniform(0.38, 0.46)
        self.bonnet = rng.uniform(0.03, 0.09) if rng.random() < 0.5 else 0.0
        self.blur = rng.uniform(0.4, 1.7)
        self.exposure = _exposure(rng)
        self.ground = _ground_paint(rng, self.road)
        self.streams = _streams(rng, self.road, self.start)
        self._made: dict[tuple[int, int], tuple[Draw | None, float, float]] = {}
        self._skies: dict[tuple[int, int], np.ndarray] = {}

    def frame(self, t: float, *, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw what the camera sees t seconds after the start.

        Returns the picture (height, width, 3) uint8 in BGR order and the Cityscapes train ids
        (height, width) uint8, 255 where no class applies. `size` is (height, width).
        """
        view = View(
            size, self.day, t, x=self.road.ego + 0.15 * math.sin(0.5 * t + self.seed),
            s=self.start + SPEED * t, horizon=self.horizon + 0.003 * math.sin(2.3 * t + self.seed),
            bend=self.road.bend, half=self.road.half)
        if size not in self._skies:
            self._skies[size] = _sky(np.random.default_rng([self.seed, 1]), self.day, size)
        _draw_sky(view, self._skies[size])
        _draw_skyline(view, self.seed)
        _draw_ground(view, self.road, self.ground)
        for draw, x, s in self._visible(view):
            draw(view, x, s)
        _draw_bonnet(view, self.bonnet)
        moment = np.random.default_rng([self.seed, 2, round(abs(t) * 1000)])
        return _develop(view, self.blur, self.exposure, moment)

    def _visible(self, view: View) -> list[tuple[Draw, float, float]]:
        """Return the objects in sight and their places, those that cover others last."""
        items: list[tuple[tuple[float, float, int], tuple[Draw, float, float]]] = []
        for i, stream in enumerate(self.streams):
            moved = stream.offset + stream.speed * view.t
            first = math.ceil((view.s - 2 * PLOT - moved) / stream.spacing)
            last = math.floor((view.s + stream.reach - moved) / stream.spacing)
            for k in range(first, last + 1):
                draw, dx, ds = self._slot(i, k)
                x, s = stream.x + dx, k * stream.spacing + moved + ds
                if draw is None or s - view.s < stream.gap:
                    continue
                if self.road.crosses(s) and not stream.at_crossings:
                    continue
                # On one side of the road what is closer to the camera's path covers the rest.
                row = 0.0 if stream.on_road else abs(stream.x - view.x)
                items.append(((-row, -s, len(items)), (draw, x, s)))
        items.sort(key=lambda item: item[0])
        return [placed for _, placed in items]

    def _slot(self, i: int, k: int) -> tuple[Draw | None, float, float]:
        """Return what fills slot k of stream i, and how far it stands from the slot's middle."""
        if (i, k) not in self._made:
            stream = self.streams[i]
            rng = np.random.default_rng([self.seed, 3, i, k + 1_000_000])
            dx, ds = rng.uniform(-1, 1, 2) * stream.jitter
            self._made[i, k] = stream.make(rng), float(dx), float(ds)
        return self._made[i, k]


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw one independent scene: a moment of the drive of that seed; see `Drive.frame`."""
    return Drive(seed).frame(0.0, size=size)


# ---- what a seed decides


def _day(rng: np.random.Generator) -> Day:
    weights = [weight for weight, _ in DAYS]
    day = DAYS[rng.choice(len(DAYS), p=weights)][1]
    gain = rng.uniform(0.75, 1.25)
    b, g, r = (gain * c * rng.uniform(0.94, 1.06) for c in day.light)
    return replace(day, light=(b, g, r),
                   visibility=day.visibility * rng.uniform(0.6, 1.5),
                   noise=day.noise * rng.uniform(0.6, 1.5),
                   clouds=min(1.0, day.clouds * rng.uniform(0.5, 1.4)))


def _road(rng: np.random.Generator) -> Road:
    lanes, lane = int(rng.choice([1, 1, 2])), rng.uniform(3.0, 3.7)
    front = rng.choice(['city', 'suburb', 'country'], p=[0.5, 0.3, 0.2])
    parking = 2.3 if front == 'city' and rng.random() < 0.6 else 0.3
    rails = rng.choice([0, -1, 1], p=[0.6, 0.2, 0.2])
    kerb = lanes * lane + parking

    def side(sign: int) -> Side:
        walk = kerb + (0.0 if front == 'country' and rng.random() < 0.6 else rng.uniform(1.8, 4.5))
        strip = walk + (5.0 if sign == rails else float(rng.choice([0.0, rng.uniform(1.0, 4.0)])))
        kind = front if rng.random() < 0.8 else rng.choice(['city', 'suburb', 'country'])
        return Side(sign, kerb, walk, strip, bool(sign == rails), str(kind))

    return Road(swing=rng.uniform(0, 10), wave=rng.uniform(95, 140), lanes=lanes, lane=lane,
                parking=parking, period=PLOT * int(rng.integers(5, 11)),
                left=side(-1), right=side(1))


def _exposure(rng: np.random.Generator) -> np.ndarray:
    """Return a lookup table (1, 256, 3) of the camera's gamma, contrast and color cast."""
    x = np.linspace(0, 1, 256)
    gamma, gain = rng.uniform(0.75, 1.2), rng.uniform(0.9, 1.2)
    table = [np.clip(255 * gain * rng.uniform(0.95, 1.05) * x**gamma, 0, 255) for _ in range(3)]
    return np.stack(table, axis=-1)[None].astype(np.uint8)


# ---- streams


Make = Callable[[np.random.Generator], Draw]


def _pick(*choices: tuple[float, Make | None]) -> Callable[[np.random.Generator], Draw | None]:
    """Return a `make` that takes one of the given ones with the given likelihood, or none."""
    def make(rng: np.random.Generator) -> Draw | None:
        at = rng.random()
        for weight, choice in choices:
            if at < weight:
                return choice(rng) if choice is not None else None
            at -= weight
        return None
    return make


TRAFFIC = _pick((0.44, objects.car), (0.12, objects.truck), (0.1, objects.bus),
                (0.08, objects.motorcyclist), (0.08, objects.cyclist))
PARKED = _pick((0.55, objects.car), (0.14, objects.parked_cycles))
FURNITURE = _pick((0.2, objects.lamp_post), (0.17, objects.sign), (0.13, objects.pole),
                  (0.12, objects.litter_bin), (0.12, objects.tree), (0.1, objects.parked_cycles))
FRONTS = {
    'city': (_pick((0.85, objects.building), (0.1, objects.tree)),
             _pick((0.08, objects.wall), (0.05, objects.fence), (0.04, objects.hedge))),
    'suburb': (_pick((0.5, objects.building), (0.35, objects.tree)),
               _pick((0.28, objects.wall), (0.28, objects.fence), (0.2, objects.hedge))),
    'country': (_pick((0.12, objects.building), (0.6, objects.tree)),
                _pick((0.14, objects.wall), (0.2, objects.fence), (0.22, objects.hedge))),
}


def _streams(rng: np.random.Generator, road: Road, start: float) -> list[Stream]:
    """Return everything that stands or moves along the road."""
    streams = []
    for side in (road.left, road.right):
        streams += _roadside(rng, road, side)
        pace = 1.0 if side.sign > 0 else -1.0
        for lane in range(road.lanes):
            x = side.sign * (lane + 0.5) * road.lane
            own = side.sign > 0 and lane == road.lanes - 1
            streams.append(Stream(
                x, rng.uniform(21, 45), TRAFFIC, speed=SPEED if own else pace * rng.uniform(7, 13),
                jitter=(0.25, 3), offset=start if own else 0.0, gap=10.0 if own else 2.0,
                at_crossings=True, on_road=True))
        if road.parking < 1:
            streams.append(Stream(
                side.sign * (road.half - 0.5), rng.uniform(25, 60),
                _pick((0.6, objects.cyclist), (0.1, objects.motorcyclist)),
                speed=pace * rng.uniform(4, 7), jitter=(0.15, 6), gap=2.0, at_crossings=True,
                on_road=True))
        else:
            streams.append(Stream(side.sign * (road.half - 1.15), 7.0, PARKED, jitter=(0.1, 0.6),
                                  on_road=True))
        streams.append(Stream(side.sign * (road.half + 0.5), road.period, objects.traffic_light,
                              offset=PLOT + 0.5 if side.sign < 0 else -0.7, at_crossings=True))
    streams.append(Stream(0.0, road.period, objects.crossing_walkers, offset=-2.5,
                          at_crossings=True, on_road=True, gap=3.0))
    streams.append(Stream(0.0, road.period, objects.crossing_traffic, offset=5.0,
                          at_crossings=True, on_road=True, gap=5.0))
    return streams


def _roadside(rng: np.random.Generator, road: Road, side: Side) -> list[Stream]:
    """Return what stands on one side of the road, from the houses to the kerb."""
    sign, plots, borders = side.sign, *FRONTS[side.front]
    edge = side.strip + rng.choice([0.2, 1.5])
    streams = [
        Stream(sign * (edge + 18), 9.0, _pick((0.6, objects.tree)), jitter=(4, 3)),
        Stream(sign * (edge + rng.choice([0.5, 3.0])), PLOT, plots, offset=PLOT / 2, gap=-PLOT),
        Stream(sign * (side.strip + 0.1), PLOT, borders, offset=PLOT / 2, gap=-PLOT),
    ]
    if side.front != 'city':
        streams.append(Stream(sign * (edge + 1), 5.0, _pick((0.4, objects.bush),
                                                            (0.1, objects.tree)), jitter=(0.8, 2)))
    middle, room = (side.walk + side.strip) / 2, (side.strip - side.walk) / 2
    if side.rails:
        streams.append(Stream(sign * middle, 75.0, _pick((0.75, objects.train)),
                              speed=sign * rng.uniform(3, 14), reach=170, gap=-60.0,
                              at_crossings=True))
    elif room:
        streams.append(Stream(sign * middle, 8.0, _pick((0.4, objects.tree), (0.3, objects.bush)),
                              jitter=(0.5 * room, 2)))
    if side.walk > side.kerb:
        middle, room = (side.walk + side.kerb) / 2 + 0.3, (side.walk - side.kerb) / 2 - 0.3
        crowd = rng.uniform(0.15, 0.6)
        for pace in (-1.3, 1.2):
            streams.append(Stream(sign * middle, 7.0, _pick((crowd, objects.walker)), speed=pace,
                                  jitter=(0.8 * room, 2), at_crossings=True))
    streams.append(Stream(sign * (side.kerb + 0.45), 9.0, FURNITURE, jitter=(0.1, 3)))
    return streams


# ---- the ground

ACROSS = 40.0  # the ground is described up to here on both sides, m
BIN = 0.05  # one description for each of these steps across the road, m
DASH_ON, DASH_OFF, STREET, ZEBRA, STOP_LINE = range(5)  # what a row of the ground can be


def _ground_paint(rng: np.random.Generator, road: Road) -> np.ndarray:
    """Return what lies where: (5 kinds of row, bins across) of packed B, G, R, train id."""
    x = (np.arange(round(2 * ACROSS / BIN)) + 0.5) * BIN - ACROSS
    paint = np.zeros((5, len(x), 4), np.uint8)
    asphalt = objects.gray(rng, 65, 140, 6)
    paving = objects.gray(rng, 90, 190, 14)
    line = objects.gray(rng, 190, 245, 5)
    middle = (60.0, 190.0, 230.0) if rng.random() < 0.25 else line
    gravel, rail = objects.gray(rng, 80, 120, 10), objects.gray(rng, 130, 190, 5)

    def lay(where: np.ndarray, color: Color, label: int,
            kinds: tuple[int, ...] = (DASH_ON, DASH_OFF, STREET, ZEBRA, STOP_LINE)) -> None:
        for kind in kinds:
            paint[kind, where] = (*color, label)

    for side in (road.left, road.right):
        d = side.sign * x
        grass = objects.green(rng)
        yard = (paving, SIDEWALK) if side.front == 'city' else (grass, TERRAIN)
        lay(d >= side.strip, *yard)
        strip = (gravel, VOID) if side.rails else (grass, TERRAIN)
        lay((d >= side.walk) & (d < side.strip), *strip)
        if side.rails:
            track = np.abs(d - (side.walk + side.strip) / 2)
            lay(np.abs(track - 0.72) < 0.06, rail, VOID)
        lay((d >= side.kerb) & (d < side.walk), paving, SIDEWALK)
        lay((d >= side.kerb) & (d < side.kerb + 0.15) & (side.walk > side.kerb),
            objects.times(paving, 1.15), SIDEWALK)
        lay((d >= 0) & (d < side.kerb), asphalt, ROAD)
        worn = np.abs((d % road.lane) - road.lane / 2)
        lay((d >= 0) & (d < road.lanes * road.lane) & (np.abs(worn - 0.75) < 0.3),
            objects.times(asphalt, 0.92), ROAD)
    away = np.abs(x)
    lay(away < 0.09, middle, ROAD, (DASH_ON,) if rng.random() < 0.6 else (DASH_ON, DASH_OFF))
    for lane in range(1, road.lanes):
        lay(np.abs(away - lane * road.lane) < 0.07, line, ROAD, (DASH_ON,))
    if rng.random() < 0.7:
        lay(np.abs(away - road.lanes * road.lane + 0.15) < 0.07, line, ROAD, (DASH_ON, DASH_OFF))
    lay(x < np.inf, asphalt, ROAD, (STREET,))
    lay((away < road.half - 0.3) & (away % 1.0 < 0.5), line, ROAD, (ZEBRA,))
    lay((x > 0.2) & (x < road.lanes * road.lane), line, ROAD, (STOP_LINE,))
    if rng.random() < 0.4:  # the shadow of what stands on one side
        shade = x * rng.choice([-1, 1]) > rng.uniform(0, road.half)
        paint[:, shade, :3] = paint[:, shade, :3] * 0.55
    return paint.view(np.uint32)[..., 0]


def _row_kinds(road: Road, s: np.ndarray) -> np.ndarray:
    """Return the kind of the ground's row at each distance s."""
    kinds = np.where(s % 9.0 < 4.0, DASH_ON, DASH_OFF)
    at = s % road.period
    kinds[(at > 2.5) & (at < PLOT - 2.5)] = STREET
    kinds[at > road.period - 4] = ZEBRA
    kinds[(at > road.period - 5.5) & (at < road.period - 5)] = STOP_LINE
    return kinds


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Return a tile (512, 512) float32 of noise around 0 that wraps: stains, patches, grains."""
    rng, tile = np.random.default_rng(7), np.zeros((512, 512), np.float32)
    for cells, weight in ((8, 0.3), (32, 0.3), (128, 0.3), (512, 0.35)):
        noise = rng.standard_normal((cells, cells)).astype(np.float32)
        noise = np.pad(noise, 2, mode='wrap')
        scale = 512 // cells
        noise = cv2.resize(noise, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        tile += weight * noise[2 * scale:2 * scale + 512, 2 * scale:2 * scale + 512]
    return tile


def _draw_ground(view: View, road: Road, paint: np.ndarray) -> None:
    """Draw everything below the horizon by asking for each pixel what lies there."""
    height, width = view.canvas.shape[:2]
    top = max(0, math.ceil(view.v0 + view.focal * EYE / 350))
    z = (view.focal * EYE / (np.arange(top, height) + 0.5 - view.v0)).astype(np.float32)
    s = z + view.s
    u = (np.arange(width) + 0.5 - view.u0).astype(np.float32)
    x = u * (z / view.focal)[:, None] + (view.x - view.bend(view.s, z)).astype(np.float32)[:, None]
    bins = np.clip((x + ACROSS) * (1 / BIN), 0, paint.shape[1] - 1).astype(np.int32)
    bins += (_row_kinds(road, s) * paint.shape[1]).astype(np.int32)[:, None]
    planes = list(cv2.split(paint.ravel().take(bins).view(np.uint8).reshape(*bins.shape, 4)))

    along = np.repeat(((s * 40) % 512).astype(np.float32)[:, None], width, axis=1)
    gain = cv2.remap(_grain(), x * 40, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    gain = 1 + gain * (0.22 * np.exp(-z / 25))[:, None]
    clear = np.exp(-z / view.day.visibility)[:, None]
    beam = 0.0
    if view.day.lamps:
        beam = np.exp(-((x - view.x) / (3 + 0.15 * z)[:, None]) ** 2)
        beam *= (view.day.lamps * np.minimum(1, 9 / z))[:, None]
    for c in range(3):
        light = (view.day.light[c] + beam) * clear * gain
        color = cv2.multiply(planes[c], light, dtype=cv2.CV_32F)
        color += view.day.sky_low[c] * (1 - clear)
        planes[c] = cv2.convertScaleAbs(color)
    view.canvas[top:] = cv2.merge(planes)


# ---- sky, horizon and the ego car


def _sky(rng: np.random.Generator, day: Day, size: tuple[int, int]) -> np.ndarray:
    """Return a sky (height, 2 * width, 3) uint8 with clouds, wider than the picture."""
    height, width = size[0] // 4, size[1] // 2
    down = np.linspace(0, 1, height)[:, None, None] ** 0.8
    sky = np.array(day.sky_top) * (1 - down) + np.array(day.sky_low) * down
    clouds = np.zeros((height, width), np.float32)
    for cells, weight in ((4, 0.5), (9, 0.3), (20, 0.2)):
        noise = rng.random((cells, 3 * cells)).astype(np.float32)
        clouds += weight * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    cover = np.clip((clouds - 0.75 + 0.5 * day.clouds) * 4, 0, 0.85)[..., None]
    cloud = 0.75 * np.array(day.sky_low) + 60 * np.mean(day.light)
    sky = np.clip(sky * (1 - cover) + cloud * cover, 0, 255).astype(np.uint8)
    return cv2.resize(sky, (2 * size[1], size[0]))


def _draw_sky(view: View, sky: np.ndarray) -> None:
    """Fill the canvas with the part of the sky that the camera's heading shows."""
    height, width = view.canvas.shape[:2]
    turn = float(view.bend(view.s, np.array(300.0))) / 300
    left = int(np.clip(width / 2 + view.focal * turn, 0, width))
    bottom = int(view.v0) + 8
    view.canvas[:bottom, :, :3] = sky[height - bottom:, left:left + width]
    view.canvas[:bottom, :, 3] = SKY


def _draw_skyline(view: View, seed: int) -> None:
    """Draw far woods and houses along the horizon."""
    rng = np.random.default_rng([seed, 4])
    height, width = view.canvas.shape[:2]
    turn = view.focal * float(view.bend(view.s, np.array(300.0))) / 300
    base = view.v0 + view.focal * EYE / 300
    for label, tall in ((BUILDING, 0.08), (VEGETATION, 0.045), (VEGETATION, 0.03)):
        n = 40
        rise = rng.uniform(0.1, 1.0, n) ** 2 * tall * height
        color = objects.gray(rng, 70, 150, 20) if label == BUILDING else objects.green(rng)
        u = np.linspace(-0.5, 1.5, n) * width - turn
        if label == BUILDING:
            u, rise = np.repeat(u, 2)[1:], np.repeat(rise, 2)[:-1]
        edge = np.stack([u, base - rise], axis=1)
        shape = np.vstack([edge, [(u[-1], base), (u[0], base)]])
        view.paint(shape[None], view.tone(color, view.x, view.s + 160), label)


def _draw_bonnet(view: View, share: float) -> None:
    """Draw the bonnet of the car that carries the camera, if it is in the picture."""
    if share:
        height, width = view.canvas.shape[:2]
        u = np.linspace(-0.1, 1.1, 25)
        v = 1 - share * (1 - (2 * u - 1) ** 4 * 0.8)
        edge = np.vstack([np.stack([u, v], axis=1), [(1.1, 1.2), (-0.1, 1.2)]]) * (width, height)
        view.paint(edge[None], view.tone((70.0, 62.0, 58.0), view.x + 4, view.s), VOID)


# ---- from the canvas to a photograph


def _develop(view: View, blur: float, exposure: np.ndarray,
             rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn the canvas into a picture as a camera takes it, and its labels."""
    picture = cv2.cvtColor(view.canvas, cv2.COLOR_BGRA2BGR)
    labels = cv2.extractChannel(view.canvas, 3)
    if view.day.wet:
        _add_mirror(picture, labels, view.v0, view.day.wet)
    if view.day.lamps:
        _add_glow(picture, labels, view)
    if view.day.name == 'rain':
        _add_rain(picture, view.day, rng)
    picture = cv2.GaussianBlur(picture, (0, 0), blur * picture.shape[1] / SIZE[1])
    picture = cv2.LUT(picture, exposure)
    noise = _noise(picture.shape[:2])
    dy, dx = rng.integers(0, 64, 2)
    noise = noise[dy:dy + len(picture), dx:dx + picture.shape[1]]
    strength = view.day.noise / 32
    return cv2.addWeighted(picture, 1, noise, strength, -128 * strength), labels


@lru_cache(maxsize=2)
def _noise(size: tuple[int, int]) -> np.ndarray:
    """Return noise (height + 64, width + 64, 3) uint8 around 128, standard deviation 32."""
    noise = np.random.default_rng(8).standard_normal((size[0] + 64, size[1] + 64, 3), np.float32)
    return np.clip(128 + 32 * noise, 0, 255).astype(np.uint8)


def _add_mirror(picture: np.ndarray, labels: np.ndarray, horizon: float, share: float) -> None:
    """Let the wet road mirror what stands above it."""
    top = int(horizon)
    rows = len(picture) - top
    above = cv2.resize(picture[:top], (64, 24), interpolation=cv2.INTER_AREA)
    above = cv2.resize(cv2.flip(above, 0), (picture.shape[1], rows))
    ground = picture[top:]
    mixed = cv2.addWeighted(ground, 1 - share, above, share, 0)
    cv2.copyTo(mixed, cv2.inRange(labels[top:], ROAD, ROAD), ground)


def _add_glow(picture: np.ndarray, labels: np.ndarray, view: View) -> None:
    """Add a halo around each lamp that nothing hides."""
    height, width = labels.shape
    halo = np.zeros((height // 4, width // 4, 3), np.uint8)
    for u, v, radius, color, label in view.lights:
        if 0 <= u < width and 0 <= v < height and labels[int(v), int(u)] == label:
            center, size = (round(u / 4), round(v / 4)), math.ceil(min(radius, 5))
            cv2.circle(halo, center, size, objects.times(color, 0.6), cv2.FILLED)
    halo = cv2.GaussianBlur(halo, (0, 0), width / 300)
    cv2.add(picture, cv2.resize(halo, (width, height)), picture)


def _add_rain(picture: np.ndarray, day: Day, rng: np.random.Generator) -> None:
    """Draw streaks of rain, and drops on the windscreen that blur what is behind them."""
    height, width = picture.shape[:2]
    head = rng.uniform(0, 1, (120, 2)) * (width, height)
    fall = np.array([-0.006, 0.05]) * height * rng.uniform(0.4, 1.2, (120, 1))
    streaks = np.rint(np.stack([head, head + fall], axis=1)).astype(np.int32)
    layer = picture.copy()
    cv2.polylines(layer, list(streaks), False, objects.times(day.sky_low, 1.2))
    cv2.addWeighted(picture, 0.55, layer, 0.45, 0, picture)
    for x, y, r in rng.uniform((0, 0, 0.01), (1, 1, 0.035), (10, 3)) * (width, height, height):
        patch = picture[int(y):int(y + 2 * r), int(x):int(x + 2 * r)]
        if patch.size:
            patch[:] = cv2.blur(patch, (max(1, int(r)),) * 2)
