"""A dense model, pruned as a plan says."""

from pathlib import Path

from policyprune.commands.export import check_free, head_class, load
from policyprune.config.schema import Applying
from policyprune.models.loading import skeleton_as
from policyprune.surgery import formats
from policyprune.surgery.plan import check_base
from policyprune.surgery.plan_file import read_plan


def apply(config: Applying) -> Path:
    """Write the checkpoint that a plan makes of its dense model, and return where it is."""
    plan = read_plan(Path(config.plan))
    path = Path(config.output) if config.output else Path(config.plan).parent / "applied"
    check_free(path, "hf", config.model.source)
    check_base(plan, skeleton_as(config.model, head_class(plan)))
    model, tokenizer = load(config.model, plan.base.head, plan)
    formats.write_format("hf", model, tokenizer, path, formats.Settings(config.max_shard_size, "f16"))
    print(path)
    return path
