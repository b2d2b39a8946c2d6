"""The text of `policyprune --help`."""

from textwrap import fill

from policyprune.config.options import groups, options

TEXT = """\
policyprune: structured pruning of transformer language models by policy search

usage: policyprune [run] [group=option] [key=value] ...
       policyprune sweep [<name> [group=option] [key=value,value] ... [--dry-run]]
       policyprune finetune [model=option] [task=option] [training.key=value] ...
       policyprune evaluate <run folder, checkpoint or hub id> [task=option] [evaluation=option] ...
       policyprune export <run folder, checkpoint or hub id> format=hf|onnx|gguf|plan [dtype=f16] [output=PATH]
       policyprune apply <plan.json> [model=option] [output=PATH]
       policyprune report FOLDER ... [--table NAME] [--output FOLDER] [--wandb]
       policyprune doctor [model=option] [model.source=...]
       policyprune doctor --families

A run searches which attention heads and FFN channels to keep, writes the smaller model and measures it.
Its folder, outputs/<name>, holds the checkpoint, the mask, the search curve, the log and record.json.
A sweep runs what is not finished of a table's runs and makes the table; without a name the sweeps are listed.
The report makes tables (Markdown, LaTeX, CSV, HTML) and plots of all runs below the folders, beside published values.
The doctor shows what it finds in a model's config (units, costs, what stays dense) and checks pruning on random
weights; it needs no others. With --families it checks every known family.

groups and their options:
{groups}

flags:
  --cfg job                show the composed config, run nothing
  -m, --multirun           several runs: give comma-separated values, as in budget.keep=0.9,0.8
  hydra/launcher=workers   the jobs of a sweep in several processes; slurm: on a cluster (extra policyprune[cluster])
  force=true               run again although a finished run of the same config is there
  hydra.run.dir=FOLDER     write there
  --hydra-help             the flags of Hydra itself
  --info                   where the configuration came from

examples:
  policyprune budget.keep=0.7 optimizer.steps=200
  policyprune model=llama2_7b task=c4 optimizer=policy_gradient_paper
  policyprune finetune model=minilm_l6 task=glue/sst2
  policyprune doctor model=qwen3_8b
  policyprune sweep smoke
  policyprune sweep paper/pg_heads_channels model=llama2_7b --dry-run
  policyprune -m budget.keep=0.9,0.8,0.7 optimizer=one_shot,policy_gradient

tab completion: eval "$(policyprune -sc install=bash)"
"""


def help_text() -> str:
    """The help page with the options found in conf/."""
    lines = [
        fill(", ".join(options(group)), 100, initial_indent=f"  {group:<14}", subsequent_indent=" " * 16)
        for group in groups()
    ]
    return TEXT.format(groups="\n".join(lines))
