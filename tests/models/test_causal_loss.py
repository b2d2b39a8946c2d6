"""Token losses in chunks against cross-entropy on whole logits."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from policyprune.models import causal_loss


@pytest.mark.parametrize("positions_per_chunk", [1, 5, 1000])
def test_chunks_do_not_change_the_losses(
    tiny_llama: Any, positions_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(causal_loss, "CHUNK_ELEMENTS", positions_per_chunk * model.config.vocab_size)
    ids = torch.randint(3, 300, (3, 8))
    losses = causal_loss.token_losses(model, ids)
    logits = model(ids).logits[:, :-1]
    expected = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert losses.shape == (3, 7)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
