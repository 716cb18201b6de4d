"""SoulX-FlashTalk 14B by upstream's own code, beside the farm's engine: `engine = "upstream"` of the same model.

From a user's checkout of Soul-AILab/SoulX-FlashTalk (Apache-2.0), compared at commit 688982e.  It is slower than the
farm's own engine and there for comparison, and for whoever trusts upstream's code alone.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import ConfigError, InputError
from workers.engines.flashtalk.checkpoint import check_checkpoint
from workers.engines.upstream import settings as read
from workers.engines.upstream import weights
from workers.engines.upstream.checkout import Checkout, Layout, check_checkout, check_imports, import_from

if TYPE_CHECKING:
    from workers.engines.contract import Engine, FilmRequest
    from workers.engines.upstream.platforms import Platform

ENGINE_ID = "soulx-flashtalk-14b"
NAME = "SoulX-FlashTalk"
PIPELINE = "flash_talk.src.pipeline.flash_talk_pipeline"
TRANSFORMER = "flash_talk.infinite_talk.modules.multitalk_model"
SPEECH_ATTENTION = "flash_talk.infinite_talk.modules.multitalk_attention"
TEXT = "flash_talk.wan.modules.t5"
PICTURES = "flash_talk.wan.modules.clip"
COLOURS = "flash_talk.infinite_talk.utils.multitalk_utils"
CONFIG = "flash_talk.infinite_talk.configs"
DEFAULT_PROMPT = "A person is talking. Only the foreground characters are moving, the background remains static."
COLOUR_FUNCTIONS = ("rgb_to_lab_torch", "lab_to_rgb_torch")
IMAGE_TOKENIZER = "xlm-roberta-large"
SHIFT = 5
LAYOUT = Layout(
    name=NAME,
    packages=("flash_talk",),
    files=(
        "flash_talk/src/pipeline/flash_talk_pipeline.py",
        "flash_talk/infinite_talk/modules/multitalk_model.py",
        "flash_talk/infinite_talk/configs/__init__.py",
    ),
    commit="688982e",
    stand_ins={
        "xfuser": (),
        "xfuser.core": (),
        "xfuser.core.distributed": (
            "get_sequence_parallel_rank",
            "get_sequence_parallel_world_size",
            "get_sp_group",
        ),
        "xfuser.core.long_ctx_attention": ("xFuserLongContextAttention",),
        # The release that upstream asks for wants one old torch; its attention is replaced like the other.
        "xformers": (),
        "xformers.ops": ("memory_efficient_attention",),
        # Only for weights in eight bits, which are refused.
        "optimum": (),
        "optimum.quanto": ("quantize", "freeze", "qint8", "requantize"),
    },
)
PARAMETERS = {"frame_num": 33, "motion_frames_num": 5, "tgt_fps": 25, "sample_rate": 16000, "sample_shift": SHIFT}
OURS = 'upstream\'s code has no such weights; engine = "own" has precision = "fp8" and "int8"'
KNOWN: Mapping[str, read.Setting] = {
    **read.LAUNCH,
    **read.PLACES,
    "engine": read.Only("upstream", "this is upstream's engine"),
    "kernel": read.Choice("auto", ("auto", "fa3", "cudnn", "fa2", "sdpa", "npu")),
    "compile": read.Flag(True),
    "profile": read.Flag(False),
    "cpu_offload": read.Flag(False),
    "precision": read.Only("bf16", OURS),
    "residency": read.Choice("full", ("full", "lean")),
    "t5_quant": read.Only("", OURS),
    "t5_quant_dir": read.Only("", OURS),
    "wan_quant": read.Only("", OURS),
    "wan_quant_include": read.Only("", OURS),
    "wan_quant_exclude": read.Only("", OURS),
    "sample_steps": read.Only(4, "it is a row's setting, under the name steps"),
}
# The names that the farm's own engine of this model gave the same folders.
OWN_NAMES = {"checkpoint": "ckpt_dir", "speech_checkpoint": "wav2vec_dir"}
JOB = {"steps": 4, "colour_match": 1.0, "attention": "exact", "noise": "upstream"}


class FlashTalk:
    """See chunked.Model."""

    id = ENGINE_ID
    default_size = (448, 768)
    chunk_frames = 28
    motion_frames = 5
    side_step = 16
    carries_global_random = False

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._offloads = bool(values["cpu_offload"]) or values["residency"] == "lean"
        self._kernel = ""

    def check(self) -> tuple[str, ...]:
        from workers.engines.upstream.chunked import compare_parameters

        self.checkout = self.check_checkout()
        check_imports(self.checkout, (PIPELINE, CONFIG))
        self._folder = read.folder_of(ENGINE_ID, self._values, "ckpt_dir", "the folder SoulX-FlashTalk-14B")
        self._speech = read.folder_of(ENGINE_ID, self._values, "wav2vec_dir", "the folder chinese-wav2vec2-base")
        self._shards = sorted(set(check_checkpoint(self._folder, self._speech).shards.values()))
        if not (self._folder / IMAGE_TOKENIZER).is_dir():  # which the farm's own engine does without
            raise ConfigError(
                f"the tokenizer's folder {self._folder / IMAGE_TOKENIZER} is missing, which upstream's code reads:"
                " fetch the model again"
            )
        compare_parameters(self.checkout.folder / "flash_talk/configs/infer_params.yaml", PARAMETERS)
        return self.checkout.notes

    def check_checkout(self) -> Checkout:
        folder = read.folder_of(ENGINE_ID, self._values, "repo_path", "a checkout of Soul-AILab/SoulX-FlashTalk")
        return check_checkout(folder, LAYOUT)

    def choose_platform(self) -> Platform:
        from workers.engines.upstream.platforms import choose

        platform, self._kernel = choose(self._values)
        return platform

    def build(self, platform: Platform) -> Any:
        import torch

        from workers.engines.upstream.platforms import compile_alike, do_not_wait, keep_constants
        from workers.engines.upstream.speech import give_hidden_states

        values = self._values
        cache = read.cache_folder(values, "flashtalk-upstream")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
        if platform.kind == "cpu":
            torch.cuda.current_device = lambda: 0  # a default argument of upstream's text encoder asks for it
        import_libraries()
        module = import_from(self.checkout, PIPELINE)
        for name in (TRANSFORMER, PICTURES):
            use_kernel(import_from(self.checkout, name), self._kernel)
        use_kernel_for_speech(import_from(self.checkout, SPEECH_ATTENTION), self._kernel)
        keep_constants(import_from(self.checkout, COLOURS), COLOUR_FUNCTIONS)
        give_hidden_states()
        if not values["profile"]:
            module.print = lambda *_, **__: None
        if not values["profile"] or platform.kind == "cpu":
            do_not_wait(module)
        compiled = bool(values["compile"]) and platform.kind == "cuda"
        if compiled:
            compile_alike(module)
        module.COMPILE_MODEL = module.COMPILE_VAE = compiled
        module.USE_PARALLEL_VAE = False
        config = import_from(self.checkout, CONFIG).multitalk_14B
        if platform.kind == "cpu":
            config.param_dtype = config.t5_dtype = config.clip_dtype = platform.dtype
        return module.FlashTalkPipeline(
            config=config,
            checkpoint_dir=str(self._folder),
            wav2vec_dir=str(self._speech),
            device=platform.device,
            use_usp=False,
            cpu_offload=self._offloads,
        )

    @property
    def version(self) -> str:
        commit = self.checkout.commit[:7] or "unknown"
        return f"flashtalk-{commit}-{weights.fingerprint(self._shards)}-{self._kernel}"

    def read_job(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """Noise is always upstream's here: its pipeline draws it itself."""
        from workers.engines.upstream.chunked import read_job

        job = read_job(settings, JOB, NAME)
        if job["attention"] != "exact":
            raise InputError("attention = fp8 belongs to the farm's own engine; with engine = upstream it is exact")
        return {**job, "noise": "upstream"}

    def prepare(self, pipeline: Any, film: FilmRequest, job: Mapping[str, Any]) -> None:
        from PIL import Image, UnidentifiedImageError

        with tempfile.TemporaryDirectory() as folder:
            portrait = Path(folder) / "portrait.png"
            try:
                with Image.open(film.portrait) as opened:
                    opened.convert("RGB").save(portrait, compress_level=1)
            except (OSError, UnidentifiedImageError, ValueError) as error:
                raise InputError(f"the portrait {film.portrait} cannot be read as a picture: {error}") from None
            pipeline.prepare_params(
                input_prompt=film.prompt or DEFAULT_PROMPT,
                cond_image=str(portrait),
                target_size=(film.height, film.width),
                frame_num=33,
                motion_frames_num=self.motion_frames,
                sampling_steps=int(job["steps"]),
                seed=film.seed,
                shift=SHIFT,
                color_correction_strength=float(job["colour_match"]),
            )


def import_libraries() -> None:
    """These two look for packages when they are imported, and must not find what stands in for some of them."""
    with contextlib.suppress(ImportError):  # a checkout that needs them was refused without them
        import diffusers.models.modeling_utils  # noqa: F401
        from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model  # noqa: F401


def use_kernel(module: Any, name: str) -> None:
    """Put our attention where upstream's stands: q, k and v [B, L, heads, D], every key heard."""
    from workers.engines.upstream.platforms import kernel

    attend = kernel(name)

    def flash_attention(q: Any, k: Any, v: Any, k_lens: Any = None, **_: Any) -> Any:
        return attend(q.to(v.dtype), k.to(v.dtype), v).to(q.dtype)

    module.flash_attention = flash_attention


def use_kernel_for_speech(module: Any, name: str) -> None:
    """The same attention where the frames hear the speech and upstream asks xformers, every key heard."""
    from workers.engines.upstream.platforms import kernel

    attend = kernel(name)

    def memory_efficient_attention(q: Any, k: Any, v: Any, **_: Any) -> Any:
        return attend(q, k, v)

    ops = types.SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    module.xformers = types.SimpleNamespace(ops=ops)


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """An engine that is not loaded yet.  Raises ConfigError for a setting that is unknown or wrong."""
    given = {OWN_NAMES.get(name, name): value for name, value in settings.items()}
    model = FlashTalk(read.read_settings(ENGINE_ID, KNOWN, given))
    model.check_checkout()
    from workers.engines.upstream.chunked import ChunkedEngine

    return ChunkedEngine(model)
