"""Sequences of tokens as a model takes them: how long they may be, what pads them, and their next-token losses."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: larger chunks are no faster
COUNTING_FROM_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm")  # positions


def longest_sequence(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model was made for, in tokens; None where its config states none."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in COUNTING_FROM_PADDING:
        return positions - int(config.pad_token_id or 0) - 1
    return positions


def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Cross-entropy (nats, float32) of each next token: ids (B, L) -> (B, L - 1).

    The vocabulary projection is applied to a chunk of positions at a time; the softmax is taken in float32.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = ids[:, 1:].to(hidden.device).reshape(-1)
    states = hidden.reshape(targets.numel(), -1)
    rows = max(1, CHUNK_ELEMENTS // model.get_output_embeddings().weight.shape[0])
    losses = []
    for some_states, some_targets in zip(states.split(rows), targets.split(rows), strict=True):
        logits = logits_of(model, some_states)
        losses.append(cross_entropy(logits, some_targets.to(logits.device), reduction="none"))  # perhaps another device
    return torch.cat(losses).view(ids.shape[0], -1)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits (N, vocabulary) float32 of last hidden states (N, d), as Granite and Gemma change them, too."""
    config = model.config
    logits: Tensor = model.get_output_embeddings()(states).float()
    scaling = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if scaling:
        logits = logits / scaling
    return torch.tanh(logits / cap) * cap if cap else logits


def set_padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a decoder with a classifier the tokenizer's padding token, in memory and in what is written of both.

    The class is read off the last token of a text, so the model has to know which tokens are padding. A tokenizer
    without a padding token gets a special token that no text ends with. UsageError where there is none.
    """
    if not hasattr(model, "score"):  # what transformers calls the classifier of its decoders
        return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _spare_token(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id


def _spare_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    stated = model.config.pad_token_id
    if stated is not None and 0 <= stated < len(tokenizer):
        return str(tokenizer.convert_ids_to_tokens(stated))
    used = set(tokenizer("a")["input_ids"])
    special = (tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    for token in special:
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in used:
            return str(token)
    raise UsageError(
        "model.source: the class is read off the last token, and neither model nor tokenizer has a padding token; "
        "set pad_token in tokenizer_config.json"
    )
