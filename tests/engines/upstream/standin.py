"""Small checkouts of our own with the entry points of the real ones: the seam that the engines are tested at.

They are written into a folder and imported from there by a real child process, like a user's checkout.  What is drawn
has no meaning; it depends on everything that a real model's pixels depend on.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

FLASHHEAD_PIPELINE = """
import os
import torch
from PIL import Image
from xfuser.core.distributed import get_sp_group
from flash_head.src.modules.flash_head_model import attend
from flash_head.utils.facecrop import process_image

COMPILE_MODEL = True
COMPILE_VAE = True
USE_PARALLEL_VAE = True


class FlashHeadPipeline:
    def __init__(self, checkpoint_dir, model_type, wav2vec_dir, device="cuda", param_dtype=torch.bfloat16,
                 use_usp=False, num_timesteps=1000, use_timestep_transform=True):
        assert not COMPILE_MODEL and not COMPILE_VAE and not USE_PARALLEL_VAE
        print("loading", model_type)
        self.lite = model_type == "lite"
        self.device, self.dtype = device, param_dtype
        self.weights = torch.tensor([float(model_type == "pro")])

    def prepare_params(self, cond_image_path_or_dir, target_size, frame_num, motion_frames_num, sampling_steps,
                       seed=None, shift=5.0, color_correction_strength=0.0, use_face_crop=False):
        image = Image.open(cond_image_path_or_dir).resize(target_size[::-1])
        self.picture = torch.tensor(list(image.tobytes()), dtype=self.dtype).view(*target_size, 3) / 127.5 - 1
        self.generator = torch.Generator(device=self.device).manual_seed(seed)
        self.frame_num, self.motion, self.steps = frame_num, motion_frames_num, sampling_steps
        self.latent_motion_frames = torch.ones(4, 1, 2, 2, dtype=self.dtype)
        if self.lite:
            self.latent_motion_frames += torch.randn(4, 1, 2, 2)  # upstream's lite encoder draws like this
        self.strength = color_correction_strength

    def preprocess_audio(self, speech_array, sr=16000, fps=25):
        frames = torch.from_numpy(speech_array).view(-1, sr // fps)
        return frames.abs().mean(1).float().view(-1, 1, 1).expand(-1, 12, 768)

    def generate(self, audio_embedding):
        print("[generate] this line would stand in the log for every chunk")
        torch.cuda.synchronize()
        assert audio_embedding.shape == (1, 33, 5, 12, 768)
        noise = sum(torch.randn(4, 2, 2, 2, generator=self.generator) for _ in range(self.steps + 1))
        heard = audio_embedding[0, :, 2, 0, 0].view(-1, 1, 1, 1)
        level = (self.latent_motion_frames.sum() + noise.sum()).item() * 0.01 + heard
        tokens = attend(*[noise.view(1, 4, 8)] * 3, num_heads=2)
        frames = torch.clamp(self.picture[None] * self.strength + level + 0.001 * tokens.sum(), -1, 1)
        self.latent_motion_frames = noise + frames[-self.motion:].mean()
        if self.lite:
            self.latent_motion_frames = self.latent_motion_frames + torch.randn(4, 2, 2, 2)
        if os.environ.get("STAND_IN_FAILS") == str(int(heard[-1].item() * 1000)):
            frames = frames * float("nan")
        return frames.permute(3, 0, 1, 2).float()
"""

FLASHHEAD_MODEL = """
from xfuser.core.long_ctx_attention import xFuserLongContextAttention

def flash_attention(q, k, v, num_heads, compatibility_mode=False):
    raise AssertionError("the engine puts its own attention here")

def attend(q, k, v, num_heads):
    return flash_attention(q, k, v, num_heads=num_heads)
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_safetensors(path: Path, data: bytes = b"\0" * 16) -> None:
    """A whole file of one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [len(data) // 4], "data_offsets": [0, len(data)]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def flashhead_checkout(folder: Path) -> Path:
    """In a folder whose name has a space and Chinese letters, as users' folders have."""
    return write(
        folder / "SoulX FlashHead 检出",
        {
            "flash_head/src/pipeline/flash_head_pipeline.py": FLASHHEAD_PIPELINE,
            "flash_head/src/modules/flash_head_model.py": FLASHHEAD_MODEL,
            "flash_head/audio_analysis/wav2vec2.py": "",
            "flash_head/utils/utils.py": "",
            "flash_head/utils/facecrop.py": "import mediapipe\n",
            "flash_head/wan/modules/vae.py": "import torch\n",
            "flash_head/ltx_video/ltx_vae.py": "import torch\n",
            "flash_head/configs/infer_params.yaml": "frame_num: 33\nmotion_frames_latent_num: 2\ntgt_fps: 25\n",
            ".git/HEAD": "ref: refs/heads/main\n",
            ".git/packed-refs": "# pack-refs\n12467ce000000000000000000000000000000000 refs/heads/main\n",
        },
    )


DIT_CONFIG = {
    **dict.fromkeys(("dim", "in_dim", "ffn_dim", "out_dim", "text_dim", "freq_dim", "eps", "vae_stride"), 1),
    **dict.fromkeys(("patch_size", "num_heads", "num_layers", "has_image_input"), 1),
}


def write_speech(folder: Path) -> Path:
    write(folder, {"config.json": "{}", "preprocessor_config.json": "{}"})
    write_safetensors(folder / "model.safetensors")
    return folder


def flashhead_checkpoint(folder: Path) -> Path:
    for name in ("Model_Pro", "Model_Lite"):
        write(folder, {f"{name}/config.json": json.dumps(DIT_CONFIG)})
        write_safetensors(folder / name / "diffusion_pytorch_model.safetensors")
    write(folder, {"VAE_LTX/config.json": "{}"})
    write_safetensors(folder / "VAE_LTX" / "diffusion_pytorch_model.safetensors")
    (folder / "VAE_Wan").mkdir(parents=True, exist_ok=True)
    (folder / "VAE_Wan" / "Wan2.1_VAE.pth").write_bytes(b"\x80\x02 an old pickle")
    return folder
