"""SoulX-FlashHead 1.3B from a user's checkout of Soul-AILab/SoulX-FlashHead (Apache-2.0), compared at commit 12467ce.

Upstream's `inference.py` keeps its parameters in one global dictionary, so that pro and lite in one process render with
each other's overlap, and reads it relative to the working folder.  This engine uses the pipeline class below it and
passes every parameter itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import ConfigError, InputError
from workers.engines.upstream import settings as read
from workers.engines.upstream import weights
from workers.engines.upstream.checkout import Checkout, Layout, check_checkout, check_imports, import_from

if TYPE_CHECKING:
    from workers.engines.contract import Engine, FilmRequest
    from workers.engines.upstream.platforms import Platform

ENGINE_ID = "soulx-flashhead-1.3b"
NAME = "SoulX-FlashHead"
PIPELINE = "flash_head.src.pipeline.flash_head_pipeline"
TRANSFORMER = "flash_head.src.modules.flash_head_model"
COLOURS = "flash_head.utils.utils"
FACE_CROP = "flash_head.utils.facecrop"
COLOUR_FUNCTIONS = ("rgb_to_lab_torch", "lab_to_rgb_torch")
SHIFT = 5
WAN_FILE = "VAE_Wan/Wan2.1_VAE.pth"
WHOLE_FROM_BYTES = 30e9  # memory of a card whose decodes need not go in parts
LAYOUT = Layout(
    name=NAME,
    packages=("flash_head",),
    files=(
        "flash_head/src/pipeline/flash_head_pipeline.py",
        "flash_head/src/modules/flash_head_model.py",
        "flash_head/audio_analysis/wav2vec2.py",
        "flash_head/utils/utils.py",
    ),
    commit="12467ce",
    stand_ins={
        "xfuser": (),
        "xfuser.core": (),
        "xfuser.core.distributed": (
            "get_sequence_parallel_rank",
            "get_sequence_parallel_world_size",
            "get_sp_group",
        ),
        "xfuser.core.long_ctx_attention": ("xFuserLongContextAttention",),
        FACE_CROP: ("process_image",),
    },
)
PARAMETERS = {
    "frame_num": 33,
    "motion_frames_latent_num": 2,
    "tgt_fps": 25,
    "sample_rate": 16000,
    "sample_shift": SHIFT,
}
DIT_KEYS = (
    "dim",
    "in_dim",
    "ffn_dim",
    "out_dim",
    "text_dim",
    "freq_dim",
    "eps",
    "vae_stride",
    "patch_size",
    "num_heads",
    "num_layers",
    "has_image_input",
)
KNOWN: Mapping[str, read.Setting] = {
    **read.LAUNCH,
    **read.PLACES,
    "model_type": read.Choice("pro", ("pro", "lite")),
    "kernel": read.Choice("auto", ("auto", "fa3", "cudnn", "fa2", "sage", "sdpa", "npu")),
    "compile": read.Flag(True),
    "profile": read.Flag(False),
    "npu_fusion_attention": read.Flag(True),
    "vae_2d_split": read.Flag(True),
    "own_parts": read.Flag(True),
    "latent_carry": read.Only(
        False, "this checkout always takes the next chunk's motion from decoded pixels; latent_carry is a fork's"
    ),
    "sample_steps": read.Only(4, "it is a row's setting, under the name steps"),
}
JOB = {"steps": 4, "colour_match": 1.0, "use_face_crop": False}


class FlashHead:
    """One of the two variants; see chunked.Model."""

    id = ENGINE_ID
    default_size = (512, 512)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.variant = values["model_type"]
        self.motion_frames = 9 if self.variant == "lite" else 5
        self.chunk_frames = 33 - self.motion_frames
        self.side_step = 32 if self.variant == "lite" else 16
        # Only lite's encoder draws where no generator is named.
        self.carries_global_random = self.variant == "lite"
        self._kernel = ""
        self._own_parts = False

    # -- before loading ---------------------------------------------------------------------------------------------

    def check(self) -> tuple[str, ...]:
        from workers.engines.upstream.chunked import compare_parameters

        model, values = ENGINE_ID, self._values
        self.checkout = self.check_checkout()
        check_imports(self.checkout, self.modules())
        self._folder = read.folder_of(model, values, "ckpt_dir", "the folder SoulX-FlashHead-1_3B as it was fetched")
        self._speech = read.folder_of(model, values, "wav2vec_dir", "the folder wav2vec2-base-960h as it was fetched")
        self._shards = check_checkpoint(self._folder, self.variant)
        weights.check_speech(self._speech)
        compare_parameters(self.checkout.folder / "flash_head/configs/infer_params.yaml", PARAMETERS)
        notes = list(self.checkout.notes)
        if values["vae_2d_split"]:
            notes.append("vae_2d_split: nothing to split on one card")
        return tuple(notes)

    def check_checkout(self) -> Checkout:
        folder = read.folder_of(ENGINE_ID, self._values, "repo_path", "a checkout of Soul-AILab/SoulX-FlashHead")
        return check_checkout(folder, LAYOUT)

    def modules(self) -> tuple[str, ...]:
        """What is imported of the checkout for this variant."""
        vae = "flash_head.ltx_video.ltx_vae" if self.variant == "lite" else "flash_head.wan.modules.vae"
        return (PIPELINE, vae)

    def choose_platform(self) -> Platform:
        from workers.engines.upstream import own_parts
        from workers.engines.upstream.platforms import choose

        platform, self._kernel = choose(self._values)
        self._own_parts = self._values["own_parts"] and own_parts.pay(platform)
        return platform

    # -- loading ----------------------------------------------------------------------------------------------------

    def build(self, platform: Platform) -> Any:
        from workers.engines.upstream import own_parts
        from workers.engines.upstream.platforms import compile_alike, do_not_wait, export, keep_constants
        from workers.engines.upstream.speech import give_hidden_states

        values = self._values
        cache = read.cache_folder(values, "flashhead")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "compiled"))
        if platform.kind == "npu":
            # Forks for NPUs read their settings here; upstream's own code reads none of them.
            export(
                {
                    "FLASHHEAD_DEVICE": "npu",
                    "FLASHHEAD_VAE_2D_SPLIT": values["vae_2d_split"],
                    "FLASHHEAD_LATENT_CARRY": False,
                    "FLASHHEAD_NPU_FUSION_ATTENTION": values["npu_fusion_attention"],
                    "FLASHHEAD_PROFILE": values["profile"],
                }
            )
        module = import_from(self.checkout, PIPELINE)
        use_kernel(import_from(self.checkout, TRANSFORMER), self._kernel)
        keep_constants(import_from(self.checkout, COLOURS), COLOUR_FUNCTIONS)
        give_hidden_states()
        if not values["profile"]:
            module.print = lambda *_, **__: None  # seven lines a chunk otherwise
        if not values["profile"] or platform.kind == "cpu":
            do_not_wait(module)
        # torch.compile has no back end on an NPU, and a tiny model on the CPU is for checks.
        compiled = bool(values["compile"]) and platform.kind == "cuda"
        if compiled:
            compile_alike(module)
        own_vae = self._own_parts and self.variant == "pro"
        module.COMPILE_MODEL, module.COMPILE_VAE = compiled, compiled and not own_vae
        module.USE_PARALLEL_VAE = False
        if self._own_parts:
            module.match_and_blend_colors_torch = own_parts.match_colours
        pipeline = module.FlashHeadPipeline(
            checkpoint_dir=str(self._folder),
            model_type=self.variant,
            wav2vec_dir=str(self._speech),
            device=platform.device,
            param_dtype=platform.dtype,
            use_usp=False,
        )
        if own_vae:
            pipeline.vae = own_parts.WanPictures(self._folder / WAN_FILE, platform, whole_from_bytes=WHOLE_FROM_BYTES)
        return pipeline

    @property
    def version(self) -> str:
        commit = self.checkout.commit[:7] or "unknown"
        shards = weights.fingerprint(self._shards)
        own = "-own" if self._own_parts else ""
        return f"flashhead-{self.variant}-{commit}-{shards}-{self._kernel}{own}"

    # -- films ------------------------------------------------------------------------------------------------------

    def read_job(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        from workers.engines.upstream.chunked import read_job

        job = read_job(settings, JOB, NAME)
        if job["use_face_crop"] and not self._can_crop():
            raise InputError(
                "use_face_crop needs mediapipe in the model's interpreter, which has none; crop the portrait yourself"
            )
        return job

    def _can_crop(self) -> bool:
        import importlib.util

        return importlib.util.find_spec("mediapipe") is not None

    def prepare(self, pipeline: Any, film: FilmRequest, job: Mapping[str, Any]) -> None:
        """Upstream's prepare_params with every parameter said, the seed among them."""
        from PIL import Image, UnidentifiedImageError

        with tempfile.TemporaryDirectory() as folder:
            # Upstream names people by what stands before the first dot of a file's name, so it gets a plain one.
            portrait = Path(folder) / "portrait.png"
            try:
                if job["use_face_crop"]:
                    self._crop(film.portrait).save(portrait)
                else:
                    with Image.open(film.portrait) as opened:
                        opened.convert("RGB").save(portrait, compress_level=1)
            except (OSError, UnidentifiedImageError, ValueError) as error:
                raise InputError(f"the portrait {film.portrait} cannot be read as a picture: {error}") from None
            pipeline.prepare_params(
                cond_image_path_or_dir=str(portrait),
                target_size=(film.height, film.width),
                frame_num=33,
                motion_frames_num=self.motion_frames,
                sampling_steps=int(job["steps"]),
                seed=film.seed,
                shift=SHIFT,
                color_correction_strength=float(job["colour_match"]),
                use_face_crop=False,
            )

    def _crop(self, portrait: Path) -> Any:
        """Upstream's crop.  Its pipeline falls back to the whole picture without a word; here that is an error."""
        import sys

        module = sys.modules.get(FACE_CROP)
        if module is not None and module.__spec__ is not None and module.__spec__.loader is None:
            del sys.modules[FACE_CROP]  # our stand-in
        layout = Layout(NAME, LAYOUT.packages, (), LAYOUT.commit, {})
        real = import_from(Checkout(self.checkout.folder, layout, self.checkout.commit, ()), FACE_CROP)
        try:
            return real.process_image(str(portrait))
        except ValueError as error:
            raise InputError(f"use_face_crop: {error}") from None


def use_kernel(module: Any, name: str) -> None:
    """Put our attention where upstream's stands: q, k and v [B, L, heads * D], and how many heads."""
    from workers.engines.upstream.platforms import kernel

    attend = kernel(name)

    def flash_attention(q: Any, k: Any, v: Any, num_heads: int, compatibility_mode: bool = False) -> Any:
        q, k, v = (x.unflatten(2, (num_heads, -1)) for x in (q, k, v))
        return attend(q, k, v).flatten(2)

    module.flash_attention = flash_attention


def check_checkpoint(folder: Path, variant: str) -> list[Path]:
    """Every file that this variant reads.  Returns the transformer's shards.  Raises ConfigError naming one."""
    shards = weights.check_transformer(folder / ("Model_Lite" if variant == "lite" else "Model_Pro"), DIT_KEYS)
    if variant == "pro":
        weights.check_torch_file(folder / WAN_FILE)
        return shards
    vae = folder / "VAE_LTX"
    weights.read_json(vae / "config.json")
    if (vae / "autoencoder.pth").is_file():
        weights.check_torch_file(vae / "autoencoder.pth")
    elif (vae / "diffusion_pytorch_model.safetensors").is_file():
        weights.read_header(vae / "diffusion_pytorch_model.safetensors")
    else:
        raise ConfigError(f"{vae} has neither autoencoder.pth nor diffusion_pytorch_model.safetensors: fetch it again")
    return shards


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """An engine that is not loaded yet.  Raises ConfigError for a setting that is unknown or wrong."""
    model = FlashHead(read.read_settings(ENGINE_ID, KNOWN, settings))
    model.check_checkout()  # before torch is imported, which takes long
    from workers.engines.upstream.chunked import ChunkedEngine

    return ChunkedEngine(model)
