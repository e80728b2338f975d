"""Critics of other families than Qwen2-VL against plain transformers, given the pixels and the whole text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import noise_clip, save_family
from PIL import Image

from dualipo.critic.base import Critic, load_critic
from dualipo.critic.frames import pad_to_square
from dualipo.critic.questions import Question
from dualipo.critic.vila import downsample
from dualipo.errors import UserError

torch.set_num_threads(1)
FAMILIES = ("qwen2_5_vl", "llava_onevision", "vila")
CLIPS = {"x": noise_clip(1, frames=4), "y": noise_clip(2, frames=4)}
QUESTIONS = [
    Question("motion", "a small red circle moving left slowly on a black background", ("x",)),
    Question("overall", "a pillar", ("y", "x")),
    Question("semantic", "a pillar", ("y",)),
]
ANSWERS = ["motion steady . Verdict: good", "a: wrong b: all matches Verdict: b", "bad"]
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: save_family(tmp_path_factory.mktemp(name) / "critic", name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request, folders) -> Path:
    return folders[request.param]


@pytest.fixture
def critic(folder: Path) -> Critic:
    return load_critic(folder)


class Plain:
    """transformers' own forward and generation, a question at a time; what a family's processor makes is made here."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        self.model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.qwen = self.model.config.model_type == "qwen2_5_vl"

    def inputs(self, question: Question, tail: list[int]) -> dict[str, torch.Tensor]:
        clips = [(CLIPS[name] / 255 - MEAN) / STD for name in question.clips]
        if self.qwen:
            # 4 frames in twos, 8 x 8 patches in blocks of 2 x 2: 2 x 4 x 4 features.
            shown = ["<|vision_start|>" + "<|video_pad|>" * 32 + "<|vision_end|>"] * len(clips)
            pixels = torch.tensor(np.concatenate([qwen_patches(clip) for clip in clips]), dtype=torch.float32)
        else:
            # 4 frames of 4 x 4 patches pooled to 2 x 2, and the line break.
            shown = ["<|video_pad|>" * (4 * 4 + 1)] * len(clips)
            pixels = torch.tensor(np.stack(clips), dtype=torch.float32).permute(0, 1, 4, 2, 3)
        ids = self.tokenizer(" ".join([*shown, question.text()]), add_special_tokens=False).input_ids
        ids = torch.tensor([[*ids, *tail]])
        made = {"input_ids": ids, "pixel_values_videos": pixels}
        if self.qwen:
            made["video_grid_thw"] = torch.tensor([[2, 8, 8]] * len(clips))
            made["mm_token_type_ids"] = (ids == self.model.config.video_token_id).int() * 2
        return made

    @torch.no_grad()
    def logprob(self, question: Question, text: str) -> float:
        tail = [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]
        logits = self.model(**self.inputs(question, tail)).logits[0].double().log_softmax(-1)
        start = len(logits) - len(tail)
        return sum(logits[start - 1 + i, token].item() for i, token in enumerate(tail))

    @torch.no_grad()
    def greedy(self, question: Question, length: int) -> str:
        inputs = self.inputs(question, [])
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=length)
        return self.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


class PlainVila(Plain):
    """The language model's own forward and generation over embeddings that are put together here."""

    def __init__(self, folder: Path):
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

        self.model = AutoModelForCausalLM.from_pretrained(folder / "llm").eval()
        self.tower = SiglipVisionModel.from_pretrained(folder / "vision_tower").eval()
        self.projector = load_file(folder / "mm_projector/model.safetensors")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "llm")

    def frame(self, picture: np.ndarray) -> torch.Tensor:
        """Features of a frame of 40 x 40: 5 x 5 patches, blocks of 2 x 2 down the columns, the last ones half empty."""
        resized = np.asarray(resize(picture, 40), np.float32) / 127.5 - 1
        pixels = torch.tensor(resized).permute(2, 0, 1)[None]
        patches = self.tower(pixels, output_hidden_states=True).hidden_states[-2][0]
        rows = []
        for column in (0, 2, 4):
            for row in (0, 2, 4):
                places = [(row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1)]
                parts = [patches[5 * y + x] if max(x, y) < 5 else torch.zeros(32) for y, x in places]
                rows.append(torch.cat(parts))
        weights = {name.removeprefix("layers."): value for name, value in self.projector.items()}
        block = torch.stack(rows)
        normal = (block - block.mean(1, keepdim=True)) / (block.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        hidden = (normal * weights["1.weight"] + weights["1.bias"]) @ weights["2.weight"].T + weights["2.bias"]
        return torch.nn.functional.gelu(hidden) @ weights["4.weight"].T + weights["4.bias"]

    def inputs(self, question: Question, tail: list[int]) -> dict[str, torch.Tensor]:
        def embedded(ids: list[int]) -> torch.Tensor:
            return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

        pieces = []
        for name in question.clips:
            pieces += [self.frame(picture) for picture in CLIPS[name]]  # a line break is no word to this tokenizer
        words = self.tokenizer(question.text(), add_special_tokens=False).input_ids
        embeds = torch.cat([*pieces, embedded([*words, *tail])])[None]
        return {"inputs_embeds": embeds}

    @torch.no_grad()
    def greedy(self, question: Question, length: int) -> str:
        ids = self.model.generate(**self.inputs(question, []), do_sample=False, max_new_tokens=length)
        return self.tokenizer.decode(ids[0], skip_special_tokens=True)


def plain_of(folder: Path) -> Plain:
    return PlainVila(folder) if (folder / "llm").is_dir() else Plain(folder)


def resize(picture: np.ndarray, side: int) -> np.ndarray:
    """Bicubic, in one pass over float values, rounded once: PIL rounds between its two passes."""
    frame = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    large = torch.nn.functional.interpolate(frame, size=(side, side), mode="bicubic", antialias=True)
    return large.clamp(0, 255).round()[0].permute(1, 2, 0).numpy()


def qwen_patches(clip: np.ndarray) -> np.ndarray:
    """Patches of 4 pixels and 2 frames, one at a time: blocks of 2 x 2 patches in turn, channels before time."""
    rows = []
    for time in range(0, len(clip), 2):
        for block_y in range(0, 32, 8):
            for block_x in range(0, 32, 8):
                for y in (block_y, block_y + 4):
                    for x in (block_x, block_x + 4):
                        rows.append(clip[time : time + 2, y : y + 4, x : x + 4].transpose(3, 0, 1, 2).ravel())
    return np.array(rows)


def test_logprobs_equal_the_plain_forward_of_pixels_and_whole_text(folder, critic):
    plain = plain_of(folder)
    found = critic.logprobs(QUESTIONS, critic.see(CLIPS), ANSWERS)
    expected = [plain.logprob(question, text) for question, text in zip(QUESTIONS, ANSWERS, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=2e-3, rel=1e-5)
    # Worth something only where the odds depend on clip and question.
    other = plain.logprob(Question("motion", QUESTIONS[0].prompt, ("y",)), ANSWERS[0])
    assert abs(other - expected[0]) > 0.02
    assert abs(plain.logprob(QUESTIONS[1].swapped(), ANSWERS[1]) - expected[1]) > 0.02


def test_cold_paths_equal_transformers_greedy_generation(folder, critic):
    plain = plain_of(folder)
    texts = critic.paths(QUESTIONS, critic.see(CLIPS), 1, 1e-4, 8, seed=0)
    assert [text for (text,) in texts] == [plain.greedy(question, 8) for question in QUESTIONS]


def test_a_question_padded_by_its_neighbours_reads_the_same(critic):
    seen = critic.see(CLIPS)
    together = critic.logprobs(QUESTIONS, seen, ANSWERS)
    alone = [critic.logprobs([q], seen, [a]).item() for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-3)


def test_a_saved_critic_reads_as_before(folder, critic, tmp_path):
    critic.save(tmp_path / "saved")
    again = load_critic(tmp_path / "saved")
    assert type(again) is type(critic)
    found = [one.logprobs(QUESTIONS, one.see(CLIPS), ANSWERS) for one in (critic, again)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_the_checkpoints_own_pixel_statistics_are_used_and_kept(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "critic")
    place = "vision_tower/preprocessor_config.json" if (folder / "llm").is_dir() else "preprocessor_config.json"
    settings = {"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 1.0, 2.0], "other": 1}
    (tmp_path / "critic" / place).write_text(json.dumps(settings))
    critic = load_critic(tmp_path / "critic")
    pixels = critic.pixels(np.full((1, 2, 32, 32, 3), 255, np.uint8))
    values = pixels if isinstance(pixels, torch.Tensor) else pixels[0]
    assert sorted(set(values.flatten().tolist())) == [0.5, 0.75, 1.0]
    critic.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / place).read_text()) == settings
    assert load_critic(tmp_path / "saved").mean == [0.5, 0.25, 0.0]


def test_a_template_that_takes_parts_gets_the_whole_text(folders):
    critic = load_critic(folders["llava_onevision"])
    critic.tokenizer.chat_template = (
        "{% for m in messages %}prompt : {% for part in m.content %}{{ part.text }}{% endfor %} side{% endfor %}"
    )
    ids = critic._question_ids(QUESTIONS[2], critic.see(CLIPS))
    shown = "prompt : " + "<|video_pad|>" * 17 + " " + QUESTIONS[2].text() + " side"
    assert ids == critic.tokenizer(shown, add_special_tokens=False).input_ids


def test_frames_are_padded_to_a_square_and_resized_never_cropped(folders):
    critic = load_critic(folders["llava_onevision"])
    clip = np.kron(noise_clip(3, frames=1, height=6, width=10)[0], np.ones((8, 8, 1), np.uint8))[None]
    assert clip.shape == (1, 48, 80, 3)
    square = pad_to_square(clip[None])[0]
    assert square.shape == (1, 80, 80, 3)
    assert np.array_equal(square[0, 16:64], clip[0])
    assert not square[0, :16].any() and not square[0, 64:].any(), "borders are black"
    assert pad_to_square(np.ones((1, 1, 5, 2, 3), np.uint8))[0, 0, :, :, 0].tolist() == [[0, 1, 1, 0, 0]] * 5
    pixels = critic.pixels(clip[None])[0, 0].permute(1, 2, 0).numpy() * STD + MEAN
    expected = np.asarray(Image.fromarray(square[0]).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(pixels, expected, atol=4 / 255)  # PIL rounds between its two passes


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        (
            "vision_tower/config.json",
            {"model_type": "intern_vit_6b"},
            "vision tower is of type intern_vit_6b, which needs",
        ),
        ("config.json", {"dynamic_s2": True}, "a VILA with frames at several scales (S2) is not read"),
        ("mm_projector/config.json", {"mm_projector_type": "mlp9x"}, "a VILA with projector mlp9x is not read"),
    ],
)
def test_a_vila_of_parts_that_are_not_known_is_named(folders, tmp_path, file, changes, sentence):
    shutil.copytree(folders["vila"], tmp_path / "critic")
    path = tmp_path / "critic" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_critic(tmp_path / "critic")


def test_a_later_vilas_blocks_run_row_by_row():
    square = torch.arange(16.0).view(1, 16, 1)
    assert downsample(square, columns_first=False)[0].tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15],
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_checkpoints_own_code_is_never_run_nor_asked_about(folders, tmp_path, monkeypatch, family):
    shutil.copytree(folders[family], tmp_path / "critic")
    path = tmp_path / "critic/config.json"
    content = json.loads(path.read_text())
    (tmp_path / "critic/own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model", "AutoTokenizer": "own.Tokenizer"}
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked on the terminal"))
    path.write_text(json.dumps({**content, "auto_map": own}))
    assert type(load_critic(tmp_path / "critic")).model_type == family, "transformers' own classes serve"
    path.write_text(json.dumps({**content, "auto_map": own, "model_type": "new_kind"}))
    with pytest.raises(UserError, match=r"no critic family for new_kind, whose own code is never run; known: qwen2_vl"):
        load_critic(tmp_path / "critic")
    assert not (tmp_path / "ran").exists()


def test_of_a_long_clip_16_frames_spread_evenly_are_seen(critic):
    long = noise_clip(9, frames=46)
    shown = long[[round(place * 45 / 15) for place in range(16)]]
    one, other = critic.see({"x": long, "y": shown}).values()
    torch.testing.assert_close(one.tokens, other.tokens, rtol=0, atol=0)
    assert one.grid == other.grid and one.grid[0] in (8, 16), "by twos, or one by one"
