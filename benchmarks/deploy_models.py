"""Models in torch with their exports for ONNX Runtime and llama.cpp, made where they are missing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policyprune.models.adapter import Adapter, adapt
from policyprune.models.library_messages import quiet
from policyprune.models.loading import converted
from policyprune.storage.sources import locate
from policyprune.surgery.formats import Settings, target, write_format
from policyprune.surgery.onnx import Decoding, graph_of, session


@dataclass(frozen=True)
class Deployed:
    """A float32 model and the folder of its exports."""

    model: Any
    tokenizer: Any
    adapter: Adapter
    folder: Path

    def file(self, form: str, dtype: str = "f32") -> Path:
        """An export, written if it is not there yet (each is there whole or not at all)."""
        settings = Settings("5GB", dtype)
        path = target(form, self.folder, settings)
        if not path.exists():
            with torch.inference_mode(False):
                write_format(form, self.model, self.tokenizer, path, settings)
        return path

    def onnx(self) -> tuple[Decoding, Any]:
        """The graph's names and shapes, and a session of ONNX Runtime."""
        graph = graph_of(self.model, self.adapter, False)
        assert isinstance(graph, Decoding)
        return graph, session(self.file("onnx") / "model.onnx")


def deployed(source: str | Path, folder: Path) -> Deployed:
    """Load what model.source takes; `folder` holds its exports."""
    quiet()
    where: Path | str = locate("source", str(source)) or str(source)
    if isinstance(where, Path) and where.suffix == ".gguf":
        where = converted(where)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, trust_remote_code=True).eval()
    return Deployed(model, AutoTokenizer.from_pretrained(where), adapt(model), folder)
