"""Generators and critics of the real classes with random weights, from `tiny` to the real models' shapes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from dualipo.critic.base import Critic
from dualipo.critic.qwen2vl import Qwen2VL
from dualipo.generator.base import Generator, Size
from dualipo.generator.cogvideox import CogVideoX
from dualipo.generator.wan import Wan


@dataclass(frozen=True)
class Shape:
    """Arguments of diffusers' and transformers' classes, where they are not those classes' defaults."""

    family: Literal["cogvideox", "wan"]
    transformer: dict[str, Any]
    text: dict[str, Any]
    text_tokens: int
    vae: dict[str, Any]
    size: Size
    """Frames, height and width of a clip."""
    dtype: torch.dtype = torch.float32
    steps: int = 50
    """Denoising steps of a sample."""
    real: bool = False
    """A real model's shape, for a GPU."""
    settings: dict[str, Any] = field(default_factory=dict)
    """`align.training` of a training of that size."""


_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_MEMORY = {"precision": "bf16", "gradient_checkpointing": True}
_COG_VAE = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}


def _text(width: int, layers: int) -> dict[str, Any]:
    return {"d_model": width, "d_kv": 32, "d_ff": 4 * width, "num_layers": layers, "num_heads": max(width // 32, 1)}


def _cogvideox(heads: int, width: int, layers: int, time: int, text: int, tokens: int, size: Size) -> dict[str, Any]:
    frames, height, pixel_width = size
    return {
        "num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers, "time_embed_dim": time,
        "text_embed_dim": text, "max_text_seq_length": tokens, "sample_frames": frames, "sample_height": height // 8,
        "sample_width": pixel_width // 8,
    }  # fmt: skip


_SMALL = Shape(
    "cogvideox", _cogvideox(6, 64, 6, 128, 512, 16, (13, 128, 128)), _text(512, 12), 16,
    {**_COG_VAE, "block_out_channels": (8, 16, 16, 32), "norm_num_groups": 8, "layers_per_block": 3},
    (13, 128, 128), steps=12,
)  # fmt: skip
SHAPES = {
    "tiny": Shape(
        "cogvideox", _cogvideox(2, 16, 2, 16, 32, 8, (9, 32, 32)), _text(32, 1), 8,
        {**_COG_VAE, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
        (9, 32, 32), steps=3,
    ),
    "tiny-wan": Shape(
        "wan", {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32, "num_layers": 2},
        _text(32, 1), 8, {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}, (9, 32, 32), torch.bfloat16,
        steps=3, settings=_MEMORY,
    ),
    # As in the real ones a text encoder holds three times the denoiser's weights, and a clip's encoding takes about as
    # many operations as a pass of the denoiser over it.
    "small": _SMALL,
    # The same for clips of few tokens.
    "short": replace(
        _SMALL, transformer=_cogvideox(6, 64, 6, 128, 512, 16, (9, 32, 32)), size=(9, 32, 32)
    ),
    "cogvideox-2b": Shape("cogvideox", {}, _XXL, 226, {}, (49, 480, 720), torch.bfloat16, 50, True, _MEMORY),
    "wan-1.3b": Shape(
        "wan", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30, "qk_norm": "rms_norm_across_heads"},
        {**_XXL, "vocab_size": 256_384}, 512, {}, (81, 480, 832), torch.bfloat16, 50, True, _MEMORY,
    ),
}  # fmt: skip


def build_generator(shape: Shape, seed: int = 0) -> Generator:
    """On the best device there is, ready to sample, as `load_generator` gives one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    pipeline = _PIPELINES[shape.family](shape)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return CogVideoX(pipeline) if shape.family == "cogvideox" else Wan(pipeline)


def _cogvideox_pipeline(shape: Shape) -> Any:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    _, height, width = shape.size
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0, clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    return CogVideoXPipeline(
        _tokenizer(shape),
        _encoder(T5EncoderModel, T5Config(**{"dropout_rate": 0.0, **shape.text}), shape),
        _of(
            AutoencoderKLCogVideoX,
            {"latent_channels": 16, "sample_height": height, "sample_width": width, **shape.vae},
            shape,
        ),
        _of(CogVideoXTransformer3DModel, shape.transformer, shape),
        scheduler,
    )


def _wan_pipeline(shape: Shape) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanPipeline(
        _tokenizer(shape),
        _encoder(UMT5EncoderModel, UMT5Config(**{"dropout_rate": 0.0, **shape.text}), shape),
        _of(AutoencoderKLWan, shape.vae, shape),
        scheduler,
        _of(WanTransformer3DModel, shape.transformer, shape),
    )


_PIPELINES = {"cogvideox": _cogvideox_pipeline, "wan": _wan_pipeline}


def _of(kind: Any, arguments: dict[str, Any], shape: Shape) -> Any:
    return _in(shape.dtype, lambda: kind(**arguments))


def _encoder(kind: Any, config: Any, shape: Shape) -> Any:
    """A text encoder; billions of weights are drawn where they will lie, which takes seconds instead of minutes."""
    if not shape.real:
        return _in(shape.dtype, lambda: kind(config))
    with torch.device("meta"):
        encoder = _in(shape.dtype, lambda: kind(config))
    encoder.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    encoder.tie_weights()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
    return encoder


def _in(dtype: torch.dtype, make: Any) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(before)


def _tokenizer(shape: Shape) -> Any:
    from dualipo.world.words import word_tokenizer

    return word_tokenizer(shape.text_tokens)


# ---- critics


@dataclass(frozen=True)
class CriticShape:
    """A Qwen2-VL's configuration, and what it is asked."""

    text: dict[str, Any]
    vision: dict[str, Any]
    clip: Size
    written: int
    """Tokens of an answer, at most."""
    batch_size: int
    vocabulary: int | None = None
    """None: the small world's words."""
    dtype: torch.dtype = torch.float32


CRITICS = {
    "tiny": CriticShape(
        {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8},
        (4, 32, 32), 6, 64,
    ),
    # 128 tokens a clip; the tower takes about as many operations as reading them, as in the real one.
    "small": CriticShape(
        {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        {"depth": 4, "embed_dim": 128, "hidden_size": 256, "num_heads": 4, "patch_size": 14},
        (16, 112, 112), 12, 64,
    ),
    "qwen2-vl-2b": CriticShape(
        {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
         "num_key_value_heads": 2,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
        {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "patch_size": 14},
        (49, 480, 720), 128, 4, 151_936, torch.bfloat16,
    ),
}  # fmt: skip


def build_critic(shape: CriticShape, seed: int = 0) -> Critic:
    """On the best device there is, ready to be asked, as `load_critic` gives one."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from dualipo.world.words import word_tokenizer

    tokenizer = word_tokenizer(2**20)
    if shape.vocabulary is not None:
        tokenizer.add_tokens([f"word{number}" for number in range(len(tokenizer), shape.vocabulary)])
    special = {
        name: tokenizer.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (
            ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
            ("video_token_id", "video_pad"), ("image_token_id", "image_pad"),
        )
    }  # fmt: skip
    text = {
        **shape.text, "vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True,
    }  # fmt: skip
    config = Qwen2VLConfig(text_config=text, vision_config=shape.vision, tie_word_embeddings=True, **special)
    torch.manual_seed(seed)
    model = _in(shape.dtype, lambda: Qwen2VLForConditionalGeneration(config))
    with torch.no_grad():  # what is read shows in what is written
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 2 * parameter[0].numel() ** -0.5)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    return Qwen2VL(model, tokenizer)
