"""What Lightning's and Transformers' users write, and the key that it is here; only for the tail of a refusal."""

from __future__ import annotations

# Their word -> (key here, what differs). Words that are keys here do not stand in the table.
SYNONYMS: dict[str, tuple[str, str]] = {
    "learning_rate": ("trainer.lr", ""),
    "max_lr": ("trainer.lr", ""),
    "min_lr": ("trainer.final_ratio", "the last learning rate as a share of trainer.lr"),
    "lr_scheduler_type": ("trainer.final_ratio", "the schedule is warm-up, then a cosine down to this share"),
    "warmup_steps": ("trainer.warmup_ratio", "a share of all steps"),
    "per_device_train_batch_size": ("trainer.batch_size", "shared by all devices"),
    "train_batch_size": ("trainer.batch_size", "shared by all devices"),
    "per_device_eval_batch_size": ("trainer.eval_batch_size", ""),
    "gradient_accumulation_steps": ("trainer.micro_batch_size", "samples of one pass; a batch is made of several"),
    "accumulate_grad_batches": ("trainer.micro_batch_size", "samples of one pass; a batch is made of several"),
    "num_train_epochs": ("trainer.epochs", ""),
    "num_epochs": ("trainer.epochs", ""),
    "max_epochs": ("trainer.epochs", ""),
    "max_steps": ("trainer.epochs", "the number of steps follows from the samples and trainer.batch_size"),
    "max_grad_norm": ("trainer.clip_norm", ""),
    "gradient_clip_val": ("trainer.clip_norm", ""),
    "fp16": ("llm.dtype", "float16, bfloat16 or float32; the adapter is trained in float32"),
    "bf16": ("llm.dtype", "float16, bfloat16 or float32; the adapter is trained in float32"),
    "precision": ("llm.dtype", "float16, bfloat16 or float32; the adapter is trained in float32"),
    "torch_dtype": ("llm.dtype", "float16, bfloat16 or float32"),
    "default_root_dir": ("output_dir", ""),
    "save_dir": ("output_dir", ""),
    "run_name": ("name", ""),
    "experiment_name": ("name", ""),
    "random_seed": ("seed", ""),
    "manual_seed": ("seed", ""),
    "resume_from_checkpoint": ("resume", "the same command goes on by itself"),
    "ckpt_path": ("resume", "the same command goes on by itself; init=<run> starts from another run's adapter"),
    "overwrite_output_dir": ("overwrite", ""),
    "report_to": ("logger", "wandb, offline or none"),
    "log_every_n_steps": ("trainer.log_every_num_steps", ""),
    "logging_steps": ("trainer.log_every_num_steps", ""),
    "save_steps": ("trainer.save_every_num_steps", ""),
    "check_val_every_n_epoch": ("alignment.every_num_epochs", ""),
    "limit_val_batches": ("trainer.eval_samples", "a number of samples"),
    "max_eval_samples": ("trainer.eval_samples", ""),
    "dataloader_num_workers": ("trainer.num_workers", ""),
    "gpus": ("trainer.devices", "with trainer.accelerator=gpu"),
    "num_gpus": ("trainer.devices", "with trainer.accelerator=gpu"),
    "nnodes": ("trainer.num_nodes", ""),
    "device": ("trainer.accelerator", "auto, cpu, gpu or mps"),
    "group_by_length": ("trainer.group_lengths", ""),
    "max_seq_length": ("trainer.max_tokens", ""),
    "model_max_length": ("trainer.max_tokens", ""),
    "model_name_or_path": ("llm.path", "with llm=hf"),
    "model_name": ("llm.path", "with llm=hf"),
    "dataset_name": ("data", "data=hf_caption or hf_qa with data.path=<name>"),
    "use_peft": ("llm.train", "lora"),
    "lora_r": ("llm.lora_rank", "with llm.train=lora"),
}


def synonym(word: str) -> str:
    """'here it is trainer.lr' for the last part of a key; "" where the word is not in the table."""
    key, note = SYNONYMS.get(word.lower().replace("-", "_"), ("", ""))
    return f"here it is {key}" + (f" ({note})" if note else "") if key else ""
