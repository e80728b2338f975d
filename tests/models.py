"""Models of the real classes with random weights, small enough for a test, and clips to feed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dualipo.artifacts import write_json
from dualipo.heldout import hold_out, write_held_out
from dualipo.media.store import ClipStore
from dualipo.media.video import encode_clip
from dualipo.records import Clip, Desirability, Preference, RealClip, write_rows


def save_critic(folder: Path) -> Path:
    """A Qwen2-VL whose attention and next words depend visibly on what it reads; the usual 0.02 is nearly uniform."""
    import torch

    from dualipo.world.train_critic import build_critic

    torch.manual_seed(0)
    critic = build_critic()
    with torch.no_grad():
        for parameter in critic.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    critic.save(folder)
    return folder


def save_family(folder: Path, family: str) -> Path:
    """A critic of another family with random weights that depend visibly on what they read."""
    import torch
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
    )

    from dualipo.world.words import word_tokenizer

    tokenizer = word_tokenizer(512)

    def token(name: str) -> int:
        return tokenizer.convert_tokens_to_ids(name)

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    if family == "vila":
        return _save_vila(folder, tokenizer, text)
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
        vision = {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
            "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 16, "out_hidden_size": 64,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        }  # fmt: skip
        config = Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            video_token_id=token("<|video_pad|>"),
            image_token_id=token("<|image_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
        )
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        vision = {
            "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False,
        }  # fmt: skip
        config = LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config=vision,
            video_token_index=token("<|video_pad|>"),
            image_token_index=token("<|image_pad|>"),
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
        if family == "llava_onevision":
            model.model.image_newline.normal_()
    model.eval().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return folder


def _save_vila(folder: Path, tokenizer: Any, text: dict[str, Any]) -> Path:
    """As VILA 1.5 lies on disk: three folders and a config.json that names them."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    llm = LlamaForCausalLM(LlamaConfig(**{**text, "vocab_size": len(tokenizer)}))
    # 5 x 5 patches: the odd side is padded before two by two become one.
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=40, patch_size=8
    )
    tower = SiglipVisionModel(vision)
    width, out = 4 * vision.hidden_size, llm.config.hidden_size
    projector = {
        "layers.1.weight": torch.rand(width) + 0.5, "layers.1.bias": torch.randn(width),
        "layers.2.weight": 0.15 * torch.randn(out, width), "layers.2.bias": torch.randn(out),
        "layers.4.weight": 0.15 * torch.randn(out, out), "layers.4.bias": torch.randn(out),
    }  # fmt: skip
    with torch.no_grad():
        for parameter in (*llm.parameters(), *tower.parameters()):
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower.save_pretrained(folder / "vision_tower")
    (folder / "mm_projector").mkdir()
    save_file(projector, folder / "mm_projector/model.safetensors")
    write_json(
        folder / "mm_projector/config.json", {"model_type": "v2l_projector", "mm_projector_type": "mlp_downsample"}
    )
    parts = {"llm_cfg": {}, "vision_tower_cfg": {}, "mm_projector_cfg": {}, "mm_vision_select_layer": -2}
    write_json(folder / "config.json", {"model_type": "llava_llama", **parts})
    return folder


def save_generator(folder: Path) -> Path:
    """A CogVideoX pipeline: clips of 9x32x32, latents of 3x12x8x8, text of 20 tokens."""
    import torch
    from diffusers import AutoencoderKLCogVideoX

    from dualipo.world.train_generator import CHANNELS, _build

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_height=32,
        sample_width=32,
        scaling_factor=0.8,
    )
    _build(vae).save(folder)
    return folder


def save_wan(folder: Path, flow_shift: float = 3.0) -> Path:
    """A Wan 2.1 pipeline as they ship, with UniPC: clips of 9x32x32, latents of 16x3x4x4, text of 24 tokens."""
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=1000
    )
    text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **_T5))
    pipeline = WanPipeline(tokenizer, text_encoder, vae, scheduler, _lively(transformer))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_ltx(folder: Path) -> Path:
    """An LTX-Video pipeline: clips of 9x32x32, latents of 8x3x8x8, text of 24 tokens with a mask."""
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = _tokenizer()
    sides = {
        "block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "spatio_temporal_scaling": (True, True, False, False),
    }
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, patch_size=1, **sides, **{f"decoder_{name}": value for name, value in sides.items()}
    )
    vae.latents_mean.uniform_(-1, 1)
    vae.latents_std.uniform_(0.5, 2)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    text_encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **_T5))
    pipeline = LTXPipeline(scheduler, vae, text_encoder, tokenizer, _lively(transformer))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}


def _tokenizer() -> Any:
    from dualipo.world.words import word_tokenizer

    return word_tokenizer(24)


def _lively(transformer: Any) -> Any:
    """Weights large enough for text, time and place to show in what it predicts."""
    import torch

    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return transformer


def rotary(transformer: Any) -> Any:
    """Rotary positions of the transformer's own clip size as diffusers computes them; None where it uses none."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    config = transformer.config
    if not config.use_rotary_positional_embeddings:
        return None
    grid = (config.sample_height // config.patch_size, config.sample_width // config.patch_size)
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    return get_3d_rotary_pos_embed(config.attention_head_dim, ((0, 0), grid), grid, frames)


def noise_clip(seed: int, frames: int = 9, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(frames, height, width, 3), dtype=np.uint8)


def flat_clip(seed: int) -> np.ndarray:
    """A clip of one colour that grows lighter: it survives mp4 almost unchanged."""
    colour = np.random.default_rng(seed).integers(20, 180, size=3)
    frames = [np.broadcast_to(colour + 5 * t, (32, 32, 3)) for t in range(9)]
    return np.stack(frames).astype(np.uint8)


def write_clips(folder: Path, prompts: dict[str, str], each: int) -> ClipStore:
    """A clip folder of loose files with `each` clips a prompt, ids `<prompt>-<number>`."""
    folder.mkdir(parents=True)
    clips = [
        Clip(id=f"{name}-{k}", prompt_id=name, prompt=text, file=f"{name}-{k}.mp4", seed=k)
        for name, text in prompts.items()
        for k in range(each)
    ]
    for seed, clip in enumerate(clips):
        (folder / clip.file).write_bytes(encode_clip(flat_clip(seed)))
    ClipStore.write_manifest(folder, clips)
    return ClipStore(folder)


def write_preferences(root: Path) -> dict[str, Path]:
    """What the align step reads, by name: candidates and real clips, and preferences, `full` of them and `empty`."""
    store = write_clips(root / "candidates", {"p0": "a red circle", "p1": "a pillar"}, each=3)
    (root / "real" / "clips").mkdir(parents=True)
    for name in ("u", "v"):
        (root / "real" / "clips" / f"{name}.mp4").write_bytes(encode_clip(store["p0-1"] // (2 if name == "u" else 3)))
    rows = [RealClip(clip=f"clips/{name}.mp4", prompt=f"a {name}") for name in ("u", "v")]
    write_rows(root / "real" / "captions.jsonl", rows)
    pairs = [
        Preference(prompt_id=p, prompt=t, winner=w, loser=lost, winner_score=1, loser_score=0)
        for p, t, w, lost in (("p0", "a red circle", "p0-2", "p0-0"), ("p1", "a pillar", "p1-1", "p1-2"))
    ]
    scored = [
        Desirability(clip=f"{p}-{k}", prompt_id=p, prompt=t, desirable=k != 1, score=[0.5, 0.2, 0.8][k])
        for p, t in (("p0", "a red circle"), ("p1", "a pillar"))
        for k in range(3)
    ]
    for name, both in (("full", (pairs, scored)), ("empty", ([], []))):
        write_rows(root / name / "pairs.jsonl", both[0])
        write_rows(root / name / "desirability.jsonl", both[1])
    write_held_out(root / "held_out.json", hold_out(["a held-out prompt"], []))
    return {name.partition(".")[0]: root / name for name in ("candidates", "real", "full", "empty", "held_out.json")}
