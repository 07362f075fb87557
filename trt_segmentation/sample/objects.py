# SPDX-License-Identifier: Apache-2.0
"""
What stands and moves beside a drawn road and on it.

Each kind of object is a function that makes its random choices and returns the function that
draws it at a place (x, s) of the world.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np

from trt_segmentation.sample.canvas import (
    BICYCLE,
    box,
    BUILDING,
    BUS,
    CAR,
    Color,
    disc,
    FENCE,
    MOTORCYCLE,
    NEAR,
    patches,
    PERSON,
    Place,
    POLE,
    quad,
    rect,
    RIDER,
    ROAD,
    solid,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    TRAIN,
    TRUCK,
    VEGETATION,
    View,
    VOID,
    WALL,
)

PLOT = 15.0  # length of a piece of building, wall, fence or hedge, m

Draw = Callable[[View, float, float], None]  # draws an object at x, s


def gray(rng: np.random.Generator, low: float, high: float, tint: float = 8) -> Color:
    """Draw a nearly gray color."""
    return tuple(np.clip(rng.uniform(low, high) + rng.uniform(-tint, tint, 3), 0, 255).tolist())


def green(rng: np.random.Generator) -> Color:
    """Draw the color of leaves or grass, autumn included."""
    g = rng.uniform(60, 130)
    return (g * rng.uniform(0.3, 0.65), g, g * rng.uniform(0.5, 1.2))


def coat(rng: np.random.Generator) -> Color:
    """Draw the color of paint or clothes: mostly dull, sometimes bright."""
    base = rng.uniform(25, 215)
    spread = 70 if rng.random() < 0.45 else 12
    b, g, r = np.clip(base + rng.uniform(-spread, spread, 3), 5, 250).tolist()
    return b, g, r


def times(color: Color, gain: float) -> Color:
    """Return a color made lighter or darker."""
    b, g, r = (min(255.0, c * gain) for c in color)
    return b, g, r


# ---- what stands beside the road


def building(rng: np.random.Generator) -> Draw:
    """Make a house with rows of windows, some of them lit in the dark, and maybe a shop."""
    floors, depth = int(rng.integers(2, 9)), rng.uniform(9, 16)
    height, length = 3.0 * floors + rng.uniform(0.5, 2), PLOT - rng.choice([0, 0, 1.5, 4])
    color = gray(rng, 70, 215, 28)
    pane, lit = gray(rng, 30, 110, 12), (110.0, 190.0, 235.0)
    columns = int(rng.integers(3, 8))
    tall, wide = rng.uniform(1.1, 2.0), rng.uniform(0.35, 0.8)
    on = rng.random((floors, columns)) < 0.3
    shop = coat(rng) if rng.random() < 0.4 else None
    setback = rng.choice([0.0, 0.0, 1.0, 3.0])

    def draw(view: View, x: float, s: float) -> None:
        side = math.copysign(1, x)
        place = Place(x + side * (depth / 2 + setback), s)
        box(view, place, (length, depth, height), 0, color, BUILDING)
        box(view, place, (length + 0.4, depth + 0.4, 0.4), height, times(color, 0.7), BUILDING)
        if s - view.s > 110:
            return
        step = length / columns
        a = -length / 2 + step * (np.arange(columns) + 0.5)
        y = 3.0 * np.arange(floors) + 1.2
        if shop:
            y = y[1:]
            face = wall_quads(np.array([0.0]), np.array([0.3]), length / 2 - 0.4, 2.6)
            patches(view, place, on_side(face, side, depth), times(shop, 0.5), BUILDING)
            sign = wall_quads(np.array([0.0]), np.array([2.8]), length / 2 - 0.4, 0.5)
            patches(view, place, on_side(sign, side, depth), shop, BUILDING)
        windows = wall_quads(a, y, step * wide / 2, tall)
        patches(view, place, on_side(windows, side, depth), pane, BUILDING)
        if view.day.lamps:
            glowing = windows[on[-len(y):].ravel()]
            patches(view, place, on_side(glowing, side, depth),
                    times(lit, 0.8 / view.day.light[2]), BUILDING)
        columns_near = wall_quads(np.arange(-depth / 2 + 1.5, depth / 2 - 1, 3.2), y, 0.7, tall)
        near = columns_near[..., [1, 0, 2]]
        near[..., 1], near[..., 0] = columns_near[..., 0], -length / 2
        patches(view, place, near, times(pane, 0.9), BUILDING)
    return draw


def wall_quads(a: np.ndarray, y: np.ndarray, half: float, tall: float) -> np.ndarray:
    """Return (len(y) * len(a), 4, 3) upright quads of local points at forward a, up y."""
    center, low = (v.ravel() for v in np.meshgrid(a, y))
    forward = np.stack([center - half, center + half, center + half, center - half], axis=1)
    up = np.stack([low, low, low + tall, low + tall], axis=1)
    return np.stack([forward, np.zeros_like(up), up], axis=2)


def on_side(quads: np.ndarray, side: float, width: float) -> np.ndarray:
    """Put wall quads on the face that looks at the road from a side (+1 is the right)."""
    quads = quads.copy()
    quads[..., 1] = -side * width / 2
    return quads[:, ::-1] if side > 0 else quads


def wall(rng: np.random.Generator) -> Draw:
    """Make a wall of concrete, brick or stone, with joints."""
    height, color = rng.uniform(0.9, 3.0), gray(rng, 70, 190, 22)
    joints, cap = rng.random() < 0.6, rng.random() < 0.5

    def draw(view: View, x: float, s: float) -> None:
        side = math.copysign(1, x)
        place = Place(x + 0.15 * side, s)
        box(view, place, (PLOT, 0.3, height), 0, color, WALL)
        if cap:
            box(view, place, (PLOT, 0.5, 0.15), height, times(color, 1.15), WALL)
        if joints and s - view.s < 70:
            lines = wall_quads(np.arange(-7, 7.1, 2), np.array([0.0]), 0.04, height)
            patches(view, place, on_side(lines, side, 0.3), times(color, 0.6), WALL)
    return draw


def fence(rng: np.random.Generator) -> Draw:
    """Make a fence that shows what is behind it: pickets, rails or a mesh of wire."""
    height, color = rng.uniform(0.9, 2.2), gray(rng, 30, 200, 25)
    pitch = rng.choice([0.25, 0.5, 1.0])
    rails = np.linspace(0.15, height - 0.1, int(rng.integers(2, 7)))

    def draw(view: View, x: float, s: float) -> None:
        a, b = s - PLOT / 2, s + PLOT / 2
        view.mark(quad((x, 0, a), (x, 0, b), (x, height, b), (x, height, a)), FENCE)
        z = np.arange(a, b + 0.01, pitch if s - view.s < 30 else 2.5)
        z = z[z > view.s + NEAR]
        posts = np.empty((len(z), 4, 3))
        posts[..., 0], posts[..., 1] = x, (0, 0, height, height)
        posts[..., 2] = z[:, None] + np.array([0, 0.06, 0.06, 0])
        bars = np.empty((len(rails), 4, 3))
        bars[..., 0], bars[..., 2] = x, (a, b, b, a)
        bars[..., 1] = rails[:, None] + np.array([0, 0, 0.06, 0.06])
        view.fill(posts, color, FENCE)
        view.fill(bars, color, FENCE, 0.85)
    return draw


def hedge(rng: np.random.Generator) -> Draw:
    """Make a hedge: a box of leaves."""
    height, color = rng.uniform(0.8, 2.4), green(rng)
    clumps = rng.uniform((-7.5, -0.1), (7.5, 0.9), (60, 2)) * (1, height)
    bump = rng.uniform(0.1, 0.35, (60, 1))

    def draw(view: View, x: float, s: float) -> None:
        box(view, Place(x + math.copysign(0.5, x), s), (PLOT, 1.0, height), 0, color, VEGETATION)
        spots = np.empty((60, 6, 3))
        leaf = disc(0, 0, 1, 1.3, 6)
        spots[..., 0] = x - math.copysign(0.05, x)
        spots[..., 1] = clumps[:, 1:] + bump * leaf[:, 1]
        spots[..., 2] = s + clumps[:, :1] + bump * leaf[:, 0]
        spots = spots[spots[..., 2].min(axis=1) > view.s + NEAR]
        view.fill(spots[::2], color, VEGETATION, 0.75)
        view.fill(spots[1::2], color, VEGETATION, 1.2)
    return draw


def blob(rng: np.random.Generator, width: float, height: float, n: int) -> np.ndarray:
    """Return the (n, 2) ragged outline of something that grows."""
    angle = np.linspace(0, 2 * math.pi, n, endpoint=False)
    radius = rng.uniform(0.75, 1.1, n)
    return np.stack([width * radius * np.cos(angle), height * radius * np.sin(angle)], axis=1)


def foliage(rng: np.random.Generator, width: float, height: float) -> Callable[..., None]:
    """Make a crown of leaves, lit from above, that is drawn around a height y."""
    color = green(rng)
    outline = blob(rng, width, height, 22)
    spots = rng.uniform(-0.7, 0.7, (26, 1, 2)) * (width, height)
    spots = spots + blob(rng, 1, 1, 7) * rng.uniform(0.08, 0.26, (26, 1, 1)) * width
    lift = (0.0, 0.18 * height)

    def draw(view: View, x: float, y: float, s: float) -> None:
        view.flat(x, s, outline + (0, y), color, VEGETATION, )
        if view.scale(s) * width > 10:
            view.flat(x, s, spots[:13] + (0, y) - lift, times(color, 0.65), VEGETATION)
            view.flat(x, s, spots[13:] + (0, y) + lift, times(color, 1.3), VEGETATION)
    return draw


def tree(rng: np.random.Generator) -> Draw:
    """Make a tree: a trunk, which is vegetation too, and one to three crowns."""
    height, bark = rng.uniform(4, 11), gray(rng, 35, 90, 12)
    crowns = [(rng.uniform(-0.1, 0.1) * height, rng.uniform(0.6, 0.85) * height,
               foliage(rng, height * rng.uniform(0.16, 0.3), height * rng.uniform(0.18, 0.28)))
              for _ in range(rng.integers(1, 4))]
    trunk = 0.025 * height

    def draw(view: View, x: float, s: float) -> None:
        view.flat(x, s, rect(-trunk, 0, trunk, 0.7 * height), bark, VEGETATION)
        for dx, y, crown in crowns:
            crown(view, x + dx, y, s)
    return draw


def bush(rng: np.random.Generator) -> Draw:
    """Make a bush."""
    height = rng.uniform(0.4, 1.6)
    crown = foliage(rng, height * rng.uniform(0.6, 1.1), height * 0.55)

    def draw(view: View, x: float, s: float) -> None:
        crown(view, x, 0.45 * height, s)
    return draw


def lamp_post(rng: np.random.Generator) -> Draw:
    """Make a street lamp on a pole whose arm reaches over the road."""
    height, color = rng.uniform(5, 9), gray(rng, 50, 150)
    arm, glow = rng.uniform(0.5, 2.2), (170.0, 215.0, 250.0)

    def draw(view: View, x: float, s: float) -> None:
        reach = -math.copysign(arm, x)
        view.flat(x, s, rect(-0.09, 0, 0.09, height), color, POLE)
        view.flat(x, s, rect(0, height - 0.12, reach, height), color, POLE)
        if view.day.lamps > 0.3:
            view.lamp(x + reach, height - 0.15, s, 0.22, glow, POLE)
    return draw


def pole(rng: np.random.Generator) -> Draw:
    """Make a bare pole or a bollard."""
    height = rng.choice([1.0, 3.0, 7.0])
    color, half = gray(rng, 40, 190, 15), rng.uniform(0.05, 0.12)

    def draw(view: View, x: float, s: float) -> None:
        view.flat(x, s, rect(-half, 0, half, height), color, POLE)
    return draw


SIGN_COLORS = ((40.0, 40.0, 200.0), (190.0, 90.0, 30.0), (235.0, 235.0, 235.0),
               (40.0, 190.0, 230.0), (70.0, 120.0, 30.0))


def sign(rng: np.random.Generator) -> Draw:
    """Make a traffic sign: a disc, a triangle, a square or a board, on a pole."""
    low, size = rng.uniform(2.0, 2.8), rng.uniform(0.3, 0.5)
    rim, field = (SIGN_COLORS[i] for i in rng.permutation(len(SIGN_COLORS))[:2])
    shape = (disc(0, 0, 1), disc(0, 0, 1, n=3)[:, ::-1] * (1, 1), rect(-0.9, -0.9, 0.9, 0.9),
             rect(-1.9, -1.1, 1.9, 1.1))[rng.integers(4)] * size
    back = rng.random() < 0.15

    def draw(view: View, x: float, s: float) -> None:
        view.flat(x, s, rect(-0.05, 0, 0.05, low + size), (120.0, 120.0, 120.0), POLE)
        if back:
            view.flat(x, s, shape + (0, low + size), (95.0, 95.0, 95.0), TRAFFIC_SIGN)
        else:
            view.flat(x, s, shape + (0, low + size), rim, TRAFFIC_SIGN)
            view.flat(x, s, shape * 0.7 + (0, low + size), field, TRAFFIC_SIGN)
    return draw


def traffic_light(rng: np.random.Generator) -> Draw:
    """Make traffic lights on a pole, one of their three lamps on; they change as time goes."""
    height, phase = rng.uniform(2.6, 3.6), rng.uniform(0, 12)
    lamps = ((40.0, 40.0, 250.0), (40.0, 190.0, 250.0), (120.0, 230.0, 40.0))

    def head(view: View, x: float, y: float, s: float) -> None:
        view.flat(x, s, rect(-0.2, y - 0.55, 0.2, y + 0.55), (28.0, 28.0, 28.0), TRAFFIC_LIGHT)
        on = int((view.t + phase) / 4) % 3
        for i, color in enumerate(lamps):
            if i == on:
                view.lamp(x, y + 0.34 * (1 - i), s, 0.13, color, TRAFFIC_LIGHT)
            else:
                view.flat(x, s, disc(0, y + 0.34 * (1 - i), 0.12), times(color, 0.25),
                          TRAFFIC_LIGHT)

    def draw(view: View, x: float, s: float) -> None:
        view.flat(x, s, rect(-0.07, 0, 0.07, height), (90.0, 90.0, 90.0), POLE)
        head(view, x, height, s)
        if view.half > 5:
            reach = -math.copysign(3.5, x)
            view.flat(x, s, rect(-0.09, 0, 0.09, 5.6), (90.0, 90.0, 90.0), POLE)
            view.flat(x, s, rect(0, 5.5, reach, 5.65), (90.0, 90.0, 90.0), POLE)
            head(view, x + reach, 5.4, s)
    return draw


def litter_bin(rng: np.random.Generator) -> Draw:
    """Make a thing that no class names: a bin, a box, a bench."""
    size = (rng.uniform(0.4, 1.8), rng.uniform(0.4, 0.8), rng.uniform(0.5, 1.2))
    color = coat(rng)

    def draw(view: View, x: float, s: float) -> None:
        box(view, Place(x, s), size, 0, color, VOID)
    return draw


# ---- people


def figure(rng: np.random.Generator, label: int) -> Callable[..., None]:
    """Make a human figure; it stands on height y, walks, or sits with its legs apart."""
    tall = rng.uniform(1.5, 1.9) if rng.random() < 0.85 else rng.uniform(0.95, 1.4)
    top, trousers, skin = coat(rng), times(coat(rng), 0.6), times((130.0, 165.0, 215.0),
                                                                 rng.uniform(0.35, 1.05))
    hair = skin if label == RIDER else gray(rng, 15, 90, 10)
    cap = coat(rng) if label == RIDER else hair
    wide, pace = rng.uniform(0.19, 0.27), rng.uniform(5, 8)
    bag = coat(rng) if rng.random() < 0.3 else None
    canopy = coat(rng) if label == PERSON and rng.random() < 0.5 else None

    def draw(view: View, x: float, s: float, y: float = 0.0, sits: bool = False) -> None:
        step = 0.16 if sits else 0.14 * math.sin(pace * view.t + x)
        hip, neck = y + (0.3 if sits else 0.5) * tall, y + (0.68 if sits else 0.84) * tall
        for d in (-1, 1):
            leg = quad((d * 0.16, hip + 0.1), (d * 0.02, hip + 0.1), (d * (0.03 + step), y),
                       (d * (0.15 + step), y)).reshape(4, 2)
            view.flat(x, s, leg, trousers, label)
        torso = np.array([(-wide * 0.8, hip), (wide * 0.8, hip), (wide, neck - 0.05),
                          (wide * 0.4, neck), (-wide * 0.4, neck), (-wide, neck - 0.05)])
        view.flat(x, s, torso, top, label)
        if view.scale(s) > 16:
            arm = rect(wide * 0.85, hip - 0.02, wide * 1.3, neck - 0.06)
            view.flat(x, s, np.stack([arm, arm * (-1, 1)]), times(top, 0.8), label)
            if bag:
                view.flat(x, s, rect(0.7 * wide, hip, 1.6 * wide, hip + 0.35), bag, label)
        head = disc(0, neck + 0.12 * tall / 1.7, 0.115 * tall / 1.7, 0.85)
        view.flat(x, s, head, skin, label)
        view.flat(x, s, head * (1.08, 0.55) + (0, 0.45 * head[:, 1].max() + 0.02), cap, label)
        if canopy and view.day.wet > 0.3:
            dome = disc(0, neck + 0.3, 0.5, n=16)
            view.flat(x, s, dome[dome[:, 1] > neck + 0.29], canopy, label)
    return draw


def walker(rng: np.random.Generator) -> Draw:
    """Make one to three people who walk together."""
    people = [(rng.uniform(-0.5, 0.5) + 0.3 * i, rng.uniform(-0.5, 0.5), figure(rng, PERSON))
              for i in range(rng.choice([1, 1, 1, 2, 2, 3]))]

    def draw(view: View, x: float, s: float) -> None:
        for dx, ds, body in people:
            body(view, x + dx, s + ds)
    return draw


def crossing_walkers(rng: np.random.Generator) -> Draw:
    """Make people who walk over the road and back."""
    people = [(rng.uniform(0, 60), rng.uniform(0.9, 1.5), rng.uniform(-1, 1), figure(rng, PERSON))
              for _ in range(rng.integers(0, 5))]

    def draw(view: View, x: float, s: float) -> None:
        span = view.half + 1
        for start, pace, ds, body in people:
            way = (start + pace * view.t) % (4 * span)
            body(view, min(way, 4 * span - way) - span, s + ds)
    return draw


# ---- vehicles; x, s is the middle, and a vehicle left of the centre line comes towards the camera


def heading(x: float) -> float:
    """Return the yaw of what drives at x: on the right side of the road."""
    return 0.0 if x > 0 else math.pi


def shadow(view: View, place: Place, length: float, width: float) -> None:
    """Darken the road under a vehicle."""
    ground = rect(-length / 2 - 0.15, -width / 2 - 0.15, length / 2 + 0.15, width / 2 + 0.15)
    view.fill(place.world(np.column_stack([ground, np.zeros(4)])), (28.0, 28.0, 28.0), ROAD)


def wheels(view: View, place: Place, at: tuple[float, ...], width: float, radius: float,
           label: int) -> None:
    """Draw the wheels on both sides of a vehicle."""
    circle = disc(0, 0, radius, n=10)
    for side in (-1, 1):
        rims = np.empty((len(at), 10, 3))
        rims[..., 0] = np.array(at)[:, None] + circle[:, 0]
        rims[..., 1], rims[..., 2] = side * (width / 2 + 0.01), radius + circle[:, 1]
        rims = rims if side > 0 else rims[:, ::-1]
        patches(view, place, rims, (32.0, 32.0, 32.0), label)
        hub = (rims - rims.mean(axis=1, keepdims=True)) * 0.5 + rims.mean(axis=1, keepdims=True)
        patches(view, place, hub, (120.0, 120.0, 120.0), label)


def end_patch(a: float, b0: float, b1: float, y0: float, y1: float, front: bool) -> np.ndarray:
    """Return one upright quad across the front or the rear end of a vehicle, (1, 4, 3)."""
    points = quad((a, b0, y0), (a, b1, y0), (a, b1, y1), (a, b0, y1))
    return (points[::-1] if front else points)[None]


def end_lamps(view: View, place: Place, ends: tuple[float, float], y: float, width: float,
              label: int) -> None:
    """Draw tail lamps and headlamps; they glow where the day needs lamps."""
    for a, front, color in ((ends[0], False, (45.0, 40.0, 190.0)),
                            (ends[1], True, (235.0, 240.0, 240.0))):
        for side in (-1, 1):
            inner, outer = sorted((side * (width / 2 - 0.35), side * (width / 2 - 0.05)))
            spot = end_patch(a, inner, outer, y, y + 0.16, front)
            patches(view, place, spot, color, label)
            if view.day.lamps:
                x, height, s = place.world(spot)[0].mean(axis=0)
                towards = (math.cos(place.yaw) < 0) == front
                if towards and abs(math.cos(place.yaw)) > 0.5:
                    glow = color if front else (60.0, 50.0, 250.0)
                    view.lamp(x, height, s, 0.12, glow, label)


def car(rng: np.random.Generator) -> Callable[..., None]:
    """Make a car: a saloon, a hatchback, an estate or a van, by its profile."""
    length, width = rng.uniform(3.7, 4.8), rng.uniform(1.7, 1.95)
    tall, a = rng.uniform(1.38, 1.8), length / 2
    belt, rear = 0.56 * tall, rng.choice([0.05, 0.25, 0.6])
    color = coat(rng)
    body = [(-a, 0.25), (a, 0.25), (a - 0.05, belt - 0.15), (-a, belt)]
    cabin = [(-a + rear, belt - 0.02), (0.48 * a, belt - 0.1), (0.12 * a, tall),
             (-a + rear + 0.35, tall)]
    glass = times((60.0, 52.0, 45.0), rng.uniform(0.5, 1.5))

    def draw(view: View, x: float, s: float, yaw: float | None = None) -> None:
        place = Place(x, s, heading(x) if yaw is None else yaw)
        shadow(view, place, length, width)
        solid(view, place, body, width, color, CAR)
        solid(view, place, cabin, width * 0.88, color, CAR)
        if view.scale(s) * tall < 14:
            return
        half = width * 0.4
        (c0, y0), (c1, y1), (c2, y2), (c3, y3) = cabin
        rear_glass = quad((c0, -half, y0), (c0, half, y0), (c3, half, y3 - 0.1),
                          (c3, -half, y3 - 0.1))
        screen = quad((c1, half, y1), (c1, -half, y1), (c2, -half, y2 - 0.1),
                      (c2, half, y2 - 0.1))
        patches(view, place, rear_glass[None], glass, CAR)
        patches(view, place, screen[None], glass, CAR)
        for side in (-1, 1):
            b = side * width * 0.445
            pane = quad((c0 + 0.2, b, y0 + 0.05), (c1 - 0.25, b, y1 + 0.1),
                        (c2 - 0.05, b, y2 - 0.1), (c3 + 0.1, b, y3 - 0.1))
            patches(view, place, (pane if side > 0 else pane[::-1])[None], glass, CAR)
        wheels(view, place, (-0.6 * a, 0.62 * a), width, 0.32, CAR)
        plate = end_patch(-a - 0.01, -0.26, 0.26, 0.42, 0.54, False)
        patches(view, place, plate, (215.0, 220.0, 220.0), CAR)
        end_lamps(view, place, (-a - 0.01, a + 0.01), belt - 0.3, width, CAR)
    return draw


def truck(rng: np.random.Generator) -> Callable[..., None]:
    """Make a lorry: a cab and a box, or a flat bed with a load."""
    length, width = rng.uniform(6.5, 10), 2.45
    cab, load = coat(rng), coat(rng) if rng.random() < 0.5 else gray(rng, 140, 230, 10)
    tall, a = rng.uniform(2.4, 3.7), length / 2
    bed = rng.random() < 0.25

    def draw(view: View, x: float, s: float, yaw: float | None = None) -> None:
        place = Place(x, s, heading(x) if yaw is None else yaw)
        shadow(view, place, length, width)

        def front() -> None:
            solid(view, place, [(a - 2, 0.5), (a, 0.5), (a - 0.15, 2.8), (a - 2, 2.8)], 2.3, cab,
                  TRUCK)
            screen = end_patch(a - 0.03, -1.05, 1.05, 1.6, 2.5, True)
            patches(view, place, screen, (50.0, 45.0, 40.0), TRUCK)

        def cargo() -> None:
            ahead = place.world(quad(-1, 0, 0))
            middle = Place(ahead[0], ahead[2], place.yaw)
            box(view, middle,
                (length - 2.3, width, 0.9 if bed else tall - 0.7), 0.95, load, TRUCK)
            box(view, middle,
                (length - 2.3, width * 0.9, 0.5), 0.45, (45.0, 45.0, 45.0), TRUCK)
            for b in (-0.02, 0.0):
                door = end_patch(-a + 0.13, b, b + 0.03, 1.0, tall + 0.1, False)
                if not bed:
                    patches(view, place, door, times(load, 0.6), TRUCK)

        for part in (front, cargo) if math.cos(place.yaw) > 0 else (cargo, front):
            part()
        wheels(view, place, (-0.75 * a, -0.5 * a, 0.7 * a), width, 0.48, TRUCK)
        end_lamps(view, place, (-a + 0.12, a + 0.01), 0.6, width, TRUCK)
    return draw


def coach(rng: np.random.Generator, length: float, tall: float, width: float,
          label: int) -> Callable[..., None]:
    """Make a long box with a band of windows along it: a bus, or a car of a train."""
    color, glass, a = coat(rng), gray(rng, 30, 70), length / 2
    stripe = coat(rng)
    y0, y1 = 0.48 * tall, 0.8 * tall
    panes = np.arange(-a + 0.9, a - 0.5, 1.6)

    def draw(view: View, x: float, s: float, yaw: float) -> None:
        place = Place(x, s, yaw)
        solid(view, place, [(-a, 0.35), (a, 0.35), (a, tall - 0.2), (a - 0.3, tall),
                            (-a + 0.3, tall), (-a, tall - 0.2)], width, color, label)
        for side in (-1, 1):
            # on_side counts from the road: a face at +b looks to the right
            band = wall_quads(np.array([0.0]), np.array([0.36 * tall]), a, 0.22)
            patches(view, place, on_side(band, -side, width), stripe, label)
            rows = on_side(wall_quads(panes, np.array([y0]), 0.68, y1 - y0), -side, width)
            shine = 2.5 * view.day.lamps + 1
            patches(view, place, rows, times(glass, shine), label)
        for end, front in ((-a - 0.01, False), (a + 0.01, True)):
            w = 0.43 * width
            patches(view, place, end_patch(end, -w, w, y0 - 0.1, y1, front), glass, label)
            board = end_patch(end, -0.6 * w, 0.6 * w, 0.85 * tall, 0.93 * tall, front)
            patches(view, place, board, (60.0, 190.0, 240.0), label)
        end_lamps(view, place, (-a - 0.02, a + 0.02), 0.7, width, label)
    return draw


def bus(rng: np.random.Generator) -> Callable[..., None]:
    """Make a bus, some with two decks."""
    length = rng.uniform(9, 12)
    body = coach(rng, length, rng.choice([2.9, 3.1, 4.1]), 2.5, BUS)

    def draw(view: View, x: float, s: float, yaw: float | None = None) -> None:
        place = Place(x, s, heading(x) if yaw is None else yaw)
        shadow(view, place, length, 2.5)
        body(view, x, s, place.yaw)
        wheels(view, place, (-0.28 * length, 0.3 * length), 2.5, 0.5, BUS)
    return draw


def train(rng: np.random.Generator) -> Draw:
    """Make a train of two to four cars."""
    count = int(rng.integers(2, 5))
    body = coach(rng, 13.6, rng.uniform(3.3, 3.9), 2.7, TRAIN)

    def draw(view: View, x: float, s: float) -> None:
        for i in reversed(range(count)):
            body(view, x, s + 14.0 * (i - count / 2), heading(x))
    return draw


def bicycle_side(rng: np.random.Generator) -> Callable[..., None]:
    """Make a bicycle seen from its side."""
    color, r = coat(rng), rng.uniform(0.3, 0.36)
    tyre = times((30.0, 30.0, 30.0), rng.uniform(0.8, 2.0))

    def draw(view: View, x: float, s: float) -> None:
        dim = times(view.day.sky_low, 0.5)
        for dx in (-0.52, 0.52):
            view.flat(x, s, disc(dx, r, r), tyre, BICYCLE)
            view.flat(x, s, disc(dx, r, 0.82 * r), times(dim, 1.2), BICYCLE)
        joints = np.array([(-0.52, r), (0, r), (0.35, 0.8), (-0.15, 0.8)])
        ends = [(0, 1), (1, 2), (2, 3), (3, 0), (1, 3)]
        bars = np.array([[joints[i], joints[j], joints[j] + 0.05, joints[i] + 0.05]
                         for i, j in ends])
        view.flat(x, s, bars, color, BICYCLE)
        fork = np.array([(0.52, r), (0.56, r), (0.4, 1.0), (0.33, 1.0)])
        view.flat(x, s, fork, color, BICYCLE)
        view.flat(x, s, np.stack([rect(-0.28, 0.86, -0.04, 0.93), rect(0.25, 0.98, 0.46, 1.03)]),
                  (35.0, 35.0, 35.0), BICYCLE)
    return draw


def motorcycle_side(rng: np.random.Generator) -> Callable[..., None]:
    """Make a motorcycle or scooter seen from its side."""
    color, r = coat(rng), rng.uniform(0.26, 0.33)

    def draw(view: View, x: float, s: float) -> None:
        for dx in (-0.65, 0.65):
            view.flat(x, s, disc(dx, r, r), (25.0, 25.0, 25.0), MOTORCYCLE)
            view.flat(x, s, disc(dx, r, 0.55 * r), (110.0, 110.0, 110.0), MOTORCYCLE)
        hull = np.array([(-0.85, 0.55), (-0.4, 0.25), (0.35, 0.25), (0.6, 0.7), (0.5, 0.95),
                         (0.1, 0.8), (-0.2, 0.72), (-0.8, 0.78)])
        view.flat(x, s, hull, color, MOTORCYCLE)
        view.flat(x, s, rect(-0.75, 0.72, 0.0, 0.84), (30.0, 30.0, 30.0), MOTORCYCLE)
        view.flat(x, s, quad((0.5, 0.9), (0.66, 0.3), (0.74, 0.3), (0.58, 1.1)).reshape(4, 2),
                  (70.0, 70.0, 70.0), MOTORCYCLE)
    return draw


def parked_cycles(rng: np.random.Generator) -> Draw:
    """Make a row of parked bicycles or motorcycles."""
    make = bicycle_side if rng.random() < 0.55 else motorcycle_side
    row = [(rng.uniform(-0.3, 0.3), 0.7 * i, make(rng)) for i in range(rng.integers(1, 5))]

    def draw(view: View, x: float, s: float) -> None:
        for dx, ds, cycle in reversed(row):
            cycle(view, x + dx, s + ds)
    return draw


def cyclist(rng: np.random.Generator) -> Callable[..., None]:
    """Make a bicycle and its rider, seen from the rear or, where a yaw is given, from the side."""
    body, side_view = figure(rng, RIDER), bicycle_side(rng)
    color = coat(rng)

    def draw(view: View, x: float, s: float, yaw: float | None = None) -> None:
        if yaw is not None:
            side_view(view, x, s)
            body(view, x - 0.1, s, 0.42, True)
            return
        view.flat(x, s, rect(-0.04, 0, 0.04, 0.7), (28.0, 28.0, 28.0), BICYCLE)
        view.flat(x, s, rect(-0.3, 0.98, 0.3, 1.04), (60.0, 60.0, 60.0), BICYCLE)
        view.flat(x, s, rect(-0.07, 0.5, 0.07, 0.95), color, BICYCLE)
        body(view, x, s, 0.42, True)
    return draw


def motorcyclist(rng: np.random.Generator) -> Callable[..., None]:
    """Make a motorcycle and its rider, seen from the rear, the front or the side."""
    body, side_view = figure(rng, RIDER), motorcycle_side(rng)
    color = coat(rng)

    def draw(view: View, x: float, s: float, yaw: float | None = None) -> None:
        if yaw is not None:
            side_view(view, x, s)
            body(view, x - 0.2, s, 0.4, True)
            return
        view.flat(x, s, rect(-0.1, 0, 0.1, 0.6), (25.0, 25.0, 25.0), MOTORCYCLE)
        view.flat(x, s, quad((-0.25, 0.35), (0.25, 0.35), (0.3, 0.85), (-0.3, 0.85)).reshape(4, 2),
                  color, MOTORCYCLE)
        view.flat(x, s, rect(-0.42, 0.98, 0.42, 1.06), (50.0, 50.0, 50.0), MOTORCYCLE)
        lamp = (45.0, 40.0, 220.0) if x > 0 else (235.0, 240.0, 245.0)
        view.lamp(x, 0.8, s, 0.09, lamp, MOTORCYCLE)
        body(view, x, s, 0.4, True)
    return draw


def crossing_traffic(rng: np.random.Generator) -> Draw:
    """Make vehicles that cross the road, or wait beside it."""
    kinds = (car, car, truck, bus, cyclist, cyclist, motorcyclist)
    traffic = []
    for side in (-1, 1):
        if rng.random() < 0.6:
            make = kinds[rng.integers(len(kinds))]
            traffic.append((side, rng.uniform(0, 80), rng.uniform(2, 7), make(rng)))

    def draw(view: View, x: float, s: float) -> None:
        for side, start, pace, vehicle in reversed(traffic):
            at = side * ((start + pace * view.t) % 80 - 40)
            if abs(at) < view.half + 4:
                vehicle(view, at, s + (5 if side < 0 else 0), side * math.pi / 2)
    return draw
