"""FLoRA residual aggregation: a department steps from its state towards the weighted mean of its clients' states.

``θ' = θ + momentum Σ w_c (θ_c − θ)`` with ``Σ w_c = 1``, which is ``θ + momentum (mean − θ)``.

The mean is a running one, so any number of clients needs the memory of one adapter. It is accumulated in fp64 and cast
to fp32 once, so clients added in the same order give the same bits on every machine with the same arithmetic.

Published FLoRA (Wang et al. 2024, arXiv 2409.05976) stacks the clients' factors, see
`fl_lightning.aggregation.products.stacking`. Here `flora` is residual averaging: a server step by plain SGD as in Reddi
et al. (2021, arXiv 2003.00295), who call `momentum` the server learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from fl_lightning.state import LoraState

_BLOCK = 1 << 17
"""Elements converted to fp64 at a time (1 MiB), so that they are still in the cache when they are added."""


class WeightedMean:
    """Running weighted mean of states in fp64: ``Σ w_i x_i / Σ w_i``.

    A state is read once and not kept. Tensors are processed in blocks, several small ones or one large one at a time.

    Example:
        >>> mean = WeightedMean()
        >>> mean.add({"lora_A": torch.tensor([1.0])}, weight=1)
        >>> mean.add({"lora_A": torch.tensor([4.0])}, weight=3)
        >>> mean.value()["lora_A"].item()
        3.25
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._count = 0
        self._sums: LoraState = {}
        self._blocks: list[tuple[list[str], torch.Tensor, list[torch.Tensor], list[torch.Tensor]]] = []

    def add(self, state: Mapping[str, torch.Tensor], weight: float) -> None:
        """Add one state.

        Raises:
            ValueError: if the weight is not positive and finite, names or shapes differ from those of the states
                before, or a value is NaN or infinite. In the last case the mean cannot be used any more.
        """
        self.add_all([(state, weight)])

    def add_all(self, items: Sequence[tuple[Mapping[str, torch.Tensor], float]]) -> None:
        """Add states that are all in memory; faster than `add`, with the same bits.

        The sums of a block stay in the cache while all states are added to them.

        Raises:
            ValueError: as in `add`. Except for values that are not finite, no state is added then.
        """
        if not items:
            return
        shapes = {n: t.shape for n, t in (self._sums or items[0][0]).items()}
        for state, weight in items:  # check all before adding any, so that a refused state does not change the sums
            _check(state, weight, shapes)
        if not self._sums:
            self._start(items[0][0])
        with torch.no_grad():
            for names, flat, sums, converted in self._blocks:
                for state, weight in items:
                    torch._foreach_copy_(converted, [state[name] for name in names])
                    torch._foreach_add_(sums, converted, alpha=weight)
                if not math.isfinite(flat.dot(flat).item()) and not torch.isfinite(flat).all():
                    self.total = math.nan
                    raise ValueError(self._not_finite(items))
        for _, weight in items:
            self.total += weight
        self._count += len(items)

    def _start(self, state: Mapping[str, torch.Tensor]) -> None:
        """Allocate zero sums, and one fp64 buffer for the converted tensors of all blocks."""
        names: list[list[str]] = [[]]
        filled, largest = 0, 0
        for name, tensor in state.items():
            if names[-1] and filled + tensor.numel() > _BLOCK:
                names.append([])
                filled = 0
            names[-1].append(name)
            filled += tensor.numel()
            largest = max(largest, filled)
        buffer = torch.empty(largest, dtype=torch.float64)
        for block in filter(None, names):
            flat = torch.zeros(sum(state[name].numel() for name in block), dtype=torch.float64)
            sums = _split(flat, [state[name].shape for name in block])
            converted = _split(buffer[: flat.numel()], [s.shape for s in sums])
            self._blocks.append((block, flat, sums, converted))
            self._sums.update(zip(block, sums, strict=True))
        self._sums = {name: self._sums[name] for name in state}

    def _not_finite(self, items: Sequence[tuple[Mapping[str, torch.Tensor], float]]) -> str:
        """Which of the states just added has a value that is not finite, and where."""
        for index, (state, _) in enumerate(items, start=self._count):
            if names := _not_finite_names(state):
                return f"item {index}: expected finite values, got NaN or infinity in {names}; leave it out"
        return (
            "expected a finite running mean, got NaN or infinity: the sums overflow, or an earlier state was refused; "
            "start a new WeightedMean"
        )

    def value(self) -> LoraState:
        """The mean so far, in fp64.

        Raises:
            ValueError: if no state was added.
        """
        if not self.total > 0:
            raise ValueError("states to average: expected at least one with a positive weight, got none")
        return {name: total / self.total for name, total in self._sums.items()}


def _split(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    parts = torch.split_with_sizes(flat, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _not_finite_names(state: Mapping[str, torch.Tensor]) -> str:
    """The first names of tensors with NaN or infinity; empty if all are finite."""
    names = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check(state: Mapping[str, torch.Tensor], weight: float, shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a weight or a state that cannot be added to sums of these names and shapes."""
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weight: expected a positive finite number, got {weight}")
    if shapes.keys() != state.keys():
        name = sorted(shapes.keys() ^ state.keys())[0]
        raise ValueError(f"{name}: expected equal names in all states, got states with and without it")
    for name, tensor in state.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{name}: expected shape {tuple(shapes[name])}, got {tuple(tensor.shape)}")


def residual_step(theta: torch.Tensor, residual: torch.Tensor, momentum: float) -> torch.Tensor:
    """The step of FLoRA and of plain SGD on the server, for one tensor: ``θ + momentum Δ``."""
    return theta + momentum * residual


def apply_step(
    mean: Mapping[str, torch.Tensor],
    previous_global: Mapping[str, torch.Tensor] | None = None,
    momentum: float = 0.1,
    use_residual: bool = True,
) -> LoraState:
    """Step from the previous state towards the clients' mean: ``θ + momentum (mean − θ)``, in fp64, cast to fp32.

    Equal to ``θ + momentum Σ w_c (θ_c − θ)``, since the weights sum to one. Without a previous state or with
    ``use_residual=False`` the mean itself.

    Raises:
        ValueError: if momentum is not in (0, 1], names or shapes differ, or a value is NaN or infinite in fp32.
    """
    if previous_global is None or not use_residual:
        state = {name: tensor.to(torch.float32) for name, tensor in mean.items()}
        if names := _not_finite_names(state):
            raise ValueError(f"mean: expected values within fp32, got NaN or infinity in {names}")
        return state
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum: expected a number in (0, 1], got {momentum}")
    if mean.keys() != previous_global.keys():
        name = sorted(mean.keys() ^ previous_global.keys())[0]
        where = "the clients' states" if name in mean else "previous_global"
        raise ValueError(
            f"{name}: expected equal names in previous_global and the clients' states, got it in {where} only"
        )
    new: LoraState = {}
    for name, target in mean.items():
        if previous_global[name].shape != target.shape:
            previous_shape, shape = tuple(previous_global[name].shape), tuple(target.shape)
            raise ValueError(
                f"{name}: expected shape {shape} in previous_global as in the clients, got {previous_shape}"
            )
        start = previous_global[name].detach().to("cpu", torch.float64)
        new[name] = residual_step(start, target.double() - start, momentum).to(torch.float32)
    if names := _not_finite_names(new):
        raise ValueError(
            f"previous_global: expected finite values and a step within fp32, got NaN or infinity in {names}"
        )
    return new


def flora_weighted_aggregate(
    items: Iterable[tuple[Mapping[str, torch.Tensor], float]],
    previous_global: Mapping[str, torch.Tensor] | None = None,
    momentum: float = 0.1,
    use_residual: bool = True,
) -> LoraState:
    """Aggregate client states into the next department state: ``θ' = θ + momentum Σ w_c (θ_c − θ)``.

    Args:
        items: (state, weight) pairs; weights are normalized to w_c = weight / Σ weights. A generator is consumed one
            pair at a time, so only one state need be in memory; a list is processed as a whole, which is faster.
        previous_global: θ, the department's state before; None gives the weighted mean.
        momentum: step size on the mean residual, in (0, 1].
        use_residual: False gives the plain weighted mean.

    Returns:
        The new state, fp32 on the CPU, names as in the items.

    Raises:
        ValueError: no items, a weight that is not positive, states that differ in names or shapes, or a value that is
            NaN or infinite.

    Example:
        >>> start = {"lora_A": torch.tensor([0.0])}
        >>> clients = [({"lora_A": torch.tensor([1.0])}, 1), ({"lora_A": torch.tensor([4.0])}, 3)]
        >>> round(flora_weighted_aggregate(clients, start, momentum=0.1)["lora_A"].item(), 4)
        0.325
    """
    mean = WeightedMean()
    if isinstance(items, (list, tuple)):
        mean.add_all(items)
    else:
        for state, weight in items:
            mean.add(state, weight)
    return apply_step(mean.value(), previous_global, momentum, use_residual)
