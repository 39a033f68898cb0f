"""The commands of the command line, one a file: each has `run`, which takes the arguments and gives the exit code."""

COMMANDS = {
    "init": ("--output FILE", "write a config with every key and a comment for each"),
    "doctor": ("--config FILE", "versions, device, precision, disk, and whether a config fits into memory"),
    "fit": ("--config configs/default.yaml", "train; --resume last|RUN continues a run"),
    "evaluate": ("--run RUN", "(re)write a run's evaluation, or judge any adapters on any records"),
    "report": ("--run RUN", "pictures of a run and one self-contained HTML page"),
    "serve": ("--run RUN", "the adapters of a run behind OpenAI's chat API, next to each other"),
    "chat": ("--run RUN --model hr", "talk to one of them here"),
    "merge": ("--run RUN", "base and adapter of each department as one model for plain transformers"),
    "push": ("--run RUN --repo-prefix ORG/NAME", "adapters and their model cards to the Hugging Face Hub"),
    "server": ("--config configs/default.yaml", "the same run with clients on other machines; --resume last|RUN"),
    "client": ("--department hr --client client_0", "take part in it with the records here"),
    "certs": ("--sites hr/client_0 hr/client_1", "make certificates and keys for a run between machines"),
    "compare": ("--config A.yaml B.yaml --seeds 3", "run configs with several seeds and compare them"),
    "runs": ("--output DIR", "list runs, how far they came and their final figures"),
    "partition": ("SOURCE --by COLUMN --output DIR", "deal a file or data set out to departments and clients"),
    "inspect": ("--data DIR", "look for bad lines, duplicates and leaks in a folder of departments"),
    "completion": ("bash|zsh", "print a script that completes commands and options on Tab"),
}
"""{command: (its main options, what it does)}; there is a module of this package for each."""
