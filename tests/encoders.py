"""Tiny random encoders, a tokenizer with their special tokens, and labelled examples that are written here."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, PreTrainedModel

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 3}
GOOD, BAD = ["warm", "clever", "moving", "bright"], ["dull", "clumsy", "noisy", "empty"]
THING = ["film", "story", "ending", "cast", "camera", "score"]
REST = ["from the first minute", "and nothing else", "in every scene", "for a whole hour", "as they all said"]
FACTS = ["a wooden boat", "three old letters", "the copper bell", "a box of lamps", "the last map"]
PLACES = ["the river", "the station", "the old harbour", "the mill", "the small museum"]
NAMES = ["farmer", "clerk", "sailor", "painter", "teacher"]


def make_encoder(
    head: str = "SequenceClassification", seed: int = 0, spread: float = 0.2, **changes: Any
) -> PreTrainedModel:
    """A random BERT in eval mode with weights large enough for a mask to show; `changes` go to its config."""
    torch.manual_seed(seed)
    config = BertConfig(**({**SIZES, "vocab_size": 300, "max_position_embeddings": 128} | changes))
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += spread * torch.randn_like(parameter)
    return model


def encoder_tokenizer(plain: Any) -> Any:
    """The tokenizer with a token before the text, one after each part, and types of the parts, as BERT's has them."""
    tokenizer = copy.deepcopy(plain)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def save_encoder(folder: Path, plain: Any, head: str = "SequenceClassification", **changes: Any) -> Path:
    """A folder with an encoder and its tokenizer, as `from_pretrained` wants them."""
    tokenizer = encoder_tokenizer(plain)
    make_encoder(head, vocab_size=len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reviews(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Different sentences of different lengths; a word of praise has label 1, one of blame 0."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        label = chance.randrange(2)
        rest = " ".join(chance.sample(REST, chance.randrange(1, 4)))
        word = chance.choice(GOOD if label else BAD)
        rows.append({"sentence": f"A {word} {chance.choice(THING)} {rest} {seed}x{number}", "label": label})
    return rows


def articles(count: int, seed: int = 0, none: bool = False) -> dict[str, Any]:
    """SQuAD's JSON with two questions a paragraph; with `none`, the second of them has no answer."""
    chance = random.Random(seed)
    paragraphs = []
    for number in range(count):
        name, fact, place = chance.choice(NAMES), chance.choice(FACTS), chance.choice(PLACES)
        context = f"On day {seed}x{number} the {name} found {fact} not far from {place}, and went home before the rain."
        asked = [(f"What did the {name} find?", fact), ("Where was it?", place)]
        questions = []
        for index, (question, answer) in enumerate(asked):
            golds = [] if none and index else [{"text": answer, "answer_start": context.index(answer)}]
            questions.append({"id": f"{seed}-{number}-{index}", "question": question, "answers": golds})
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "1", "data": [{"title": "Days", "paragraphs": paragraphs}]}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
