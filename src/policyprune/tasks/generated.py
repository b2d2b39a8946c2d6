"""Text that the dense model writes itself: from BOS or from prompts, once, kept in the user's cache folder."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.config.schema import Generated
from policyprune.errors import UsageError, describe
from policyprune.models.identity import identity_of
from policyprune.models.library_messages import silenced
from policyprune.models.sequences import longest_sequence
from policyprune.progress import bar
from policyprune.storage.files import cache_folder, made_once, write_file
from policyprune.tasks.chat import template_of
from policyprune.tasks.corpora import documents_of_file
from policyprune.tasks.packing import encode
from policyprune.tasks.tables import NoTableError

Prompt = tuple[int, ...]
ASKED = ("chat", "temperature", "top_p", "length", "tokens", "batch_size", "seed")  # decide on the text, with prompts


def written_by(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Generated) -> Path:
    """The file with what the model wrote, an object with its `text` a line; it is written where it is not there yet.

    Its name is a hash of the model, the tokenizer, the prompts and what decides on the text. Other processes wait for
    the one that writes. UsageError where there is nothing to begin with, or no room.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("model.device_map: task=generated needs all weights in memory, use null")
    prompts = _prompts(config, tokenizer, model)
    writer = Writer.of(model, tokenizer, config)
    asked = {name: getattr(config, name) for name in ASKED}
    vocabulary = sorted(tokenizer.get_vocab().items())  # not the folder that the tokenizer was loaded from
    about = json.dumps([identity_of(model), vocabulary, writer.ends, prompts, asked], sort_keys=True)
    target = cache_folder() / "generated" / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.jsonl"

    def write(path: Path) -> None:
        lines = [json.dumps({"text": text}) + "\n" for text in writer.texts(prompts)]
        with write_file(path) as scratch:
            scratch.write_text("".join(lines), encoding="utf-8")

    try:
        return made_once(target, write)
    except OSError as error:
        raise UsageError(f"POLICYPRUNE_CACHE: what the model writes cannot be kept there: {describe(error)}") from error


def _prompts(config: Generated, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Prompt]:
    """The tokens that texts begin with; those that leave no room for a text are left out."""
    if config.prompts is None:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UsageError("task.prompts: null, but this tokenizer has no token that a text begins with; name a file")
        return [(int(start),)]
    texts = [document.text for document in documents_of_file("task.prompts", config.prompts)]
    if config.chat:
        template = template_of(tokenizer)
        try:
            texts = [template.text([{"role": "user", "content": text}], "a prompt", answer=True) for text in texts]
        except NoTableError as error:
            raise UsageError(f"task.prompts: {config.prompts!r} {error}") from error
    ids: Any = tokenizer(texts, add_special_tokens=not config.chat, verbose=False)["input_ids"]
    longest = longest_sequence(model.config)
    prompts = [tuple(own) for own in ids if own and (longest is None or len(own) + config.length <= longest)]
    if not prompts:
        raise UsageError(
            f"task.prompts: none in {config.prompts!r} leaves room for {config.length} tokens (task.length) in the "
            f"{longest} positions of this model"
        )
    return prompts


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The dense model as it writes: its tokenizer, what it was asked for, and the tokens that end a text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: Generated
    ends: list[int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Generated) -> "Writer":
        """Texts end with the token that the tokenizer has for that, or with one that the model's own settings name."""
        stated = getattr(model.generation_config, "eos_token_id", None)
        named = stated if isinstance(stated, list) else [stated]
        ends = sorted({token for token in (tokenizer.eos_token_id, *named) if token is not None})
        return cls(model=model, tokenizer=tokenizer, config=config, ends=ends)

    def texts(self, prompts: list[Prompt]) -> Iterator[str]:
        """Texts of as many tokens as asked for, as the tokenizer reads them again; prompts are taken in turn.

        UsageError where the model writes nothing.
        """
        wanted = self.config.tokens
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.config.seed)).tolist()
        begun, written = (prompts[order[number % len(order)]] for number in count()), 0
        with bar(wanted, "the dense model writes", "token") as progress:
            for batch in count():
                rows = self._continued(list(islice(begun, self.config.batch_size)), batch)
                texts = [str(self.tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in rows if row]
                lengths = [len(ids) for ids in encode(self.tokenizer, texts)] if texts else []
                if not any(text.strip() for text in texts):
                    raise UsageError("task.prompts: null, but this model ends every text at once; name a file")
                for text, length in zip(texts, lengths, strict=True):
                    if text.strip():
                        yield text
                        progress.update(min(length, wanted - written))
                        written = min(wanted, written + length)
                if written == wanted:
                    return

    def _continued(self, prompts: list[Prompt], batch: int) -> list[list[int]]:
        """Each prompt with what the model writes behind it, up to its end.

        The token of the end is a part of a chat. It and a leading BOS are none of other texts.
        """
        config, pad, width = self.config, self.ends[0] if self.ends else 0, max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(own)) + list(own) for own in prompts])
        mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts])
        options = GenerationConfig(
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=0,
            max_new_tokens=config.length,
            eos_token_id=self.ends or None,
            pad_token_id=pad,
        )
        model: Any = self.model
        device = model.device
        with (
            patch.object(model, "generation_config", GenerationConfig()),  # a checkpoint's own settings
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
            silenced(),
        ):
            torch.manual_seed(config.seed * 1_000_003 + batch)
            out = model.generate(ids.to(device), attention_mask=mask.to(device), generation_config=options)
        rows = []
        for prompt, new in zip(prompts, out[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(new) if token in self.ends), len(new))
            led = not config.chat and prompt[0] in (self.tokenizer.bos_token_id, *self.ends)
            rows.append([*prompt[led:], *new[: end + config.chat]])
        return rows
