"""Parameters, tokens and floating-point operations of the models, by closed formulas: nothing is loaded.

One multiply-add is two operations. Norms, activations and additions are left out; matrix products dominate by far.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dualipo.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A text-to-video diffusion transformer and what stands around it."""

    name: str
    family: Literal["cogvideox", "wan"]
    """`cogvideox`: text and video tokens in one sequence (MMDiT); `wan`: text through cross-attention."""
    width: int
    layers: int
    ffn: int
    frames: int
    height: int
    pixel_width: int
    fps: int
    text_tokens: int
    text_encoder: int
    """Parameters."""
    vae: int
    """Parameters."""
    vae_encode: float
    vae_decode: float
    """Operations a pixel of a frame, counted on diffusers' models (torch.utils.flop_counter, 9 frames)."""
    vae_channels: int
    """Width at full resolution."""
    vae_chunk: int
    """Frames that the VAE holds at full resolution at once."""
    text_width: int = 4096
    channels: int = 16
    """Latent channels."""
    head: int = 64
    """Width of an attention head (CogVideoX alone: its norms of queries and keys)."""
    time: int = 512
    """Width of the noise level's embedding (CogVideoX alone)."""

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """(frames, channels, height, width): one frame, then one for every four; an eighth of either side."""
        return (self.frames - 1) // 4 + 1, self.channels, self.height // 8, self.pixel_width // 8

    @property
    def video_tokens(self) -> int:
        """Patches of 1x2x2 latents."""
        frames, _, height, width = self.latent
        return frames * (height // 2) * (width // 2)

    @property
    def sequence(self) -> int:
        """Tokens that self-attention sees."""
        return self.video_tokens + (self.text_tokens if self.family == "cogvideox" else 0)

    @property
    def parameters(self) -> int:
        """Of the transformer alone, as diffusers builds it (CogVideoXTransformer3DModel, WanTransformer3DModel)."""
        d, f, patch = self.width, self.ffn, 4 * self.channels
        attention = 4 * (d * d + d)
        mlp = d * f + f + f * d + d
        if self.family == "cogvideox":
            time = self.time
            modulation = time * 6 * d + 6 * d + 2 * d
            block = 2 * modulation + attention + 4 * self.head + mlp
            inputs = patch * d + d + self.text_width * d + d + (d * time + time) + (time * time + time)
            outputs = 2 * d + (time * 2 * d + 2 * d) + 2 * d + d * patch + patch
        else:
            block = 2 * (attention + 2 * d) + 2 * d + mlp + 6 * d
            inputs = patch * d + d + (256 * d + d + d * d + d) + (6 * d * d + 6 * d)
            inputs += self.text_width * d + d + d * d + d
            outputs = d * patch + patch + 2 * d
        return self.layers * block + inputs + outputs

    @property
    def forward(self) -> float:
        """Operations of one pass of one clip."""
        d, s = self.width, self.sequence
        products = 2 * s * (4 * d * d + 2 * d * self.ffn) + 4 * s * s * d
        if self.family == "wan":
            t = self.text_tokens
            products += 2 * (2 * s * d * d + 2 * t * d * d) + 4 * s * t * d
        patches = 2 * self.video_tokens * 2 * (4 * self.channels) * d
        return float(self.layers * products + patches + 2 * self.text_tokens * self.text_width * d)

    @property
    def pixels(self) -> int:
        """Of all frames of a clip."""
        return self.frames * self.height * self.pixel_width

    @property
    def pipeline(self) -> int:
        """Parameters of the whole pipeline."""
        return self.parameters + self.text_encoder + self.vae

    def lora(self, rank: int) -> int:
        """Parameters of adapters of the given rank on q, k, v and o of every attention (VideoAlign, appendix I)."""
        attentions = 2 if self.family == "wan" else 1
        return self.layers * attentions * 4 * rank * 2 * self.width


@dataclass(frozen=True)
class Critic:
    """A vision-language model: a decoder with grouped-query attention, and a vision tower."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    tied: bool
    vision: int
    """Parameters of the vision tower."""
    vision_width: int
    vision_layers: int
    tokens_a_frame: int | None = None
    """Visual tokens of a frame; None where they follow from the frame's size (Qwen2-VL)."""
    patches_a_frame: int | None = None
    qkv_bias: bool = False

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def language(self) -> int:
        """Parameters of the language model."""
        d, kv = self.width, self.kv_heads * self.head
        attention = 2 * d * d + 2 * d * kv + (d + 2 * kv if self.qkv_bias else 0)
        block = attention + 3 * d * self.ffn + 2 * d
        return self.layers * block + d + (1 if self.tied else 2) * self.vocabulary * d

    @property
    def parameters(self) -> int:
        return self.language + self.vision

    def visual_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens that a clip takes in the language model. Qwen2-VL: one for 2 frames of 28x28 pixels, padded up."""
        if self.tokens_a_frame is not None:
            return frames * self.tokens_a_frame
        return math.ceil(frames / 2) * math.ceil(height / 28) * math.ceil(width / 28)

    def see(self, frames: int, height: int, width: int) -> float:
        """Operations of the vision tower over a clip; patches attend within their frame."""
        if self.patches_a_frame is not None:
            groups, patches = frames, self.patches_a_frame
        else:
            groups, patches = math.ceil(frames / 2), 4 * math.ceil(height / 28) * math.ceil(width / 28)
        return groups * (2 * self.vision * patches + 4 * patches**2 * self.vision_width * self.vision_layers)

    def read(self, tokens: int) -> float:
        """Operations of one pass over a sequence; the vocabulary's product counts for every token."""
        d, kv = self.width, self.kv_heads * self.head
        weights = self.layers * (2 * d * d + 2 * d * kv + 3 * d * self.ffn) + self.vocabulary * d
        # half of attention's square, since it is causal.
        return 2.0 * weights * tokens + 2.0 * tokens**2 * d * self.layers

    @property
    def cache(self) -> int:
        """Bytes of keys and values a token, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head


_COGVIDEOX = Backbone(
    "cogvideox-2b", "cogvideox", 1920, 30, 7680, 49, 480, 720, 8, 226, 4_762_310_656, 215_583_907,
    vae_encode=9.26e6, vae_decode=18.89e6, vae_channels=128, vae_chunk=8,
)  # fmt: skip
BACKBONES = {
    # as an experiment may be called
    backbone.name.replace(".", "-"): backbone
    for backbone in (
        _COGVIDEOX,
        replace(_COGVIDEOX, name="cogvideox-5b", width=3072, layers=42, ffn=12288),
        Backbone(
            "wan-1.3b", "wan", 1536, 30, 8960, 81, 480, 832, 16, 512, 5_680_910_336, 126_892_531,
            vae_encode=5.20e6, vae_decode=8.71e6, vae_channels=96, vae_chunk=4,
        ),
    )
}  # fmt: skip
CRITICS = {
    critic.name: critic
    for critic in (
        Critic("qwen2-vl-2b", 1536, 28, 12, 2, 8960, 151_936, True, 665_000_000, 1280, 32, qkv_bias=True),
        Critic("qwen2-vl-7b", 3584, 28, 28, 4, 18944, 152_064, False, 676_000_000, 1280, 32, qkv_bias=True),
        # VILA's towers and tokens a frame are nominal: SigLIP at 384 pixels, InternViT-6B at 448.
        Critic("vila-13b", 5120, 40, 40, 40, 13824, 32_000, False, 428_000_000, 1152, 27, 196, 729),
        Critic("vila-40b", 7168, 60, 56, 8, 20480, 64_000, False, 5_540_000_000, 3200, 45, 256, 1024),
    )
}


def open_backbone(name: str) -> Backbone:
    """A known backbone, or that of a diffusers folder of one of the two families.

    Raises UserError where it is neither.
    """
    if known := BACKBONES.get(name.replace(".", "-")):
        return known
    file = Path(name) / "transformer/config.json"
    if not file.is_file():
        raise UserError(f"{name}: no known generator; use {', '.join(BACKBONES)}, or a diffusers folder")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kind = found.get("_class_name")
        width = found["num_attention_heads"] * found["attention_head_dim"]
        if kind == "CogVideoXTransformer3DModel":
            return replace(
                _COGVIDEOX, name=name, width=width, layers=found["num_layers"], ffn=4 * width,
                frames=found["sample_frames"], height=8 * found["sample_height"], pixel_width=8 * found["sample_width"],
                text_tokens=found["max_text_seq_length"], text_width=found["text_embed_dim"],
                channels=found["in_channels"], head=found["attention_head_dim"], time=found["time_embed_dim"],
            )  # fmt: skip
        if kind == "WanTransformer3DModel":
            return replace(
                BACKBONES["wan-1-3b"], name=name, width=width, layers=found["num_layers"], ffn=found["ffn_dim"],
                text_width=found["text_dim"], channels=found["in_channels"],
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a transformer's configuration ({error!r})") from None
    raise UserError(f"{file}: no formula for {kind}; CogVideoXTransformer3DModel and WanTransformer3DModel have one")


def resized(backbone: Backbone, size: str | None) -> Backbone:
    """With clips of another size, `FRAMESxHEIGHTxWIDTH`. Raises UserError where VAE or patches can't divide it."""
    if size is None:
        return backbone
    parts = size.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--size {size}: write FRAMESxHEIGHTxWIDTH, e.g. 49x480x720")
    frames, height, width = map(int, parts)
    if frames % 4 != 1 or not height or not width or height % 16 or width % 16:
        raise UserError(f"--size {size}: frames must be one more than a multiple of 4, sides multiples of 16")
    return replace(backbone, frames=frames, height=height, pixel_width=width)
