"""What the command line says of itself: the text of `--help`, and tab completion behind a verb."""

import os
from textwrap import fill

from policyprune.config.registry import groups, options, sweeps

USAGE = {  # verb -> what may stand behind it, and what it does
    "run": ("[method=NAME] [group=option] [key=value] ...", "prune a model, write the smaller one, measure both"),
    "sweep": (
        "[NAME [key=value,value] ... [--dry-run]]",
        "make the runs of a table that are not finished; list the sweeps",
    ),
    "finetune": ("[model=option] [task=option] [training.key=value] ...", "train an encoder on a task, to be pruned"),
    "recover": ("MODEL [recovery=option] [recovery.seconds=N] [teacher=SOURCE] ...", "train a pruned model back"),
    "evaluate": ("MODEL [task=option] [evaluation=option] ...", "measure a model again"),
    "export": ("MODEL format=hf|onnx|gguf|plan [dtype=f16] [output=PATH]", "write a model in another format"),
    "apply": ("plan.json [model=option] [output=PATH]", "prune a dense model as a plan says"),
    "doctor": ("[model=option] [model.source=PATH] | --families", "show what can be pruned, check that it is exact"),
    "report": ("FOLDER ... [--table NAME] [--output FOLDER] [--wandb]", "make tables and plots of all runs in folders"),
}
TEXT = """\
policyprune: structured pruning of transformer language models by policy search

usage: policyprune [verb] [group=option] [key=value] ...

verbs (without one: run):
{verbs}

MODEL is the folder of a run, a checkpoint, or a name on the Hugging Face hub.

A run writes into outputs/<name>: the smaller model, the mask, the search curve, the log, and record.json with all
numbers. The same command again shows them; an interrupted run goes on where it stopped.
`method=NAME` sets importance, optimizer and tuning together; without it they are those of method=ours.

examples:
  policyprune budget.keep=0.7
  policyprune model=llama2_7b task=c4 method=pg_paper
  policyprune -m budget.keep=0.9,0.8,0.7 method=ours,flap,wanda_sp
  policyprune sweep smoke --dry-run
  policyprune finetune model=minilm_l6 task=glue/sst2
  policyprune recover outputs/<name> recovery.seconds=600
  policyprune evaluate outputs/<name> evaluation=zero_shot
  policyprune doctor model=qwen3_8b

flags:
  -m, --multirun           several runs: give values with commas, as in budget.keep=0.9,0.8
  --cfg job                show the config, run nothing
  --info                   show where the config comes from
  --version                show the version
  --hydra-help             show Hydra's own flags

settings that are in no group:
  seed=N                   of the search and of what is drawn from the data
  force=true               run again although a finished run of the same config is there
  hydra.run.dir=FOLDER     write there
  hydra/launcher=workers   several runs at a time, with -m or sweep; slurm: on a cluster (policyprune[cluster])

groups and their options:
{groups}

tab completion: eval "$(policyprune -sc install=bash)"
"""


def help_text() -> str:
    """The help page, with the options that are found in conf/."""
    verbs = [f"  {verb:<9} {words}\n  {'':<9} {meaning}" for verb, (words, meaning) in USAGE.items()]
    lines = [
        fill(", ".join(options(group)), 100, initial_indent=f"  {group:<14}", subsequent_indent=" " * 16)
        for group in groups()
    ]
    return TEXT.format(verbs="\n".join(verbs), groups="\n".join(lines))


def complete(arguments: list[str]) -> bool:
    """Print the words that the command line may go on with, where Hydra cannot; True when that was all.

    Hydra completes group=option, and knows no verbs and no sweeps: the verb and a sweep's name are taken out of the
    line that it is going to complete.
    """
    line = os.environ.get("COMP_LINE")
    if line is None or not any(argument.startswith("query=") for argument in arguments):
        return False
    program, *words = line.split(" ")
    begun = words.pop() if words else ""
    if not words and "=" not in begun:
        _print_matching(list(USAGE), begun)
        return False  # Hydra adds the groups
    if words == ["sweep"]:
        _print_matching(list(sweeps()), begun)
        return True
    if words and words[0] in USAGE:
        taken = 2 if words[0] == "sweep" else 1
        os.environ["COMP_LINE"] = " ".join([program, *words[taken:], begun])
    return False


def _print_matching(words: list[str], begun: str) -> None:
    for word in words:
        if word.startswith(begun):
            print(word)
