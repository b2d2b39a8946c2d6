"""The dense model of a sweep is the same in every run: what was measured of it is kept in the user's cache folder."""

import hashlib
import json
import logging
from pathlib import Path

from transformers import PreTrainedModel

from policyprune.evaluation.measures import Measure
from policyprune.evaluation.quality import Quality
from policyprune.models.identity import identity_of
from policyprune.storage.files import write_whole

log = logging.getLogger(__name__)


def dense_measures(quality: Quality, model: PreTrainedModel, folder: Path, again: bool) -> list[Measure]:
    """Measures of the dense model: those in `folder` of the same model, test data and protocol, or new ones.

    The key is all that a number depends on, by content: weights, code, data, settings, versions, threads.
    `again`: measure whatever there is. Models with offloaded weights are always measured.
    """
    identity = quality.identity()
    if identity is None or any(parameter.is_meta for parameter in model.parameters()):
        return quality.of("dense", model)
    key = json.dumps([identity, identity_of(model)], sort_keys=True)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    if not again:
        try:
            rows = [Measure(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            pass  # not there yet, or not what we wrote
        else:
            log.info("the dense model was measured before in this way: %s", path)
            return rows
    measures = quality.of("dense", model)
    write_whole(path, (json.dumps(measures, indent=1) + "\n").encode())
    return measures
