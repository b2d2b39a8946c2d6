"""transformers' Trainer as a recovery uses it: its loss, its pace, and where a killed process is gone on from."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState, TrainingArguments

from policyprune.config.schema import Trained
from policyprune.models.device import search_dtype_of
from policyprune.processes import processes
from policyprune.recovery.devices import shards_weights, trained_weights
from policyprune.recovery.losses import Batch, divergence, hidden_distance, task_loss
from policyprune.recovery.material import BATCH, Material
from policyprune.recovery.pace import Pace, judgements

log = logging.getLogger(__name__)
STATE, WEIGHTS = "trainer_state.json", "model.safetensors"  # names that the Trainer looks for
NEVER = 1 << 30  # steps
LOGGED = 10  # steps between two logs of the loss


@dataclass(frozen=True)
class Teacher:
    """The dense model, and which of its layers each of the smaller model's answers to, where these are compared."""

    model: PreTrainedModel
    layers: Sequence[int]


class Teaching(Trainer):
    """Trains a model on the task's loss and on its distances from a teacher; it is judged by the task's loss alone."""

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        material: Material,
        pace: Pace,
        teacher: Teacher | None,
        options: Trained,
    ) -> None:
        super().__init__(
            model,
            arguments,
            train_dataset=material.training,
            eval_dataset=material.held_out,  # type: ignore[arg-type]
            data_collator=material.collate,
            callbacks=[pace],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # a mean over the batch, which is divided by the batches of a step
        self._teacher, self._pace = teacher, pace
        self._share = options.task_share(material.labelled)
        assert teacher is not None or self._share == 1
        self._temperature = getattr(options, "temperature", 1.0)
        self._hidden = getattr(options, "hidden_loss", 0.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """A batch's loss; in eval mode it is the task's."""
        arguments = {name: tensor for name, tensor in inputs.items() if name != "labels"}
        teacher = self._teacher if model.training else None
        hidden = {"output_hidden_states": True} if teacher is not None and self._hidden else {}
        out = model(**arguments, **hidden)
        share = self._share if model.training else 1.0
        loss = share * task_loss(out, inputs) if share else torch.zeros((), device=inputs["labels"].device)
        if teacher is not None:
            with torch.no_grad():
                of_dense = teacher.model(**arguments, **hidden)
            if share < 1:
                loss = loss + (1 - share) * divergence(out, of_dense, inputs, self._temperature)
            if hidden:
                loss = loss + self._hidden * hidden_distance(out, of_dense, inputs, teacher.layers)
        return (loss, {"loss": loss}) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """The learning rate goes with the pace."""
        if self.lr_scheduler is None:
            device = self.args.device
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = LambdaLR(
                optimizer,
                lambda steps: self._pace.rate(steps, self.state.num_input_tokens_seen, device),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that are trained, once, and whole also where the processes have parts of them."""
        assert output_dir is not None
        assert isinstance(self.model, nn.Module)
        trained = trained_weights(self.model)
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(trained, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if shards_weights():  # the Trainer wrote them beside the optimizer's parts
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        assert isinstance(self.model, nn.Module)
        load_trained(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """Nothing: it stays on the disk, for `load_trained`."""

    def teach(self) -> TrainerState:
        """Train, from where an earlier process saved, to the end; the state names the checkpoint with the least
        held-out loss."""
        folder = Path(str(self.args.output_dir))
        last = last_whole(folder)
        if last is None:
            self.args.eval_on_start = True
            self.train()
            return self.state
        state = TrainerState.load_from_json(str(last / STATE))
        self._pace.go_on(state)
        log.info("the training goes on after step %d", state.global_step)
        if judgements(state)[-1]["ended"]:
            self.state = state
        else:
            self.train(resume_from_checkpoint=str(last))
        return self.state


@torch.no_grad()
def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Give a model the weights that were trained, in the data types that it has."""
    parameters = dict(model.named_parameters())
    for name, trained in load_file(checkpoint / WEIGHTS).items():
        parameters[name].copy_(trained)


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was saved to its end: the state is written last, but for what other processes write."""
    return max(_whole(folder), key=_number, default=None)


def _whole(folder: Path) -> Iterator[Path]:
    for path in folder.glob("checkpoint-*"):
        try:
            TrainerState.load_from_json(str(path / STATE))
        except (OSError, ValueError, TypeError):
            continue
        if all(map(is_zipfile, _random_states(path))):
            yield path


def _random_states(checkpoint: Path) -> list[Path]:
    """The random numbers of the process that saved, or of each of several."""
    alone = checkpoint / "rng_state.pth"
    return [alone] if alone.exists() else [checkpoint / f"rng_state_{rank}.pth" for rank in range(processes())]


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def computes_in_bfloat16(choice: str, device: torch.device) -> bool:
    """Whether a training computes in bfloat16 beside its float32 weights: `auto` where the device is made for it."""
    if choice != "auto":
        return choice == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return search_dtype_of("auto", torch.float32, device) == torch.bfloat16


CHECKPOINTING = next(  # its name changed with transformers 5.2x
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def base_arguments(folder: Path, device: torch.device, seed: int, bf16: bool, **more: Any) -> TrainingArguments:
    """Settings of any training here: on one device in each process, silent."""
    on_cpu = device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        bf16=bf16,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and processes() > 1 else None,
        dataloader_pin_memory=not on_cpu,
        report_to=[],
        disable_tqdm=True,
        save_total_limit=2,
        **more,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # or a batch for each GPU that is visible
    return arguments


def arguments_of(
    options: Trained, material: Material, folder: Path, device: torch.device, rate: float, seed: int
) -> TrainingArguments:
    """Settings of a recovery: it is judged, saved and ended by its pace."""
    batch = options.batch_size or BATCH[material.labelled]
    return base_arguments(
        folder,
        device,
        seed,
        computes_in_bfloat16(options.dtype, device),
        learning_rate=rate,
        weight_decay=options.weight_decay,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=options.accumulate,
        **{CHECKPOINTING: options.gradient_checkpointing, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
        max_steps=options.limits[0] or NEVER,
        logging_steps=LOGGED,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=NEVER,
        save_strategy="steps",
        save_steps=NEVER,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        prediction_loss_only=True,
        label_names=["labels"],
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding" if material.labelled else "all",
        accelerator_config={"dispatch_batches": False},
    )
