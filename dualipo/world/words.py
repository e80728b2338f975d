"""One word-level tokenizer for the small world's generator and critic."""

from __future__ import annotations

from typing import Any

from dualipo.records import CHOICES, RATINGS
from dualipo.world.scene import BACKGROUNDS, COLOURS, DIRECTIONS, RADII, SHAPES, SPEEDS

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
SPECIAL = (PAD, EOS, UNKNOWN, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
_PROMPT = """
    a an the to of on background moving staying below above left right side next
""".split()  # noqa: SIM905
_JUDGING = """
    prompt verdict rate which clip is has better overall semantic consistency motion smoothness video faithfulness
    or tie ok wrong objects shape colour size speed side count background no nothing and steady uneven jumpy clear
    blurred broken object
""".split()  # noqa: SIM905
_MARKS = list(".,:;?!()-")


def word_tokenizer(max_length: int) -> Any:
    """A PreTrainedTokenizerFast that splits at spaces and punctuation; every word above has a token of its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    attributes = [*SHAPES, *COLOURS, *BACKGROUNDS, *DIRECTIONS, *RADII, *SPEEDS]
    words = [*_PROMPT, *_JUDGING, *_MARKS, *attributes, *RATINGS, *CHOICES]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, vocabulary[EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=list(SPECIAL[3:]),
        model_max_length=max_length,
    )
