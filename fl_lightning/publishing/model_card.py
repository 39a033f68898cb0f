"""The model card of an adapter, or of a model that an adapter was merged into."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fl_lightning.config import RunConfig
from fl_lightning.publishing.method_text import method_of
from fl_lightning.publishing.repo_names import UNNAMED, in_adapter_config
from fl_lightning.publishing.run_facts import AdapterFacts

FIGURES = {
    "loss": ("loss", "loss"),
    "perplexity": ("perplexity", "perplexity"),
    "token_accuracy": ("accuracy", "token accuracy"),
}
"""{figure of a run: (the Hub's metric, what it is called)}."""

LEAKS = """What is trained on records can give parts of them away: it may complete texts that it saw, and from its
losses it can be guessed whether a text was among them. The fewer clients and records stand behind it, and the longer it
was trained, the more so. No text of a record is in this repository"""


@dataclass(frozen=True)
class Subject:
    """What a card is about, besides the figures.

    Attributes:
        repository: its id on the Hub.
        base: the base model's id on the Hub; None where it is not known.
        licence: an identifier of the Hub; None where none was named.
        merged: whether the repository holds a whole model and no adapter.
        r: the adapter's rank.
        targets: names of the layers that it adapts.
    """

    repository: str
    base: str | None
    licence: str | None
    merged: bool
    r: int
    targets: tuple[str, ...]


def model_card(config: RunConfig, facts: AdapterFacts, subject: Subject) -> str:
    """The text of README.md, its metadata at the top.

    Args:
        config: of the run.
        facts: of the adapter.
        subject: what else there is to say.
    """
    title = subject.repository.rpartition("/")[2]
    parts = [
        f"---\n{_metadata(facts, subject).to_yaml()}\n---",
        f"# {title}\n\n{_summary(config, facts, subject)}",
        f"## Use\n\n```python\n{_snippet(config, subject)}\n```",
        f"## Figures\n\n{_figures(facts)}",
        f"## Training\n\n{_training(config, facts, subject)}",
        f"## Privacy\n\n{_leaks(facts)}\n\n{_differential(config, facts)}",
        f"## Licence\n\n{_licence(subject)}",
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _metadata(facts: AdapterFacts, subject: Subject) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="private",
            dataset_name=f"held-out records of {facts.name}",
            metric_type=FIGURES[figure][0],
            metric_name=FIGURES[figure][1],
            metric_value=round(value, 4),
        )
        for figure, value in facts.final.items()
        if figure in FIGURES
    ]
    relation = "finetune" if subject.merged else "adapter"
    return ModelCardData(
        base_model=subject.base,
        library_name="transformers" if subject.merged else "peft",
        license=subject.licence,
        model_name=subject.repository.rpartition("/")[2],
        pipeline_tag="text-generation",
        tags=["lora", "federated-learning", "fl_lightning"],
        eval_results=results or None,
        base_model_relation=relation if subject.base else None,
    )


def _summary(config: RunConfig, facts: AdapterFacts, subject: Subject) -> str:
    if subject.base:
        base = f"[{subject.base}](https://huggingface.co/{subject.base})"
    elif in_adapter_config(config.model, None) == UNNAMED:
        base = f"a model that was not named (`{UNNAMED}` in adapter_config.json stands for it)"
    else:
        base = "the tiny model inside the Python package fl_lightning"
    what = f"{base} with a LoRA adapter merged into its weights" if subject.merged else f"A LoRA adapter for {base}"
    made = "trained by federated averaging: the clients' adapters were pooled, and not their records"
    if facts.kind == "client":
        made = (
            f"the own adapter of the client `{facts.name}` of a federated run, after its last fit and before averaging"
        )
    elif config.federation.share == "central":
        made = "trained on all records in one place"
    elif config.federation.share == "none":
        made = "the mean of the clients' adapters, which were trained apart from each other"
    whose = "" if facts.kind == "client" else f", for the {facts.kind} `{facts.name}`"
    return f"{what[0].upper()}{what[1:]}{whose}; {made}."


def _snippet(config: RunConfig, subject: Subject) -> str:
    if subject.merged:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{subject.repository}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{subject.repository}")'
        )
    bundled = subject.base is None and in_adapter_config(config.model, None) != UNNAMED
    first = "from fl_lightning.bundled import resolve\n" if bundled else ""
    name = f'resolve("{config.model.name_or_path}")' if bundled else f'"{subject.base or UNNAMED}"'
    note = "  # put the base model here" if name == f'"{UNNAMED}"' else ""
    return (
        f"{first}from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = {name}{note}\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "{subject.repository}")\n'
        "tokenizer = AutoTokenizer.from_pretrained(base)"
    )


def _figures(facts: AdapterFacts) -> str:
    rows = [
        [called, _number(facts.base.get(figure)), _number(facts.final.get(figure))]
        for figure, (_, called) in FIGURES.items()
        if figure in facts.final
    ]
    if not rows:
        return "The run has no evaluation of it."
    count = "" if facts.held_out is None else f"{facts.held_out:,} "
    own = "its client" if facts.kind == "client" else f"the {facts.kind}'s clients"
    return f"On {count}held-out records of {own}, on response tokens:\n\n" + _table(["", "base", "this"], rows)


def _training(config: RunConfig, facts: AdapterFacts, subject: Subject) -> str:
    rounds = (
        str(facts.rounds)
        if facts.planned_rounds in (None, facts.rounds)
        else f"{facts.rounds} of {facts.planned_rounds}"
    )
    rows = [["rounds", rounds]]
    if facts.kind == "group":
        rows.append(["departments in the group", str(facts.departments)])
    if facts.clients:
        rows.append(["clients", str(facts.clients)])
    if facts.examples is not None:
        rows.append(["training records", f"{facts.examples:,}"])
    if facts.kind == "department" and facts.departments > 1:
        rows.append(["departments in the federation", str(facts.departments)])
    rows.append(["adapter", f"rank {subject.r} on {', '.join(f'`{target}`' for target in subject.targets)}"])
    rows.extend([what, chosen] for what, chosen in method_of(config, facts))
    if facts.rejected:
        rows.append(["updates left out", str(facts.rejected)])
    if config.model.load_in_4bit:
        rows.append(["base during training", "quantised to 4 bits (NF4)"])
    return _table(["", ""], rows) + "\n\nMade with fl_lightning."


def _leaks(facts: AdapterFacts) -> str:
    return f"{LEAKS}{'' if facts.kind == 'client' else ', and no name of a client'}."


def _differential(config: RunConfig, facts: AdapterFacts) -> str:
    privacy = config.federation.privacy
    if config.federation.guard.name != "dp":
        return "Differential privacy was off: nothing bounds what can be learnt about a client or a record."
    if facts.kind == "client":
        return (
            "The federation averaged with differential privacy, which does not cover this adapter: it is what the "
            "client trained, without noise."
        )
    spent = (
        "ε is not in the run folder" if facts.epsilon is None else f"ε = {facts.epsilon:.3g} at δ = {privacy.delta:g}"
    )
    said = (
        f"Differential privacy for whole clients (DP-FedAvg) was on: {spent}, noise multiplier "
        f"{privacy.noise_multiplier:g}. It covers the weights, against everybody but the server; not the numbers of "
        "clients and records, and not the figures above, which were measured without noise."
    )
    if privacy.noise_seed is not None:
        said += " The noise was drawn from a seed of the config: whoever knows the seed is not bound by ε."
    return said


def _licence(subject: Subject) -> str:
    if subject.licence is None:
        return "No licence was named with this upload. The base model's licence goes for what is made of it as well."
    return f"`{subject.licence}`. The base model's licence goes for what is made of it as well."


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
