"""The plan's arithmetic against diffusers, transformers and values worked out by hand."""

import re

import pytest
from click.testing import CliRunner

from dualipo.cli import cli
from dualipo.config import Config, load_config
from dualipo.errors import UserError
from dualipo.plan import GPUS, Setup, format_plan, plan
from dualipo.sizes import BACKBONES, CRITICS, open_backbone, resized

PAPERS = ("cogvideox-2b", "cogvideox-5b", "wan-1.3b")


def count(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def transformer(name: str, layers: int | None = None):
    """The published checkpoint's architecture, without memory."""
    import torch
    from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel

    with torch.device("meta"):
        if name == "cogvideox-2b":
            return CogVideoXTransformer3DModel(num_layers=layers or 30)
        if name == "cogvideox-5b":
            return CogVideoXTransformer3DModel(
                num_attention_heads=48, num_layers=layers or 42, use_rotary_positional_embeddings=True
            )
        return WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=layers or 30)


def operations(call) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


# ---- sizes


@pytest.mark.parametrize("name", PAPERS)
def test_transformers_have_as_many_parameters_as_diffusers_builds(name):
    assert open_backbone(name).parameters == count(transformer(name))


def test_text_encoders_and_vaes_have_as_many_parameters_as_their_libraries_build():
    import torch
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    shape = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    with torch.device("meta"):
        t5 = T5EncoderModel(T5Config(**shape, vocab_size=32128, feed_forward_proj="gated-gelu"))
        umt5 = UMT5EncoderModel(UMT5Config(**shape, vocab_size=256384, feed_forward_proj="gated-gelu"))
        vaes = AutoencoderKLCogVideoX(), AutoencoderKLWan()
    cog, wan = open_backbone("cogvideox-5b"), open_backbone("wan-1.3b")
    assert (cog.text_encoder, wan.text_encoder) == (count(t5), count(umt5))
    assert (cog.vae, wan.vae) == tuple(count(vae) for vae in vaes)


@pytest.mark.parametrize(
    ("name", "tied", "text"),
    [
        ("qwen2-vl-2b", True, (1536, 28, 12, 2, 8960, 151936)),
        ("qwen2-vl-7b", False, (3584, 28, 28, 4, 18944, 152064)),
    ],
)
def test_critics_have_as_many_parameters_as_transformers_builds(name, tied, text):
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    config = Qwen2VLConfig(
        text_config=dict(zip((*keys, "vocab_size"), text, strict=True)) | {"tie_word_embeddings": tied},
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": text[0], "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    vision = count(model.model.visual)
    assert CRITICS[name].language == count(model) - vision
    assert CRITICS[name].vision == pytest.approx(vision, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "latent", "tokens"),
    [("cogvideox-2b", (13, 16, 60, 90), 13 * 30 * 45 + 226), ("wan-1.3b", (21, 16, 60, 104), 21 * 30 * 52)],
)
def test_latents_and_tokens_of_the_published_sizes(name, latent, tokens):
    backbone = open_backbone(name)
    assert backbone.latent == latent and backbone.sequence == tokens
    small = resized(backbone, "9x32x48")
    assert small.latent == (3, 16, 4, 6) and small.video_tokens == 3 * 2 * 3


@pytest.mark.parametrize("name", PAPERS)
def test_operations_of_a_pass_are_what_torch_counts(name):
    from dataclasses import replace

    import torch

    backbone = replace(resized(open_backbone(name), "9x480x720"), layers=2)
    model = transformer(name, layers=2).eval()
    frames, channels, height, width = backbone.latent
    text = torch.empty(1, backbone.text_tokens, 4096, device="meta")
    level = torch.zeros(1, device="meta", dtype=torch.long)
    if backbone.family == "cogvideox":
        video = torch.empty(1, frames, channels, height, width, device="meta")
        rotary = None
        if name == "cogvideox-5b":
            rotary = tuple(torch.empty(backbone.video_tokens, 64, device="meta") for _ in range(2))
        counted = operations(lambda: model(video, text, level, image_rotary_emb=rotary))
    else:
        video = torch.empty(1, channels, frames, height, width, device="meta")
        counted = operations(lambda: model(video, level, text))
    # what does not grow with tokens (the noise level's projections) is left out of the formula.
    assert backbone.forward == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan-1.3b"])
def test_operations_of_the_vae_are_what_torch_counts(name):
    import torch
    from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX() if name == "cogvideox-2b" else AutoencoderKLWan()
        latents, clip = torch.empty(1, 16, 3, 16, 24), torch.empty(1, 3, 9, 128, 192)
    backbone, pixels = open_backbone(name), 9 * 128 * 192
    assert backbone.vae_decode * pixels == pytest.approx(operations(lambda: vae.decode(latents)), rel=0.03)
    assert backbone.vae_encode * pixels == pytest.approx(operations(lambda: vae.encode(clip)), rel=0.03)


def test_a_diffusers_folder_is_read(generator_folder, tmp_path):
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel.from_pretrained(generator_folder / "transformer")
    found = open_backbone(str(generator_folder))
    assert found.width == model.config.num_attention_heads * model.config.attention_head_dim
    assert found.latent[2:] == (model.config.sample_height, model.config.sample_width)
    for text, expected in (("{", "not a transformer's"), ("{}", "not a transformer's"), ('{"_class_name": "X"}', "")):
        (tmp_path / "transformer").mkdir(exist_ok=True)
        (tmp_path / "transformer/config.json").write_text(text)
        with pytest.raises(UserError, match=expected or "not a transformer's"):
            open_backbone(str(tmp_path))
    with pytest.raises(UserError, match=r"nothing: no known generator; use cogvideox-2b"):
        open_backbone("nothing")


def test_visual_tokens_are_padded_up():
    critic = CRITICS["qwen2-vl-7b"]
    assert critic.visual_tokens(16, 480, 720) == 8 * 18 * 26
    assert critic.visual_tokens(9, 28, 29) == 5 * 1 * 2
    assert CRITICS["vila-13b"].visual_tokens(16, 480, 720) == 16 * 196


# ---- a round


@pytest.fixture
def config(repository) -> Config:
    return load_config(repository / "params.yaml", repository / "params/cogvideox-2b.yaml")


def priced(config: Config, **setup):
    return plan(config, open_backbone("cogvideox-2b"), CRITICS["qwen2-vl-7b"], GPUS["a100"], Setup(**setup))


def with_values(config: Config, **sections) -> Config:
    return Config.model_validate(
        config.model_dump() | {k: config.model_dump()[k] | values for k, values in sections.items()}
    )


def test_sampling_by_hand(config):
    d, s, layers = 1920, 17776, 30
    one_pass = layers * (2 * s * 12 * d * d + 4 * s * s * d) + 2 * 17550 * 2 * 64 * d + 2 * 226 * 4096 * d
    clip = 100 * one_pass + 18.89e6 * 49 * 480 * 720
    total = 800_000 * clip + 100_000 * 226 * 2 * 4_762_310_656
    assert priced(config).hours["generate"] == pytest.approx(total / (0.4 * 312e12) / 3600, rel=1e-9)


def test_alignment_by_hand(config):
    backbone = open_backbone("cogvideox-2b")
    passes = 1024 * (1 + 2 + 1 + 1) + 256 * (1 + 2 + 1)
    encoded = 200_000 + 256 * 196
    total = 196 * passes * backbone.forward + encoded * 9.26e6 * 49 * 480 * 720 + 1e5 * 2 * 4_762_310_656 * 226
    assert priced(config).hours["align"] == pytest.approx(total / (0.4 * 312e12) / 3600, rel=1e-9)
    kto = with_values(config, align={"loss": "kto", "lambda_real": 0.0, "steps": 1000})
    passes, encoded = 512 * (1 + 2 + 1), 512_000
    total = 1000 * passes * backbone.forward + encoded * 9.26e6 * 49 * 480 * 720 + 1e5 * 2 * 4_762_310_656 * 226
    found = priced(kto, checkpointing=False).hours["align"]
    assert found == pytest.approx(total / (0.4 * 312e12) / 3600, rel=1e-9)


def test_a_latent_reward_by_hand(config):
    backbone = open_backbone("wan-1.3b")
    reward = {"train": True, "layers": 3, "steps": 50, "batch_size": 8}
    plain, steered, everything = (
        plan(with_values(config, **sections), backbone, CRITICS["qwen2-vl-7b"], GPUS["a100"], Setup())
        for sections in (
            {},
            {"latent_reward": {**reward, "pairs": "preferences"}, "flow_nrg": {"evaluate": 1.0}},
            {"latent_reward": reward},
        )
    )
    unit = 3 / 30 * backbone.forward / (0.4 * 312e12) / 3600
    benchmark = steered.hours["evaluate"] - plain.hours["evaluate"]
    assert steered.hours["align"] - plain.hours["align"] == pytest.approx(2 * 8 * 50 * 3 * unit, rel=1e-6)
    count = config.prompts.count
    more = count * config.generate.candidates - min(2 * count, 2 * config.align.batch_size * config.align.steps)
    encoding = more * backbone.vae_encode * backbone.pixels / (0.4 * 312e12) / 3600
    assert more > 0 and everything.hours["align"] - steered.hours["align"] == pytest.approx(encoding, rel=1e-6)
    clips = 944 * 5 + 75 * 20
    assert benchmark == pytest.approx(clips * config.evaluate.steps * 3 * unit, rel=1e-6)
    assert steered.hours["generate"] == plain.hours["generate"]


def test_preferences_paths_are_priced_where_they_differ_from_labels(config):
    label = config.label.paths
    same, more = (priced(with_values(config, prefer={"paths": paths})) for paths in (label, 4 * label))
    assert same.hours == priced(config).hours
    grown = {step for step in same.hours if more.hours[step] > same.hours[step]}
    assert grown == {"prefer"} and more.memory["prefer"] > same.memory["prefer"]


def test_checking_the_critic_by_hand(config):
    """2,000 questions of two clips in batches of 8 with 5 paths: read once each, then 256 tokens bound by memory."""
    language, cache, context = 7_615_616_512, 2 * 2 * 28 * 4 * 128, 2 * 8 * 18 * 26 + 124
    products = 28 * (3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18944) + 152064 * 3584
    reading = 2000 * (2 * products * context + 2 * context**2 * 3584 * 28)
    patches = 4 * 18 * 26
    seeing = 2000 * 8 * (2 * 676e6 * patches + 4 * patches**2 * 1280 * 32)
    token = (2 * language + 40 * (context + 128) * cache) / (0.7 * 2.04e12)
    assert token > 40 * (2 * products + 2 * 3584 * 28) / (0.4 * 312e12), "memory is what binds"
    seconds = (reading + seeing) / (0.4 * 312e12) + 2000 / 8 * 256 * token
    assert priced(config).hours["check_critic"] == pytest.approx(seconds / 3600, rel=1e-9)


def test_memory_by_hand(config):
    p, d, s, layers = 1_693_783_872, 1920, 17776, 30
    kept = layers * 3 * s * d * 2 + 34 * 3 * s * d
    resident = 0  # text encoder and VAE wait in the CPU's memory
    for zero, gpus, states in (
        (0, 8, 16 * p),
        (2, 8, 2 * p + 14 * p / 8),
        (3, 8, 16 * p / 8),
        (2, 1, 16 * p),
    ):
        found = priced(config, zero=zero, gpus=gpus).memory["align"]
        assert found == pytest.approx((states + 2 * p + resident + kept) / 1e9, rel=1e-9)
    adapter = 30 * 4 * 64 * 2 * 1920
    found = priced(config, lora=64, gpus=1).memory["align"]
    assert found == pytest.approx((2 * (p + adapter) + 14 * adapter + resident + kept) / 1e9, rel=1e-9)
    found = priced(config, checkpointing=False).memory["align"]
    assert found == pytest.approx((18 * p + resident + layers * 34 * 3 * s * d) / 1e9, rel=1e-9)


def test_storage_by_hand(config):
    found = priced(config).storage
    assert found["candidate clips"] == pytest.approx(8e5 * 49 * 480 * 720 / 8 / 1e9)
    assert found["latents, encoded once"] == pytest.approx((2e5 + 256 * 196) * 13 * 16 * 60 * 90 * 2 / 1e9)
    assert found["text embeddings"] == pytest.approx(1e5 * 226 * 4096 * 2 / 1e9)
    assert found["generators"] == pytest.approx(8 * (1_693_783_872 + 4_762_310_656 + 215_583_907) / 1e9)


def test_how_it_scales(config):
    base = priced(config)
    assert priced(config, gpus=64).hours == base.hours, "GPU-hours are work, not time"
    faster = priced(config, utilisation=0.8).hours
    for step in ("generate", "align", "evaluate"):
        assert faster[step] == pytest.approx(base.hours[step] / 2)
    assert base.hours["label"] / 2 < faster["label"] < base.hours["label"], "writing is bound by memory"
    twice = priced(with_values(config, prompts={"count": 200_000})).hours
    for step in ("generate", "label", "prefer"):
        assert twice[step] == pytest.approx(2 * base.hours[step], rel=1e-6)
    assert twice["check_critic"] == base.hours["check_critic"]
    plain = with_values(config, generate={"guidance": 1.0})
    saved = 800_000 * 50 * open_backbone("cogvideox-2b").forward / (0.4 * 312e12) / 3600
    assert base.hours["generate"] - priced(plain).hours["generate"] == pytest.approx(saved)
    assert priced(with_values(config, train_critic={"algorithm": "none"})).hours["train_critic"] == 0
    assert priced(with_values(config, prefer={"confirm": False})).hours["prefer"] < base.hours["prefer"]
    beside = priced(with_values(config, train_reward={"enabled": True}))
    place = priced(with_values(config, train_reward={"enabled": True}, prefer={"scorer": "videoreward"}))
    assert beside.hours["prefer"] == pytest.approx(base.hours["prefer"] + place.hours["prefer"])
    assert place.hours["prefer"] < base.hours["prefer"] / 2 and beside.memory["prefer"] > base.memory["prefer"]
    assert len(beside.assumptions) == len(base.assumptions) + 1
    one = priced(with_values(config, prompts={"count": 1}, generate={"candidates": 2}))
    assert all(0 < hours < base.total for hours in one.hours.values())


def test_sampling_dominates_and_a_round_takes_the_papers_order_of_time(config):
    """Dual-IPO 4.1: a round takes two weeks on average, on 128 GPUs; G.1: sampling dominates."""
    found = priced(config, gpus=128)
    assert 5 < found.total / 128 / 24 < 28
    assert found.hours["generate"] > found.total / 2


# ---- presets and command


@pytest.mark.parametrize("name", PAPERS)
def test_presets_hold_what_the_paper_says(repository, name):
    found = load_config(repository / "params.yaml", repository / f"params/{name}.yaml")
    assert (found.generate.candidates, found.prompts.count, found.prompts.space) == (8, 100_000, "open_world")
    assert (found.align.batch_size, found.align.learning_rate, found.align.loss) == (512, 2e-6, "dpo")
    assert (found.align.lambda_winner, found.align.lambda_real, found.align.reference) == (0.2, 0.1, "previous")
    assert found.align.steps * found.align.batch_size >= 100_000
    assert (found.train_critic.learning_rate, found.train_critic.algorithm) == (2e-5, "srpo")
    assert (found.check_critic.min_agreement, found.label.certainty_threshold) == (0.75, 0.5)
    assert found.experiment.name == name.replace(".", "-") and len(found.rounds) == 3
    assert open_backbone(found.experiment.name).name == name


def call(repository, *arguments: object):
    result = CliRunner().invoke(cli, ["plan", *map(str, arguments), "--folder", str(repository)])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result


def test_the_command_prints_every_step_and_assumption(repository):
    result = call(repository, "single-gpu", "--critic", "qwen2-vl-2b", "--lora", 64)
    assert result.exit_code == 0
    config = load_config(repository / "params.yaml", repository / "params/single-gpu.yaml")
    title = "a round of single-gpu, cogvideox-2b with qwen2-vl-2b,"
    expected = plan(
        config, BACKBONES["cogvideox-2b"], CRITICS["qwen2-vl-2b"], GPUS["h100"], Setup(lora=64, zero=0), title
    )
    assert result.output == format_plan(expected) + "\n"
    lines = result.output.splitlines()
    assert lines[0] == f"{title} on 1 x h100"
    for step in expected.hours:
        assert any(re.match(rf"{step} +[\d,.]+ +[\d.]+% +[\d.]+$", line) for line in lines)
    said = lines[lines.index("assumptions") + 1 :]
    assert len(said) == len(expected.assumptions) and all(line.startswith("- ") for line in said)
    for word in ("989e12", "40%", "LoRA of rank 64", "1.69e9 parameters", "13x16x60x90", "ZeRO-0 over 1 GPU"):
        assert sum(word in line for line in said) == 1


def test_what_does_not_fit_is_said_and_exits_with_1(repository):
    result = call(repository, "cogvideox-5b", "--gpu", "l40s", "--generator", "cogvideox-5b")
    assert result.exit_code == 1
    assert re.search(r"^align .*  does not fit into 48 GB$", result.output, re.MULTILINE)


def test_other_sizes_and_parameters(repository):
    small = call(repository, repository / "params/single-gpu.yaml", "--size", "17x256x256", "-S", "prompts.count=10")
    assert "17 frames of 256x256" in small.output and "every one of 10 prompts" in small.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing"], r"nothing: no such parameter file"),
        (["smoke"], r"smoke: no known generator; use cogvideox-2b, "),
        (["single-gpu", "--critic", "gpt"], r"--critic gpt: no known critic; use qwen2-vl-2b, "),
        (["single-gpu", "--size", "48x480x720"], r"--size 48x480x720: frames must be one more than a multiple of 4"),
        (["single-gpu", "--size", "49x480x721"], r"--size 49x480x721: .*sides multiples of 16"),
        (["single-gpu", "--size", "480p"], r"--size 480p: write FRAMESxHEIGHTxWIDTH"),
        (["single-gpu", "-S", "align.betta=1"], r".*unknown key 'align.betta'"),
    ],
)
def test_bad_arguments_are_one_sentence(repository, arguments, expected):
    with pytest.raises(UserError, match=expected):
        call(repository, *arguments)
