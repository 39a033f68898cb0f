"""The commands of the command line, one per file: each has `run`, from arguments to the exit code."""

COMMANDS = {
    "init": ("--output FILE", "write a config with every key and a comment for each"),
    "doctor": ("--config FILE", "versions, device, precision, disk, and whether a config fits into memory"),
    "fit": ("--config configs/default.yaml", "train; --resume last|RUN continues a run"),
    "evaluate": ("--run RUN", "rewrite a run's evaluation, or evaluate any adapters on any records"),
    "personalize": ("--run RUN", "give each client its own, a shared or a mixed adapter, by its selection records"),
    "forget": (
        "--run RUN --client hr/client_1",
        "take clients, departments or records out of a run, with a certificate",
    ),
    "audit": ("--run RUN", "bound from below what a run's adapters tell, by canaries and membership tests"),
    "report": ("--run RUN", "one self-contained HTML page about a run, with pictures"),
    "serve": ("--run RUN", "serve all adapters of a run by OpenAI's chat API"),
    "chat": ("--run RUN --model hr", "chat with an adapter in the terminal"),
    "merge": ("--run RUN", "merge base model and adapter of each department into one model for plain transformers"),
    "push": ("--run RUN --repo-prefix ORG/NAME", "upload adapters and model cards to the Hugging Face Hub"),
    "server": ("--config configs/default.yaml", "run with clients on other machines; --resume last|RUN continues it"),
    "client": ("--department hr --client client_0", "take part in such a run with the records on this machine"),
    "certs": ("--sites hr/client_0 hr/client_1", "make certificates and keys for a run over several machines"),
    "compare": ("--config A.yaml B.yaml --seeds 3", "run configs with several seeds and compare them"),
    "runs": ("--output DIR", "list runs with their progress and final metrics"),
    "verify": ("--run RUN", "check the ledger of a run, its signature and its files, offline"),
    "partition": ("SOURCE --by COLUMN --output DIR", "divide a file or data set among departments and clients"),
    "inspect": ("--data DIR", "check a folder of departments for bad lines, duplicates and leaks"),
    "completion": ("bash|zsh", "print a script that completes commands and options on Tab"),
}
"""{command: (its main options, what it does)}; each is a module of this package."""
