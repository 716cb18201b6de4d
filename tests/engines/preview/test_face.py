"""What the face does besides speech: lids, brows, shoulders, the inside of the mouth, and motion that never repeats."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from scripts import draw_preview, measure_idle
from tests.conftest import ROOT
from workers.engines.preview import landmarks
from workers.engines.preview.drawn import is_drawn
from workers.engines.preview.eyes import measure_eyes, wears_glasses
from workers.engines.preview.face import FaceReader
from workers.engines.preview.framing import FramedPortrait, frame_portrait
from workers.engines.preview.head import HeadField
from workers.engines.preview.idle import Idle
from workers.engines.preview.inner_mouth import _UPPER_ROW, InnerMouth, _between_rows
from workers.engines.preview.motion import STILL, Pose
from workers.engines.preview.mouth import MouthGeometry, MouthShape, MouthWarp, measure_mouth
from workers.engines.preview.renderer import Renderer
from workers.engines.preview.shaping import luminance

SIDE = 512
NAMES = ("grace_hopper", "astronaut")
TALKS = replace(STILL, talk=1.0, level=1.0, rest_seconds=0.0, close=0.0)


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    return {name: cv2.imread(str(ROOT / f"examples/portraits/{name}.jpg")) for name in NAMES}


@pytest.fixture(scope="module")
def portraits(photos: dict[str, np.ndarray], reader: FaceReader) -> dict[str, FramedPortrait]:
    return {name: frame_portrait(photo, SIDE, SIDE, "auto", reader) for name, photo in photos.items()}


@pytest.fixture(scope="module")
def drawing(photos: dict[str, np.ndarray], reader: FaceReader) -> FramedPortrait:
    return frame_portrait(draw_preview.as_cartoon(photos["grace_hopper"]), SIDE, SIDE, "auto", reader)


def drawn(renderer: Renderer, pose: Pose) -> np.ndarray:
    return draw_preview.draw_pose(renderer, pose, SIDE)


@pytest.mark.parametrize("name", NAMES)
def test_closed_lids_show_nothing_of_the_open_eyes_outline(portraits: dict[str, FramedPortrait], name: str) -> None:
    renderer = Renderer(portraits[name], 1.0)
    opened, closed = (luminance(drawn(renderer, pose)) for pose in (STILL, replace(STILL, blink=1.0)))
    for eye in measure_eyes(portraits[name]):
        places = eye.axes.picture_grid(eye.u, eye.v)
        # From above the old lid down to the lashes, and not as far as the corners.
        part = (eye.v[:, None] > eye.upper - 0.3 * eye.openness) & (eye.v[:, None] < eye.lower - 0.35 * eye.openness)
        part &= np.abs(eye.u) < 0.7 * eye.half
        before, after = (cv2.remap(light, *places, cv2.INTER_LINEAR)[part] for light in (opened, closed))
        assert np.ptp(np.percentile(after, (3, 97))) < 0.35 * np.ptp(np.percentile(before, (3, 97)))
        assert np.percentile(after, 3) > 0.75 * np.median(after), "no dark line is left"
        assert np.percentile(after, 3) < np.percentile(after, 97) - 4, "and skin is not a flat colour"


def test_brows_move_above_glasses_and_the_frame_stays(portraits: dict[str, FramedPortrait]) -> None:
    assert [wears_glasses(portraits[name]) for name in NAMES] == [True, False]
    for eye in measure_eyes(portraits["astronaut"]):
        assert eye.lift.max() > 0.12 * eye.half
    for eye in measure_eyes(portraits["grace_hopper"]):
        local = cv2.remap(portraits["grace_hopper"].image, *eye.axes.picture_grid(eye.u, eye.v), cv2.INTER_LINEAR)
        row = eye.v[:, None]
        frame = (luminance(local) < 60) & (row > eye.brow - 0.5 * eye.half) & (row < eye.upper)
        frame &= np.abs(eye.u) < eye.half
        assert frame.sum() > 20, "the frame shows"
        assert eye.lift[frame].max() < 0.3, "and is not bent, in pixels"
        assert eye.lift.max() > 0.05 * eye.half, "the skin above it moves"


def test_shoulders_carry_the_head_and_the_pictures_edges_stay(portraits: dict[str, FramedPortrait]) -> None:
    portrait = portraits["grace_hopper"]
    field = HeadField(portrait)
    columns, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    (chin_x, chin_y), face = portrait.points[landmarks.CHIN, :2].astype(int), int(np.ptp(portrait.points[:, 1]))
    x, y = field.backward(replace(STILL, body_x=1.0))
    moved = columns - x
    assert moved[chin_y, chin_x] > 2
    assert moved[min(SIDE - 30, chin_y + face // 2), chin_x] > 0.6 * moved[chin_y, chin_x]
    assert np.abs(np.diff(moved[chin_y:, chin_x])).max() < 0.05, "the neck is not stretched"
    assert np.abs(np.gradient(moved, axis=1)).max() < 0.5, "and nothing beside it folds"
    assert np.abs(moved[:, [0, -1]]).max() < 0.1
    x, y = field.backward(replace(STILL, breath=1.0))
    assert (rows - y)[min(SIDE - 60, chin_y + face // 2), chin_x] < -0.5, "shoulders rise with a breath"
    assert np.abs((rows - y)[-1]).max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_tongue_rises_for_an_l_and_lies_in_an_open_mouth(portraits: dict[str, FramedPortrait], name: str) -> None:
    renderer, geometry = Renderer(portraits[name], 1.0), measure_mouth(portraits[name])
    opened = replace(TALKS, open=0.7)
    lying, raised = (drawn(renderer, pose).astype(float) for pose in (opened, replace(opened, tongue=0.9)))
    changed = np.abs(lying - raised).sum(axis=2) > 30
    row, reach = int(geometry.axes.origin[1]), int(geometry.half)
    assert changed.sum() > 10
    assert not changed[: row - reach].any()
    assert not changed[row + reach :].any()
    if name == "grace_hopper":  # a grin hides it behind its teeth
        assert luminance(raised)[changed].mean() > luminance(lying)[changed].mean() + 8


@pytest.mark.parametrize("name", NAMES)
def test_a_jaw_that_drops_takes_the_corners_down_and_in(portraits: dict[str, FramedPortrait], name: str) -> None:
    geometry = measure_mouth(portraits[name])
    warp, half, at_rest = MouthWarp(geometry, 1.0), geometry.half, replace(TALKS, close=1.0)
    shut, opened = (warp.shape(pose) for pose in (at_rest, replace(TALKS, open=1.0)))
    right, left = geometry.centre - half, geometry.centre + half

    def corners(shape: MouthShape) -> tuple[float, float]:
        """How far they are apart, and how low, in pixels."""
        places = np.interp([right, left], shape.columns, geometry.u)
        return float(np.ptp(places)), float(np.interp(places, geometry.u, (shape.upper + shape.lower) / 2).mean())

    (wide, high), (narrow, low) = corners(shut), corners(opened)
    assert low - high > 0.4 * opened.jaw, "or the open mouth is a laugh"
    assert narrow < 0.98 * wide
    apart = np.interp(np.linspace(-0.7, 0.7, 3) * half + geometry.centre, opened.columns, opened.lower - opened.upper)
    assert apart[[0, 2]].mean() > 0.42 * apart[1], "and it is an oval, not a slice"


def test_lips_that_shut_from_a_grin_keep_their_red_and_part_in_a_thin_line(
    portraits: dict[str, FramedPortrait],
) -> None:
    portrait = portraits["astronaut"]
    geometry = measure_mouth(portrait)
    pose = replace(TALKS, close=1.0)
    shape, half = MouthWarp(geometry, 1.0).shape(pose), geometry.half
    picture = drawn(Renderer(portrait, 1.0), pose)
    v = np.arange(-0.3 * half, 0.3 * half, 0.25, dtype=np.float32)
    local = cv2.remap(picture, *geometry.axes.picture_grid(geometry.u, v), cv2.INTER_LINEAR).astype(float)
    # Rows counted from the line of the lips.
    rows = (v[:, None] - (shape.upper + shape.lower)[None] / 2) / half
    middle = np.abs((shape.columns - geometry.centre) / half) < 0.5
    red = (local[..., 2] - local[..., 1]) / np.maximum(luminance(local), 1)
    lip = np.median(red[(rows > -0.12) & (rows < -0.05) & middle])
    skin = np.median(red[(rows > -0.30) & (rows < -0.22) & middle])
    assert lip > 1.25 * skin, "the upper lip shows"
    patch = InnerMouth(portrait, geometry).draw(pose, shape)
    assert patch is not None
    width = patch.cover.shape[1]
    light = luminance(patch.colour)[patch.cover.argmax(axis=0), np.arange(width)]
    aside = np.abs(shape.columns[patch.column : patch.column + width] - geometry.centre) / half
    ends = (aside > 0.75) & (aside < 0.9)
    assert np.median(light[ends]) > 1.3 * np.median(light[aside < 0.4]), "the line fades towards the corners"


def test_a_tongue_lies_in_an_open_mouth_and_the_midline_parts_the_front_teeth(
    portraits: dict[str, FramedPortrait],
) -> None:
    portrait = portraits["grace_hopper"]
    geometry = measure_mouth(portrait)
    inside, pose = InnerMouth(portrait, geometry), replace(TALKS, open=1.0)
    shape = MouthWarp(geometry, 1.0).shape(pose)
    patch = inside.draw(pose, shape)
    assert patch is not None
    columns = np.abs(np.arange(patch.cover.shape[1]) - patch.cover.shape[1] / 2) < 0.2 * geometry.half
    first, last = np.flatnonzero(patch.cover[:, columns].mean(axis=1) > 0.9)[[0, -1]]
    depth = np.linspace(0, 1, last - first + 1)
    lit = luminance(patch.colour[first : last + 1, columns]).mean(axis=1)
    lips = float(np.median(luminance(portrait.image)[tuple(portrait.points[landmarks.LIPS, 1::-1].astype(int).T)]))
    assert lit[(depth > 0.5) & (depth < 0.75)].mean() > 0.28 * lips, "half way down it is not dark"
    assert lit[(depth > 0.3) & (depth < 0.75)].min() < 0.3 * lips, "though it is behind the teeth"

    places = np.linspace(-0.5, 0.5, 401, dtype=np.float32)[None]
    _, between = inside._teeth_at(places, _UPPER_ROW)
    gaps = places[0, np.flatnonzero(between[0] > 0.97)]
    assert np.abs(gaps).min() < 0.01
    assert 0.24 < np.abs(gaps[np.abs(gaps) > 0.1]).min() < 0.34, "half widths: two broad teeth in the middle"


def test_a_lower_row_of_teeth_is_told_from_the_upper_one(portraits: dict[str, FramedPortrait]) -> None:
    geometry = measure_mouth(portraits["astronaut"])
    row, half, across = geometry.v[:, None], geometry.half, np.abs(geometry.across) < 0.7
    upper, lower = (row > 0) & (row < 0.2 * half) & across, (row > 0.4 * half) & (row < 0.5 * half) & across
    assert _between_rows(upper, geometry) is None
    between = _between_rows(upper | lower, geometry)
    assert between is not None
    assert between == pytest.approx(0.3 * half, abs=1.5)


@pytest.fixture(scope="module")
def wide_open(portraits: dict[str, FramedPortrait], reader: FaceReader) -> tuple[FramedPortrait, MouthGeometry, float]:
    """Hopper as if photographed in a shout; her mouth at rest, and the gap of the lips in pixels."""
    shouts, at_rest = replace(TALKS, open=1.0, level=1.0, teeth=0.6), measure_mouth(portraits["grace_hopper"])
    picture = drawn(Renderer(portraits["grace_hopper"], 1.6), shouts)
    gap = MouthWarp(at_rest, 1.6).shape(shouts).opening
    return frame_portrait(picture, SIDE, SIDE, "whole", reader), at_rest, gap


def test_the_lips_of_a_wide_open_mouth_are_found_where_they_are(
    wide_open: tuple[FramedPortrait, MouthGeometry, float],
) -> None:
    portrait, _, gap = wide_open
    geometry = measure_mouth(portrait)
    assert geometry.gap == pytest.approx(gap, rel=0.12)
    assert geometry.agape == 1
    near = np.abs(geometry.across) < 0.3
    assert np.ptp(geometry.lines.upper_inner[near]) < 0.2 * geometry.half, "and the edge does not jump between teeth"


def test_a_jaw_that_hangs_comes_up_to_close_the_mouth(
    wide_open: tuple[FramedPortrait, MouthGeometry, float], reader: FaceReader
) -> None:
    portrait, at_rest, gap = wide_open
    closed = drawn(Renderer(portrait, 1.0), replace(TALKS, close=1.0))
    points = reader.mesh_again(closed, portrait.points).points[:, :2]
    upper, lower, chin = (points[k, 1] for k in (13, 14, landmarks.CHIN))
    assert abs(lower - upper) < 0.12 * at_rest.half
    assert portrait.points[landmarks.CHIN, 1] - chin > 0.2 * gap
    red = points[landmarks.LOWER_OUTER_LIP, 1].max() - lower
    was = (at_rest.lines.lower_outer - at_rest.lines.lower_inner)[np.abs(at_rest.across) < 0.2].mean()
    assert red < 1.6 * was, "the lower lip is carried, not pulled"


def test_a_grin_relaxes_in_speech(portraits: dict[str, FramedPortrait], reader: FaceReader) -> None:
    portrait = portraits["astronaut"]
    assert measure_mouth(portrait).grin > 0.8
    assert measure_mouth(portraits["grace_hopper"]).grin == 0
    said = reader.mesh_again(drawn(Renderer(portrait, 1.0), replace(TALKS, wide=0.35, close=1.0)), portrait.points)

    def width(points: np.ndarray) -> float:
        return float(np.linalg.norm(points[landmarks.LEFT_CORNER, :2] - points[landmarks.RIGHT_CORNER, :2]))

    assert width(said.points) < 0.92 * width(portrait.points)


def test_a_drawing_gets_a_drawn_mouth(
    photos: dict[str, np.ndarray], portraits: dict[str, FramedPortrait], drawing: FramedPortrait, reader: FaceReader
) -> None:
    assert drawing.drawn
    assert not any(portrait.drawn for portrait in portraits.values())
    for photo in photos.values():  # neither small nor blurred nor noisy photos are drawings
        small = cv2.resize(photo, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
        noisy = np.clip(photo + np.random.default_rng(1).normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
        for other in (small, cv2.GaussianBlur(photo, (0, 0), 2), noisy, cv2.convertScaleAbs(photo, alpha=0.4)):
            assert not is_drawn(other, reader.mesh(other, reader.detect(other)[0]).points)

    geometry = measure_mouth(drawing)
    pose = replace(TALKS, open=0.9)
    even = {}
    for name, portrait in (("drawing", drawing), ("lifelike", replace(drawing, drawn=False))):
        patch = InnerMouth(portrait, geometry).draw(pose, MouthWarp(geometry, 1.0).shape(pose))
        assert patch is not None
        steps = np.abs(np.diff(luminance(patch.colour), axis=0))[patch.cover[1:] > 0.9]
        even[name] = float((steps < 0.2).mean())
    assert even["drawing"] > 0.3, f"flat colours {even}"
    assert even["lifelike"] < 0.1


def test_nothing_comes_round_again_in_ten_minutes() -> None:
    seconds, rate = 600, 5
    times = (np.arange(seconds * rate) / rate).tolist()
    for name, curve in measure_idle.curves_of(Idle(7, 16.0)).items():
        values = np.array([curve(moment) for moment in times])
        assert values.std() > 0, name
        assert measure_idle.comes_back(values, rate) < 0.4, name


def test_blinks_are_spread_as_a_persons_are() -> None:
    gaps = np.concatenate([measure_idle.blink_intervals(Idle(seed, 16.0), 300) for seed in range(4)])
    assert 60 / gaps.mean() == pytest.approx(16, abs=2)
    assert np.median(gaps) < 0.9 * gaps.mean(), "a few long gaps among many short ones"
    assert 0.5 < gaps.std() / gaps.mean() < 1.0
    assert gaps.min() > 0.3


def test_idle_motion_is_a_function_of_the_time_alone() -> None:
    known = Idle(3, 16.0)
    curves = measure_idle.curves_of(known)
    for moment in np.random.default_rng(5).uniform(0, 4000, 40).tolist():
        fresh = measure_idle.curves_of(Idle(3, 16.0))
        assert {name: curve(moment) for name, curve in curves.items()} == {n: c(moment) for n, c in fresh.items()}


def test_idle_motion_never_jumps() -> None:
    idle = Idle(11, 16.0)
    times = np.arange(0, 40, 0.01).tolist()
    for name, curve in measure_idle.curves_of(idle).items():
        largest = np.abs(np.diff([curve(moment) for moment in times])).max()
        quick = {"lids": 0.25, "eyes, aside": 0.8, "eyes, up and down": 0.8}.get(name, 0.08)
        assert largest < quick, name


def test_the_eyes_are_mostly_on_the_camera() -> None:
    idle = Idle(2, 16.0)
    looks = np.array([idle.glance("x", moment) for moment in np.arange(0, 300, 0.1).tolist()])
    assert 0.6 < (np.abs(looks) < 0.2).mean() < 0.9
