"""Bytes on disk and between processes; nothing here knows federated learning.

==================  =====================================================================
file                does
==================  =====================================================================
files               atomic writes, secrets, the one reader of UTF-8 files, safe names
manifest            digests of a folder or of a block of bytes, and their check
tensors             LoRA states in safetensors files
messages            a JSON header and LoRA states as bytes
block_file          a file of blocks that several processes append to and find by key
offload             states on disk while a round waits
background_writer   one writing thread
forgotten           the mark of a run whose adapters are used no more
record_digest       digests of records, by which they are named without their text
run_folder          ``version_N``: made, found, locked
run_layout          the name of every file and folder in a run
run_adapters        a run's adapters by name, from its indexes
model_names         the names of a run's models, as commands take them
personal_models     mixtures of adapters, of departments and those that `personalize` has made
components          names and weights of the adapters that a client mixes
==================  =====================================================================
"""
