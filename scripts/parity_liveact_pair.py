#!/usr/bin/env python3
"""Compare what stands for xfuser in LiveAct's two-card mode with xfuser's own functions, over gloo on the CPU.

    python scripts/parity_liveact_pair.py --repo PATH --site FOLDER

PATH is a checkout of SoulX-LiveAct, FOLDER holds xfuser 0.4.5, yunchang and distvae (pip install --no-deps --target).
The interpreter must have what the checkout needs.  Two processes load the checkout's transformer for two cards at a
tiny size twice, once with each, and give both the same five blocks.  What comes out and what the memory holds must be
equal bit for bit.  xfuser wants a CUDA device to be there when it is imported, so it is told so, and each rank's own
attention, in upstream a kernel for Hopper cards, is torch's on both sides.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

FRAME = (4, 6)  # rows and columns of tokens
BLOCKS = 5


def load_theirs(repo: Path, site: Path) -> Any:
    """The transformer's module with xfuser's own functions."""
    import importlib

    import torch
    import torch.distributed as dist

    from workers.engines.upstream.platforms import kernel

    sys.path[:0] = [str(repo), str(site)]
    # Its packages' own beginnings import pipelines for every model of diffusers, of which nothing is used here.
    for name in ("xfuser", "xfuser.core"):
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(site.joinpath(*name.split(".")))]
    pretended = {
        "is_available": lambda: True,
        "get_device_name": lambda *_: "",
        "get_device_capability": lambda *_: (9, 0),
        "set_device": lambda *_: None,
        "device_count": lambda: 2,
    }
    os.environ["TORCH_CUDA_ARCH_LIST"] = "9.0"
    real = {name: getattr(torch.cuda, name) for name in pretended}
    vars(torch.cuda).update(pretended)
    build, torch.version.cuda = torch.version.cuda, "12.8"
    try:
        distributed = importlib.import_module("xfuser.core.distributed")
        distributed.init_distributed_environment(rank=dist.get_rank(), world_size=2, backend="gloo")
        distributed.initialize_model_parallel(
            sequence_parallel_degree=2, ring_degree=1, ulysses_degree=2, backend="gloo"
        )
        ring = importlib.import_module("xfuser.core.long_ctx_attention.ring.ring_flash_attn")
        module = importlib.import_module("model_liveact.model_memory_sp")
    finally:
        vars(torch.cuda).update(real)
        torch.version.cuda = build
    attend = kernel("sdpa")

    def attend_here(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return attend(q, k, v), torch.zeros(1, q.shape[2], q.shape[1])

    ring.select_flash_attn_impl = lambda *_, **__: attend_here
    del sys.modules["model_liveact.model_memory_sp"]
    return module


def run_rank(repo: Path, site: Path) -> None:
    import torch

    from workers.engines.ranks import join_ranks
    from workers.engines.upstream import liveact
    from workers.engines.upstream.checkout import check_checkout
    from workers.engines.upstream.liveact_pair import HALVES, fit, import_spread

    ranks = join_ranks(torch.device("cpu"))
    torch.cuda.current_device = lambda: 0
    ours = import_spread(check_checkout(repo, liveact.LAYOUT), ranks, "sdpa")
    del sys.modules[liveact.SPREAD_TRANSFORMER]
    theirs = load_theirs(repo, site)
    assert ours is not theirs and "xfuser" in theirs.xFuserLongContextAttention.__module__
    sides = {}
    for name, module in (("ours", ours), ("theirs", theirs)):
        module.USE_SAGEATTN = False
        torch.manual_seed(1)
        model = module.WanModel(in_dim=36, dim=512, ffn_dim=256, num_heads=4, num_layers=2)
        torch.nn.init.normal_(model.head.head.weight, std=0.05)
        model = model.to(torch.bfloat16).requires_grad_(False).eval()
        model.init_freqs()
        tokens = FRAME[0] * FRAME[1]
        if name == "ours":
            fit(model, tokens)
        else:
            for block in model.blocks:
                block.self_attn.kv_idx0, block.self_attn.kv_idx2 = torch.arange(3 * tokens), torch.arange(7 * tokens)
        shape = (1, HALVES[0].slots * tokens, 4, 128)
        flags = dict.fromkeys(("mean_memory", "offload_cache", "fp8_kv_cache"), False)
        memory = {
            layer: {"k": torch.zeros(shape).bfloat16(), "v": torch.zeros(shape).bfloat16(), **flags}
            for layer in range(2)
        }
        sides[name] = (model, memory)
    draw = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    context, seen, condition = drawn(512, 4096), drawn(1, 257, 1280), drawn(1, 20, 14, 2 * FRAME[0], 2 * FRAME[1])
    tokens, last = FRAME[0] * FRAME[1], None
    for block in range(BLOCKS):
        start, count = (0, 6) if block == 0 else (6, 8)
        latents, audio = drawn(16, count, 2 * FRAME[0], 2 * FRAME[1]), drawn(1, 53, 5, 12, 768)
        made = []
        for model, memory in sides.values():
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                made.append(
                    model(
                        [latents.clone()],
                        t=torch.tensor([937.5]),
                        context=[context],
                        clip_fea=seen,
                        audio=audio,
                        ref_target_masks=torch.ones(3, 2 * FRAME[0], 2 * FRAME[1]).bfloat16(),
                        y=condition[:, :, start : start + count],
                        kv_cache=memory,
                        start_idx=start * tokens,
                        end_idx=(start + count) * tokens,
                        update_cache=block > 1,
                    )[0]
                )
        (_, held), (_, their_held) = sides["ours"], sides["theirs"]
        same = [torch.equal(held[n][part], their_held[n][part]) for n in held for part in ("k", "v")]
        apart = (made[0].float() - made[1].float()).abs().max().item()
        size = made[0].float().abs().mean().item()
        print(f"rank {ranks.rank}, block {block}: mean {size:.3f}, at most {apart:g} apart; memory equal: {all(same)}")
        assert apart == 0 and all(same) and size > 0
        assert last is None or not torch.equal(last, made[0])
        last = made[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, required=True, help="the checkout")
    parser.add_argument("--site", type=Path, required=True, help="folder with xfuser and yunchang")
    asked = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(asked.repo.resolve(), asked.site.resolve())
        return 0
    from workers.host.group import free_port, rank_environment

    port = free_port()
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env=rank_environment(os.environ, rank, 2, port))
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    print("equal" if codes == [0, 0] else f"FAILED: {codes}")
    return int(codes != [0, 0])


if __name__ == "__main__":
    sys.exit(main())
