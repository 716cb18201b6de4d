"""The models of bench_cards.py and bench_live.py: how a worker loads each, and what its rows must be."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from card_farm import change_model
from own_farm import ROOT, Failed, output_of

from farm.errors import FarmError
from workers.engines.preview.face_models import find_models
from workers.portrait import normalise

MAKE_SECONDS = 240.0  # for random weights of a checkout
LIVEACT_PORTRAIT = ROOT / "examples/portraits/astronaut.jpg"
LIVEACT_PROMPT = "a person talks"
# The names under which scripts/check_upstream.py keeps its film, for which LiveAct's encoders are answered in advance.
LIVEACT_FILM = "a photo.v1 照片.png"


@dataclass(frozen=True)
class Way:
    """One way to load a model."""

    model: str
    preset: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # of its worker
    columns: Mapping[str, Any] = field(default_factory=dict)  # of each row
    sizes: tuple[str, ...] = ("",)
    portrait: Path | None = None  # where only one will do
    prompt: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def ways(options: argparse.Namespace, home: Path) -> dict[str, Way]:
    """Those that --models names, in its order.  Raises Failed."""
    found = {}
    for name in options.models:
        if name in ("flashhead", "flashhead-lite", "liveact"):
            found[name] = _of_checkout(options, name, home / "cache")
        elif name in ("flashtalk", "flashtalk-lean"):
            preset = "low-vram" if name == "flashtalk-lean" else "balanced" if options.tiny else options.preset
            found[name] = flashtalk_way(preset, home / "cache", steps=options.steps, is_tiny=options.tiny)
        elif name == "preview":
            found[name] = Way("preview", "", sizes=("256x256" if options.tiny else "512x512",))
        else:
            raise Failed(
                f"--models {name}: there are flashtalk, flashtalk-lean, flashhead, flashhead-lite, liveact, preview"
            )
    return found


def flashtalk_way(preset: str, cache: Path, *, steps: int = 0, is_tiny: bool = False) -> Way:
    """FlashTalk with random weights; `steps` instead of the preset's, and tiny ones run on the CPU."""
    settings = {"weights": "random", "cache": str(cache / "flashtalk")}
    if is_tiny:
        tiny = {**settings, "architecture": "tiny", "device": "cpu", "precision": "bf16"}
        columns = {"steps": steps or 2, "attention": "exact"}
        return Way("soulx-flashtalk-14b", preset, tiny, columns, ("32x32", "48x32"))
    return Way("soulx-flashtalk-14b", preset, settings, {"steps": steps} if steps else {}, ("448x768", "512x512"))


def _of_checkout(options: argparse.Namespace, name: str, cache: Path) -> Way:
    """A model of upstream's code, with random weights made by scripts/check_upstream.py.  Raises Failed."""
    is_liveact = name == "liveact"
    repo = options.liveact_repo if is_liveact else options.flashhead_repo
    if repo is None or not repo.is_dir():
        raise Failed(f"--models {name} needs --{name.partition('-')[0]}-repo, a folder")
    variant = "" if is_liveact else "lite" if name == "flashhead-lite" else "pro"
    size = ("416x720" if is_liveact else "512x512") if not options.tiny else "32x32" if variant == "pro" else "64x64"
    into = cache / name / "weights"
    into.parent.mkdir(parents=True, exist_ok=True)
    if is_liveact:
        normalise(LIVEACT_PORTRAIT, into.parent / LIVEACT_FILM)  # as `prepare` will make it of the same photo
    python = options.python or sys.executable
    argv = [python, str(ROOT / "scripts/check_upstream.py"), "--repo", str(repo.resolve()), "--into", str(into)]
    argv += ["--make", name if is_liveact else f"flashhead-{variant}", "--frame", size]
    argv += ["--device", "cpu"] if options.tiny else ["--device", "cuda", "--true-size"]
    paths = [str(options.lightx2v.resolve())] if is_liveact and options.lightx2v else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}
    made = output_of(f"the maker of random weights of {name}", argv, MAKE_SECONDS, env=env)
    settings = json.loads(made.splitlines()[-1])
    settings |= {"repo_path": str(repo.resolve()), "compile": options.compile}
    settings |= {"device": "cpu" if options.tiny else "cuda"}
    settings.setdefault("cache", str(cache / name / "kept"))
    site = into / "site"  # a stand-in for LightX2V, where that is not to be had
    paths += [str(site)] if site.is_dir() else []
    path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
    return Way(
        "soulx-liveact-14b" if is_liveact else "soulx-flashhead-1.3b",
        "quality" if is_liveact else variant,
        settings,
        {"fps": 25} if is_liveact else {},
        (size,),
        LIVEACT_PORTRAIT if is_liveact else None,
        LIVEACT_PROMPT if is_liveact else "",
        {"PYTHONPATH": path} if path else {},
    )


def model_texts(chosen: Sequence[Way], *, segment_seconds: float, is_tiny: bool) -> tuple[dict[str, str], str]:
    """Each model's file as a bench wants it, and a sentence about the check of portraits."""
    said = "portraits are checked for a face, as ever"
    looks = True
    try:
        find_models()
        import cv2

        looks = hasattr(cv2, "dnn")
    except (FarmError, ImportError):
        looks = False
    if not looks:
        said = "portraits are not checked for a face: there are no face models here"
    texts = {}
    for way in chosen:
        text = (ROOT / "configs/models" / f"{way.model}.toml").read_text(encoding="utf-8")
        if "segment_seconds" in text:
            text = change_model(text, segment_seconds=f"{segment_seconds:g}")
        if not looks:
            text = change_model(text, needs_face="false")
        if is_tiny and way.model != "preview":
            sizes = [[int(side) for side in size.split("x")] for size in way.sizes]
            text = change_model(text, device_kinds='["cpu"]', min="32", default=str(sizes[0]))
            if "\nchoices = [[" in text:
                text = change_model(text, choices=str(sizes))
        texts[way.model] = text
    return texts, said
