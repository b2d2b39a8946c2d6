"""Next-token losses of a causal language model, without holding the logits of the whole batch."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

CHUNK_ELEMENTS = 1 << 24  # logits held at a time: larger chunks are no faster


def token_losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Cross-entropy (nats, float32) of each next token: ids (B, L) -> (B, L - 1).

    The vocabulary projection is applied to a chunk of positions at a time; the softmax is taken in float32.
    """
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    head = model.get_output_embeddings()
    targets = ids[:, 1:].to(hidden.device).reshape(-1)
    flat = hidden.reshape(targets.numel(), -1)
    rows = max(1, CHUNK_ELEMENTS // head.weight.shape[0])
    losses = []
    for states, wanted in zip(flat.split(rows), targets.split(rows), strict=True):
        logits = _as_predicted(head(states).float(), model.config)
        losses.append(cross_entropy(logits, wanted.to(logits.device), reduction="none"))  # the head may be elsewhere
    return torch.cat(losses).view(ids.shape[0], -1)


def _as_predicted(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """What Granite and Gemma do to the logits after the vocabulary projection."""
    scaling = getattr(config, "logits_scaling", None)
    cap = getattr(config, "final_logit_softcapping", None)
    if scaling:
        logits = logits / scaling
    return torch.tanh(logits / cap) * cap if cap else logits
