#!/usr/bin/env python3
"""Draw one picture of all films of a farm, a strip of frames for each, and say where the films are.

    .venv/bin/python scripts/draw_films.py PICTURE.jpg

For scripts/demo: FARM_HOME names the farm.  Of jobs that make the same film only the newest counts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from farm.config import load_settings
from farm.errors import FarmError
from farm.ledger import open_ledger, read
from farm.ledger.values import Job
from farm.media.pictures import contact_sheet
from farm.states import JobState

FRAMES_PER_STRIP = 6
FRAME_WIDTH = 200
TITLE_HEIGHT = 24
PAPER, INK = "#ffffff", "#202020"


def newest_films() -> list[tuple[Job, Path]]:
    """The newest job of each film that was published, in the order of their rows."""
    ledger = open_ledger(load_settings().ledger)
    try:
        jobs = read.jobs(ledger, states=[JobState.SUCCEEDED], limit=None)
    finally:
        ledger.close()
    newest = {job.output: job for job in reversed(jobs)}
    return [(job, Path(job.output)) for job in sorted(newest.values(), key=lambda job: job.row_number)]


def draw_strips(films: list[tuple[Job, Path]], picture: Path) -> None:
    """One titled strip of frames per film, the films below each other."""
    strips: list[tuple[str, Image.Image]] = []
    with tempfile.TemporaryDirectory() as folder:
        for job, film in films:
            sheet = Path(folder) / f"{job.id}.jpg"
            contact_sheet(film, sheet, columns=FRAMES_PER_STRIP, rows=1, width=FRAME_WIDTH)
            # The drawing library's own font has Latin letters only, so the inputs are named and not the film.
            title = f"{Path(job.portrait).name} + {Path(job.audio).name}"
            with Image.open(sheet) as strip:
                strips.append((title.encode("ascii", "replace").decode(), strip.convert("RGB")))
    width = max(strip.width for _, strip in strips)
    whole = Image.new("RGB", (width, sum(strip.height + TITLE_HEIGHT for _, strip in strips)), PAPER)
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(14)
    top = 0
    for title, strip in strips:
        draw.text((8, top + 5), title, INK, font=font)
        whole.paste(strip, (0, top + TITLE_HEIGHT))
        top += TITLE_HEIGHT + strip.height
    picture.parent.mkdir(parents=True, exist_ok=True)
    whole.save(picture, "JPEG", quality=90)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    picture = Path(arguments[0]).absolute()
    try:
        films = newest_films()
        there = [(job, film) for job, film in films if film.is_file()]
        if there:
            draw_strips(there, picture)
    except FarmError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    for _, film in films:
        print(film if film.is_file() else f"{film} was removed; --again renders it anew")
    if there:
        print(f"All of them in one picture: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
