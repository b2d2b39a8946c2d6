"""The commands that `same.py` runs by two revisions, and the tiny model and text that most of them take.

Defaults and presets may differ between revisions, so each command names the options of all groups that it uses.
Hyperparameters stand at their defaults where these are not meant to change, so that a value that is lost on the way
shows. `choice(3)` is an axis of one value: a plain one would have to suit the default option of its group as well.
"""

import random
from pathlib import Path

ALL = "seed=0 tracker=none model.device=cpu evaluation.latency.repeats=0"
SMOLLM = f"""{ALL} model=smollm2_135m task=wikipedia task.calibration.count=64 granularity=head_channel
    evaluation=perplexity evaluation.lengths=[128] evaluation.max_tokens=1024 export=hf hydra.run.dir=run"""
SST2 = "seed=0 model.device=cpu model=minilm_l6 task=glue/sst2 task.origin=embedded task.max_length=64"
TINY = f"""{ALL} model=smollm2_135m model.source=../../inputs/tiny model.name=tiny model.dtype=float32
    model.search_dtype=float32 task=text task.files=[../../inputs/stories.txt] task.bos=text task.calibration.count=48
    task.calibration.length=32 evaluation.lengths=[64] evaluation.max_tokens=1024 evaluation.one_shot=[global]
    evaluation.fresh_process=false importance.sequences=48"""
JOBS = f"-m {TINY} evaluation=perplexity export=hf hydra.sweep.dir=runs hydra.sweep.subdir=${{hydra.job.num}}"
QUICK = ("doctor", "tunings", "searches")

CASES: dict[str, tuple[str, ...]] = {
    "doctor": ("doctor model=smollm2_135m task=wikipedia budget=rate budget.sequence_length=128",),
    "demo": (
        f"""experiment=demo {SMOLLM} task.bos=auto task.calibration.length=64 budget=rate budget.keep=0.8
        importance=taylor importance.sequences=32 optimizer=straight_through optimizer.steps=6 tuning=none
        evaluation.one_shot=[global,per_layer] evaluation.fresh_process=true""",
    ),
    "ours_forward": (
        f"""method=ours_forward {SMOLLM} task.bos=text task.calibration.length=32 budget=flops budget.keep=0.7
        importance.sequences=32 tuning.sequences=32 evaluation.one_shot=[] evaluation.fresh_process=false""",
    ),
    "encoder": (
        f"""finetune {SST2} evaluation=none task.calibration.count=512 training.epochs=1 training.learning_rate=3e-4
        hydra.run.dir=tuned""",
        f"""method=gpruner {SST2} {ALL} model.source=tuned/checkpoint task.calibration.count=256
        granularity=head_channel budget=flops budget.keep=0.6 importance=fisher importance.sequences=128 optimizer=ppo
        optimizer.iterations=3 optimizer.episodes=4 optimizer.examples=32 tuning=cg2 tuning.sequences=64
        evaluation=perplexity evaluation.one_shot=[] evaluation.fresh_process=false export=hf hydra.run.dir=run""",
    ),
    "sweep": (
        f"""sweep smoke {TINY} method=magnitude,wanda_sp,flap,llm_pruner,ours granularity=head_channel budget=rate
        budget.keep=0.6 evaluation=zero_shot evaluation.zero_shot.tasks=[arc_easy,piqa] evaluation.zero_shot.limit=4
        export=none hydra.sweep.dir=sweep""",
    ),
    "one_shot": (
        f"""{JOBS} method=random,magnitude,wanda_sp,llm_pruner,taylor,flap granularity=head_channel budget=params,rate
        budget.keep=0.7 tuning=bias_compensation tuning.sequences=48""",
    ),
    "searches": (
        f"""{JOBS} method=pg_paper,pg_released,pg_released_brief,policy_gradient,ours,evolution,gumbel
        optimizer.steps=choice(3) granularity=head_channel budget=flops budget.keep=0.6 tuning=lsmr
        tuning.sequences=48""",
    ),
    "tunings": (
        f"""{JOBS} optimizer=kwon importance=fisher granularity=head_channel budget=flops budget.keep=0.6
        tuning=cg2,lsmr,reconstruct,bias_compensation tuning.sequences=choice(48)""",
        "apply runs/0/plan.json output=applied/checkpoint",
        """evaluate runs/2 seed=0 model.device=cpu evaluation=perplexity evaluation.lengths=[64]
        evaluation.max_tokens=1024 evaluation.latency.repeats=0 hydra.run.dir=evaluated""",
    ),
    "layers": (
        f"{JOBS} method=sleb,block_influence granularity=layer budget=rate budget.keep=0.5 tuning=none",
        f"""{JOBS} hydra.sweep.dir=finer granularity=sublayer,all,head,channel budget=params budget.keep=0.6
        importance=taylor optimizer=policy_gradient optimizer.steps=choice(3) tuning=none""",
    ),
    "hidden": (
        f"""{JOBS} granularity=hidden budget=params budget.keep=0.75 importance=fisher,magnitude
        optimizer=straight_through,evolution optimizer.steps=choice(3) tuning=none""",
    ),
}

STORY = ["farmer", "clerk", "boat", "letters", "river", "station", "carried", "old", "three", "small", "before", "rain"]


def make_inputs(folder: Path) -> None:
    """Write a random Llama of four layers with a tokenizer of bytes (tiny/), and stories.txt: the same every time."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, logging

    logging.disable_progress_bar()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokens = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bare = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, model_max_length=2048, **special)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(4)  # so that a mask shows in the loss
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    chance = random.Random(0)
    stories = [f"Story {number}. {' '.join(chance.choices(STORY, k=30))}." for number in range(200)]
    (folder / "stories.txt").write_text("\n\n".join(stories), encoding="utf-8")
