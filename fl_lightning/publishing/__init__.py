"""A run's adapters, or models with an adapter merged in, on the Hugging Face Hub.

=============== ===========================================================
file            does
=============== ===========================================================
`run_facts`     metrics and counts of one adapter, from its run folder
`method_text`   the method of a run in words, from its config
`model_card`    README.md of a repository
`export_folder` the folder with all files of a repository
`repo_names`    names of repositories, base models and licences
`hub`           uploads, with retries
=============== ===========================================================
"""
