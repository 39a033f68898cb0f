"""The commands of the command line, one a file: each has `run`, which takes the arguments and gives the exit code."""
