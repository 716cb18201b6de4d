"""Do the joins of a parallel film show?  Frame differences across each cut against those inside the segments.

    FARM_HOME=… .venv/bin/python scripts/measure_joins.py JOB [picture.png]

Works for films of every engine.  A picture has a row for each of the first joins: frames from 0.6 s before to 0.6 s
after it.  Differences are means over all pixels of the luma, in levels of 255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from farm.config import load_settings  # noqa: E402
from farm.ledger import open_ledger, read  # noqa: E402
from farm.states import SegmentKind  # noqa: E402

AROUND_SECONDS = (-0.6, -0.32, -0.16, -0.08, -0.04, 0.0, 0.04, 0.12, 0.32, 0.6)
ROWS = 4
SIDE = 192  # pixels of a frame in the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=int)
    parser.add_argument("picture", type=Path, nargs="?")
    options = parser.parse_args()
    ledger = open_ledger(load_settings().ledger)
    job = read.job(ledger, options.job)
    film = Path(read.films(ledger, [job.id])[job.id].path)
    cuts = [s.first_frame for s in read.segments(ledger, job.id) if s.kind is SegmentKind.RENDER][1:]
    ledger.close()
    fps = job.fps[0] / job.fps[1]
    wanted = {cut + round(offset * fps) for cut in cuts[:ROWS] for offset in AROUND_SECONDS}
    steps, light, keys, kept = watch(film, wanted)
    print(f"{film}: {len(light)} frames, {len(cuts)} joins")
    inside = np.delete(steps, [cut - 1 for cut in cuts])
    fresh = np.array([steps[key - 1] for key in keys if key and key not in cuts])
    print(f"inside the segments: median {np.median(inside):.2f}, 95th percentile {np.percentile(inside, 95):.2f}")
    print(f"where the encoder begins anew inside a segment: median {np.median(fresh):.2f}, largest {fresh.max():.2f}")
    for cut in cuts:
        near = np.concatenate([steps[cut - 6 : cut - 1], steps[cut : cut + 5]])
        print(
            f"  join at frame {cut:6} ({cut / fps:7.1f} s): across it {steps[cut - 1]:.2f}, the ten steps around it"
            f" {near.mean():.2f}, brightness {light[cut] - light[cut - 1]:+.2f}"
        )
    if options.picture is not None:
        rows = [np.hstack([kept[cut + round(offset * fps)] for offset in AROUND_SECONDS]) for cut in cuts[:ROWS]]
        cv2.imwrite(str(options.picture), np.vstack(rows))


def watch(
    film: Path, wanted: set[int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[int], dict[int, npt.NDArray[np.uint8]]]:
    """Differences between neighbours [n - 1], mean light [n], key frames, and the wanted frames as small BGR."""
    steps: list[float] = []
    light: list[float] = []
    keys: list[int] = []
    kept: dict[int, npt.NDArray[np.uint8]] = {}
    before: npt.NDArray[np.float32] | None = None
    with av.open(str(film)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            luma = frame.to_ndarray(format="gray").astype(np.float32)
            if before is not None:
                steps.append(float(np.abs(luma - before).mean()))
            before = luma
            light.append(float(luma.mean()))
            if frame.key_frame:
                keys.append(number)
            if number in wanted:
                kept[number] = cv2.resize(frame.to_ndarray(format="bgr24"), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.array(steps), np.array(light), keys, kept


if __name__ == "__main__":
    main()
