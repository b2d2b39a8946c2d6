"""What ONNX Runtime cannot run of a model."""

from transformers import PreTrainedModel


def obstacle(model: PreTrainedModel) -> str | None:
    """The reason in words; None where nothing is known to stand in the way."""
    if model.config.model_type == "falcon" and getattr(model.config, "alibi", False):
        return "Falcon's ALiBi is computed in bfloat16, which ONNX Runtime lacks"
    return None
