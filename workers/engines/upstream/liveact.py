"""SoulX-LiveAct 14B from a user's checkout of Soul-AILab/SoulX-LiveAct, compared at commit ac8579b: what is loaded.

That repository has no licence, so nothing of it stands here: this engine drives the checkout's own classes by what they
do.  Upstream has no pipeline to call, only a script; the loop over blocks is in `liveact_blocks`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farm.errors import ConfigError, InputError
from workers.engines.upstream import settings as read
from workers.engines.upstream import weights
from workers.engines.upstream.checkout import Checkout, Layout, check_checkout, check_imports, import_from

if TYPE_CHECKING:
    from workers.engines.contract import Engine
    from workers.engines.ranks import Ranks
    from workers.engines.upstream.platforms import Platform

ENGINE_ID = "soulx-liveact-14b"
NAME = "SoulX-LiveAct"
TRANSFORMER = "model_liveact.model_memory"
SPREAD_TRANSFORMER = "model_liveact.model_memory_sp"  # of two cards; see liveact_pair
TEXT = "wan.modules.t5"
PICTURES = "wan.modules.clip"
SPEECH = "src.audio_analysis.wav2vec2"
VAE = "lightx2v.models.video_encoders.hf.wan.vae"
VAE_FILE = "Wan2.1_VAE.pth"
WHOLE_FROM_BYTES = 120e9  # memory of a card whose decodes need not go in parts
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TEXT_TOKENIZER = "google/umt5-xxl"
IMAGE_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
IMAGE_TOKENIZER = "xlm-roberta-large"
TEXT_ROWS = 512
LAYOUT = Layout(
    name=NAME,
    packages=("model_liveact", "wan", "src", "fp8_gemm", "fp4_gemm", "util_liveact"),
    files=(
        "model_liveact/model_memory.py",
        "model_liveact/attention.py",
        "wan/modules/t5.py",
        "wan/modules/clip.py",
        "src/audio_analysis/wav2vec2.py",
    ),
    commit="ac8579b",
    stand_ins={},
)
CONFIG_KEYS = ("dim", "num_heads", "num_layers", "in_dim", "out_dim", "ffn_dim")
# OmniRT's names for how many cards render a film.
CARDS = ("nproc_per_node", "num_processes", "sequence_parallel_degree", "ulysses_degree")
FORK = "this checkout has it not; it is a fork's"
KNOWN: Mapping[str, read.Setting] = {
    **read.LAUNCH,
    **read.PLACES,
    "kernel": read.Choice("auto", ("auto", "fa3", "cudnn", "fa2", "sage", "sdpa", "npu")),
    "compile": read.Flag(True),
    "own_parts": read.Flag(True),
    "t5_cpu": read.Flag(False),
    "offload_cache": read.Flag(False),
    "fp8_kv_cache": read.Flag(False),
    "fp8_gemm": read.Flag(False),
    "fp4_gemm": read.Flag(False),
    "block_offload": read.Flag(False),
    "mean_memory": read.Flag(False),
    "carry": read.Choice("replay", ("replay", "disk")),
    "carry_folder": read.Text(),
    "condition_cache_dir": read.Text(),
    "disable_condition_cache": read.Flag(False),
    "steam_audio": read.Only(True, "each block hears its own part; a whole recording would be held in memory"),
    "dura_print": read.Only(False, "the farm tells how long each step takes"),
    "stage_profile": read.Only(False, FORK),
    "sample_steps": read.Only(3, "the checkout's sampler has three steps"),
    "rank0_t5_only": read.Only(True, "one card loads the text encoder once for each new prompt"),
    "prepare_text_cache": read.Only(True, "prompts are always cached by their text"),
    "disable_text_cache_prepare": read.Only(False, "prompts are always cached by their text"),
    "force_text_cache": read.Only(False, "delete the folder text in the cache to make it again"),
    "stop_after_text_context": read.Only(False, FORK),
    "text_cache_device": read.Only("", "prompts are encoded on the worker's device, or the processor with t5_cpu"),
    "text_cache_visible_devices": read.Only("", "prompts are encoded on the worker's device"),
    "use_cache_vae": read.Only(False, FORK),
    "use_lightvae": read.Only(False, FORK),
    "vae_path": read.Only("", FORK),
    "fast_export": read.Only(False, "the farm's own encoder writes while the next block is rendered"),
    "disable_fast_export": read.Only(False, "the farm's own encoder writes the film"),
    "fast_export_preset": read.Only("veryfast", "the setting film.encoder_preset of the farm"),
    "fast_export_crf": read.Only(18, "the setting film.crf of the farm"),
    **{name: read.Cards() for name in CARDS},
    "ring_degree": read.Only(1, "the checkout's attention is cut by heads alone"),
}
JOB = {"audio_cfg": 1.0, "edit_prompt": ""}


class LiveAct:
    """The checkout's parts on one card, or on one of two that render a film together."""

    id = ENGINE_ID

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.kernel = ""
        self._own_parts = False
        self.cards = int(os.environ.get("WORLD_SIZE", "1"))
        if values["fp8_gemm"] and values["fp4_gemm"]:
            raise ConfigError(f"{ENGINE_ID}: fp8_gemm and fp4_gemm exclude each other")
        for name in CARDS:
            if values[name] not in (0, self.cards):
                raise ConfigError(
                    f"{ENGINE_ID}: {name} is {values[name]}, and this worker's devices are {self.cards}; they decide:"
                    ' write devices = "cuda:0" for one card or "cuda:0,1" for two, and leave the setting out'
                )
        if self.cards > 1:
            self.refuse_for_a_group()

    # -- before loading ---------------------------------------------------------------------------------------------

    def refuse_for_a_group(self) -> None:
        """Raises ConfigError for what the checkout's two-card mode does wrongly."""
        values = self.values
        if values["fp8_kv_cache"]:
            raise ConfigError(
                f"{ENGINE_ID}: fp8_kv_cache needs a worker of one card: with two the checkout attends to the eight-bit"
                " numbers without their scales; set it to false, the memory is halved between the cards"
            )
        if values["fp4_gemm"] and values["block_offload"]:
            raise ConfigError(
                f"{ENGINE_ID}: fp4_gemm with block_offload needs a worker of one card: with two the checkout does not"
                " move four-bit weights"
            )

    def check_checkout(self) -> Checkout:
        folder = read.folder_of(ENGINE_ID, self.values, "repo_path", "a checkout of Soul-AILab/SoulX-LiveAct")
        layout = LAYOUT
        if self.cards > 1:
            layout = replace(LAYOUT, files=(*LAYOUT.files, f"{SPREAD_TRANSFORMER.replace('.', '/')}.py"))
        return check_checkout(folder, layout)

    def check(self) -> tuple[str, ...]:
        self.checkout = self.check_checkout()
        if self.cards == 1:
            check_imports(self.checkout, (TRANSFORMER, TEXT, PICTURES, SPEECH))
        else:
            from workers.engines.upstream.liveact_pair import needs_else, refuse_cards

            check_imports(needs_else(self.checkout), (SPREAD_TRANSFORMER, TEXT, PICTURES, SPEECH))
        for name, how in (
            ("lightx2v", "clone ModelTC/LightX2V and run its setup_vae.py with this interpreter"),
            ("vllm", "install vllm==0.11.0, or leave fp8_gemm off"),
        ):
            wanted = not self._own_parts if name == "lightx2v" else self.values["fp8_gemm"]
            if wanted and importlib.util.find_spec(name) is None:
                raise ConfigError(f"{NAME} needs {name}, which {sys.executable} cannot import: {how}")
        self.folder = read.folder_of(ENGINE_ID, self.values, "ckpt_dir", "the folder LiveAct as it was fetched")
        self.speech = read.folder_of(ENGINE_ID, self.values, "wav2vec_dir", "the folder chinese-wav2vec2-base")
        self.shards = check_checkpoint(self.folder)
        if self.cards > 1:
            refuse_cards(int(weights.read_json(self.folder / "config.json")["num_heads"]), self.cards)
        weights.check_speech(self.speech)
        return self.checkout.notes

    def choose_platform(self) -> Platform:
        from workers.engines.upstream import own_parts
        from workers.engines.upstream.platforms import choose

        platform, self.kernel = choose(self.values)
        self._own_parts = self.values["own_parts"] and own_parts.pay(platform)
        if platform.kind != "cuda" and (self.values["block_offload"] or self.values["fp8_gemm"]):
            raise ConfigError(f"{ENGINE_ID}: block_offload and fp8_gemm need a CUDA device")
        return platform

    @property
    def cache(self) -> Path:
        named = self.values["condition_cache_dir"]
        return Path(named).expanduser() if named else read.cache_folder(self.values, "liveact")

    @property
    def version(self) -> str:
        """Of two cards another than of one: their memory is another, and so are their films."""
        ranks = [f"ranks{self.cards}"] if self.cards > 1 else []
        return "-".join([self.recipe, self.autoencoder, *ranks])

    @property
    def recipe(self) -> str:
        """Of checkout, weights and modes, which decide what a prompt or a portrait is encoded as."""
        said = self.values
        modes = [name for name in ("fp8_kv_cache", "fp8_gemm", "fp4_gemm", "mean_memory") if said[name]]
        commit = self.checkout.commit[:7] or "unknown"
        return "-".join(["liveact", commit, weights.fingerprint(self.shards), self.kernel, *modes])

    @property
    def autoencoder(self) -> str:
        """Whose it is: in the last bits each has latents of its own."""
        return "own" if self._own_parts else "lightx2v"

    # -- loading ----------------------------------------------------------------------------------------------------

    def build_transformer(self, platform: Platform, ranks: Ranks) -> Any:
        """The transformer with its weights on the device, not compiled."""
        import torch

        values = self.values
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.cache / "compiled"))
        if platform.kind == "cpu":
            torch.cuda.current_device = lambda: 0  # a default argument of the text encoder asks for it
        if ranks.is_alone:
            module = import_from(self.checkout, TRANSFORMER)
        else:
            from workers.engines.upstream.liveact_pair import import_spread

            module = import_spread(self.checkout, ranks, self.kernel)
        use_kernel(module, self.kernel)
        model = module.WanModel.from_pretrained(
            str(self.folder), torch_dtype=torch.bfloat16, low_cpu_mem_usage=True
        ).to(dtype=torch.bfloat16)
        model.requires_grad_(False).eval()
        model.init_freqs()
        model.freqs = model.freqs.to(platform.device)
        for name in ("fp8", "fp4"):
            if values[f"{name}_gemm"]:
                kit = import_from(self.checkout, f"{name}_gemm")
                wrap, options = getattr(kit, f"enable_{name}_gemm"), getattr(kit, f"{name.upper()}GemmOptions")
                # Of all linears only those in blocks: the others give noise in eight bits.
                wrap(model, options=options(), module_filter=lambda where, _: "blocks." in where)
        if values["block_offload"]:
            for where, child in model.named_children():
                if where != "blocks":
                    child.to(platform.device)
            model.enable_block_offload(onload_device=torch.device(platform.device, ranks.rank))
        else:
            model.to(platform.device)
        return model

    def build_vae(self, platform: Platform) -> Any:
        """`encode` [1, 3, T, H, W] to latents [16, t, h, w], and `decode` back, in [-1, 1]."""
        from workers.engines.upstream.checkout import importing

        if self._own_parts:
            from workers.engines.upstream.own_parts import WanPictures

            return WanPictures(self.folder / VAE_FILE, platform, whole_from_bytes=WHOLE_FROM_BYTES)
        with importing(self.checkout):
            module = importlib.import_module(VAE)
        return module.WanVAE(
            vae_path=str(self.folder / VAE_FILE),
            dtype=platform.dtype,
            device=platform.device,
            use_lightvae=False,
            parallel=False,
        )

    def build_speech(self, platform: Platform) -> tuple[Any, Any]:
        """The speech encoder and the extractor before it."""
        from transformers import Wav2Vec2FeatureExtractor

        from workers.engines.upstream.speech import give_hidden_states

        give_hidden_states()
        encoder = import_from(self.checkout, SPEECH).Wav2Vec2Model.from_pretrained(
            str(self.speech), local_files_only=True
        )
        encoder = encoder.to(platform.device, dtype=platform.dtype).eval().requires_grad_(False)
        return encoder, Wav2Vec2FeatureExtractor.from_pretrained(str(self.speech), local_files_only=True)

    def encode_prompt(self, prompt: str, platform: Platform) -> Any:
        """[512, 4096]: the prompt's rows and zeros below them.  The encoder is loaded for this and dropped."""
        import torch

        device = "cpu" if self.values["t5_cpu"] else platform.device
        encoder = import_from(self.checkout, TEXT).T5EncoderModel(
            text_len=TEXT_ROWS,
            dtype=torch.bfloat16,
            device=device,
            checkpoint_path=str(self.folder / TEXT_FILE),
            tokenizer_path=str(self.folder / TEXT_TOKENIZER),
        )
        rows = encoder(texts=prompt, device=device)[0].to(torch.bfloat16)
        # The model pads with zeros anyway; one length means one compiled graph.
        return torch.cat([rows, rows.new_zeros(TEXT_ROWS - rows.shape[0], rows.shape[1])])

    def see(self, picture: Any, platform: Platform) -> Any:
        """[1, 257, 1280] of a portrait [1, 3, 1, H, W] in [-1, 1].  The tower is loaded for this and dropped."""
        import torch

        tower = import_from(self.checkout, PICTURES).CLIPModel(
            checkpoint_path=str(self.folder / IMAGE_FILE),
            tokenizer_path=str(self.folder / IMAGE_TOKENIZER),
            dtype=torch.bfloat16,
            device=platform.device,
        )
        return tower.visual(picture.to(torch.bfloat16)).to(torch.bfloat16)


def use_kernel(module: Any, name: str) -> None:
    """Put our attention where the checkout's stands: q, k and v [B, L, heads, D], every key heard."""
    import torch

    from workers.engines.upstream.platforms import kernel

    # Sage is the checkout's own branch and follows this name of its module.
    module.USE_SAGEATTN = name == "sage"
    if name in ("sage", "sdpa"):
        return
    attend = kernel(name)

    def sdpa_attention(q: Any, k: Any, v: Any, dtype: Any = torch.bfloat16, **_: Any) -> Any:
        return attend(q.to(dtype), k.to(dtype), v.to(dtype)).contiguous()

    module.sdpa_attention = sdpa_attention


def check_checkpoint(folder: Path) -> list[Path]:
    """Every file that is read of the checkpoint.  Returns the transformer's shards.  Raises ConfigError naming one."""
    shards = weights.check_transformer(folder, CONFIG_KEYS)
    for name in (VAE_FILE, TEXT_FILE, IMAGE_FILE):
        weights.check_torch_file(folder / name)
    for name in (TEXT_TOKENIZER, IMAGE_TOKENIZER):
        if not (folder / name).is_dir():
            raise ConfigError(f"the tokenizer's folder {folder / name} is missing: fetch the model again")
    return shards


def read_job(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a film may choose; edit prompts as [first block, last block, prompt].  Raises InputError."""
    for name in settings:
        if name not in JOB:
            raise InputError(f"{NAME} has no setting {name!r}; it has {', '.join(sorted(JOB))}")
    job = {**JOB, **settings}
    scale = job["audio_cfg"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1 <= scale <= 10:
        raise InputError(f"audio_cfg must be a number from 1 to 10, not {scale!r}")
    return {"audio_cfg": float(scale), "edits": read_edits(job["edit_prompt"])}


def read_edits(written: str) -> list[tuple[int, int, str]]:
    """`{"[0, 3]": "she smiles"}`: other prompts for blocks 0 to 3.  Raises InputError."""
    if not written:
        return []
    try:
        said = json.loads(written)
        edits = [(*map(int, json.loads(blocks)), str(prompt)) for blocks, prompt in said.items()]
        if any(len(edit) != 3 or edit[0] > edit[1] or edit[0] < 0 for edit in edits):
            raise ValueError
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            'edit_prompt must be a JSON object such as {"[0, 3]": "she smiles"}: first and last block, and a prompt'
        ) from None
    return edits  # type: ignore[return-value]


def make_engine(settings: Mapping[str, Any]) -> Engine:
    """An engine that is not loaded yet.  Raises ConfigError for a setting that is unknown or wrong."""
    model = LiveAct(read.read_settings(ENGINE_ID, KNOWN, settings))
    model.check_checkout()
    from workers.engines.upstream.liveact_blocks import LiveActEngine

    return LiveActEngine(model)
