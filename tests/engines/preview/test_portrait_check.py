"""Which photos are refused, and with which sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from farm.errors import InputError
from tests.conftest import ROOT
from tests.engines.preview.conftest import ASTRONAUT, MakeFilm, render
from workers.engines.contract import Engine
from workers.engines.preview import landmarks
from workers.engines.preview.face import FaceReader
from workers.engines.preview.framing import frame_portrait
from workers.engines.preview.portrait_check import PortraitFacts, PortraitRules, check, look

HOPPER = ROOT / "examples/portraits/grace_hopper.jpg"
GOOD = PortraitFacts(
    width=1000,
    height=1200,
    faces=1,
    box=(300, 200, 400, 500),
    score=0.95,
    face_width=400,
    eyes_open=0.3,
    brightness=130,
    sharpness=15,
)


def written(tmp_path: Path, picture: np.ndarray) -> Path:
    path = tmp_path / "portrait.png"
    cv2.imwrite(str(path), picture)
    return path


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    picture = cv2.imread(str(ASTRONAUT))
    assert picture is not None
    return picture


def test_a_good_portrait_raises_no_notes_and_its_facts_are_json(reader: FaceReader) -> None:
    facts = look(ASTRONAUT, reader)
    assert check(facts) == []
    assert (facts.faces, facts.width, facts.height) == (1, 512, 512)
    assert 80 < facts.face_width < 110
    assert max(abs(facts.yaw), abs(facts.pitch), abs(facts.roll)) < 12
    assert json.loads(json.dumps(facts.as_json()))["faces"] == 1


def test_glasses_and_a_cap_are_fine(reader: FaceReader) -> None:
    assert check(look(ROOT / "examples/portraits/grace_hopper.jpg", reader)) == []


def test_a_leaning_head_is_measured(reader: FaceReader, astronaut: np.ndarray, tmp_path: Path) -> None:
    straight = look(ASTRONAUT, reader).roll
    turn = cv2.getRotationMatrix2D((226, 120), -20, 1)
    leaning = look(written(tmp_path, cv2.warpAffine(astronaut, turn, (512, 512))), reader)
    assert leaning.roll - straight == pytest.approx(20, abs=4)


def test_a_photo_on_its_side_is_refused(reader: FaceReader, astronaut: np.ndarray, tmp_path: Path) -> None:
    for turn in (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE):
        with pytest.raises(InputError, match="upright"):
            check(look(written(tmp_path, cv2.rotate(astronaut, turn)), reader))


def test_a_picture_without_a_face_is_refused(reader: FaceReader, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (400, 300, 3), np.uint8)
    with pytest.raises(InputError, match="no face was found in the portrait; use a photo"):
        check(look(written(tmp_path, noise), reader))


def test_a_face_too_small_in_a_large_photo_is_found_and_refused(
    reader: FaceReader, astronaut: np.ndarray, tmp_path: Path
) -> None:
    photo = np.full((2000, 1500, 3), 90, np.uint8)
    photo[300:556, 700:956] = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_AREA)
    with pytest.raises(InputError, match=r"the face in the portrait is only 4\d px wide; .* at least 60 px"):
        check(look(written(tmp_path, photo), reader))


def test_of_several_faces_the_largest_is_taken(reader: FaceReader, astronaut: np.ndarray, tmp_path: Path) -> None:
    photo = np.full((512, 900, 3), 200, np.uint8)
    photo[132:, :380] = cv2.resize(astronaut, (380, 380), interpolation=cv2.INTER_AREA)
    photo[:, 388:] = astronaut
    facts = look(written(tmp_path, photo), reader)
    assert facts.faces == 2
    assert facts.box is not None
    assert facts.box[0] > 388
    assert any("shows 2 faces; the largest one talks" in note for note in check(facts))


def test_a_face_cut_by_the_photos_edge_is_noted(reader: FaceReader, astronaut: np.ndarray, tmp_path: Path) -> None:
    facts = look(written(tmp_path, np.ascontiguousarray(astronaut[:162])), reader)
    assert 0.8 < facts.inside < 0.97
    assert any("beyond the edge" in note for note in check(facts))


def test_dark_and_blurred_photos_are_noted(reader: FaceReader, astronaut: np.ndarray, tmp_path: Path) -> None:
    dark = look(written(tmp_path, (astronaut * 0.2).astype(np.uint8)), reader)
    assert any("dark" in note for note in check(dark))
    blurred = look(written(tmp_path, cv2.GaussianBlur(astronaut, (0, 0), 3)), reader)
    assert any("blurred" in note for note in check(blurred))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"yaw": -61.0}, "shows the face from the side"),
        ({"pitch": 55.0}, "looks too far down"),
        ({"pitch": -55.0}, "looks too far up"),
        ({"roll": 70.0}, "lies on its side"),
        ({"faces": 0, "turned_by": 90}, "turn it 90 degrees clockwise"),
        ({"face_width": 59.0}, "only 59 px wide"),
        ({"inside": 0.6}, "a part of the face is outside"),
    ],
)
def test_what_no_model_could_animate_is_refused(change: dict[str, float], sentence: str) -> None:
    assert check(GOOD) == []
    with pytest.raises(InputError, match=sentence):
        check(replace(GOOD, **change))


def test_a_models_own_limits_count() -> None:
    assert check(replace(GOOD, yaw=40.0)) == ["the face is turned by about 40 degrees; a frontal photo looks better"]
    narrow = PortraitRules.from_mapping({"min_face_px": 500, "max_yaw_degrees": 30.0, "something_else": 1})
    with pytest.raises(InputError, match="at least 500 px"):
        check(GOOD, narrow)
    assert check(PortraitFacts(100, 100, 0), PortraitRules(needs_face=False)) == ["no face was found in the portrait"]


def test_a_file_that_is_no_picture_is_refused(reader: FaceReader, tmp_path: Path) -> None:
    path = tmp_path / "letter.png"
    path.write_text("hello")
    with pytest.raises(InputError, match="is not a picture that can be read"):
        look(path, reader)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is not a picture that can be read"):
        look(path, reader)
    with pytest.raises(InputError, match="cannot read the portrait"):
        look(tmp_path / "none.png", reader)


def before_the_mouth(photo: np.ndarray, reader: FaceReader, thing: str) -> np.ndarray:
    """The photo with a drawn fist in the face's own skin, a microphone or a cup before the mouth."""
    points = reader.mesh(photo, reader.detect(photo)[0]).points[:, :2]
    width = np.linalg.norm(points[landmarks.LEFT_EDGE] - points[landmarks.RIGHT_EDGE])
    x, y = (points[landmarks.UPPER_LIP_CENTRE] + points[landmarks.LOWER_LIP_CENTRE]) / 2
    row, column = np.mgrid[: photo.shape[0], : photo.shape[1]]
    across, down = (column - x) / width, (row - y) / width
    if thing == "fist":
        forehead = points[landmarks.UPPER_FACE].astype(int)
        colour = np.median(photo[forehead[:, 1], forehead[:, 0]], axis=0)
        reach = (across / 0.36) ** 2 + ((down - 0.05) / 0.28) ** 2
        light = 0.7 + 0.35 * np.sqrt(np.clip(1 - reach, 0, 1))
        for knuckle in (-0.15, 0.0, 0.15):
            light -= 0.2 * np.exp(-(((across - knuckle) / 0.012) ** 2)) * (down < 0.15)
    elif thing == "microphone":
        colour, reach = np.array([48, 45, 45]), (across / 0.26) ** 2 + ((down - 0.05) / 0.26) ** 2
        light = 0.6 + 0.8 * np.sqrt(np.clip(1 - reach, 0, 1))
    else:
        colour, reach = np.array([225, 225, 220]), np.maximum(np.abs(across) / 0.28, np.abs(down - 0.2) / 0.34)
        light = 1 - 2.5 * across**2
    cover = cv2.GaussianBlur((reach < 1).astype(np.float64), (0, 0), max(0.6, 0.006 * width))[..., None]
    return np.clip(photo * (1 - cover) + colour * light[..., None] * cover, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("thing", ["fist", "microphone", "cup"])
@pytest.mark.parametrize("portrait", [ASTRONAUT, HOPPER], ids=["astronaut", "hopper"])
def test_what_is_before_the_mouth_is_noted_and_nothing_is_drawn_into_it(
    reader: FaceReader, tmp_path: Path, portrait: Path, thing: str
) -> None:
    photo = before_the_mouth(cv2.imread(str(portrait)), reader, thing)
    facts = look(written(tmp_path, photo), reader)
    assert facts.mouth_covered, facts.mouth_doubt
    assert any("covered" in note for note in check(facts))
    assert frame_portrait(photo, 256, 256, "auto", reader).mouth_covered


@pytest.mark.parametrize("portrait", [ASTRONAUT, HOPPER], ids=["astronaut", "hopper"])
def test_a_mouth_that_shows_is_not_taken_for_covered_in_a_bad_photo(
    reader: FaceReader, tmp_path: Path, portrait: Path
) -> None:
    photo = cv2.imread(str(portrait))
    noise = np.random.default_rng(3).normal(0, 14, photo.shape)
    for bad in (
        photo,
        (photo * 0.3).astype(np.uint8),
        cv2.convertScaleAbs(photo, alpha=1.5, beta=20),
        cv2.GaussianBlur(photo, (0, 0), 1.5),
        np.clip(photo + noise, 0, 255).astype(np.uint8),
        cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
        np.ascontiguousarray(photo[:, ::-1]),
        cv2.resize(photo, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC),
    ):
        facts = look(written(tmp_path, bad), reader)
        assert not facts.mouth_covered
        assert facts.mouth_doubt < 0.5


def test_a_doubt_about_the_mouth_is_a_note_and_no_refusal() -> None:
    assert check(replace(GOOD, mouth_doubt=0.9)) == []
    (note,) = check(replace(GOOD, mouth_doubt=2.0))
    assert "something may hide the mouth" in note


@pytest.mark.parametrize("colour", [(190, 150, 90), (225, 225, 225), (35, 35, 35)], ids=["blue", "white", "black"])
def test_a_mask_is_noted_and_the_film_leaves_it_as_it_is(
    engine: Engine, reader: FaceReader, make_film: MakeFilm, tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    photo = cv2.imread(str(HOPPER))
    assert not look(HOPPER, reader).mouth_covered
    points = reader.mesh(photo, reader.detect(photo)[0]).points
    cheeks = [234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454]
    masked = cv2.fillPoly(photo, [points[[*cheeks, 347, 197, 118], :2].astype(np.int32)], colour)
    path = written(tmp_path, masked)
    facts = look(path, reader)
    assert facts.mouth_covered
    assert any("covered" in note for note in check(facts))

    still = {"head_motion": 0.0, "expression": 0.0, "blink_rate": 0.0}
    frames = render(engine, make_film(portrait=path, total_frames=50, **still))
    assert np.ptp(frames[:, :256].astype(int), axis=0).max() <= 2
    column, row = frame_portrait(masked, 256, 256, "auto", reader).points[landmarks.UPPER_LIP_CENTRE, :2].astype(int)
    assert np.ptp(frames[25, row - 4 : row + 5, column - 9 : column + 10].astype(int)) <= 4, "no lips on the cloth"
