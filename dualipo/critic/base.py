"""The interface every critic offers: clips in once, then sampled reasoning paths and their log-probabilities.

A clip goes through the vision tower once (`see`); its features are then shared by every question, path and order.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dualipo.artifacts import read_json
from dualipo.critic.certainty import sequence_logprob
from dualipo.critic.questions import Question, answer
from dualipo.critic.voting import parse_verdict
from dualipo.errors import UserError

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
"""Where transformers keeps a processor's settings; what a later one says of pixels holds."""


@dataclass(frozen=True)
class Seen:
    """A clip as the language model sees it."""

    tokens: torch.Tensor
    """Vision features, (tokens, width)."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""


Features = Mapping[str, Seen]
"""Seen clips by id."""


class Critic(ABC):
    """A vision-language model of transformers with its tokenizer."""

    model_type: str
    """`model_type` in config.json that this family serves."""
    mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073)
    deviation: Sequence[float] = (0.26862954, 0.26130258, 0.27577711)
    """Statistics that pixels are normalised with: CLIP's, unless the checkpoint's processor says otherwise."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model = model
        self.tokenizer = tokenizer
        self.processor_files: dict[str, bytes] = {}
        """What the checkpoint says of its processor, by file name; saved again with the weights."""

    @property
    def language_model(self) -> torch.nn.Module:
        """The part that SRPO trains; the vision tower stays as it is."""
        return self.model.model.language_model

    @property
    @abstractmethod
    def vision(self) -> list[torch.nn.Module]:
        """What turns pixels into features: the tower and its projector."""

    @abstractmethod
    def see_batch(self, clips: np.ndarray) -> list[Seen]:
        """The vision tower over equally sized uint8 clips (batch, frames, height, width, 3)."""

    @abstractmethod
    def shown(self, seen: Seen) -> str:
        """What stands for a clip in a text: a video token for each of its features, between the family's marks."""

    @abstractmethod
    def positions(self, ids: torch.Tensor, mask: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """position_ids (..., B, L) of ids (B, L); `grids` are those of the clips shown, row after row."""

    @property
    def video_token(self) -> str:
        return self.tokenizer.convert_ids_to_tokens(self.model.config.video_token_id)

    def embed(
        self, questions: Sequence[Question], features: Features, answers: Sequence[str] | None, pad_left: bool
    ) -> dict[str, torch.Tensor]:
        """inputs_embeds (B, L, W), attention_mask (B, L), position_ids (..., B, L), and with answers labels (B, L),
        -100 outside the answer's tokens."""
        asked = [self._question_ids(question, features) for question in questions]
        rows = asked if answers is None else [[*q, *self._answer_ids(a)] for q, a in zip(asked, answers, strict=True)]
        ids, inputs = self.assemble(rows, [question.clips for question in questions], features, pad_left)
        if answers is None:
            return inputs
        labels = torch.full_like(ids, -100)
        for index, (question, row) in enumerate(zip(asked, rows, strict=True)):
            at = ids.shape[1] - len(row) if pad_left else 0
            labels[index, at + len(question) : at + len(row)] = ids[index, at + len(question) : at + len(row)]
        return {**inputs, "labels": labels}

    def assemble(
        self, rows: Sequence[Sequence[int]], clips: Sequence[Sequence[str]], features: Features, pad_left: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Padded token ids (B, L), and what `hidden` takes; `clips` are ids of the clips each row shows, in order."""
        length, device = max(map(len, rows)), self.model.device
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id, device=device)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            at = length - len(row) if pad_left else 0
            ids[index, at : at + len(row)] = torch.tensor(row, device=device)
            mask[index, at : at + len(row)] = 1
        shown = [features[clip] for row in clips for clip in row]
        video = ids == self.model.config.video_token_id
        embeds = self.model.get_input_embeddings()(ids)
        seen = torch.cat([clip.tokens for clip in shown])
        embeds = embeds.masked_scatter(video[..., None].expand_as(embeds), seen.to(embeds.dtype))
        positions = self.positions(ids, mask, [clip.grid for clip in shown])
        return ids, {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}

    def hidden(self, **inputs: Any) -> tuple[torch.Tensor, Any]:
        """Last hidden states (B, L, W), and the cache if `use_cache`."""
        output = self.language_model(**inputs)
        return output.last_hidden_state, output.past_key_values

    def next_positions(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """position_ids (..., B, 1) of the first token after each row of `embed(pad_left=True)`."""
        return inputs["position_ids"].amax(-1, keepdim=True) + 1

    def see(self, clips: Mapping[str, np.ndarray], batch_size: int = 64, gradient: bool = False) -> dict[str, Seen]:
        """Vision features of every clip, clips of one size together; without gradient unless asked."""
        features: dict[str, Seen] = {}
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name, clip in clips.items():
            by_shape.setdefault(clip.shape, []).append(name)
        for names in by_shape.values():
            for start in range(0, len(names), batch_size):
                part = names[start : start + batch_size]
                with torch.set_grad_enabled(gradient):
                    features.update(zip(part, self.see_batch(np.stack([clips[name] for name in part])), strict=True))
        return features

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(hidden)

    @torch.inference_mode()
    def paths(
        self,
        questions: Sequence[Question],
        features: Features,
        count: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[list[str]]:
        """`count` sampled reasoning paths per question. The question is read once, its cache shared by all paths."""
        from dualipo.critic.cache import spread

        inputs = self.embed(questions, features, None, pad_left=True)
        hidden, cache = self.hidden(**inputs, use_cache=True)
        logits = self.head(hidden[:, -1]).repeat_interleave(count, 0)
        positions = self.next_positions(inputs).repeat_interleave(count, -2)
        mask = inputs["attention_mask"].repeat_interleave(count, 0)
        source = torch.Generator(logits.device).manual_seed(seed)
        end = self.tokenizer.eos_token_id
        written = torch.full((len(logits), max_new_tokens), end, dtype=torch.long, device=logits.device)
        done = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        embedding = self.model.get_input_embeddings()
        with spread(self.language_model, cache, count, max_new_tokens) as shared:
            for place in range(max_new_tokens):
                shares = F.softmax(logits.float() / temperature, -1)
                tokens = torch.multinomial(shares, 1, generator=source)[:, 0]
                written[:, place] = torch.where(done, end, tokens)
                done |= tokens == end
                if done.all() or place + 1 == max_new_tokens:
                    break
                mask = F.pad(mask, (0, 1), value=1)
                hidden, cache = self.hidden(
                    inputs_embeds=embedding(written[:, place : place + 1]),
                    attention_mask=mask,
                    position_ids=positions + place,
                    past_key_values=cache,
                    use_cache=True,
                    **shared,
                )
                logits = self.head(hidden[:, -1])
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def answer_logits(
        self, questions: Sequence[Question], features: Features, answers: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (B, T, V), the tokens they predict (B, T), and which of these belong to the answers (B, T)."""
        inputs = self.embed(questions, features, answers, pad_left=False)
        labels = inputs.pop("labels")
        hidden, _ = self.hidden(**inputs, use_cache=False)
        mask = labels[:, 1:] != -100
        first = int(mask.any(0).nonzero()[0])
        return self.head(hidden[:, first:-1]), labels[:, first + 1 :], mask[:, first:]

    def logprobs(self, questions: Sequence[Question], features: Features, answers: Sequence[str]) -> torch.Tensor:
        """Summed log-probability of each answer's tokens, its end included, in nats: (B,)."""
        return sequence_logprob(*self.answer_logits(questions, features, answers))

    def answer_lengths(self, answers: Sequence[str]) -> torch.Tensor:
        """Tokens of each answer, its end included: (B,)."""
        return torch.tensor([len(self._answer_ids(text)) for text in answers])

    def templated(self, content: str) -> str:
        """The content as the checkpoint's chat template puts it, ready for the answer."""
        if not self.tokenizer.chat_template:
            return content
        messages = [{"role": "user", "content": self._message(content)}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _message(self, content: str) -> Any:
        return content

    def _question_ids(self, question: Question, features: Features) -> list[int]:
        content = " ".join([*(self.shown(features[clip]) for clip in question.clips), question.text()])
        return self.tokenizer(self.templated(content), add_special_tokens=False).input_ids

    def _answer_ids(self, text: str) -> list[int]:
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id]

    def save(self, folder: str | Path) -> None:
        """A folder that plain transformers loads; safetensors only."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        for name, content in self.processor_files.items():
            (Path(folder) / name).write_bytes(content)


def load_critic(folder: str | Path) -> Critic:
    """Opens a transformers folder with the family its config.json names, on the best device there is.

    Raises UserError where the folder is no checkpoint, has no safetensors, or is of an unknown family.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging

    from dualipo.critic.llava import LlavaOnevision
    from dualipo.critic.qwen2vl import Qwen2VL, Qwen25VL
    from dualipo.critic.videoreward.settings import is_videoreward
    from dualipo.critic.vila import TOWER, Vila, is_vila, load_vila

    families: dict[str, type[Critic]] = {f.model_type: f for f in (Qwen2VL, Qwen25VL, LlavaOnevision, Vila)}
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no critic checkpoint here (config.json is missing); put a transformers folder there"
        )
    if is_videoreward(folder):
        raise UserError(
            f"{folder}: a VideoReward scores clips but writes no reasoning; it serves `prefer` and agreement, "
            "the other steps need a generative critic"
        )
    logging.disable_progress_bar()
    # Left to its default, transformers asks on the terminal whether to run a checkpoint's own code.
    local: Any = {"local_files_only": True, "trust_remote_code": False}
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vila = is_vila(content)
        family = "vila" if vila else content.get("model_type")
        if family not in families:
            own = ", whose own code is never run" if "auto_map" in content else ""
            raise UserError(f"{folder}: no critic family for {family}{own}; known: {', '.join(families)}")
        if vila:
            model, tokenizer = load_vila(folder)
        else:
            config = AutoConfig.from_pretrained(folder, **local)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, config=config, use_safetensors=True, dtype="auto", **local
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint does not load ({' '.join(str(error).split())[:200]}); "
            "put a whole one there, with weights as safetensors"
        ) from None
    # Without its files, transformers makes up a tokenizer with an empty vocabulary.
    written = tokenizer.decode(tokenizer(answer("", "good"), add_special_tokens=False).input_ids)
    if parse_verdict(written, "rating") != "good":
        raise UserError(f"{folder}: the tokenizer cannot write a verdict; put the checkpoint's tokenizer files there")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    critic = families[family](model, tokenizer)
    _read_processor(critic, folder / TOWER if vila else folder)
    return critic


def _read_processor(critic: Critic, folder: Path) -> None:
    """Takes over the pixels' statistics from the checkpoint's processor, where it has one."""
    for name in PROCESSOR_FILES:
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        critic.processor_files[name] = (folder / name).read_bytes()
        found = content.get("video_processor", content.get("image_processor", content))
        if "image_mean" in found and "image_std" in found:
            critic.mean, critic.deviation = found["image_mean"], found["image_std"]
