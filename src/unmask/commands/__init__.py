"""One file a command: its options, and the call that does it."""

COMMANDS = {
    "data": "what a folder of images holds, and what pre-training would choose for it",
    "pretrain": "turn a folder of images into an encoder",
    "import": "weights of others as an encoder: authors' checkpoints, timm, transformers",
    "export": "an encoder for others: timm, transformers, ONNX, torch.export",
    "evaluate": "what an encoder is worth: kNN, linear probe",
    "compare": "encoders or methods side by side on labelled images",
    "embed": "the features of images as a file: parquet, .npy or .safetensors",
    "search": "the images that are nearest to another one, in a file of features",
    "duplicates": "groups of images that are nearly the same, in a file of features",
    "replay": "take a step again that was left out because it was not finite",
    "report": "write the page about a run",
    "methods": "the table of methods",
    "show": "every knob of a method: type, default, meaning, source",
    "recipes": "ready-made configurations",
    "verify": "replay the authors' golden vectors",
    "shard": "images as tar shards, for large sets and for networks",
    "tokenizer": "train an image tokenizer for the BEiT family",
    "submit": "pre-train on a SLURM cluster, and go on by itself after preemption",
    "bench": "how fast this machine trains, what bounds it, and what to do about it",
    "doctor": "what is installed, what this machine can do, and what is missing for which feature",
    "completion": "a script by which bash, zsh or fish complete command lines",
}

MODULES = {"import": "weights_in"}
"""Where a command's module has another name: some words are Python's own."""
