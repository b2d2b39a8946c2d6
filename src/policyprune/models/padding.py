"""Models that read a class off the last token of a text have to know which tokens are padding."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policyprune.errors import UsageError


def settle_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a decoder with a classifier the tokenizer's padding token, in memory and in what is written of both.

    A tokenizer without one gets a special token that no text ends with. UsageError where there is none.
    """
    if not hasattr(model, "score"):  # what transformers calls the classifier of its decoders
        return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _spare(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id


def _spare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
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
