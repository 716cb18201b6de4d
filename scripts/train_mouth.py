#!/usr/bin/env python3
"""Make workers/engines/preview/speech_network.npz again, from nothing but packages, and say how good it is.

    scripts/train_mouth.py speak     synthesise the speech and hear it (minutes)
    scripts/train_mouth.py train     train on it (20 to 30 minutes on one core) and write the weights
    scripts/train_mouth.py join      put the weights of several trainings into one file: the first named is written
    scripts/train_mouth.py test      compare weights on voices and languages that were never heard

Needs Debian's espeak-ng, flite, festival with the voices of scripts/mouth/voices.py, fortunes, fortunes-cs, -de, -es,
-it, -ru, -zh and -br, and in Python torch (a CPU build) and scipy.  The same seed speaks the same data; the weights
differ in their last bits between builds of torch.  The figures of the committed weights: docs/models/preview-mouth.md.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from scripts.mouth import voices  # noqa: E402

SPEECH_NETWORK = ROOT / "workers/engines/preview/speech_network.npz"
SEED = 20261122


def speak(folder: Path, minutes: float) -> None:
    """Training examples and the test's utterances, as files in `folder`."""
    from scripts.mouth.training import make_examples, make_wordless

    chance = np.random.default_rng(SEED)
    began, examples = time.monotonic(), []
    test = list(voices.speak_for_test(SEED, sentences=16))
    (folder / "test.pickle").write_bytes(pickle.dumps(test))
    print(f"test: {len(test)} sentences, {time.monotonic() - began:.0f} s", flush=True)
    spoken: dict[str, float] = {}
    for said in voices.speak_for_training(SEED, 60 * minutes):
        examples += make_examples(said, chance)
        voice = said.voice.split("+")[0]
        spoken[voice] = spoken.get(voice, 0) + len(said.samples) / 16000
    examples += [make_wordless(chance) for _ in range(int(0.09 * len(examples)))]
    (folder / "examples.pickle").write_bytes(pickle.dumps(examples))
    for voice, seconds in sorted(spoken.items()):
        print(f"{voice:34} {seconds / 60:5.1f} min")
    print(
        f"{len(examples)} examples, {sum(len(e.curves) for e in examples) / 6000:.0f} min with their versions,", end=" "
    )
    print(f"{time.monotonic() - began:.0f} s")


def main() -> int:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["speak", "train", "join", "test"])
    parser.add_argument("--folder", type=Path, default=Path("mouth-data"), help="where the speech is kept")
    parser.add_argument("--minutes", type=float, default=75, help="of speech to synthesise")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--start", type=Path, help="weights to go on from; the new network may be wider")
    parser.add_argument("--weights", type=Path, nargs="+", default=[], help="to write, or to compare")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.step == "speak":
        if not voices.is_installed():
            sys.stderr.write("install espeak-ng, flite and festival first; see --help\n")
            return 2
        speak(chosen.folder, chosen.minutes)
    elif chosen.step == "train":
        from scripts.mouth import training

        examples = pickle.loads((chosen.folder / "examples.pickle").read_bytes())
        weights = training.train(examples, chosen.steps, SEED, chosen.start)
        training.save_weights(weights, chosen.weights[0] if chosen.weights else chosen.folder / "speech_network.npz")
    elif chosen.step == "join":
        from scripts.mouth import training

        if len(chosen.weights) < 2:
            parser.error("join needs --weights and at least two files: the one to write, and what goes into it")
        training.save_weights(training.join(chosen.weights[1:]), chosen.weights[0])
    else:
        from scripts.mouth import testing

        test = pickle.loads((chosen.folder / "test.pickle").read_bytes())
        reading = testing.read_raw(ROOT / "examples/speech/reading_en.flac")
        for weights in chosen.weights or [SPEECH_NETWORK]:
            print(f"{weights}\n{testing.compare(weights, test, reading)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
