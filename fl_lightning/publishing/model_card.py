"""The model card of an adapter, or of a model that an adapter was merged into."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fl_lightning.config import RunConfig
from fl_lightning.publishing.method_text import describe_method
from fl_lightning.publishing.repo_names import UNNAMED_BASE, public_base_name
from fl_lightning.publishing.run_facts import AdapterFacts
from fl_lightning.runs.artifacts import PersonalResult

METRICS = {
    "loss": ("loss", "loss"),
    "perplexity": ("perplexity", "perplexity"),
    "token_accuracy": ("accuracy", "token accuracy"),
}
"""{metric of a run: (the Hub's metric, its name in the card)}."""

LEVELS = {
    "own": "trained by the client alone; all of them together, if it has several",
    "department": "of the client's department",
    "cluster": "mean of the departments in its cluster",
    "root": "of all departments together",
    "base": "none",
    "mates": "trained by other clients alone, all together",
}
"""{level of `personalize`: whose adapter it is}."""

MADE_OF = {
    "mixture": "those of all levels in the table, each with its weight (`Σ π B A`)",
    "svd": "those of all levels in the table, each with its weight (`Σ π B A`), truncated to the rank of one",
    "distillation": "those of all levels in the table: it was trained on the probabilities of their mixture",
}
"""{how an adapter was made of a mixture: what of}."""

LEAKS = """A model can reveal parts of its training records: it may complete texts that it has seen, and its losses
indicate whether a text was among them. The risk grows with fewer clients, fewer records and longer training. No text of
a record is in this repository"""


@dataclass(frozen=True)
class CardSubject:
    """The repository and adapter that a card describes.

    Attributes:
        repository: its id on the Hub.
        base: the base model's id on the Hub; None if unknown.
        licence: an identifier of the Hub; None if not given.
        merged: whether the repository has a merged model instead of an adapter.
        r: the adapter's rank.
        targets: names of the adapted layers.
        ends: ids of the tokens that end an answer, if the base's own generation config does not have all of them.
    """

    repository: str
    base: str | None
    licence: str | None
    merged: bool
    r: int
    targets: tuple[str, ...]
    ends: tuple[int, ...] = ()


def model_card(config: RunConfig, facts: AdapterFacts, subject: CardSubject) -> str:
    """The text of README.md, its metadata at the top.

    Args:
        config: of the run.
        facts: about the adapter.
        subject: the repository and the adapter.
    """
    title = subject.repository.rpartition("/")[2]
    parts = [
        f"---\n{_metadata(facts, subject).to_yaml()}\n---",
        f"# {title}\n\n{_summary(config, facts, subject)}",
        f"## Use\n\n```python\n{_snippet(config, subject)}\n```",
        f"## Metrics\n\n{_metrics(facts)}",
        *([] if facts.personal is None else [f"## Levels\n\n{_levels(facts.personal)}"]),
        f"## Training\n\n{_training(config, facts, subject)}",
        f"## Privacy\n\n{_leaks(facts)}\n\n{_differential(config, facts)}{_audit(facts)}",
        f"## Licence\n\n{_licence(subject)}",
    ]
    return str(ModelCard("\n\n".join(parts) + "\n"))


def _metadata(facts: AdapterFacts, subject: CardSubject) -> ModelCardData:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="private",
            dataset_name=f"held-out records of {facts.name}",
            metric_type=METRICS[name][0],
            metric_name=METRICS[name][1],
            metric_value=round(value, 4),
        )
        for name, value in facts.final.items()
        if name in METRICS
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


def _summary(config: RunConfig, facts: AdapterFacts, subject: CardSubject) -> str:
    if subject.base:
        base = f"[{subject.base}](https://huggingface.co/{subject.base})"
    elif public_base_name(config.model, None) == UNNAMED_BASE:
        base = f"a model without a public name (`{UNNAMED_BASE}` in adapter_config.json)"
    else:
        base = "the tiny model of the Python package fl_lightning"
    content = f"{base} with a LoRA adapter merged into its weights" if subject.merged else f"A LoRA adapter for {base}"
    training = "trained by federated averaging: the clients shared their adapters, not their records"
    if facts.personal is not None:
        training = f"the one adapter of client `{facts.name}` of a federated run, chosen by its own records"
    elif facts.kind == "client":
        training = f"the own adapter of client `{facts.name}` of a federated run, after its last fit, before averaging"
    elif config.federation.share == "central":
        training = "trained on all records together"
    elif config.federation.share == "none":
        training = "the mean of the clients' adapters, which were trained separately"
    owner = "" if facts.kind == "client" else f", for the {facts.kind} `{facts.name}`"
    return f"{content[0].upper()}{content[1:]}{owner}; {training}."


def _snippet(config: RunConfig, subject: CardSubject) -> str:
    if subject.merged:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{subject.repository}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{subject.repository}")'
        )
    bundled = subject.base is None and public_base_name(config.model, None) != UNNAMED_BASE
    bundled_import = "from fl_lightning.bundled import resolve\n" if bundled else ""
    name = f'resolve("{config.model.name_or_path}")' if bundled else f'"{subject.base or UNNAMED_BASE}"'
    ends = f"\nmodel.generation_config.eos_token_id = {list(subject.ends)}" if subject.ends else ""
    note = "  # put the base model here" if name == f'"{UNNAMED_BASE}"' else ""
    return (
        f"{bundled_import}from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = {name}{note}\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), "{subject.repository}")\n'
        f"tokenizer = AutoTokenizer.from_pretrained(base){ends}"
    )


def _metrics(facts: AdapterFacts) -> str:
    rows = [
        [label, _number(facts.base.get(name)), _number(facts.final.get(name))]
        for name, (_, label) in METRICS.items()
        if name in facts.final
    ]
    if not rows:
        return "The run has not evaluated it."
    count = "" if facts.held_out is None else f"{facts.held_out:,} "
    compared = "base"
    owner = "its client" if facts.kind == "client" else f"the {facts.kind}'s clients"
    if facts.personal is not None:
        own = _number(facts.personal.losses.get("own"))
        rows, compared = [[label, own, this] for label, _, this in rows], "the client's own adapter"
    return f"On the response tokens of {count}held-out records of {owner}:\n\n" + _table(["", compared, "this"], rows)


def _levels(result: PersonalResult) -> str:
    level = f"that of the level `{result.adapter_is}` alone, which was better on these records"
    made_of = MADE_OF.get(result.adapter_is, level)
    rows = [[level, LEVELS.get(level, ""), f"{weight:.0%}"] for level, weight in result.weights.items()]
    return (
        "Records of the client that have not trained have chosen between these adapters. This one is made of "
        f"{made_of}.\n\n" + _table(["level", "adapter", "weight"], rows)
    )


def _training(config: RunConfig, facts: AdapterFacts, subject: CardSubject) -> str:
    rounds = (
        str(facts.rounds)
        if facts.planned_rounds in (None, facts.rounds)
        else f"{facts.rounds} of {facts.planned_rounds}"
    )
    if facts.best_round is not None:
        rounds += f"; this adapter is of round {facts.best_round}, with the lowest loss on selection records"
    rows = [["rounds", rounds]]
    if facts.kind == "group":
        rows.append(["departments in the group", str(facts.departments)])
    if facts.clients and facts.personal is None:
        rows.append(["clients", str(facts.clients)])
    if facts.examples is not None:
        rows.append([f"training records{' of the client' if facts.personal else ''}", f"{facts.examples:,}"])
    if facts.kind == "department" and facts.departments > 1:
        rows.append(["departments in the federation", str(facts.departments)])
    rows.append(["adapter", f"rank {subject.r} on {', '.join(f'`{target}`' for target in subject.targets)}"])
    rows.extend([part, choice] for part, choice in describe_method(config, facts))
    if facts.rejected:
        rows.append(["excluded updates", str(facts.rejected)])
    if config.model.load_in_4bit:
        rows.append(["base during training", "quantized to 4 bits (NF4)"])
    return _table(["", ""], rows) + "\n\nMade with fl_lightning."


def _leaks(facts: AdapterFacts) -> str:
    return f"{LEAKS}{'' if facts.kind == 'client' else ', and no name of a client'}."


def _differential(config: RunConfig, facts: AdapterFacts) -> str:
    privacy = config.federation.privacy
    if config.federation.guard.name != "dp":
        return "Differential privacy was off: there is no bound on what can be learned about a client or a record."
    if facts.kind == "client":
        return (
            "The federation averaged with differential privacy, which does not cover this adapter: "
            + ("it has parts that were trained" if facts.personal else "it is the client's own,")
            + " without noise."
        )
    spent = (
        "ε is unknown (it is not in the run folder)"
        if facts.epsilon is None
        else f"ε = {facts.epsilon:.3g} at δ = {privacy.delta:g}"
    )
    whom = (
        f"everybody, a server with {privacy.curious_clients} of the clients included, since clients add the noise "
        "in shares of masked sums; but not against whoever runs all of them in one process"
        if config.federation.noise_in_shares
        else "everybody but the server"
    )
    text = (
        f"Differential privacy for whole clients (DP-FedAvg) was on: {spent}, noise multiplier "
        f"{privacy.noise_multiplier:g}. It protects the weights against {whom}. It does not protect "
        "the numbers of clients and records, nor the metrics above, which were measured without noise."
    )
    if privacy.noise_seed is not None:
        text += " The noise was drawn from a seed in the config: ε does not hold against anybody who knows the seed."
    return text


def _audit(facts: AdapterFacts) -> str:
    """What an audit has found; empty without one."""
    text = ""
    if (bound := facts.bound) is not None:
        text += (
            f"\n\nAn audit put canaries into the training records by fair coins, and guessed {bound.correct} of "
            f"{bound.guesses} of them right: ε of a record is at least {bound.epsilon:.2f}, with 95 % confidence. So "
            f"many guesses can prove at most {bound.provable:.2f}; a low bound is no proof of privacy."
        )
    if (test := facts.membership) is not None:
        values = test.values
        text += (
            f"\n\nA membership test by the loss against the base model told trained records from held-out ones with an "
            f"AUC of {values['auc']:.3f} (95 %: {values['auc_low']:.3f} to {values['auc_high']:.3f}), and found "
            f"{values['tpr']:.1%} of the trained ones at 1 % false positives."
        )
    return text


def _licence(subject: CardSubject) -> str:
    if subject.licence is None:
        return "No licence was given for this upload. The licence of the base model applies to derived models as well."
    return f"`{subject.licence}`. The licence of the base model applies to derived models as well."


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
